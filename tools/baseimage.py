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
DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY = "http://deb.debian.org/debian-security"
#: Nobody reads these in a container.
_NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale")
_DOWNLOADED = ("var/cache/apt/archives", "var/lib/apt/lists")
_APT = """\
// As in Debian's own images: no index in several languages, nothing kept that was downloaded.
Acquire::Languages "none";
APT::Keep-Downloaded-Packages "false";
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
    main, security = mirrors(_sources(Path("/etc/apt")))
    if mirror:
        main = mirror
    print(f"==> Making {NAME} from {main} (a minute)", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpuslice-base-") as folder:
        root = Path(folder) / "root"
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", SUITE, str(root), main],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NoBaseImage(f"debootstrap failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        slim(root, main, security)
        _import(root)


def slim(root: Path, main: str, security: str) -> None:
    """Leave in a fresh Debian what a container needs, and tell it where its packages come from."""
    for folder in (*_NOT_NEEDED, *_DOWNLOADED):
        for path in (root / folder).glob("*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for log in (root / "var/log").rglob("*"):
        if log.is_file():
            log.unlink()
    (root / "etc/apt/sources.list").write_text(
        f"deb {main} {SUITE} main\n"
        f"deb {main} {SUITE}-updates main\n"
        f"deb {security} {SUITE}-security main\n"
    )
    (root / "etc/apt/apt.conf.d/container").write_text(_APT)
    # This machine's name and resolver are not the image's.
    for name in ("etc/hostname", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)


def mirrors(sources: Iterable[str]) -> tuple[str, str]:
    """Where this machine gets Debian's packages, and their security updates.

    Args:
        sources: The texts of apt's source files, of either form.
    """
    main, security = DEFAULT_MIRROR, DEFAULT_SECURITY
    for text in sources:
        for address, suites in _entries(text):
            if SUITE in suites:
                main = address
            elif f"{SUITE}-security" in suites:
                security = address
    return main, security


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


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


if __name__ == "__main__":
    try:
        make(sys.argv[1] if len(sys.argv) > 1 else None)
    except NoBaseImage as failure:
        sys.exit(f"gpuslice: {failure}")
