"""Beyond loopback the server shows nothing without its token, and answers to its own names only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.viewer.test_server import SLIDE
from tests.viewing import Served, served
from wsi_ips.errors import ViewerError
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_viewer import RunCollection, view_recipe
from wsi_ips.viewer.guard import is_loopback
from wsi_ips.viewer.serve import ServerOptions, access_token

TOKEN = "0123456789abcdef-token"


@pytest.fixture(scope="module")
def guarded(run_folder: Path, library: Path) -> Iterator[Served]:
    collection = RunCollection(Run.open(view_recipe(run_folder)))
    options = ServerOptions(host="0.0.0.0", remote_access=True, allow_hosts=("slides.example",))
    with served(collection, library, token=TOKEN, options=options) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "cookie", "status"),
    [
        ("/", None, 401),
        ("/?token=wrong", None, 401),
        ("/?token=", None, 401),
        (f"/?token={TOKEN}", None, 303),
        (f"/?token={TOKEN}x", None, 401),
        (f"/api/worklist?token={TOKEN}", None, 401),
        ("/api/worklist", None, 401),
        ("/assets/main.js", None, 401),
        (f"/slides/{SLIDE}/dz/0/0_0.jpg", None, 401),
        ("/downloads/slides.csv", None, 401),
        ("/api/worklist", "wrong", 401),
        ("/api/worklist", "w\xf6", 401),
        ("/api/worklist", TOKEN, 200),
        ("/", TOKEN, 200),
    ],
)
def test_beyond_loopback_nothing_is_shown_without_the_token(guarded, path, cookie, status):
    headers = {"cookie": f"wsi_ips_view_{guarded.port}={cookie}"} if cookie else {}
    answer = guarded.ask(path, headers=headers)
    assert answer.status == status
    if status == 303:
        assert answer.headers["location"] == "/"
        given = answer.headers["set-cookie"].lower()
        assert "httponly" in given
        assert "samesite=strict" in given


@pytest.mark.parametrize(
    ("host", "status"), [("slides.example", 200), ("192.168.1.7:80", 200), ("[fe80::1]", 200), ("evil.example", 421)]
)
def test_beyond_loopback_addresses_and_given_names_are_ours(guarded, host, status):
    headers = {"cookie": f"wsi_ips_view_{guarded.port}={TOKEN}"}
    assert guarded.ask("/api/worklist", hosts=(host,), headers=headers).status == status


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "slides.example"])
def test_other_hosts_need_a_flag_and_get_a_token(host, monkeypatch):
    monkeypatch.delenv("WSI_IPS_VIEW_TOKEN", raising=False)
    assert not is_loopback(host)
    with pytest.raises(ViewerError, match="--remote-access"):
        access_token(ServerOptions(host=host))
    made = {access_token(ServerOptions(host=host, remote_access=True)) for _ in range(3)}
    assert len(made) == 3
    assert all(token and len(token) >= 32 for token in made)


def test_a_token_of_ones_own_must_be_long(monkeypatch):
    monkeypatch.setenv("WSI_IPS_VIEW_TOKEN", TOKEN)
    assert access_token(ServerOptions(ask_token=True)) == TOKEN
    assert access_token(ServerOptions()) is None
    monkeypatch.setenv("WSI_IPS_VIEW_TOKEN", "short")
    with pytest.raises(ViewerError, match="at least 16"):
        access_token(ServerOptions(ask_token=True))
