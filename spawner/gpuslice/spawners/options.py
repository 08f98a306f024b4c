"""What a user may ask for when starting a server, read once for form, query and REST alike.

The only option is ``slice``. ``profile`` is accepted only as we wrote it ourselves (the slice's
name): the hub keeps the last options and hands them back, and its admin page shows ``profile``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gpuslice.spawners.refusal import SpawnRefused

#: The same as ``wire.SliceName``; a test holds the two together.
_SLICE_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,62}")
_MAX_SHOWN = 40


def flatten(form: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """A form's or query's lists of values as single ones; repeated fields stay lists.

    ``_xsrf`` is the hub's own field: it appears in the query when a failed form is opened again.
    """
    return {
        key: values[0] if len(values) == 1 else list(values)
        for key, values in form.items()
        if key != "_xsrf"
    }


def chosen_slice(options: Mapping[str, Any], default: str) -> str:
    """The name of the slice that these options ask for.

    Raises:
        SpawnRefused: 400, with words, for anything but one well-formed slice name.
    """
    unknown = [key for key in options if key not in ("slice", "profile")]
    if unknown:
        shown = ", ".join(_shown(key) for key in unknown[:5])
        raise _bad(f"Unknown option {shown}; the only option is 'slice'", "unknown-option")
    name = options.get("slice")
    if name is None or name == "":
        name = default
    if name == "":
        raise _bad("No slice was chosen", "no-slice")
    if not isinstance(name, str):
        raise _bad(f"The option 'slice' is a slice's name, not {_kind(name)}", "bad-option")
    if not _SLICE_NAME.fullmatch(name):
        raise _bad(f"{_shown(name)} is not the name of a slice", "unknown-slice")
    if options.get("profile", name) != name:
        raise _bad("The option 'profile' is set by the platform; choose a 'slice'", "bad-option")
    return name


def stored_options(slice_name: str) -> dict[str, str]:
    """What the hub keeps: the choice, and a copy that the stock admin page shows as Profile."""
    return {"slice": slice_name, "profile": slice_name}


def _bad(message: str, reason: str) -> SpawnRefused:
    return SpawnRefused(message, reason=reason, status_code=400)


def _shown(value: object) -> str:
    """``repr``, so that nothing unprintable reaches a log or a page, and short."""
    text = repr(value) if not isinstance(value, str) else repr(value[: _MAX_SHOWN + 1])
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...'"


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, dict) else "that"
