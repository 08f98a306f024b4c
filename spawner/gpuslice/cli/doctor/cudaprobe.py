"""What runs in a container to see which GPUs it has and whether they work; it prints one line.

``python3 -c`` gets the text of this file, so it imports nothing but the standard library of any
Python 3, and talks to the CUDA driver itself: an image needs no PyTorch to be tested.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

MARK = "gpuslice-doctor:"
BYTES = 64 * 1024 * 1024
_PATTERN = 0xA5


class Failed(Exception):
    """A call of the driver that did not succeed."""


def call(cuda: ctypes.CDLL, name: str, *arguments: Any) -> None:
    function = getattr(cuda, name, None)
    if function is None:
        raise Failed(f"the driver has no {name}")
    result = function(*arguments)
    if result != 0:
        raise Failed(f"{name} failed with CUDA error {result}")


def uuid_of(cuda: ctypes.CDLL, device: ctypes.c_int) -> str:
    """The device's UUID, of the MIG instance where it is one: 32 hex digits."""
    raw = (ctypes.c_ubyte * 16)()
    name = "cuDeviceGetUuid_v2" if hasattr(cuda, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
    call(cuda, name, ctypes.byref(raw), device)
    return bytes(raw).hex()


def try_memory(cuda: ctypes.CDLL, device: ctypes.c_int) -> None:
    """Allocates, writes and reads back."""
    context, memory = ctypes.c_void_p(), ctypes.c_uint64()
    call(cuda, "cuCtxCreate_v2", ctypes.byref(context), 0, device)
    call(cuda, "cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(BYTES))
    call(cuda, "cuMemsetD8_v2", memory, ctypes.c_ubyte(_PATTERN), ctypes.c_size_t(BYTES))
    back = ctypes.create_string_buffer(BYTES)
    call(cuda, "cuMemcpyDtoH_v2", back, memory, ctypes.c_size_t(BYTES))
    if back.raw.count(bytes([_PATTERN])) != BYTES:
        raise Failed("what was read is not what was written")
    call(cuda, "cuMemFree_v2", memory)
    call(cuda, "cuCtxDestroy_v2", context)


def main(with_cuda: bool) -> dict[str, Any]:
    names = os.listdir("/dev")  # noqa: PTH208  (as old as Python 3 itself)
    found: dict[str, Any] = {"devices": sorted(n for n in names if n.startswith("nvidia"))}
    if not with_cuda:
        return found
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        call(cuda, "cuInit", 0)
        count, device = ctypes.c_int(), ctypes.c_int()
        call(cuda, "cuDeviceGetCount", ctypes.byref(count))
        found["uuids"] = []
        for number in range(count.value):
            call(cuda, "cuDeviceGet", ctypes.byref(device), number)
            found["uuids"].append(uuid_of(cuda, device))
            try_memory(cuda, device)
        found["bytes"] = BYTES
    except (OSError, Failed) as error:
        found["error"] = str(error)
    return found


if __name__ == "__main__":
    print(MARK + json.dumps(main(sys.argv[1:] == ["cuda"])))
