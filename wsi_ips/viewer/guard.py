"""Access control: the middleware in front of all responses.

- Host header: a foreign page whose name resolves to this machine (DNS rebinding) sends its own host and is refused.
- Token, where other machines can reach the server: first in the URL, then in a cookie that scripts cannot read.
- Headers of every response forbid loading anything from other servers, framing the page, and guessing types.
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

    ``hosts`` are allowed besides those of loopback; ``any_address`` also allows any IP address, as DNS rebinding needs
    a name; ``token`` is a secret that a browser must send, None = none is needed.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str] = (), any_address: bool = False, token: str | None = None
    ) -> None:
        self._app, self._token, self._any_address = app, token, any_address
        self._hosts = LOOPBACK | {host.strip("[]").lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on and add the headers."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # web sockets are not used

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
            return PlainTextResponse("Unknown host name. To allow it, start the viewer with --allow-host NAME.", 421)
        if self._token is None:
            return None
        cookie = cookie_parser(headers.get("cookie", "")).get(cookie_name(scope), "")
        if _same(cookie, self._token):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and _same(given, self._token):
            welcome = RedirectResponse("/", 303)  # removes the token from the address bar
            welcome.set_cookie(cookie_name(scope), self._token, httponly=True, samesite="strict")
            return welcome
        return PlainTextResponse("Open the address with the token that `wsi-ips view` printed.", 401)

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        try:
            return name in self._hosts or (self._any_address and bool(ipaddress.ip_address(name)))
        except ValueError:
            return False


def host_name(host: str) -> str:
    """Return the name in a Host header without port and brackets, lower case.

    >>> host_name("LocalHost:8765"), host_name("[::1]:8765"), host_name("[::1]")
    ('localhost', '::1', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to this host."""
    return host_name(host if host.count(":") < 2 else f"[{host}]") in LOOPBACK or host.startswith("127.")


def is_same_origin(headers: Headers) -> bool:
    """Return whether a browser's request comes from a page of this server."""
    site = headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()


def cookie_name(scope: Scope) -> str:
    """Return the cookie's name with the port: browsers share cookies between the ports of a host."""
    server = scope.get("server")
    return f"{COOKIE}_{server[1]}" if server else COOKIE


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode())
