"""Who may ask: the middleware in front of all answers.

- Host header: a page of a foreign site that resolves to this machine (DNS rebinding) names its own host and is refused.
- Token, where the server is open to other machines: from the address once, then from a cookie that scripts cannot read.
- Every answer forbids the browser to load anything from elsewhere, to be framed, or to guess types.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
COOKIE = "wsi_ips_view"
HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware.

    Parameters
    ----------
    app
        What is guarded.
    hosts
        Names by which the server may be called beside those of loopback.
    any_address
        Whether any plain IP address is a good name too: an address cannot be rebound, a name can.
    token
        What a browser must know; None where everybody on this machine may look.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str] = (), any_address: bool = False, token: str | None = None
    ) -> None:
        self._app, self._token, self._any_address = app, token, any_address
        self._hosts = LOOPBACK | {host.strip("[]").lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on and add the headers."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no web sockets

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return PlainTextResponse(
                "This server is not called by that name. Where it should be, start it with --allow-host NAME.", 421
            )
        if self._token is None:
            return None
        cookie = cookie_parser(headers.get("cookie", "")).get(cookie_name(scope), "")
        if _same(cookie, self._token):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and _same(given, self._token):
            welcome = RedirectResponse("/", 303)  # so that the token leaves the address bar
            welcome.set_cookie(cookie_name(scope), self._token, httponly=True, samesite="strict")
            return welcome
        return PlainTextResponse("Open the address with the token that `wsi-ips view` printed.", 401)

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        if name in self._hosts:
            return True
        if not self._any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def host_name(host: str) -> str:
    """Name in a Host header, without port and brackets, lower case.

    >>> host_name("LocalHost:8765"), host_name("[::1]:8765"), host_name("[::1]")
    ('localhost', '::1', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to this host."""
    return host_name(host if host.count(":") < 2 else f"[{host}]") in LOOPBACK or host.startswith("127.")


def is_same_origin(headers: Headers) -> bool:
    """Whether a browser's request comes from a page of this very server."""
    site = headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()


def cookie_name(scope: Scope) -> str:
    """Cookies know no ports: two servers of one machine must not share one."""
    server = scope.get("server")
    return f"{COOKIE}_{server[1]}" if server else COOKIE


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode())
