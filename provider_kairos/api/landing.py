"""``/`` and ``/app``: where EdgeVPN has its web page. Here a person finds out what the address answers to.

As in EdgeVPN ``/`` leads to ``/app`` and every path below that is the same page, which is never cached. Assets and icons
do not exist: 404.
"""

from __future__ import annotations

from http import HTTPStatus

from provider_kairos.api.http import Response
from provider_kairos.api.router import Call, HttpError, Route

__all__ = ["landing_routes"]

_PAGE = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>kairos-p2p</title>
<h1>kairos-p2p</h1>
<p>This is the API of a mesh daemon.</p>
<ul>
<li><a href="/v1/status?pretty">/v1/status</a>: how this node does</li>
<li><a href="/v1/openapi.json">/v1/openapi.json</a>: its own routes</li>
<li><a href="/api/summary?pretty">/api/summary</a>: the first of EdgeVPN's routes</li>
</ul>
</html>
"""


def landing_routes() -> list[Route]:
    """The table."""

    async def root(_call: Call) -> Response:
        # as Go's redirect: no body, no type of it
        moved = [("Location", "/app"), ("Content-Length", "0")]
        return Response(HTTPStatus.MOVED_PERMANENTLY, content_type="", headers=moved)

    async def page(call: Call) -> Response:
        if ".." in call.request.target.decode("latin-1").split("/"):
            raise HttpError(HTTPStatus.NOT_FOUND)  # names something else, and that is no page
        return Response(HTTPStatus.OK, _PAGE, "text/html; charset=UTF-8", headers=[("Cache-Control", "no-cache")])

    return [Route("GET", "/", root), Route("GET", "/app/*", page)]
