"""The image that all others are made from: Debian 12, from a registry or from Debian's packages.

`make base-image` runs this file with any Python; it needs nothing but the standard library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

SUITE = "bookworm"
NAME = f"debian:{SUITE}-slim"
_SUITES = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
_DEBIANS = {
    suite: f"http://deb.debian.org/debian{'-security' * suite.endswith('-security')}"
    for suite in _SUITES
}
#: Nobody reads these in a container; the texts of licences stay.
_NOT_NEEDED = ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man")
_KEPT = ("copyright", "locale.alias")
_DOWNLOADED = ("var/cache/apt", "var/cache/ldconfig", "var/lib/apt/lists", "var/log")
_DPKG = "".join(f"path-exclude /{folder}/*\n" for folder in _NOT_NEEDED) + (
    "path-include /usr/share/doc/*/copyright\npath-include /usr/share/locale/locale.alias\n"
)
_APT = """\
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""


class NoBaseImage(RuntimeError):
    """There is no image to build upon; the text says how to get one."""


def require(name: str) -> None:
    """Get the base image from a registry unless it is here.

    Raises:
        NoBaseImage: It is neither here nor to be had.
    """
    if _docker("image", "inspect", name).returncode == 0:
        return
    print(f"==> Fetching {name}", flush=True)
    pulled = _docker("pull", "--quiet", name)
    if pulled.returncode == 0:
        return
    if name == NAME:
        raise NoBaseImage(
            f"there is no image {name} and no registry has it for this machine; `make base-image` "
            "makes it with debootstrap from this machine's Debian mirror, as root."
        )
    raise NoBaseImage(f"there is no image {name}: {pulled.stderr.strip()}")


def make(mirror: str | None) -> None:
    """Make `NAME` with debootstrap, from this machine's own mirror unless another is named.

    Raises:
        NoBaseImage: Something is missing for it, or it failed.
    """
    if _docker("image", "inspect", NAME).returncode == 0:
        print(f"==> {NAME} is here already", flush=True)
        return
    if not shutil.which("debootstrap"):
        raise NoBaseImage("debootstrap is needed and not installed (apt-get install debootstrap).")
    if os.geteuid():
        raise NoBaseImage("debootstrap needs root: sudo make base-image")
    found = {SUITE: mirror} if mirror else mirrors(_sources(Path("/etc/apt")))
    print(f"==> Making {NAME} from {found[SUITE]} (a minute)", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpuslice-base-") as folder:
        root = Path(folder) / "root"
        _run("debootstrap", "--variant=minbase", SUITE, str(root), found[SUITE])
        (root / "etc/apt/sources.list").write_text(
            "".join(f"deb {address} {suite} main\n" for suite, address in found.items())
        )
        # What has been mended since the release.
        for command in ("update", "upgrade"):
            _run("chroot", str(root), "apt-get", "-qq", "-y", command)
        slim(root)
        _import(root)


def slim(root: Path) -> None:
    """Leave in a fresh Debian what a container needs."""
    for folder in (*_NOT_NEEDED, *_DOWNLOADED):
        for path in sorted((root / folder).rglob("*"), reverse=True):
            if not path.is_dir() or path.is_symlink():
                if path.name not in _KEPT:
                    path.unlink()
            elif folder in _NOT_NEEDED and not any(path.iterdir()):
                path.rmdir()
    (root / "etc/apt/apt.conf.d/container").write_text(_APT)
    (root / "etc/dpkg/dpkg.cfg.d/container").write_text(_DPKG)
    # This machine's name and resolver are not the image's.
    for name in ("etc/hostname", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)


def mirrors(sources: Iterable[str]) -> dict[str, str]:
    """Suite to address: where this machine gets the packages of this Debian, or else Debian's own.

    Args:
        sources: The texts of apt's source files, of either form.
    """
    found: dict[str, str] = {}
    for text in sources:
        for address, suites in _entries(text):
            for suite in suites:
                found.setdefault(suite, address)
    if SUITE not in found:
        return dict(_DEBIANS)
    return {suite: found[suite] for suite in _SUITES if suite in found}


def _entries(text: str) -> Iterable[tuple[str, list[str]]]:
    """Address and suites of each `deb` entry."""
    text = re.sub(r"(?m)^\s*#.*\n?", "", text)
    for line in re.findall(r"(?m)^deb\s+(?:\[[^\]]*\]\s*)?(\S+)\s+(\S+)", text):
        yield line[0], [line[1]]
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"(?m)^(Types|URIs|Suites):[ \t]*(.*)$", stanza))
        if "deb" in fields.get("Types", "").split() and fields.get("URIs"):
            yield fields["URIs"].split()[0], fields.get("Suites", "").split()


def _sources(folder: Path) -> list[str]:
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    return [
        file.read_text()
        for file in files
        if file.suffix in (".list", ".sources") and file.is_file()
    ]


def _import(root: Path) -> None:
    with subprocess.Popen(
        ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-c", "."],
        stdout=subprocess.PIPE,
    ) as tar:
        done = subprocess.run(
            ["docker", "import", "--change", 'CMD ["bash"]', "-", NAME],
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
        if tar.stdout:
            tar.stdout.close()
    if tar.returncode or done.returncode:
        raise NoBaseImage(f"docker import failed: {done.stderr.strip()}")


def _run(*command: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise NoBaseImage(f"{command[0]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    try:
        make(sys.argv[1] if len(sys.argv) > 1 else None)
    except NoBaseImage as failure:
        sys.exit(f"gpuslice: {failure}")
