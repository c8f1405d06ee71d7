"""The page at /: pools, lanes and live figures. Plain files, nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["page_routes"]

_FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/page.css": ("page.css", "text/css"),
}
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


def page_routes() -> list[Route]:
    """Return the routes of the page's files."""
    return [Route(path, _File(name, kind).get) for path, (name, kind) in _FILES.items()]


class _File:
    """A file of this folder, read once."""

    def __init__(self, name: str, kind: str) -> None:
        self._body = files("fourlane.gateway.page").joinpath(name).read_bytes()
        self._kind = kind

    async def get(self, _: Request) -> Response:
        """Answer with the file."""
        return Response(self._body, media_type=self._kind, headers=_HEADERS)
