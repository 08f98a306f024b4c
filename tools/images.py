"""Builds the container images, as `make images` does.

    images.py NAME... [--variant cpu|cuda] [--tag TAG] [--ca FILE] [--wheels FOLDER]

Our own wheels are made first, from this checkout and with its .venv, so that no image needs a
compiler, Node or yarn for them. What a closed network needs (certificates, mirrors, proxies) goes
into the build as secrets and predefined arguments, which no image keeps.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import baseimage

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "images"
#: Docker's own arguments: usable in every RUN, and neither in the image nor in its history.
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_LOG_LINES = 20


class BuildFailed(RuntimeError):
    """What went wrong, in words for the terminal."""


@dataclass(frozen=True)
class Image:
    """One of our images: which Dockerfile makes it, and which part of it."""

    name: str
    dockerfile: str
    target: str | None = None
    variants: bool = False


IMAGES = {
    image.name: image
    for image in (
        Image("hub", "images/platform/Dockerfile", "hub"),
        Image("node", "images/platform/Dockerfile", "node"),
        Image("postgres", "images/postgres/Dockerfile"),
        Image("notebook", "images/notebook/Dockerfile", variants=True),
    )
}


@dataclass(frozen=True)
class Build:
    """Everything that one run of this program hands to every build."""

    base: str
    variant: str
    tag: str
    version: str
    revision: str
    epoch: str
    secrets: dict[str, Path]
    torch: str
    wheels: Path | None
    more: list[str] = field(default_factory=list)


def tags(image: Image, build: Build) -> list[str]:
    """The names that an image gets; `latest` of the notebook is the variant built last."""
    name = f"gpuslice/{image.name}"
    if not image.variants:
        return [f"{name}:{build.tag}"]
    variant = build.variant if build.tag == "latest" else f"{build.tag}-{build.variant}"
    return [f"{name}:{build.tag}", f"{name}:{variant}"]


def command(image: Image, build: Build) -> list[str]:
    """The whole `docker buildx build` of one image."""
    arguments = {
        "BASE": build.base,
        "VERSION": build.version,
        "REVISION": build.revision,
        "SOURCE_DATE_EPOCH": build.epoch,
    }
    line = ["docker", "buildx", "build", "--progress=plain", "--load", "--file", image.dockerfile]
    if image.target:
        line += ["--target", image.target]
    if image.variants:
        arguments |= {"VARIANT": build.variant, "TORCH": build.torch}
        if build.wheels:
            line += ["--build-context", f"wheels={build.wheels}"]
    for tag in tags(image, build):
        line += ["--tag", tag]
    for name, value in arguments.items():
        line += ["--build-arg", f"{name}={value}"]
    for name in PROXY_VARIABLES:
        if os.environ.get(name):
            line += ["--build-arg", name]
    for name, path in build.secrets.items():
        line += ["--secret", f"id={name},src={path}"]
    return [*line, *build.more, "."]


# ------------------------------------------------------------------------------ what goes in


def make_wheels(epoch: str) -> None:
    """Our three wheels into build/images/dist: the same bytes whenever the sources are the same."""
    dist = WORK / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    line += ["--no-build-isolation", "--wheel-dir", str(dist)]
    sources = [".", "./extensions", "./images/starters"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": epoch, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*line, *sources], cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise BuildFailed("the wheels of this checkout could not be made: see above.")


def secrets(ca: Path | None, folder: Path) -> dict[str, Path]:
    """What downloads need on this machine: its certificates, and its mirrors if it has some.

    Args:
        ca: A file with certificates, if not this machine's own are to be used.
        folder: A private one. An index's address may have a password in it.
    """
    found = {}
    if certificates := ca or _certificates():
        if not certificates.is_file():
            raise BuildFailed(f"the file with certificates {certificates} is not there.")
        found["ca"] = certificates
    for name, value in (
        ("pip_index_url", os.environ.get("PIP_INDEX_URL")),
        ("npm_registry", os.environ.get("YARN_NPM_REGISTRY_SERVER")),
    ):
        if value:
            found[name] = folder / name
            found[name].write_text(value)
    return found


def _certificates() -> Path | None:
    """The bundle that this machine's own downloads are checked with."""
    for name in ("PIP_CERT", "SSL_CERT_FILE"):
        if os.environ.get(name):
            return Path(os.environ[name])
    usual = ssl.get_default_verify_paths().cafile
    return Path(usual) if usual else None


def torch_wheel(folder: Path) -> tuple[str, Path]:
    """The version of PyTorch's CPU build that is locked, and a folder with its wheel alone."""
    lock = (ROOT / "requirements" / "torch.txt").read_text()
    locked = re.search(r"(?m)^torch==(\S+)", lock)
    assert locked, "requirements/torch.txt locks torch"
    found = sorted(folder.glob(f"torch-{locked[1]}-cp311-*.whl"))
    if not found:
        raise BuildFailed(f"{folder} has no wheel of torch {locked[1]} for Python 3.11.")
    alone = WORK / "torch"
    shutil.rmtree(alone, ignore_errors=True)
    alone.mkdir(parents=True)
    shutil.copy2(found[0], alone)
    return locked[1], alone


def _git(*arguments: str) -> str:
    """What git says about this checkout; nothing where it is none."""
    if not shutil.which("git"):
        return ""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


# ---------------------------------------------------------------------------------- building


def run(image: Image, build: Build) -> str:
    """Build one image with its output in a log; a line about how it went."""
    log = WORK / f"{image.name}.log"
    started = time.monotonic()
    with log.open("w") as stream:
        done = subprocess.run(
            command(image, build), cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        raise BuildFailed(f"gpuslice/{image.name}: {end}\nThe whole output is in {log}.")
    name = tags(image, build)[0]
    size = int(_docker("image", "inspect", "--format", "{{.Size}}", name))
    return f"{name}  {size / 1e6:.0f} MB  {time.monotonic() - started:.0f} s"


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailed(done.stderr.strip() or f"docker {arguments[0]} failed.")
    return done.stdout.strip()


def require_engine() -> None:
    """Say in a sentence what is missing before anything takes time."""
    if not shutil.which("docker"):
        raise BuildFailed("docker is needed and not installed (apt-get install docker.io).")
    _docker("version", "--format", "{{.Server.Version}}")
    try:
        _docker("buildx", "version")
    except BuildFailed:
        raise BuildFailed(
            "docker's buildx is needed and not installed (apt-get install docker-buildx, or "
            "docker-buildx-plugin from Docker's own packages)."
        ) from None


def build_all(options: argparse.Namespace) -> None:
    """Check, make the wheels, build what was asked for."""
    unknown = [name for name in options.names if name not in IMAGES]
    if unknown:
        raise BuildFailed(f"there is no image {unknown[0]!r}; there are {', '.join(IMAGES)}.")
    require_engine()
    baseimage.require(options.base)
    WORK.mkdir(parents=True, exist_ok=True)
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _git("log", "-1", "--format=%ct") or "0"
    torch, wheels = "", None
    if options.wheels and options.variant == "cpu":
        torch, wheels = torch_wheel(options.wheels)
    elif options.variant == "cuda":
        lock = (ROOT / "requirements" / "image-cuda.txt").read_text()
        torch = re.findall(r"(?m)^torch==(\S+)", lock)[0]
    dirty = "-modified" if _git("status", "--porcelain") else ""
    revision = _git("rev-parse", "HEAD")
    print("==> Making the wheels of this checkout", flush=True)
    make_wheels(epoch)
    print(f"==> Building {', '.join(options.names)} (logs in {WORK.relative_to(ROOT)})", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="gpuslice-images-") as folder,
        ThreadPoolExecutor(len(options.names)) as pool,
    ):
        build = Build(
            base=options.base,
            variant=options.variant,
            tag=options.tag,
            version=tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
            revision=revision + dirty if revision else "unknown",
            epoch=epoch,
            secrets=secrets(options.ca, Path(folder)),
            torch=torch,
            wheels=wheels,
            more=options.flags,
        )
        for line in pool.map(lambda name: run(IMAGES[name], build), options.names):
            print(f"    {line}", flush=True)


def main(arguments: list[str]) -> int:
    """Run the command line; 1 with a sentence when it fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--variant", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tag", default="latest")
    parser.add_argument("--base", default=baseimage.NAME)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[])
    options = parser.parse_args(arguments)
    try:
        build_all(options)
    except (BuildFailed, baseimage.NoBaseImage) as failure:
        print(f"gpuslice: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
