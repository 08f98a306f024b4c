"""Which calls of CuPy and cuCIM the starters make, and whether these exist with these arguments.

Nothing here imports CUDA. `gpu_signatures.json` holds the signatures as they are written in the
source inside the two wheels. To make it anew (it downloads 90 MB):

    python tests/notebooks/gpucontract.py

A name that is compiled has no signature in the wheels; the table says "compiled" for it, or where
it comes from ("numpy"): it is there, and its arguments are not checked.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTERS = ROOT / "images" / "starters"
TABLE = Path(__file__).with_name("gpu_signatures.json")
WHEELS = ("cucim-cu13==26.10.0", "cupy-cuda13x==14.2.0")
SOURCES = (
    STARTERS / "gpulab" / "backend.py",
    STARTERS / "gpuslice_starters" / "notebooks" / "image-processing.py",
)
COMPILED = "compiled"
#: What the notebook asks of arrays, besides arithmetic; a fake GPU in the tests allows only these.
ARRAY = ("all", "astype", "dtype", "get", "max", "mean", "min", "shape", "sum")
_ROOTS = {
    "xp": "cupy",
    "self.xp": "cupy",
    "cupy": "cupy",
    "ndi": "cupyx.scipy.ndimage",
    "ski": "cucim.skimage",
}
_MOST_STEPS = 8


@dataclass(frozen=True, slots=True)
class Use:
    """A name of the GPU's libraries in our code; `positional` None where it is not called."""

    name: str
    line: int
    positional: int | None = None
    keywords: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------ what is used


def uses(text: str) -> list[Use]:
    """Every `ski.…`, `ndi.…` and `xp.…` of a source, with the arguments where it is called."""
    found: dict[int, Use] = {}
    inside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and (name := _real_name(node.func)):
            keywords = tuple(k.arg for k in node.keywords if k.arg)
            found[id(node.func)] = Use(name, node.lineno, len(node.args), keywords)
        elif isinstance(node, ast.Attribute):
            inside.add(id(node.value))
            if (name := _real_name(node)) and id(node) not in found and id(node) not in inside:
                found[id(node)] = Use(name, node.lineno)
    return sorted(found.values(), key=lambda use: (use.line, use.name))


def _real_name(node: ast.expr) -> str | None:
    """`ski.filters.sobel` as `cucim.skimage.filters.sobel`; None for any other name."""
    written = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
    if not all(part.isidentifier() for part in written.split(".")):
        return None
    for root, real in _ROOTS.items():
        if written.startswith(f"{root}."):
            return real + written.removeprefix(root)
    return None


def problems(text: str, signatures: dict[str, str]) -> list[str]:
    """What of a source would not work on a GPU, in words."""
    found = []
    for use in uses(text):
        if use.name not in signatures:
            found.append(f"line {use.line}: {use.name} is not known to exist")
        elif use.positional is not None and signatures[use.name].startswith("("):
            try:
                bind(signatures[use.name], use.positional, use.keywords)
            except TypeError as error:
                found.append(f"line {use.line}: {use.name}: {error}")
    return found


def bind(signature: str, positional: int, keywords: tuple[str, ...]) -> None:
    """Raises TypeError when a function with this signature does not take these arguments."""
    arguments = ast.parse(f"def f{signature}: pass").body[0]
    assert isinstance(arguments, ast.FunctionDef)
    kinds = inspect.Parameter
    a = arguments.args
    # Defaults count from the end, over the positional-only and the ordinary ones together.
    plain = [(p, kinds.POSITIONAL_ONLY) for p in a.posonlyargs]
    plain += [(p, kinds.POSITIONAL_OR_KEYWORD) for p in a.args]
    first_default = len(plain) - len(a.defaults)
    parameters = [
        inspect.Parameter(p.arg, kind, default=None if i >= first_default else kinds.empty)
        for i, (p, kind) in enumerate(plain)
    ]
    if a.vararg:
        parameters.append(inspect.Parameter(a.vararg.arg, kinds.VAR_POSITIONAL))
    for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
        empty = kinds.empty if default is None else None
        parameters.append(inspect.Parameter(p.arg, kinds.KEYWORD_ONLY, default=empty))
    if a.kwarg:
        parameters.append(inspect.Parameter(a.kwarg.arg, kinds.VAR_KEYWORD))
    inspect.Signature(parameters).bind(*[None] * positional, **dict.fromkeys(keywords))


# ----------------------------------------------------------------------------- what the wheels have


class Wheels:
    """The files inside some wheels, read without unpacking or importing anything."""

    def __init__(self, paths: list[Path]) -> None:
        self._archive_of: dict[str, zipfile.ZipFile] = {}
        for path in paths:
            archive = zipfile.ZipFile(path)
            self._archive_of |= dict.fromkeys(archive.namelist(), archive)

    def signature(self, dotted: str) -> str | None:
        """As in the source; "compiled" or its origin where there is none; None: no such name."""
        module, _, name = dotted.rpartition(".")
        for _ in range(_MOST_STEPS):
            while not (files := list(self._files(module))) and "." in module:
                # `cupy.cuda.runtime.f`: cupy.cuda imports runtime from elsewhere.
                owner, _, attribute = module.rpartition(".")
                moved = self._step(list(self._files(owner)), owner, attribute)
                if not isinstance(moved, tuple):
                    return None
                module = ".".join(moved)
            if not files:
                return module
            step = self._step(files, module, name)
            if not isinstance(step, tuple):
                return step
            module, name = step
        return None

    def _files(self, module: str) -> Iterator[str]:
        base = module.replace(".", "/")
        for candidate in (f"{base}/__init__.pyi", f"{base}/__init__.py", f"{base}.py"):
            if candidate in self._archive_of:
                yield candidate
        yield from (f for f in self._archive_of if f.startswith(f"{base}.") and f.endswith(".so"))

    def _step(self, files: list[str], module: str, name: str) -> str | tuple[str, str] | None:
        """The signature, or where the name is imported from."""
        everything_of = None
        for file in files:
            raw = self._archive_of[file].read(file)
            if file.endswith(".so"):
                if name.encode() in raw:
                    return COMPILED
                continue
            package = module if "/__init__." in file else module.rpartition(".")[0]
            for node in ast.walk(ast.parse(raw)):
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    return f"({_without_annotations(node.args)})"
                if isinstance(node, ast.ImportFrom):
                    for alias in node.names:
                        if (alias.asname or alias.name) == name:
                            return self._target(package, node), alias.name
                        if alias.name == "*":
                            everything_of = self._target(package, node), name
        return everything_of

    @staticmethod
    def _target(package: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = package.split(".")
        base = parts[: len(parts) - node.level + 1]
        return ".".join([*base, node.module] if node.module else base)


def _without_annotations(arguments: ast.arguments) -> str:
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return ast.unparse(arguments)


# ------------------------------------------------------------------------------------- the table


def names() -> list[str]:
    """Every name of the GPU's libraries that the starters use."""
    called = {use.name for path in SOURCES for use in uses(path.read_text())}
    return sorted(called | {f"cupy.ndarray.{method}" for method in ARRAY})


def signatures_from(paths: list[Path]) -> dict[str, str | None]:
    """The signature of each name that the starters use, None where the wheels have no such name."""
    wheels = Wheels(paths)
    return {name: _signature(wheels, name) for name in names()}


def _signature(wheels: Wheels, name: str) -> str | None:
    if name.startswith("cupy.ndarray."):
        # The class is compiled; its methods are names in that file.
        method = name.rpartition(".")[2]
        return wheels.signature(f"cupy._core.core.{method}")
    return wheels.signature(name)


def download(folder: Path) -> list[Path]:
    """Fetch the wheels; raises CalledProcessError where pip cannot."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
         "--only-binary=:all:", "--dest", str(folder), *WHEELS],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return sorted(folder.glob("*.whl"))


def main() -> None:
    """Write the table."""
    with tempfile.TemporaryDirectory() as scratch:
        wheels = download(Path(scratch))
        table = {
            "read": datetime.now(UTC).date().isoformat(),
            "wheels": {
                wheel.name: hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels
            },
            "signatures": signatures_from(wheels),
        }
    missing = [name for name, signature in table["signatures"].items() if signature is None]
    if missing:
        sys.exit(f"not in the wheels: {', '.join(missing)}")
    TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
