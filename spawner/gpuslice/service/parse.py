"""Bytes from a client into the models of a route, or a Refused that names the wrong field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from gpuslice.errors import Refused
from gpuslice.service.calls import no_such_lease
from gpuslice.service.route import PARAMETERS, AnyRoute

#: The largest body that is looked at.
MAX_BODY = 64 * 1024
#: Query arguments that belong to the transport, not to a route.
_TRANSPORT_ARGUMENTS = frozenset({"_xsrf"})
#: The field of a form that says which one it is, of all that were ever shown.
FORM_KEY = "once"
_FORM_TYPE = "application/x-www-form-urlencoded"


def parse_body(route: AnyRoute, raw: bytes, content_type: str) -> Any:
    """The body as the route's model."""
    if len(raw) > MAX_BODY:
        raise Refused("too-large", f"The body is larger than {MAX_BODY} bytes.", status=413)
    if not route.has_body:
        return route.body()
    if not raw.strip():
        if route.body_may_be_empty:
            return route.body()
        raise _bad("body: is empty")
    if route.is_form:
        return _validated(route.body, _form(raw, content_type), "form")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refused("bad-content-type", "Send Content-Type: application/json.", status=415)
    try:
        # Numbers that JSON does not have (NaN, Infinity), lone surrogates and deep nests end here.
        data = from_json(raw, allow_inf_nan=False)
    except ValueError as exc:
        raise _bad(f"body: is not JSON ({exc})") from None
    return _validated(route.body, data, "body")


def _form(raw: bytes, content_type: str) -> dict[str, str]:
    """The fields of a page's form."""
    if not _is_form(content_type):
        raise Refused("bad-content-type", f"Send Content-Type: {_FORM_TYPE}.", status=415)
    data = form_fields(raw)
    data.pop(FORM_KEY, None)
    return data


def _is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == _FORM_TYPE


def sent_by_form(raw: bytes, content_type: str) -> dict[str, str]:
    """What a form sent, `FORM_KEY` included, whether or not the route has fields; else nothing."""
    return form_fields(raw) if _is_form(content_type) and len(raw) <= MAX_BODY else {}


def form_fields(raw: bytes) -> dict[str, str]:
    """The fields in a form's body, without those of the transport."""
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20
        )
    except ValueError:
        raise _bad("form: cannot be read") from None
    data: dict[str, str] = {}
    for name, value in pairs:
        if name in _TRANSPORT_ARGUMENTS:
            continue
        if name in data:
            raise _bad(f"{_shown(name)}: is given more than once")
        data[name] = value
    return data


def parse_query(route: AnyRoute, arguments: Mapping[str, list[bytes]]) -> Any:
    """The query as the route's model; an argument that it does not know is refused."""
    data: dict[str, str] = {}
    for name, values in arguments.items():
        if name in _TRANSPORT_ARGUMENTS:
            continue
        if len(values) > 1:
            raise _bad(f"{_shown(name)}: is given more than once")
        try:
            data[name] = values[0].decode("utf-8")
        except UnicodeDecodeError:
            raise _bad(f"{_shown(name)}: is not UTF-8") from None
    return _validated(route.query, data, "query")


def parse_path(texts: Mapping[str, str]) -> dict[str, Any]:
    """What stood in a path's braces. What cannot be there gets the answer of what is not there."""
    try:
        if _has_nul(list(texts.values())):
            raise ValueError("no name has it, and PostgreSQL cannot even look for it")
        return {name: PARAMETERS[name].validate_python(text) for name, text in texts.items()}
    except ValueError:
        if "lease_id" in texts:
            raise no_such_lease() from None
        raise Refused("not-found", "There is nothing here.", status=404) from None


def _validated(model: type[BaseModel], data: object, whole: str) -> BaseModel:
    if _has_nul(data):
        # PostgreSQL cannot store it, and no name or reason needs it.
        raise _bad(f"{whole}: holds a null character")
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or whole
        raise _bad(f"{_shown(field)}: {first['msg']}") from None


def _has_nul(value: object) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_has_nul(part) for pair in value.items() for part in pair)
        case list():
            return any(map(_has_nul, value))
        case _:
            return False


def _bad(message: str) -> Refused:
    return Refused("bad-request", message[:300], status=400)


def _shown(name: str) -> str:
    """A field's name as the client wrote it, bounded and without anything unprintable."""
    return "".join(c if c.isprintable() else "?" for c in name[:80])
