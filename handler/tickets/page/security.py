"""Who may use the page.

The page shows customers' texts and can change labels, and every program and every open web page can reach its port. So,
for every request:

- the Host must be this machine's: otherwise a foreign domain that resolves to 127.0.0.1 (DNS rebinding) could read it;
- a session cookie must be present (HttpOnly, SameSite=Strict). The link in the terminal carries a token that can be
  exchanged for one such cookie once; then the terminal gets another link;
- a request that changes something must come from the page itself (Sec-Fetch-Site, or Origin in old browsers), and its
  form must contain the session's form token.

Responses forbid scripts and styles other than the page's own files, framing, referrers, sniffing and caching.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "Sessions"]

_HOST: Final = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?", re.IGNORECASE)
_SAFE: Final = frozenset({"GET", "HEAD"})
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


class Sessions:
    """The sessions of one server. `announce` is called with each new token, the first one at once."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._cookies: dict[str, str] = {}  # cookie -> form token
        self._token = ""
        self._renew()

    def begin(self, token: str) -> str | None:
        """The cookie of a new session in exchange for a token, which is then used up; None if it is not valid."""
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return None
        cookie = secrets.token_urlsafe(32)
        self._cookies[cookie] = secrets.token_urlsafe(32)
        self._renew()
        return cookie

    def form_token(self, cookie: str) -> str | None:
        """The token that a session's forms contain; None if there is no such session."""
        return self._cookies.get(cookie)

    def _renew(self) -> None:
        self._token = secrets.token_urlsafe(32)
        self._announce(self._token)


class Guard:
    """ASGI middleware that enforces the rules above. `refuse` makes the page for a visitor without a session.

    It sets `request.state.form_token`.
    """

    def __init__(self, app: ASGIApp, *, sessions: Sessions, port: int, refuse: Callable[[str], Response]) -> None:
        self._app = app
        self._sessions = sessions
        self._cookie = f"tickets-{port}"  # cookies are shared by all ports of a host
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on to the application, or answers it."""
        if scope["type"] != "http":  # there are no web sockets
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._answer(Request(scope))
        await (answer or self._app)(scope, receive, send_with_headers)

    def _answer(self, request: Request) -> Response | None:
        """The answer to a request that the application must not see; None if it may."""
        host = request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            return PlainTextResponse("This address is not served; open the link that `tickets serve` printed.\n", 421)
        if request.method not in _SAFE and not _is_own(request, host):
            return PlainTextResponse("Only the page itself may do this.\n", 403)
        # Not request.url: some releases of Starlette build it from the Host, and routes are chosen by this path.
        path: str = request.scope["path"]
        if path.startswith("/static/"):  # the same for everybody, and the refusal needs it
            return None
        form_token = self._sessions.form_token(request.cookies.get(self._cookie, ""))
        token = request.query_params.get("token")
        if token is not None and path == "/":
            return self._exchange(token, has_session=form_token is not None)
        if form_token is None:
            return self._refuse("This browser has no session.")
        request.state.form_token = form_token
        return None

    def _exchange(self, token: str, *, has_session: bool) -> Response:
        answer = RedirectResponse("/", 303)  # without the token, which must not stay in the address bar
        if has_session:
            return answer
        cookie = self._sessions.begin(token)
        if cookie is None:
            return self._refuse("This link is wrong, or was already used: each link works once.")
        answer.set_cookie(self._cookie, cookie, path="/", httponly=True, samesite="strict")
        return answer


def _is_own(request: Request, host: str) -> bool:
    """Whether a page of this server sent the request."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return request.headers.get("origin") == f"{request.url.scheme}://{host}"
