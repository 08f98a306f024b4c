"""Writes the pages that are made from the code: ``make docs`` runs it, a test compares."""

from __future__ import annotations

from pathlib import Path

from gpuslice.settings import settings_reference

DOCS = Path(__file__).resolve().parent
SETTINGS = DOCS / "administrators" / "settings.md"
_INTRO = """
The file is read once, when a part starts: by the service, and by the hub for the addresses. An
unknown key, a bad price or a slice that fits on no device stops the start and says which. A key
that is left out has the default below. `hub_config/local/gpuslice.toml` is a file to copy.

The environment wins over the file: `GPUSLICE__NODE__ID=gpu2` is `id` of `[node]`. Values are
written as in the file, and a text may go without its quotes. The compose deployment uses it for
what its `.env` decides.

Sizes are stored in bytes, shares and cores in thousandths, prices in millionths; write them as the
examples do.
"""


def settings_page() -> str:
    """The reference of ``gpuslice.toml``, with what holds for all of it after the heading."""
    heading, rest = settings_reference().split("\n", 1)
    return f"{heading}\n{_INTRO}{rest}"


def main() -> None:
    """Write them."""
    SETTINGS.write_text(settings_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
