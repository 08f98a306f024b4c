"""DockerSpawner as it comes, with what everybody sets: a home per user, old containers removed."""

import os
from pathlib import Path

c = get_config()  # noqa: F821
load_subconfig(str(Path(__file__).with_name("hub_common.py")))  # noqa: F821
images = os.environ["BENCH_IMAGES"].split()

c.JupyterHub.spawner_class = "docker"
c.DockerSpawner.image = images[0]
c.DockerSpawner.allowed_images = images
c.DockerSpawner.remove = True
c.DockerSpawner.name_template = os.environ["BENCH_NAMES"] + "-{username}"
c.DockerSpawner.volumes = {os.environ["BENCH_NAMES"] + "-home-{username}": "/home/jovyan"}
# The quickest way of reaching a container from a hub on the host: no port is published.
c.DockerSpawner.use_internal_ip = True
c.DockerSpawner.port = 8888
c.Spawner.hub_connect_url = "http://hub:8081"
# What JupyterHub asks of spawners since version 5; without it every start logs a warning.
c.Spawner.apply_user_options = {"image": "image"}
