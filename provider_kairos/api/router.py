"""From method and path to a handler: a table of patterns, and the answers for what fits none.

Specification: spec/edgevpn.md 11.1 and 17. Patterns are segments, ``:name`` takes any one non-empty segment,
``:name?`` an empty one too, ``*`` at the end whatever is left. A known path with another method is 405 with ``Allow``
(HEAD too), OPTIONS is 204, an unknown path 404, a broken percent escape 400. The path rules themselves are in
``paths``. Refusals under ``/v1`` carry a word for programs (``code``) beside EdgeVPN's ``message``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from provider_kairos.api.gotext import indent
from provider_kairos.api.http import Request, Response
from provider_kairos.api.paths import PathError, is_native, native_segments, route_path
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
    """Answer with ``status`` and ``{"message": ...}``; ``code`` says it to programs where that is wanted."""

    def __init__(
        self, status: HTTPStatus, message: str = "", *, code: str = "", headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message or status.phrase
        self.code = code or status.phrase.lower().replace(" ", "-")
        self.headers = headers


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
        if own[-1] == "*":
            own, segments = own[:-1], segments[: len(own) - 1]
        if len(own) != len(segments):
            return None
        params: dict[str, str] = {}
        for pattern, segment in zip(own, segments, strict=True):
            if pattern.startswith(":"):
                if not segment and not pattern.endswith("?"):
                    return None
                params[pattern[1:].removesuffix("?")] = segment
            elif pattern != segment:
                return None
        return params


class Router:
    """The table; calling it answers a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.table = tuple(routes)

    async def __call__(self, request: Request) -> Response:
        """Answer one request; raises only what a handler raises by mistake."""
        native = is_native(request.target)
        try:
            if native:
                segments, query_text = native_segments(request.target)
            else:
                path, query_text = route_path(request.target)
                segments = path.split("/")
            query = parse_qs(query_text, keep_blank_values=True, max_num_fields=256, errors="replace")
        except (PathError, ValueError):
            return Response(HTTPStatus.BAD_REQUEST, b"400 Bad Request", "text/plain; charset=utf-8", close=True)
        pretty = "pretty" in query
        try:
            return await self._dispatch(request, segments, query, pretty=pretty)
        except HostError as error:  # the machine refuses, such as a full disk: the text names the remedy
            refusal = HttpError(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except HttpError as error:
            refusal = error
        if request.method == "OPTIONS" and refusal.status is HTTPStatus.METHOD_NOT_ALLOWED:
            return Response(HTTPStatus.NO_CONTENT, content_type="", headers=refusal.headers)
        ours = native or segments[1:3] == ["api", "v1"]
        said = {"code": refusal.code, "message": refusal.message} if ours else {"message": refusal.message}
        return _json(refusal.status, said, pretty=pretty, headers=refusal.headers)

    async def _dispatch(
        self, request: Request, segments: Sequence[str], query: dict[str, list[str]], *, pretty: bool
    ) -> Response:
        fitting = [(route, params) for route in self.table if (params := route.match(segments)) is not None]
        if not fitting:
            raise HttpError(HTTPStatus.NOT_FOUND)
        for route, params in fitting:
            if route.method == request.method:
                value = await route.handler(Call(request, params, query))
                return value if isinstance(value, Response) else _json(HTTPStatus.OK, value, pretty=pretty)
        allow = ("Allow", ", ".join(["OPTIONS", *sorted({route.method for route, _ in fitting})]))
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, headers=[allow])


def _json(status: HTTPStatus, value: Any, *, pretty: bool, headers: Sequence[tuple[str, str]] = ()) -> Response:
    text = value.text if isinstance(value, Json) else gojson.dumps(value)
    if pretty:
        text = indent(text)
    return Response(status, text.encode("utf-8", "replace") + b"\n", headers=headers)
