"""The server as a browser, a curious neighbour and an attacker meet it: a real uvicorn, raw requests."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.viewing import Served, served
from wsi_ips.config import load_recipe
from wsi_ips.errors import ViewerError
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_viewer import RunCollection, view_recipe
from wsi_ips.slides import open_slide
from wsi_ips.slides.source import LocalFile
from wsi_ips.slides.tiff_header import TILE_HEIGHT, read_tiff_header
from wsi_ips.tiles.store import read_index
from wsi_ips.viewer.collection import SlideFiles
from wsi_ips.viewer.reviews import ReviewStore
from wsi_ips.viewer.serve import ServerOptions, listen

SLIDE = "slide_001"
WRITE = {"content-type": "application/json", "x-wsi-ips": "review"}
GOOD_REVIEW = json.dumps({"verdict": "agree", "note": "lymph node", "reviewer": "AB"}).encode()


@pytest.fixture(scope="module")
def server(run_folder: Path, library: Path) -> Iterator[Served]:
    with served(RunCollection(Run.open(view_recipe(run_folder))), library) as running:
        yield running


def predicted(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "scores.zarr").iterdir())


def test_the_worklist_names_every_slide_with_state_label_and_probability(server, run_folder):
    worklist = server.ask("/api/worklist").json
    rows = {row["slide_id"]: row for row in worklist["slides"]}
    assert len(rows) == 10
    assert rows["gone"]["state"] == rows["damaged (1)"]["state"] == "failed"
    assert "no such file" in rows["gone"]["reason"]
    for name in predicted(run_folder):
        scores = read_scores(run_folder / "scores.zarr", name)
        assert rows[name]["probability"] == pytest.approx(scores.probability[-1], abs=1e-5)
        assert rows[name]["predicted"] == scores.label
    assert worklist["classes"] == ["normal", "tumor"]
    assert {"predictions.csv", "slides.csv", "summary.json"} <= {d["name"] for d in worklist["downloads"]}


def test_tile_table_and_layers_are_those_of_the_store(server, run_folder):
    name = predicted(run_folder)[0]
    slide = server.ask(f"/api/slides/{name}").json
    index, scores = read_index(run_folder / "tiles.zarr", name), read_scores(run_folder / "scores.zarr", name)
    columns, data = slide["tiles"]["columns"], server.ask(f"/api/slides/{name}/tiles").body
    assert len(data) == 4 * len(columns) * len(index)
    table = {
        column: np.frombuffer(data, f"<{kind}", len(index), 4 * number * len(index))
        for number, (column, kind) in enumerate(columns)
    }
    np.testing.assert_array_equal(table["x"], index.x)
    np.testing.assert_array_equal(table["y"], index.y)
    np.testing.assert_array_equal(table["probability"], scores.positive_probability)
    np.testing.assert_array_equal(table["tissue"], index.tissue_fraction)
    np.testing.assert_allclose(table["weight"], scores.attention * len(index), rtol=1e-5)
    of_tiles = [layer for layer in slide["layers"] if layer["kind"] in table]
    assert [layer["kind"] for layer in slide["layers"] if layer not in of_tiles] == ["unseen"]
    for layer in of_tiles:
        values = np.frombuffer(server.ask(f"/api/slides/{name}/layers/{layer['kind']}").body, np.uint8)
        values = values.reshape(layer["rows"], layer["columns"])
        # Every tile's own middle, looked up on the layer's grid, has that tile's score.
        (x0, y0), (cell_x, cell_y) = layer["origin_px0"], layer["cell_px0"]
        box = index.boxes_px0
        column = ((box[:, 0] + box[:, 2] / 2 - x0) // cell_x).astype(int)
        row = ((box[:, 1] + box[:, 3] / 2 - y0) // cell_y).astype(int)
        np.testing.assert_allclose((values[row, column] - 1.0) / 254, table[layer["kind"]], atol=0.003)
        assert (values != 0).sum() == len(index)


def test_a_deep_zoom_tile_is_a_jpeg_that_a_browser_may_keep(server):
    answer = server.ask(f"/slides/{SLIDE}/dz/13/3_2.jpg")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    assert "immutable" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(answer.body)).size == (256, 256)
    patch = server.ask(f"/slides/{SLIDE}/patches/0.jpg")
    assert Image.open(io.BytesIO(patch.body)).size == (64, 64)


def test_downloads_are_the_files_of_the_run(server, run_folder):
    name = predicted(run_folder)[0]
    answer = server.ask("/downloads/predictions.csv")
    assert answer.body == (run_folder / "predictions.csv").read_bytes()
    assert answer.headers["content-disposition"].startswith("attachment")
    offered = {download["name"] for download in server.ask(f"/api/slides/{name}").json["downloads"]}
    assert f"{name}_probability.png" in offered
    picture = server.ask(f"/slides/{name}/downloads/{name}_probability.png").body
    assert picture == (run_folder / "heatmaps" / f"{name}_probability.png").read_bytes()


NOTHING_THERE = [
    "/nothing",
    "/assets/nothing.js",
    "/assets/index.html",
    "/assets/../app.py",
    "/assets/..%2fapp.py",
    "/assets/%2e%2e/app.py",
    "/assets/..%5capp.py",
    "/assets//etc/passwd",
    "/assets/%2fetc%2fpasswd",
    "/assets/main.js%00",
    "/../../etc/passwd",
    "/downloads/..%2frecipe.yaml",
    "/downloads/run.sqlite",
    "/downloads/model",
    "/downloads/%2fetc%2fpasswd",
    f"/slides/{SLIDE}/downloads/..%2f..%2frun.json",
    f"/slides/{SLIDE}/downloads/slide_002_probability.png",
    "/slides/unknown/downloads/summary.json",
    "/slides/..%2f..%2fetc%2fpasswd/dz/0/0_0.jpg",
    "/slides/../out/run.json",
    "/slides/unknown/dz/0/0_0.jpg",
    "/slides/SLIDE_001/dz/0/0_0.jpg",
    f"/slides/{SLIDE}%00/dz/0/0_0.jpg",
    f"/slides/{SLIDE}/dz/14/0_0.jpg",
    f"/slides/{SLIDE}/dz/99/0_0.jpg",
    f"/slides/{SLIDE}/dz/-1/0_0.jpg",
    f"/slides/{SLIDE}/dz/13/24_0.jpg",
    f"/slides/{SLIDE}/dz/13/0_-1.jpg",
    f"/slides/{SLIDE}/dz/13/9999999_0.jpg",
    f"/slides/{SLIDE}/dz/13/{'9' * 40}_0.jpg",
    f"/slides/{SLIDE}/dz/{'9' * 5000}/0_0.jpg",
    f"/slides/{SLIDE}/dz/1e3/0_0.jpg",
    f"/slides/{SLIDE}/dz/%D9%A1/0_0.jpg",
    f"/slides/{SLIDE}/dz/13/0,0.jpg",
    f"/slides/{SLIDE}/dz/13/0_0.jpg/..",
    f"/slides/{SLIDE}/patches/999999999.jpg",
    f"/slides/{SLIDE}/patches/-1.jpg",
    f"/slides/{SLIDE}/patches/{'9' * 5000}.jpg",
    "/slides/unknown/patches/0.jpg",
    "/api/slides/unknown",
    "/api/slides/unknown/tiles",
    f"/api/slides/{SLIDE}/layers/secrets",
    f"/api/slides/{SLIDE}/layers/..%2fprobability",
    "/api/slides/gone",
    "/slides/gone/dz/0/0_0.jpg",
]


@pytest.mark.parametrize("path", NOTHING_THERE, ids=lambda path: path[:60])
def test_what_is_not_there_is_not_found_and_says_nothing_of_the_machine(server, run_folder, path):
    answer = server.ask(path)
    assert answer.status == 404
    assert str(run_folder.parent) not in answer.body.decode()
    assert b"Traceback" not in answer.body
    assert server.ask("/api/worklist").status == 200


def test_a_damaged_slide_is_told_and_the_others_go_on(server):
    for path in ("/slides/damaged%20(1)/dz/0/0_0.jpg", "/api/slides/damaged%20(1)"):
        answer = server.ask(path)
        assert answer.status == 503
        assert "no reader opens it" in answer.json["error"]
    assert server.ask(f"/slides/{SLIDE}/dz/0/0_0.jpg").status == 200


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (("localhost:8765",), 200),
        (("LOCALHOST",), 200),
        (("127.0.0.1",), 200),
        (("[::1]:8765",), 200),
        (("evil.example",), 421),
        (("localhost.evil.example:8765",), 421),
        (("127.0.0.1.evil.example",), 421),
        (("evil.example:127.0.0.1",), 421),
        (("192.168.1.7:8765",), 421),
        (("",), 421),
        (("127.0.0.1", "evil.example"), 421),
        ((), 421),
    ],
    ids=str,
)
def test_a_foreign_host_name_is_refused(server, hosts, status):
    answer = server.ask("/api/worklist", hosts=hosts)
    assert answer.status in (status, 400 if status == 421 else status)  # h11 refuses some of them before us
    if status != 200:
        assert b"slide" not in answer.body


@pytest.mark.parametrize(
    "path", ["/", "/assets/main.js", "/api/worklist", "/nothing", f"/slides/{SLIDE}/dz/13/0_0.jpg", "/reviews.csv"]
)
def test_every_answer_forbids_foreign_content(server, path):
    headers = server.ask(path).headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


def test_the_page_names_no_other_server(server):
    page = server.ask("/").body.decode()
    for name in ("main.js", "pane.js", "layer.js", "api.js", "worklist.js", "style.css"):
        page += server.ask(f"/assets/{name}").body.decode()
    assert "http:" not in page
    assert "https:" not in page
    assert "style=" not in page


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "path", ["/", "/api/worklist", f"/api/slides/{SLIDE}", "/downloads/slides.csv", "/reviews.csv"]
)
def test_only_reviews_can_be_written(server, method, path):
    assert server.ask(path, method=method, body=b"{}", headers=WRITE).status == 405


def test_a_review_is_kept_with_what_was_reviewed(server, run_folder):
    name = predicted(run_folder)[0]
    same = {"origin": server.address, "sec-fetch-site": "same-origin", **WRITE}
    answer = server.ask(f"/api/slides/{name}/review", method="PUT", body=GOOD_REVIEW, headers=same)
    assert answer.status == 200
    kept = ReviewStore(run_folder / "run.sqlite").latest()[name]
    assert (kept.verdict, kept.note, kept.reviewer) == ("agree", "lymph node", "AB")
    assert kept.probability == pytest.approx(read_scores(run_folder / "scores.zarr", name).probability[-1], abs=1e-5)
    assert kept.model_id
    row = next(r for r in server.ask("/api/worklist").json["slides"] if r["slide_id"] == name)
    assert row["review"]["note"] == "lymph node"
    assert f"{name},agree,lymph node,AB," in server.ask("/reviews.csv").body.decode()


REFUSED_REVIEWS = [
    ("no header of ours", 403, GOOD_REVIEW, {"content-type": "application/json"}),
    ("foreign origin", 403, GOOD_REVIEW, WRITE | {"origin": "http://evil.example"}),
    ("other port", 403, GOOD_REVIEW, WRITE | {"origin": "http://127.0.0.1:1"}),
    ("opaque origin", 403, GOOD_REVIEW, WRITE | {"origin": "null"}),
    ("cross site", 403, GOOD_REVIEW, WRITE | {"sec-fetch-site": "cross-site"}),
    ("same site, other port", 403, GOOD_REVIEW, WRITE | {"sec-fetch-site": "same-site"}),
    ("a form", 415, b"verdict=agree", WRITE | {"content-type": "application/x-www-form-urlencoded"}),
    ("plain text", 415, GOOD_REVIEW, WRITE | {"content-type": "text/plain"}),
    ("no JSON", 400, b"{", WRITE),
    ("no UTF-8", 400, b'{"note": "\xff"}', WRITE),
    ("half a character", 400, b'{"note": "\\ud800"}', WRITE),
    ("nested without end", 400, b"[" * 60_000, WRITE),
    ("a list", 400, b"[]", WRITE),
    ("numbers", 400, b'{"verdict": 1}', WRITE),
    ("unknown verdict", 400, b'{"verdict": "maybe"}', WRITE),
    ("long note", 400, json.dumps({"note": "a" * 4001}).encode(), WRITE),
    ("long body", 413, b'{"note": "' + b"a" * 70_000 + b'"}', WRITE),
]


@pytest.mark.parametrize(
    ("why", "status", "body", "headers"), REFUSED_REVIEWS, ids=[case[0] for case in REFUSED_REVIEWS]
)
def test_a_review_from_elsewhere_or_of_another_form_is_refused(server, run_folder, why, status, body, headers):
    before = ReviewStore(run_folder / "run.sqlite").latest()
    answer = server.ask("/api/slides/slide_002/review", method="PUT", body=body, headers=headers)
    assert answer.status == status
    assert ReviewStore(run_folder / "run.sqlite").latest() == before


def test_no_review_of_an_unknown_slide(server):
    assert server.ask("/api/slides/unknown/review", method="PUT", body=GOOD_REVIEW, headers=WRITE).status == 404


def test_reviews_that_cannot_be_kept_are_said_to_be_lost(run_to_view, library, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(run_to_view, folder)
    collection = RunCollection(Run.open(view_recipe(folder)))
    (folder / "run.sqlite").write_bytes(b"this is no database, but long enough to be taken for one" * 40)
    with served(collection, library) as server:
        answer = server.ask(f"/api/slides/{SLIDE}/review", method="PUT", body=GOOD_REVIEW, headers=WRITE)
        assert answer.status == 503
        assert "out/run.sqlite" in answer.json["error"]


def test_a_port_that_is_taken_is_told():
    with listen(ServerOptions(port=0)) as first, pytest.raises(ViewerError, match="--port 0"):
        listen(ServerOptions(port=first.getsockname()[1]))


def test_slides_without_a_run_are_shown_but_not_reviewed(run_to_view, library):
    cohort = run_to_view.parent / "cohort"
    paths = sorted(cohort.rglob("slide_00[12].*"))[:2]
    slides = [path for path in paths if path.suffix not in (".xml", ".csv")]
    collection = SlideFiles([*slides, slides[0], cohort / "damaged.svs"])
    with served(collection, library) as server:
        worklist = server.ask("/api/worklist").json
        names = [row["slide_id"] for row in worklist["slides"]]
        assert names[-2:] == [f"{slides[0].name} (2)", "damaged.svs"]
        assert worklist["slides"][-1]["state"] == "failed"
        assert not worklist["can_review"]
        facts = server.ask(f"/api/slides/{names[0]}").json
        assert (facts["tiles"], facts["layers"], facts["outlines"]) == (None, [], None)
        assert server.ask(f"/slides/{names[0]}/dz/13/0_0.jpg").status == 200
        assert server.ask(f"/slides/{names[0]}/patches/0.jpg").status == 404
        assert server.ask(f"/api/slides/{names[0]}/review", method="PUT", body=GOOD_REVIEW, headers=WRITE).status == 404
        assert server.ask("/reviews.csv").status == 404


def test_a_slide_that_crashes_its_reader_fails_alone(run_to_view, library, monkeypatch):
    cohort = run_to_view.parent / "cohort"
    slide = next(path for path in sorted(cohort.rglob("slide_00*")) if path.suffix not in (".xml", ".csv"))

    def opened(path, **kinds):
        if "damaged" in str(path):
            raise ZeroDivisionError("division by zero")
        return open_slide(path, **kinds)

    monkeypatch.setattr("wsi_ips.viewer.collection.open_slide", opened)
    with served(SlideFiles([slide, cohort / "damaged.svs"]), library) as server:
        answer = server.ask("/api/worklist")
        assert answer.status == 200
        assert [row["state"] for row in answer.json["slides"]] == ["ok", "failed"]
        assert "division by zero" in answer.json["slides"][1]["reason"]


def test_a_damaged_header_fails_its_slide_alone(run_to_view, library, tmp_path):
    whole = next((run_to_view.parent / "cohort").rglob("slide_001.svs"))
    with closing(LocalFile(whole)) as file:
        header = read_tiff_header(file)
        place = header.directories[0].tags[TILE_HEIGHT].offset
    data = bytearray(whole.read_bytes())
    data[place : place + 2] = b"\0\0"  # tiles 0 pixels high
    (tmp_path / "damaged.svs").write_bytes(data)
    with served(SlideFiles([whole, tmp_path / "damaged.svs"]), library) as server:
        answer = server.ask("/api/worklist")
        assert answer.status == 200
        assert [row["state"] for row in answer.json["slides"]] == ["ok", "failed"]


def test_a_request_that_does_not_arrive_is_hung_up_on(server, monkeypatch):
    monkeypatch.setattr("wsi_ips.viewer.serve.REQUEST_S", 0.5)
    whole = f"GET /api/worklist HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    for sent in ("", "GET / HTTP/1.1\r\nX: ", whole + "Content-Length: 9\r\n\r\nab"):
        with socket.create_connection((server.host, server.port), timeout=10) as slow:
            slow.sendall(sent.encode())
            began = time.monotonic()
            while slow.recv(65536):
                pass
            assert 0.2 < time.monotonic() - began < 5
    quick = http.client.HTTPConnection(server.host, server.port, timeout=10)
    ports = set()
    for wait_s in (0, 1):  # the connection is kept for another request
        time.sleep(wait_s)
        quick.request("GET", "/api/worklist")
        ports.add(quick.sock.getsockname()[1])
        answer = quick.getresponse()
        assert (answer.status, len(answer.read()) > 2) == (200, True)
    assert len(ports) == 1
    quick.close()


def test_a_run_that_has_only_begun_can_be_looked_at(run_to_view, library, tmp_path):
    recipe = load_recipe(run_to_view.parent / "recipe.yaml").model_copy(update={"output": tmp_path / "begun"})
    with served(RunCollection(Run.open(recipe)), library) as server:
        rows = server.ask("/api/worklist").json["slides"]
        assert {row["state"] for row in rows} == {"pending"}
        slide = server.ask(f"/api/slides/{SLIDE}").json
        assert slide["layers"] == []
        assert "run `wsi-ips tile` first" in slide["notes"][0]
