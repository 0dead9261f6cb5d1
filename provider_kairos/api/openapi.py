"""The OpenAPI 3.1 document of our own routes, made of ``operations`` and the types that it names.

``docs/generate.py`` writes it to ``openapi.json`` beside this file, which is what ``GET /v1/openapi.json`` gives, and
to the reference. The daemon never imports this module: the text never changes while it runs.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from http import HTTPStatus
from types import UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from provider_kairos import __version__
from provider_kairos.api.native_model import ErrorDocument
from provider_kairos.api.operations import EVENTS, OPERATIONS, STREAM, Operation, Query

__all__ = ["document", "template", "text"]

_REF = "#/components/schemas/{model}"
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}
ALWAYS = (404, 405, 500)
"""Refusals that need no naming at each route: an unknown path, another method, a bug."""

DESCRIPTION = (
    "The native API of the mesh daemon, on its unix socket. There is no authentication: who may open the socket may read "
    "the join token and the kubeconfig. Each segment of a path is percent-decoded for itself, and the last one of a "
    "record or a pattern may be empty. EdgeVPN's own routes stand beside these, under /api; they are not part of this "
    "document."
)


def text() -> str:
    """The document as it is published."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def document() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(template(operation.path), {})[operation.method.lower()] = _operation(operation, operation.path)
        if operation.older:
            older = _operation(operation, operation.older) | {"deprecated": True}
            older["operationId"] += "_older"
            paths.setdefault(operation.older, {})[operation.method.lower()] = older
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kairos-p2p",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://unix", "description": "unix:///run/edgevpn-kairos.sock"}],
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def template(path: str) -> str:
    """A path of the table as OpenAPI writes it: ``/v1/peers/{peer_id}``."""
    return "/".join(f"{{{part[1:].removesuffix('?')}}}" if part.startswith(":") else part for part in path.split("/"))


def _operation(operation: Operation, path: str) -> dict[str, Any]:
    names = [part[1:].removesuffix("?") for part in path.split("/") if part.startswith(":")]
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.words,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
            *(_query(query) for query in operation.query),
        ],
        "responses": _answers(operation),
    }
    if operation.body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(operation.body)}},
        }
    return found


def _query(query: Query) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _KINDS[query.kind]}
    if query.choices:
        schema["enum"] = list(query.choices)
    if query.many:
        schema = {"type": "array", "items": schema}
    return {"name": query.name, "in": "query", "description": query.words, "schema": schema}


def _answers(operation: Operation) -> dict[str, Any]:
    if operation.answer is not None:
        schema = _reference(operation.answer)
    elif operation.media.endswith("json"):
        schema = {"type": "object"}
    else:
        schema = {"type": "string"}
    good: dict[str, Any] = {"description": "Done.", "content": {operation.media: {"schema": schema}}}
    if operation.media == STREAM:
        good["description"] = "Events; `event:` names the kind, `data:` is JSON of the type beside it: " + ", ".join(
            f"`{kind}` {shape.__name__}" for kind, shape in EVENTS.items()
        )
    answers: dict[str, Any] = {"200": good}
    for status in sorted({*operation.errors, *ALWAYS}):
        refused: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if operation.answer is None and status == HTTPStatus.SERVICE_UNAVAILABLE and operation.media != STREAM:
            refused["content"] = {operation.media: {"schema": {"type": "string"}}}
        else:
            refused["content"] = {"application/json": {"schema": _reference(ErrorDocument)}}
        answers[str(status)] = refused
    return answers


def _reference(shape: Any) -> dict[str, str]:
    return {"$ref": _REF.format(model=shape.__name__)}


# -- types -------------------------------------------------------------------------------------------------------------


def _schemas() -> dict[str, Any]:
    """Every type that an operation or an event names, and what they are made of."""
    made: dict[str, Any] = {}
    bodies = {each.body.__name__ for each in OPERATIONS if each.body is not None}
    waiting = [ErrorDocument, *EVENTS.values()]
    waiting += [shape for each in OPERATIONS for shape in (each.answer, each.body) if shape is not None]
    while waiting:
        shape = waiting.pop()
        if shape.__name__ not in made:
            made[shape.__name__] = _object(shape, waiting)
    for name in bodies:  # answers may gain fields, a body with an unknown one is refused
        made[name]["additionalProperties"] = False
    return dict(sorted(made.items()))


def _object(shape: Any, used: list[Any]) -> dict[str, Any]:
    """The schema of a TypedDict; types that it is made of are added to ``used``."""
    hints = get_type_hints(shape, include_extras=True)
    # NotRequired is looked for here, because Python 3.11 does not see it where annotations are kept as text
    optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
    required = [name for name in hints if shape.__total__ and name not in optional]
    return {
        "type": "object",
        "description": _words(shape),
        "properties": {
            name: _schema(get_args(hint)[0] if name in optional else hint, used) for name, hint in hints.items()
        },
        **({"required": required} if required else {}),
    }


def _words(shape: Any) -> str:
    """The docstring as Markdown: paragraphs are lines, names in single backticks."""
    paragraphs = (inspect.getdoc(shape) or "").replace("``", "`").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _schema(hint: Any, used: list[Any]) -> dict[str, Any]:
    """The schema of one annotation."""
    if hint is None or hint is type(None):
        return {"type": "null"}
    if hint in _KINDS:
        return {"type": _KINDS[hint]}
    if hint in {Any, object}:
        return {}
    if is_typeddict(hint):
        used.append(hint)
        return _reference(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in {Union, UnionType}:
        return {"anyOf": [_schema(each, used) for each in arguments]}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], used)}
    if origin in {dict, Mapping}:
        return {"type": "object", "additionalProperties": _schema(arguments[1], used)}
    raise TypeError(f"{hint} has no schema")
