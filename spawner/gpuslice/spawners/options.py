"""What a user may ask for when starting a server, read once for form, query and REST alike.

The options are ``slice`` and, where the engine has images, ``image``. ``profile`` is accepted only
as we wrote it ourselves (the slice's name): the hub keeps the last options and hands them back,
and its admin page shows ``profile``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuslice.spawners.refusal import SpawnRefused

#: The same as ``wire.SliceName``; a test holds the two together.
_SLICE_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,62}")
_MAX_SHOWN = 40
#: How many images a refusal names.
_MAX_NAMED = 5


def flatten(form: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """A form's or query's lists of values as single ones; repeated fields stay lists.

    ``_xsrf`` is the hub's own field: it appears in the query when a failed form is opened again.
    """
    return {
        key: values[0] if len(values) == 1 else list(values)
        for key, values in form.items()
        if key != "_xsrf"
    }


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for, well-formed. ``image`` is None where none was named."""

    slice: str
    image: str | None = None


def choice(options: Mapping[str, Any], default: str, images: Mapping[str, str]) -> Choice:
    """What these options ask for.

    Args:
        options: As they came from a form, a query or REST.
        default: The slice for options without one; empty: they are refused.
        images: The images on offer, reference to title; empty: ``image`` is no option.

    Raises:
        SpawnRefused: 400, with words, for anything else.
    """
    known = ["slice", "image"] if images else ["slice"]
    unknown = [key for key in options if key not in (*known, "profile")]
    if unknown:
        shown = ", ".join(_shown(key) for key in unknown[:5])
        only = "the options are 'slice' and 'image'" if images else "the only option is 'slice'"
        raise _bad(f"Unknown option {shown}; {only}", "unknown-option")
    name = _chosen_slice(options, default)
    return Choice(name, _chosen_image(options.get("image"), images))


def stored_options(slice_name: str, image: str | None = None) -> dict[str, str]:
    """What the hub keeps: the choice, and a copy that the stock admin page shows as Profile."""
    stored = {"slice": slice_name, "profile": slice_name}
    return stored if image is None else {**stored, "image": image}


def _chosen_slice(options: Mapping[str, Any], default: str) -> str:
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


def _chosen_image(image: object, images: Mapping[str, str]) -> str | None:
    if image is None or image == "":
        return None
    if not isinstance(image, str):
        raise _bad(f"The option 'image' is an image's name, not {_kind(image)}", "bad-option")
    if image not in images:
        offered = ", ".join(list(images)[:_MAX_NAMED])
        more = f" and {len(images) - _MAX_NAMED} more" if len(images) > _MAX_NAMED else ""
        raise _bad(f"There is no image {_shown(image)}; there is {offered}{more}", "unknown-image")
    return image


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
