"""Draws pictures side by side, from the GPU's memory or the CPU's."""

from __future__ import annotations

from typing import Any


def show(**pictures: Any) -> None:
    """Draw each picture under its name: `show(before=photo, after=small)`.

    The brightness scale is the same for all pictures in one row, except for yes/no pictures.
    """
    from matplotlib import pyplot

    count = len(pictures)
    _, axes = pyplot.subplots(1, count, figsize=(3.6 * count, 3.6), squeeze=False)
    for axis, (name, picture) in zip(axes[0], pictures.items(), strict=True):
        on_host = picture.get() if hasattr(picture, "get") else picture
        axis.imshow(on_host, cmap="gray", vmin=0, vmax=1)
        axis.set_title(name.replace("_", " "))
        axis.axis("off")
    pyplot.tight_layout()
    pyplot.show()
