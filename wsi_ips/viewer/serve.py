"""Start the viewer's server and print its URL."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h11  # a requirement of uvicorn
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from wsi_ips.errors import ViewerError
from wsi_ips.viewer.assets import ensure_library
from wsi_ips.viewer.collection import Collection
from wsi_ips.viewer.guard import Guard, is_loopback
from wsi_ips.viewer.routes import Viewer

TOKEN_VARIABLE = "WSI_IPS_VIEW_TOKEN"  # noqa: S105 - a name, not a token
REQUEST_S = 20.0  # longest time that a request may take to arrive
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - needs --remote-access


@dataclass(frozen=True)
class ServerOptions:
    """Options of the server."""

    host: str = "127.0.0.1"  # address to listen on
    port: int = 8765  # 0 picks a free port
    remote_access: bool = False  # other machines may reach it; needed for any host except loopback
    allow_hosts: tuple[str, ...] = ()  # further host names that browsers may use
    ask_token: bool = False  # require a token on loopback too, for machines with several users
    threads: int = min(8, (os.cpu_count() or 1) + 2)  # number of tiles made at the same time
    cache_mb: int = 128  # size of the tile cache, MiB
    open_browser: bool = True  # open the page in the browser of this machine


def serve(collection: Collection, options: ServerOptions, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; ``say`` is called with the URL; raises ViewerError where the server cannot start."""
    token = access_token(options)
    library = ensure_library(say)
    listening = listen(options)
    name = "localhost" if options.host in WILDCARDS else options.host
    address = f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"
    page = f"{address}/" if token is None else f"{address}/?token={token}"
    server = uvicorn.Server(server_config(application(collection, library, options, token)))
    say(f"viewer: {page}")
    shared = "anyone with this URL can view and review; nothing is encrypted"
    reach = shared if token else "only this machine can reach it"
    say(f"{reach}; press Ctrl-C to stop. Research use only.")
    if options.open_browser:
        threading.Timer(0.7, webbrowser.open, (page,)).start()
    with listening:
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            say("stopped")


def server_config(app: Guard) -> uvicorn.Config:
    """Return the settings of the HTTP server."""
    return uvicorn.Config(app, http=PromptProtocol, log_level="warning", server_header=False)


class PromptProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request takes too long to arrive, so that slow ones cannot pile up."""

    late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a connection is there to send a request."""
        super().connection_made(transport)
        self.late = self.loop.call_later(REQUEST_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Stop the clock where the request is complete, and start it where another one begins."""
        super().data_received(data)
        is_arriving = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if self.late is not None and not is_arriving:
            self.late.cancel()
            self.late = None
        elif self.late is None and is_arriving:
            self.late = self.loop.call_later(REQUEST_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        if self.late is not None:
            self.late.cancel()


def application(collection: Collection, library: Path, options: ServerOptions, token: str | None) -> Guard:
    """Return the protected application."""
    viewer = Viewer(collection, library, threads=options.threads, cache_mb=options.cache_mb)
    wildcard = options.host in WILDCARDS
    hosts = (*options.allow_hosts, socket.gethostname() if wildcard else options.host)
    return Guard(viewer.application(), hosts=hosts, any_address=wildcard, token=token)


def access_token(options: ServerOptions) -> str | None:
    """Return the token that browsers must send, from ``WSI_IPS_VIEW_TOKEN`` or random; None where none is needed.

    Raises ViewerError where others could reach the server but `remote_access` is not set, or the token is too short.
    """
    beyond = not is_loopback(options.host)
    if beyond and not options.remote_access:
        raise ViewerError(
            f"--host {options.host}: other machines could reach the slides; add --remote-access to allow it (a token "
            "is then required), or leave out --host and use an SSH tunnel"
        )
    if not beyond and not options.ask_token:
        return None
    token = os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    if len(token) < 16 or not token.isascii() or not token.replace("-", "").replace("_", "").isalnum():
        raise ViewerError(f"{TOKEN_VARIABLE}: at least 16 letters, digits, - or _; or leave it out for a random one")
    return token


def listen(options: ServerOptions) -> socket.socket:
    """Return a listening socket; raises ViewerError where the address cannot be used."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets with explicit IPPROTO_TCP; without it a response takes 40 ms longer.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
        listening.listen(128)  # the URL is printed before the server starts
    except (OSError, OverflowError) as error:
        listening.close()
        raise ViewerError(
            f"cannot listen on {options.host} port {options.port} ({error}); --port 0 picks a free port"
        ) from error
    return listening
