"""Bugs to plant into a starter or into what it computes with; its own checks must find each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from starterworld import HERE

from gpuslice_starters.build import source

GPULAB = HERE.parents[1] / "images" / "starters" / "gpulab"


@dataclass(frozen=True)
class Bug:
    """One bug: where it is, what is changed, and the section whose check must fail.

    Attributes:
        old: Text in the notebook, in it once; empty for a bug in `gpulab`.
        new: What it becomes; for a bug in `gpulab` the statements that break `lab`.
    """

    section: str
    new: str
    old: str = ""
    starter: str = "image-processing"
    quick: bool = False

    def text(self) -> str:
        """The starter with the bug in it."""
        text = source(self.starter)
        if not self.old:
            return text
        assert text.count(self.old) == 1, f"{self.old!r} is in it {text.count(self.old)} times"
        return text.replace(self.old, self.new)

    def path(self, folder: Path) -> list[Path]:
        """A folder with the broken gpulab, for Python to look into first."""
        if self.old:
            return []
        shutil.copytree(GPULAB, folder / "gpulab", ignore=shutil.ignore_patterns("__pycache__"))
        with (folder / "gpulab" / "__init__.py").open("a") as stream:
            stream.write(_BROKEN + "".join(f"    {line}\n" for line in self.new.splitlines()))
            stream.write("    return lab\n")
        return [folder]


_BROKEN = """

_right = open_lab


def open_lab(want=None):
    lab = _right(want)
    xp, ndi, ski = lab.xp, lab.ndi, lab.ski
"""


def _wrapped(name: str, body: str) -> str:
    """Statements that replace a function by `body`, an expression over `right`, `a` and `k`."""
    owner, _, function = name.rpartition(".")
    return f"right = {name}\n{owner}.{function} = lambda *a, **k: {body}"


_PICTURE = "1. A picture is an array"
_MEAN = "6. Mean filter"
_GAUSSIAN = "7. Gaussian filter"
_EDGES = "8. Edges: Sobel and Canny"
_DISC = "9. Erode, dilate, open, close"
_SWAP = "m = ski.morphology\nm.{0}, m.{1} = m.{1}, m.{0}"

BUGS = {
    "half as bright": Bug(
        _PICTURE, "object.__setattr__(lab, 'xp', __import__('types').SimpleNamespace("
        "asarray=lambda a: xp.asarray(a) // 2, float32=xp.float32))"
    ),
    "resize: another size": Bug("2. Resize", "(photo, (128, 64), anti", "(photo, (128, 128), anti"),
    "resize: two pixels aside": Bug(
        "2. Resize", _wrapped("ski.transform.resize", "xp.roll(right(*a, **k), 2, axis=1)")
    ),
    "rotate: the wrong way": Bug(
        "3. Rotate", _wrapped("ski.transform.rotate", "right(a[0], -a[1], **k)"), quick=True
    ),
    "rotate: another angle": Bug("3. Rotate", "rotated = ski.transform.rotate(photo, 33",
                                 "rotated = ski.transform.rotate(photo, 30"),
    "flip: the other axis": Bug("4. Flip", "mirrored = photo[::-1, :]",
                                "mirrored = photo[:, ::-1]"),
    "flip: not at all": Bug("4. Flip", "upside_down = photo\n", "upside_down = photo[::-1, :]\n"),
    "noise: too strong": Bug("5. Noise", "var=0.04", "var=0.01"),
    "noise: none": Bug("5. Noise", _wrapped("ski.util.random_noise", "a[0]")),
    "mean: 3 × 3": Bug(
        _MEAN, _wrapped("ndi.uniform_filter", "right(a[0], size=3)"), quick=True
    ),
    "mean: off centre": Bug(_MEAN, _wrapped("ndi.uniform_filter", "right(*a, **k, origin=1)")),
    "gaussian: sigma 3": Bug(_GAUSSIAN, "gaussian(noisy, sigma=3)", "gaussian(noisy, sigma=2)"),
    "gaussian: a mean": Bug(
        _GAUSSIAN, _wrapped("ski.filters.gaussian", "ndi.uniform_filter(a[0], size=5)"), quick=True
    ),
    "sobel: one direction": Bug(_EDGES, _wrapped("ski.filters.sobel", "right(*a, axis=0)")),
    "sobel: Prewitt": Bug(_EDGES, "ski.filters.prewitt(smooth)", "ski.filters.sobel(smooth)"),
    "canny: sigma 1": Bug(
        _EDGES, "canny = ski.feature.canny(photo, sigma=1)",
        "canny = ski.feature.canny(photo, sigma=2)",
    ),
    "canny: turned round": Bug(_EDGES, _wrapped("ski.feature.canny", "~right(*a, **k)")),
    "canny: elsewhere": Bug(
        _EDGES, _wrapped("ski.feature.canny", "xp.roll(right(*a, **k), 40, axis=0)")
    ),
    "erode and dilate swapped": Bug(_DISC, _SWAP.format("erosion", "dilation"), quick=True),
    "open and close swapped": Bug(_DISC, _SWAP.format("opening", "closing")),
    "open: only erodes": Bug(_DISC, "ski.morphology.opening = ski.morphology.erosion"),
    "close: nothing": Bug(_DISC, "ski.morphology.closing = lambda a, _: a"),
    "a smaller disc": Bug(_DISC, _wrapped("ski.morphology.disk", "right(a[0] - 1)")),
    "a square": Bug(_DISC, "disc = np.ones((7, 7), bool)", "disc = ski.morphology.disk(3)"),
    "coins: border kept": Bug("10. Count the coins", "whole = separate",
                              "whole = ski.segmentation.clear_border(separate)"),
    "coins: too large a disc": Bug("10. Count the coins", "disk(25)", "disk(9)"),
    "train: no step": Bug("3. Learn", "pass", "optimiser.step()", "train-a-cnn"),
    "train: no gradient": Bug("3. Learn", "pass", "loss.backward()", "train-a-cnn"),
    "train: one epoch": Bug("3. Learn", "EPOCHS, BATCH = 1,", "EPOCHS, BATCH = 20,", "train-a-cnn"),
    "test: other digits": Bug("4. Test", "network(x_test.flip(2)).", "network(x_test).",
                              "train-a-cnn"),
}  # fmt: skip
