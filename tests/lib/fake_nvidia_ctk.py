"""A stand-in for ``nvidia-ctk``: knows ``cdi generate`` and the options that are used of it.

    python fake_nvidia_ctk.py HOW FILE cdi generate --mode=nvml ...

HOW is ``print`` (the specification in FILE), ``twice`` (followed by a part of it, as toolkits do
that tell coherent GPUs apart), ``fail``, ``torn``, or ``hang`` (with a child that hangs too; their
process ids are written to FILE). Like the real one it takes options from the environment too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

KNOWN = {
    "mode": ("auto", "nvml", "csv", "wsl", "management"),
    "format": ("json", "yaml"),
    "device-name-strategy": ("index", "uuid", "type-index"),
    "output": None,
}


def main(how: str, file: Path, *arguments: str) -> int:
    if arguments[:2] != ("cdi", "generate"):
        return wrong(f"No help topic for {arguments[:2]}")
    options = {"format": "yaml", "device-name-strategy": "index", "mode": "auto"}
    for argument in arguments[2:]:
        name, _, value = argument.removeprefix("--").partition("=")
        if name not in KNOWN:
            return wrong(f"flag provided but not defined: -{name}")
        if KNOWN[name] is not None and value not in KNOWN[name]:
            return wrong(f"invalid {name}: {value}")
        options[name] = value
    say("level=info msg=\"Auto-detected mode as 'nvml'\"")
    if how == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        file.write_text(f"{os.getpid()} {child.pid}")
        time.sleep(3600)
    if how == "fail":
        return wrong("failed to generate CDI spec: failed to initialize NVML: Driver Not Loaded")
    spec = json.loads(file.read_text())
    if options["device-name-strategy"] != "uuid":
        for number, device in enumerate(spec["devices"]):
            device["name"] = str(number)
    text = json.dumps(spec) if options["format"] == "json" else f"---\ncdiVersion: {spec}\n"
    if how == "torn":
        text = text[: len(text) // 2]
    if how == "twice":
        text += json.dumps({**spec, "kind": "nvidia.com/gpu.coherent", "devices": []})
    where = os.environ.get("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH")
    if where:
        Path(where).write_text(text)
    else:
        sys.stdout.write(text)
    return 0


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def wrong(line: str) -> int:
    say(f'level=error msg="{line}"')
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
