"""A finished run to look at, and a real server in front of a collection."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import uvicorn

from tests.small_cohort import SMALL, write_recipe
from wsi_ips.config import load_recipe
from wsi_ips.pipeline import run_pipeline
from wsi_ips.viewer.collection import Collection
from wsi_ips.viewer.serve import ServerOptions, application, listen, server_config


def make_run(folder: Path) -> Path:
    """Run folder of real slides, trained and predicted; of the slides one is damaged and one is gone."""
    training = SMALL["training"] | {"max_missing_share": 0.5}
    recipe = write_recipe(folder, name="to-look-at", training=training)
    manifest = folder / "cohort" / "manifest.csv"
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    damaged = folder / "cohort" / "damaged.svs"
    damaged.write_bytes(b"II*\0 this is no slide")
    extra = pd.DataFrame(
        [
            {"slide_id": "damaged (1)", "path": str(damaged), "mpp": "0.5"},
            {"slide_id": "gone", "path": str(folder / "cohort" / "gone.svs"), "mpp": "0.5"},
        ]
    )
    pd.concat([table, extra]).fillna("").to_csv(manifest, index=False)
    outcome = run_pipeline(load_recipe(recipe))
    assert outcome.failed == 2
    return folder / "out"


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    port: int
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        hosts: tuple[str, ...] | None = None,
    ) -> Answer:
        """Send exactly this path and these Host headers; nothing is normalised on the way."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for host in (f"127.0.0.1:{self.port}",) if hosts is None else hosts:
                connection.putheader("Host", host)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@contextmanager
def served(
    collection: Collection, library: Path, *, token: str | None = None, options: ServerOptions | None = None
) -> Iterator[Served]:
    """A real uvicorn in a thread, on a free port."""
    listening = listen(ServerOptions(port=0))
    app = application(collection, library, options or ServerOptions(), token)
    server = uvicorn.Server(server_config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server died"
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        yield Served(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
