"""Every call of CuPy and cuCIM in the starters exists there and takes these arguments."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import gpucontract
import pytest
from gpucontract import SOURCES, TABLE, bind, download, names, problems, signatures_from, uses

SIGNATURES: dict[str, str] = json.loads(TABLE.read_text())["signatures"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_calls_exist_on_a_gpu(source: Path) -> None:
    assert uses(source.read_text())
    assert problems(source.read_text(), SIGNATURES) == []


def test_the_table_is_of_what_the_starters_use() -> None:
    assert sorted(SIGNATURES) == names()
    assert sum(signature.startswith("(") for signature in SIGNATURES.values()) >= 20


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("ski.segmentation.watershed(a)", "cucim.skimage.segmentation.watershed is not known"),
        ("ski.morphology.binary_erosion(a)", "binary_erosion is not known"),
        ("ndi.watershed_ift(a, b)", "cupyx.scipy.ndimage.watershed_ift is not known"),
        ("x = xp.float31", "cupy.float31 is not known"),
        ("ski.filters.gaussian(a, sigmma=2)", "unexpected keyword argument 'sigmma'"),
        ("ski.filters.sobel(a, None, 1)", "too many positional arguments"),
        ("ski.transform.rotate(a)", "missing a required argument: 'angle'"),
        ("self.xp.asnumpy()", "missing a required argument: 'a'"),
    ],
)
def test_a_call_that_a_gpu_does_not_know_is_found(code: str, said: str) -> None:
    (problem,) = problems(f"\n{code}\n", SIGNATURES)
    assert problem.startswith("line 2: ") and said in problem


def test_arguments_are_bound_as_python_binds_them() -> None:
    bind("(a, /, b=1, *, c, d=2, **rest)", 1, ("c", "e"))
    bind("(*args)", 7, ())
    for positional, keywords in ((0, ("c",)), (3, ("c",)), (1, ()), (2, ("b", "c"))):
        with pytest.raises(TypeError):
            bind("(a, /, b=1, *, c, d=2)", positional, keywords)


@pytest.mark.long
def test_the_table_is_what_the_wheels_say(tmp_path: Path) -> None:
    try:
        wheels = download(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip cannot download {' '.join(gpucontract.WHEELS)}: {error.stderr[-200:]}")
    assert signatures_from(wheels) == SIGNATURES
