"""The hub of gpuslice's demo, with the people and the servers of the benchmark."""

from pathlib import Path

HERE = Path(__file__).parent

c = get_config()  # noqa: F821
load_subconfig(str(HERE.parents[1] / "hub_config" / "local" / "jupyterhub_config.py"))  # noqa: F821
load_subconfig(str(HERE / "hub_common.py"))  # noqa: F821
c.LocalGpuSpawner.cmd = c.Spawner.cmd
