"""gpuslice on the docker engine."""

import os
from pathlib import Path

import gpuslice

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).with_name("hub_common.py")))  # noqa: F821
# Nobody in these containers calls back; both have to be named.
c.Spawner.hub_connect_url = "http://hub:8081"
c.GpuSpawner.notebook_service_url = "http://proxy:8000/services/gpuslice/"
gpuslice.configure(
    c,
    config=os.environ["GPUSLICE_CONFIG"],
    state=os.environ["GPUSLICE_STATE"],
    engine="docker",
)
