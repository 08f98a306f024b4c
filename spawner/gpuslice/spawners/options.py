"""What a user may ask for when starting a server, read once for form, query and REST alike.

The options are ``slice``; where the engine has images, ``image``; ``hours``, how long the server is
needed; ``charge``, which group pays; and ``queue``, what to do if nothing is free: ``no``, ``tell``
(wait in line and be told) or ``start`` (wait, and start by itself). ``profile`` is accepted only as
we wrote it ourselves (the slice's name): the hub keeps the last options and hands them back, and
its admin page shows ``profile``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from gpuslice.spawners.refusal import SpawnRefused
from gpuslice.units import HOUR_US
from gpuslice.wire import SPAWN_OPTIONS

#: The same as ``wire.SliceName``; a test holds the two together.
_SLICE_NAME = re.compile(r"[a-z0-9][a-z0-9._+-]{0,62}")
#: A number of hours as people write it; at most a year, which needs no more.
_HOURS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?")
_MAX_HOURS = 24 * 366
#: A group's name is as long as the hub allows.
_MAX_GROUP = 255
_MAX_SHOWN = 40
#: How many images a refusal names.
_MAX_NAMED = 5

Queue = Literal["no", "tell", "start"]
_QUEUE: dict[object, Queue] = {"no": "no", "tell": "tell", "start": "start"}


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
    """What was asked for, well-formed. None: not said. ``hours`` is a decimal number as text."""

    slice: str
    image: str | None = None
    hours: str | None = None
    charge: str | None = None
    queue: Queue = "no"

    @property
    def declared_us(self) -> int | None:
        """How long the server is needed, microseconds."""
        return None if self.hours is None else int(Decimal(self.hours) * HOUR_US)


def choice(options: Mapping[str, Any], default: str, images: Mapping[str, str]) -> Choice:
    """What these options ask for.

    Args:
        options: As they came from a form, a query or REST.
        default: The slice for options without one; empty: they are refused.
        images: The images on offer, reference to title; empty: ``image`` is no option.

    Raises:
        SpawnRefused: 400, with words, for anything else.
    """
    known = [key for key in SPAWN_OPTIONS if images or key != "image"]
    unknown = [key for key in options if key not in (*known, "profile")]
    if unknown:
        shown = ", ".join(_shown(key) for key in unknown[:5])
        there_are = ", ".join(f"'{key}'" for key in known)
        raise _bad(f"Unknown option {shown}; the options are {there_are}", "unknown-option")
    return Choice(
        slice=_chosen_slice(options, default),
        image=_chosen_image(options.get("image"), images),
        hours=_chosen_hours(options.get("hours")),
        charge=_chosen_group(options.get("charge")),
        queue=_chosen_queue(options.get("queue")),
    )


def stored_options(chosen: Choice) -> dict[str, str]:
    """What the hub keeps: the choice, and a copy that the stock admin page shows as Profile.

    Not what to do if nothing is free: a later start of the same server asks anew.
    """
    said = {"image": chosen.image, "hours": chosen.hours, "charge": chosen.charge}
    stored = {"slice": chosen.slice, "profile": chosen.slice}
    return stored | {key: text for key, text in said.items() if text is not None}


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


def _chosen_hours(hours: object) -> str | None:
    if hours is None or hours == "":
        return None
    if isinstance(hours, bool) or not isinstance(hours, str | int | float):
        raise _bad(f"The option 'hours' is a number of hours, not {_kind(hours)}", "bad-option")
    text = str(hours).strip()
    if not _HOURS.fullmatch(text) or not 0 < Decimal(text) <= _MAX_HOURS:
        raise _bad(
            f"{_shown(hours)} is not a number of hours; write one such as 2 or 1.5, at most "
            f"{_MAX_HOURS}",
            "bad-option",
        )
    return text


def _chosen_group(group: object) -> str | None:
    if group is None or group == "":
        return None
    if not isinstance(group, str):
        raise _bad(f"The option 'charge' is a group's name, not {_kind(group)}", "bad-option")
    if len(group) > _MAX_GROUP or "\0" in group:
        raise _bad(f"{_shown(group)} is not the name of a group", "bad-option")
    return group


def _chosen_queue(queue: object) -> Queue:
    if queue is None or queue == "":
        return "no"
    if not isinstance(queue, str) or queue not in _QUEUE:
        shown = _shown(queue) if isinstance(queue, str) else _kind(queue)
        raise _bad(f"The option 'queue' is no, tell or start, not {shown}", "bad-option")
    return _QUEUE[queue]


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
