"""What is typed for a policy or a question about one, and refused before anybody is asked."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner

from gpuslice.cli import main
from gpuslice.cli.quotatext import changed_document
from gpuslice.cli.trouble import Trouble


@pytest.mark.parametrize("hours", ["nan", "inf", "-inf"])
def test_a_time_that_is_no_number_is_a_mistake_of_use(hours: str) -> None:
    done = CliRunner().invoke(main, ["quota", "explain", "bob", "cpu", "--hours", hours])
    assert done.exit_code == 2, done.exception
    assert "--hours: give a number of hours" in done.output


@pytest.mark.parametrize(
    "text",
    ["x = 2026-01-01\n", "[each]\npriority = nan\n", '{"each": {"priority": Infinity}}'],
)
def test_a_file_with_what_json_cannot_say_is_told(text: str) -> None:
    with pytest.raises(Trouble, match="no policy can say"):
        changed_document({}, {"source": io.BytesIO(text.encode())})
