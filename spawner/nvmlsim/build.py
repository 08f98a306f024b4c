"""Compile nvmlsim.c to libnvidia-ml.so.1, with the machine's compiler or else with ziglang's."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from nvmlsim.layout import SOURCE

LIBRARY_NAME = "libnvidia-ml.so.1"
FLAGS = (
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-pthread",
    f"-Wl,-soname,{LIBRARY_NAME}",
)
_STAMP = f"{LIBRARY_NAME}.source"
_TIMEOUT_S = 300  # ziglang builds its C library on first use


class BuildError(RuntimeError):
    """The library could not be compiled; the message says what to do or what the compiler said."""


def compiler() -> list[str]:
    """Return the command that compiles C: $CC, `cc`, `gcc`, `clang`, or `python -m ziglang cc`.

    Raises:
        BuildError: There is none.
    """
    if configured := shlex.split(os.environ.get("CC", "")):
        return configured
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise BuildError(
        "No C compiler for the simulated GPUs: install one (apt-get install gcc) "
        "or the Python package (pip install ziglang)."
    )


def build_library(target_dir: str | os.PathLike[str]) -> Path:
    """Compile the library into `target_dir`, unless it is there and of this source already.

    A package that comes with one (an image's, where there is no compiler) gives that instead.
    Several processes may ask at once: one compiles, the others wait and find it done, and the file
    is replaced in one step, so whoever has the old one loaded keeps it.

    Returns:
        The absolute path of libnvidia-ml.so.1; its folder belongs on LD_LIBRARY_PATH.

    Raises:
        BuildError: No compiler, or it failed.
    """
    folder = Path(target_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / LIBRARY_NAME
    stamp = folder / _STAMP
    wanted = hashlib.sha256(SOURCE.read_bytes() + "\0".join(FLAGS).encode()).hexdigest()
    with (folder / f"{LIBRARY_NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _made_from(folder) == wanted:
            return library
        temporary = folder / f".{LIBRARY_NAME}.new"
        if _made_from(SOURCE.parent) == wanted:
            shutil.copyfile(SOURCE.parent / LIBRARY_NAME, temporary)
        else:
            compile_source(["-o", str(temporary)], cache=folder / "zig-cache")
        temporary.replace(library)
        stamp.write_text(wanted + "\n")
    return library


def _made_from(folder: Path) -> str | None:
    """What the library in a folder was made from; None when there is no library."""
    stamp = folder / _STAMP
    if not (folder / LIBRARY_NAME).exists() or not stamp.exists():
        return None
    return stamp.read_text().strip()


def compile_source(arguments: list[str], *, cache: Path | None = None) -> None:
    """Run the compiler on nvmlsim.c with our flags and `arguments`.

    Args:
        arguments: More of the command line.
        cache: Where ziglang, if it is the compiler, keeps what it builds; else in the home folder.

    Raises:
        BuildError: It failed; the message ends with what it said.
    """
    command = [*compiler(), *FLAGS, *arguments, str(SOURCE)]
    environment = dict(os.environ)
    if cache:
        environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache))
        environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(cache))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"Could not run {shlex.join(command[:1])}: {error}") from error
    if done.returncode:
        raise BuildError(
            f"{shlex.join(command)} failed ({done.returncode}):\n{done.stderr[-4000:]}"
        )
