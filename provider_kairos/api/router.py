"""From method and path to a handler: a table of patterns, and the answers for what fits none.

Specification: spec/edgevpn.md 11.1 and 17. Patterns are segments, ``:name`` takes any one non-empty segment. A known
path with another method is 405 with ``Allow`` (HEAD too), OPTIONS is 204, an unknown path 404, a broken percent
escape 400. The path rule itself is in ``paths``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from provider_kairos.api.gotext import indent
from provider_kairos.api.http import Request, Response
from provider_kairos.api.paths import PathError, route_path
from provider_kairos.errors import HostError
from provider_kairos.token import gojson

__all__ = ["Call", "HttpError", "Json", "Route", "Router"]


@dataclass(frozen=True, slots=True)
class Call:
    """A request that found its route: ``params`` by name, ``query`` with all values of each name."""

    request: Request
    params: Mapping[str, str]
    query: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Json:
    """Ready-made JSON text as an answer, where a value would have to be printed again."""

    text: str


class HttpError(Exception):
    """Answer with ``status`` and ``{"message": ...}``."""

    def __init__(self, status: HTTPStatus, message: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message or status.phrase


RouteHandler = Callable[[Call], Awaitable[Any]]
"""Returns the value to print as JSON, a Json text, or a whole Response."""


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table, as in ``Route("GET", "/api/ledger/:bucket", handler)``."""

    method: str
    pattern: str
    handler: RouteHandler

    def match(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Values of the parameters, or None when the path does not fit."""
        own = self.pattern.split("/")
        if len(own) != len(segments):
            return None
        params: dict[str, str] = {}
        for pattern, segment in zip(own, segments, strict=True):
            if pattern.startswith(":"):
                if not segment:
                    return None
                params[pattern[1:]] = segment
            elif pattern != segment:
                return None
        return params


class Router:
    """The table; calling it answers a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = tuple(routes)

    async def __call__(self, request: Request) -> Response:
        """Answer one request; raises only what a handler raises by mistake."""
        try:
            path, query_text = route_path(request.target)
            query = parse_qs(query_text, keep_blank_values=True, max_num_fields=256, errors="replace")
        except (PathError, ValueError):
            return Response(HTTPStatus.BAD_REQUEST, b"400 Bad Request", "text/plain; charset=utf-8", close=True)
        pretty = "pretty" in query
        try:
            return await self._dispatch(request, path, query, pretty=pretty)
        except HostError as error:  # the machine refuses, such as a full disk: the text names the remedy
            return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"message": str(error)}, pretty=pretty)
        except HttpError as error:
            return _json(error.status, {"message": error.message}, pretty=pretty)

    async def _dispatch(self, request: Request, path: str, query: dict[str, list[str]], *, pretty: bool) -> Response:
        segments = path.split("/")
        fitting = [(route, params) for route in self._routes if (params := route.match(segments)) is not None]
        if not fitting:
            raise HttpError(HTTPStatus.NOT_FOUND)
        for route, params in fitting:
            if route.method == request.method:
                value = await route.handler(Call(request, params, query))
                return value if isinstance(value, Response) else _json(HTTPStatus.OK, value, pretty=pretty)
        allow = ("Allow", ", ".join(["OPTIONS", *sorted({route.method for route, _ in fitting})]))
        if request.method == "OPTIONS":
            return Response(HTTPStatus.NO_CONTENT, content_type="", headers=[allow])
        refusal = {"message": HTTPStatus.METHOD_NOT_ALLOWED.phrase}
        return _json(HTTPStatus.METHOD_NOT_ALLOWED, refusal, pretty=pretty, headers=[allow])


def _json(status: HTTPStatus, value: Any, *, pretty: bool, headers: Sequence[tuple[str, str]] = ()) -> Response:
    text = value.text if isinstance(value, Json) else gojson.dumps(value)
    if pretty:
        text = indent(text)
    return Response(status, text.encode("utf-8", "replace") + b"\n", headers=headers)
