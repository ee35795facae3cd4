"""The page's ASGI application: routes, and what a failed request shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from handler.tickets.access import READ_ERRORS, problem_line
from handler.tickets.page.rendering import FOLDER, page
from handler.tickets.page.security import Guard, Sessions
from handler.tickets.page.views import Stores, Views
from handler.tickets.repository import RepositoryError

__all__ = ["create_app"]


def create_app(
    stores: Stores, *, port: int, announce: Callable[[str], None], stopping: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """The application for one server on `port`.

    `announce` gets the path of each link that opens the page once. When `stopping` returns true, live lists end.
    """
    views = Views(stores, stopping)
    routes = [
        Route("/", views.tickets),
        Route("/feed", views.feed),
        Route("/ticket", views.ticket),
        Route("/ticket.json", views.download),
        Route("/choice", views.choice),
        Route("/correct", views.correct, methods=["POST"]),
        Route("/chart", views.chart),
        Route("/export", views.export),
        Mount("/static", StaticFiles(directory=FOLDER / "static")),
    ]
    handlers: dict[Any, Any] = {HTTPException: _refused, **dict.fromkeys(READ_ERRORS, _failed)}
    app = Starlette(routes=routes, exception_handlers=handlers)
    sessions = Sessions(lambda token: announce(f"/?token={token}"))
    return Guard(app, sessions=sessions, port=port, refuse=lambda why: page("no_session.html", 403, why=why))


def _refused(_: Request, error: HTTPException) -> Response:
    what = "There is no such page." if error.status_code == 404 and error.detail == "Not Found" else error.detail
    return page("error.html", error.status_code, what=what)


def _failed(_: Request, error: Exception) -> Response:
    # What the user asked for is wrong or missing, or a service failed.
    return page("error.html", 409 if isinstance(error, RepositoryError) else 502, what=problem_line(error))
