"""A real HTTP server that serves files by ranges, and misbehaves on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Behaviour:
    """What the server does; may be changed while it runs."""

    folder: Path
    ranges: bool = True
    status: int | None = None
    """Answer everything with this status."""
    fail_next: int = 0
    """So many answers are a 503."""
    cut_next: int = 0
    """So many answers end in the middle."""
    wait_s: float = 0.0
    requests: list[tuple[str, int]] = field(default_factory=list)
    """Method and bytes of each answer."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, counter: str) -> bool:
        """Count one down, if there is one left."""
        with self.lock:
            left = getattr(self, counter)
            setattr(self, counter, max(0, left - 1))
            return left > 0


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Behaviour]]:
    """The server's URL and its behaviour."""
    behaviour = Behaviour(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = behaviour.folder / unquote(self.path.partition("?")[0]).lstrip("/")
            time.sleep(behaviour.wait_s)
            if behaviour.status or not path.is_file():
                self.empty(behaviour.status or 404)
                return
            if body and behaviour.takes("fail_next"):
                self.empty(503)
                return
            data, asked = path.read_bytes(), self.headers.get("Range")
            if asked and behaviour.ranges:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                part = data[int(first) : int(last) + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            else:
                part = data
                self.send_response(200)
            self.send_header("Content-Length", str(len(part)))
            if behaviour.ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if not body:
                return
            if behaviour.takes("cut_next"):
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                return
            behaviour.requests.append((self.command, len(part)))
            self.wfile.write(part)

        def empty(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients that gave up are what some tests are about."""

    server = Quiet(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
