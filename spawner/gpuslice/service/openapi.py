"""The OpenAPI 3.1 document, made from the route table and the models."""

from __future__ import annotations

from typing import Any, cast

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from gpuslice.service.auth import SCOPE_METRICS, Access
from gpuslice.service.calls import Stream
from gpuslice.service.config import ServiceConfig
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
    else:
        kinds = ["application/json", "text/csv"] if route.answer is Stream else ["text/plain"]
        answer["content"] = {kind: {"schema": {"type": "string"}} for kind in kinds}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": f"For: {route.access.value}.",
        "security": _security(route, config),
        "responses": {
            str(route.status): answer,
            "default": {
                "description": "Refused",
                "content": {"application/json": {"schema": schemas.of("", "refusal")}},
            },
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


def _security(route: AnyRoute, config: ServiceConfig) -> list[dict[str, list[str]]]:
    if route.access is Access.PUBLIC:
        return []
    if route.access in _SCHEMES:
        return [{cast("str", _SCHEMES[route.access]): []}]
    needed = SCOPE_METRICS if route.access is Access.METRICS else config.access_scope
    return [{"hubToken": [needed]}]


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
