"""Start the server and tell where it is."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from wsi_ips.errors import ViewerError
from wsi_ips.viewer.app import Viewer
from wsi_ips.viewer.assets import ensure_library
from wsi_ips.viewer.collection import Collection
from wsi_ips.viewer.guard import Guard, is_loopback

TOKEN_VARIABLE = "WSI_IPS_VIEW_TOKEN"  # noqa: S105 - its name, not a token
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - named to be treated with care


@dataclass(frozen=True)
class ServerOptions:
    """How the viewer is served.

    Attributes
    ----------
    host, port
        Where it listens; port 0 takes a free one.
    remote_access
        Whether other machines may reach it: needed for any host but loopback.
    allow_hosts
        Further names by which browsers call it.
    ask_token
        Ask for a token on loopback too: on machines that several people share.
    threads
        Tiles made at a time.
    cache_mb
        Encoded tiles kept, MiB.
    open_browser
        Open the page in the browser of this machine.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    remote_access: bool = False
    allow_hosts: tuple[str, ...] = ()
    ask_token: bool = False
    threads: int = min(8, (os.cpu_count() or 1) + 2)
    cache_mb: int = 128
    open_browser: bool = True


def serve(collection: Collection, options: ServerOptions, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Parameters
    ----------
    collection
        The slides.
    options
        How.
    say
        Is told the address, and what else people should know.

    Raises
    ------
    ViewerError
        OpenSeadragon is missing, the address cannot be used, or it is open to others without the flag.
    """
    token = access_token(options)
    library = ensure_library(say)
    listening = listen(options)
    address = address_of(listening, options.host)
    page = f"{address}/" if token is None else f"{address}/?token={token}"
    server = uvicorn.Server(
        uvicorn.Config(application(collection, library, options, token), log_level="warning", server_header=False)
    )
    say(f"viewer: {page}")
    if token is None:
        say("only this machine can reach it; Ctrl-C stops it. Research use only.")
    else:
        say("whoever has this address can look and review; nothing is encrypted; Ctrl-C stops it. Research use only.")
    if options.open_browser:
        threading.Timer(0.7, webbrowser.open, (page,)).start()
    with listening:
        try:
            server.run(sockets=[listening])
        except KeyboardInterrupt:
            say("stopped")


def application(collection: Collection, library: Path, options: ServerOptions, token: str | None) -> Guard:
    """The guarded application, as a server runs it."""
    viewer = Viewer(collection, library, threads=options.threads, cache_mb=options.cache_mb)
    names = (*options.allow_hosts, *([] if options.host in WILDCARDS else [options.host]))
    wildcard = options.host in WILDCARDS
    hosts = (*names, socket.gethostname()) if wildcard else names
    return Guard(viewer.application(), hosts=hosts, any_address=wildcard, token=token)


def access_token(options: ServerOptions) -> str | None:
    """The token browsers must know, None where none is asked for.

    Taken from ``WSI_IPS_VIEW_TOKEN`` where that is set (16 characters or more), else made anew.

    Raises
    ------
    ViewerError
        Other machines could reach the server and nobody said that they may, or the token is too short.
    """
    beyond = not is_loopback(options.host)
    if beyond and not options.remote_access:
        raise ViewerError(
            f"--host {options.host}: other machines could reach the slides; add --remote-access if they may (a token "
            "is asked for then), or leave --host out and use an SSH tunnel"
        )
    if not beyond and not options.ask_token:
        return None
    token = os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    if len(token) < 16 or not token.isascii() or not token.replace("-", "").replace("_", "").isalnum():
        raise ViewerError(f"{TOKEN_VARIABLE}: at least 16 letters, digits, - or _; or leave it out, one is made")
    return token


def listen(options: ServerOptions) -> socket.socket:
    """A socket that listens where the options say.

    Raises
    ------
    ViewerError
        The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # Named as TCP: only then does asyncio send what it has at once (TCP_NODELAY); else each answer waits 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
        listening.listen(128)  # now: the address is told before the server has started
    except (OSError, OverflowError) as error:
        listening.close()
        raise ViewerError(
            f"cannot listen on {options.host} port {options.port} ({error}); --port 0 takes a free port"
        ) from error
    return listening


def address_of(listening: socket.socket, host: str) -> str:
    """Address to open."""
    name = "localhost" if host in WILDCARDS else host
    return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"
