"""What tests of ``gpuslice doctor --gpu`` need: a CUDA driver that is none, images with Python."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from nvmlsim.build import compiler

PYTHON_IMAGE = "gpuslice-test/python:latest"
_LABEL = "gpuslice.test.python"
_SOURCE = Path(__file__).with_name("fakecuda.c")
_LIBRARY = "libcuda.so.1"
_WHAT_IT_LOADS = """
import __future__, ctypes, json, os, sys, typing
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
"""


def build_cuda(folder: Path) -> Path:
    """Compiles ``fakecuda.c``; its folder belongs on LD_LIBRARY_PATH."""
    library = folder / _LIBRARY
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    soname = f"-Wl,-soname,{_LIBRARY}"
    subprocess.run([*compiler(), *flags, soname, "-o", str(library), str(_SOURCE)], check=True)
    library.chmod(0o755)
    return library


def python_image(client: docker.DockerClient) -> str:
    """An image with the interpreter of these tests as ``python3``, and what the doctor imports.

    It stays for the next run, like the tiny image.
    """
    found = {str(path): path for path in _files()}
    key = hashlib.sha256("\n".join(sorted(found)).encode() + sys.version.encode()).hexdigest()
    with suppress(ImageNotFound):
        if client.images.get(PYTHON_IMAGE).labels.get(_LABEL) == key:
            return PYTHON_IMAGE
    changes = ["ENV PATH=/usr/bin:/bin", f"LABEL {_LABEL}={key}"]
    client.api.import_image_from_data(python_layer(), *PYTHON_IMAGE.split(":"), changes=changes)
    return PYTHON_IMAGE


def python_layer() -> bytes:
    """The files of that image."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        folders: set[str] = set()

        def folder(path: Path) -> None:
            for one in reversed([path, *path.parents]):
                name = str(one).lstrip("/")
                if name and name not in folders:
                    folders.add(name)
                    entry = tarfile.TarInfo(name)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(entry)

        for name in ("/tmp", "/proc", "/sys", "/dev", "/usr/bin"):
            folder(Path(name))
        for path in _files():
            folder(path.parent)
            entry = tarfile.TarInfo(str(path).lstrip("/"))
            entry.size, entry.mode = path.stat().st_size, 0o755
            with path.open("rb") as stream:
                archive.addfile(entry, stream)
        link = tarfile.TarInfo("usr/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, str(_interpreter())
        archive.addfile(link)
    return layer.getvalue()


def _interpreter() -> Path:
    return Path(sys._base_executable).resolve()  # type: ignore[attr-defined]


def _files() -> list[Path]:
    """The interpreter, the modules that the doctor's program loads, and their libraries."""
    run = subprocess.run(
        [str(_interpreter()), "-c", _WHAT_IT_LOADS],
        check=True, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    modules = [Path(line) for line in run.stdout.splitlines()]
    binaries = [_interpreter(), *(path for path in modules if ".so" in path.suffixes)]
    libraries: list[Path] = []
    for binary in binaries:
        listed = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            words = [word for word in line.split() if word.startswith("/")]
            libraries += [Path(word) for word in words[:1]]
    return sorted({*binaries, *modules, *libraries})
