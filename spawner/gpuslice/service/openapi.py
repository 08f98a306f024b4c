"""The OpenAPI 3.1 document, made from the route table and the models."""

from __future__ import annotations

from typing import Any, cast

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from gpuslice.service.auth import (
    SCOPE_ADMIN,
    SCOPE_LEASE,
    SCOPE_METRICS,
    SCOPE_READ_ALL,
    SCOPE_STOP,
    Access,
)
from gpuslice.service.calls import Stream
from gpuslice.service.config import SERVICE_NAME, ServiceConfig
from gpuslice.service.route import PARAMETERS, AnyRoute
from gpuslice.service.routes import ROUTES
from gpuslice.wire import Refusal

_REF = "#/components/schemas/{model}"
_IDEMPOTENCY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key again does nothing again and gets the same answer; with another "
    "request it is refused (422). Kept for ever.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
}

#: What a token needs besides the access to the service; a login needs none for one's own.
_SCOPES = {
    Access.OWN: [SCOPE_LEASE],
    Access.OWN_ALL: [SCOPE_LEASE],
    Access.READ: [SCOPE_LEASE],
    Access.STOP: [SCOPE_STOP],
    Access.WAIT: [SCOPE_STOP],
    Access.READ_ALL: [SCOPE_READ_ALL],
    Access.ADMIN: [SCOPE_ADMIN],
    Access.METRICS: [SCOPE_METRICS],
}

#: What a refusal's status says; its body says more.
_MEANING = {
    400: "Not understood: the message names the field",
    401: "Who are you? A token or a login is missing, or is not known",
    403: "Not with this token, or not for this user",
    404: "There is none, or it is not yours: the answer is the same",
    409: "Not as things are now: a limit, a stale version, over already",
    413: "The body is too large",
    415: "Send application/json",
    422: "Understood, but not possible; or the Idempotency-Key was used for another request",
    503: "Not now: nothing free, or a part of the platform does not answer",
}
_MAY_RETRY = frozenset({409, 503})

#: Which security scheme each kind of access means.
_SCHEMES = {
    Access.PUBLIC: None,
    Access.BROKER: "brokerToken",
    Access.NODE: "nodeToken",
}


def build_openapi(config: ServiceConfig, version: str) -> dict[str, Any]:
    """The document for a service at ``config.prefix``. Pages are not part of it."""
    routes = [route for route in ROUTES if not route.is_page]
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(f"/{route.path}", {})[route.method.lower()] = _operation(
            route, schemas, config
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gpuslice",
            "version": version,
            "description": "Leases GPU slices. Money is micro-units of one currency, time is UTC "
            "microseconds, memory is bytes.",
        },
        "servers": [{"url": config.prefix.rstrip("/")}],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions,
            "securitySchemes": {
                "hubToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of JupyterHub; its scopes decide.",
                },
                "brokerToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The spawner's fixed token.",
                },
                "hubLogin": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": f"service-{SERVICE_NAME}",
                    "description": "A browser's login at JupyterHub. Whatever changes something "
                    "also needs the header X-XSRFToken with the cookie _xsrf of this service.",
                },
                "operatorToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The fixed token of commands on the platform's machine.",
                },
                "nodeToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The node's fixed token.",
                },
            },
        },
    }


class _Schemas:
    """All models of all routes with one set of names."""

    def __init__(self, routes: list[AnyRoute]) -> None:
        inputs: list[tuple[Any, JsonSchemaMode, TypeAdapter[Any]]] = [
            ((route.name, "body"), "validation", TypeAdapter(route.body)) for route in routes
        ]
        inputs += [
            ((route.name, "answer"), "serialization", TypeAdapter(route.answer))
            for route in routes
            if route.is_json
        ]
        inputs += [
            ((route.name, "answer"), "serialization", TypeAdapter(list[route.rows]))  # type: ignore[name-defined]
            for route in routes
            if route.rows is not None
        ]
        inputs.append((("", "refusal"), "serialization", TypeAdapter(Refusal)))
        refs, rest = TypeAdapter.json_schemas(inputs, ref_template=_REF)
        self._refs = {key: schema for (key, _), schema in refs.items()}
        self.definitions = cast("dict[str, Any]", rest.get("$defs", {}))

    def of(self, route: str, part: str) -> dict[str, Any]:
        return self._refs[cast("Any", (route, part))]


def _operation(route: AnyRoute, schemas: _Schemas, config: ServiceConfig) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done"}
    if route.is_json:
        answer["content"] = {"application/json": {"schema": schemas.of(route.name, "answer")}}
    elif route.answer is Stream:
        answer["content"] = {
            "text/csv": {"schema": {"type": "string"}},
            "application/json": {"schema": schemas.of(route.name, "answer")},
        }
        answer["headers"] = {"Content-Disposition": {"schema": {"type": "string"}}}
    else:
        answer["content"] = {"text/plain": {"schema": {"type": "string"}}}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": f"For: {route.access.value}.",
        "security": _security(route, config),
        "responses": {
            str(route.status): answer,
            **{str(status): _refusal(status, schemas) for status in _refusals(route)},
        },
    }
    parameters = _parameters(route)
    if parameters:
        operation["parameters"] = parameters
    if route.has_body:
        operation["requestBody"] = {
            "required": not route.body_may_be_empty,
            "content": {"application/json": {"schema": schemas.of(route.name, "body")}},
        }
    return operation


def _refusals(route: AnyRoute) -> list[int]:
    # The one public route that needs the database says so when it has none.
    return sorted({*route.refusals, 503}) if route.name == "health" else route.refusals


def _refusal(status: int, schemas: _Schemas) -> dict[str, Any]:
    """One way to be refused; `Refusal` says in words and for programs why."""
    found: dict[str, Any] = {
        "description": _MEANING[status],
        "content": {"application/json": {"schema": schemas.of("", "refusal")}},
    }
    if status in _MAY_RETRY:
        found["headers"] = {
            "Retry-After": {
                "description": "Seconds, where it can be known when to try again",
                "schema": {"type": "integer", "minimum": 0},
            }
        }
    if status == 401:
        found["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return found


def _security(route: AnyRoute, config: ServiceConfig) -> list[dict[str, list[str]]]:
    if route.access is Access.PUBLIC:
        return []
    if route.access in _SCHEMES:
        return [{cast("str", _SCHEMES[route.access]): []}]
    scopes = [] if route.access is Access.METRICS else [config.access_scope]
    scopes += _SCOPES.get(route.access, [])
    ways: list[dict[str, list[str]]] = [{"hubToken": scopes}]
    if route.access in (Access.READ, Access.READ_ALL, Access.STOP, Access.ADMIN, Access.METRICS):
        ways.append({"operatorToken": []})
    if route.access is not Access.METRICS:
        ways.append({"hubLogin": []})
    return ways


def _parameters(route: AnyRoute) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    for name in route.parameters:
        schema = PARAMETERS[name].json_schema()
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    if route.is_write:
        parameters.append(_IDEMPOTENCY)
    # Queries are flat: their fields are simple values, so their schemas need no references.
    schema = route.query.model_json_schema()
    for name, field in schema.get("properties", {}).items():
        required = name in schema.get("required", [])
        parameters.append({"name": name, "in": "query", "required": required, "schema": field})
    return parameters
