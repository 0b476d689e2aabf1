"""`wsi-ips view`: what it can be pointed at, and the command as a process of its own."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.pyramids import gradient_pyramid, write_pyramid
from wsi_ips.cli import app
from wsi_ips.errors import ManifestError, SlideNotFoundError, ViewerError
from wsi_ips.pipeline.run_viewer import RunCollection, collection_of
from wsi_ips.viewer.assets import find_library
from wsi_ips.viewer.collection import SlideFiles
from wsi_ips.viewer.reviews import Review, ReviewStore


def test_runs_by_folder_or_recipe_and_slides_by_file_folder_or_url(run_to_view, tmp_path):
    assert isinstance(collection_of([str(run_to_view)]), RunCollection)
    assert isinstance(collection_of([str(run_to_view.parent / "recipe.yaml")]), RunCollection)
    path = write_pyramid(tmp_path / "a.tif", gradient_pyramid())
    write_pyramid(tmp_path / "b.tif", gradient_pyramid())
    assert isinstance(collection_of([str(path)]), SlideFiles)
    names = [entry.slide_id for entry in collection_of([str(tmp_path)]).entries()]
    assert names == ["a.tif", "b.tif"]


@pytest.mark.parametrize(
    ("targets", "error", "says"),
    [
        (["nowhere.svs"], SlideNotFoundError, "no such slide, folder or recipe"),
        (["RUN", "nowhere.svs"], ViewerError, "one run at a time"),
        (["EMPTY"], ManifestError, "no slide"),
    ],
)
def test_what_cannot_be_shown_is_told(run_to_view, tmp_path, targets, error, says):
    named = {"RUN": str(run_to_view), "EMPTY": str(tmp_path)}
    with pytest.raises(error, match=says):
        collection_of([named.get(target, target) for target in targets])


def test_reviews_are_exported_without_a_server(run_to_view, tmp_path):
    import shutil

    shutil.copytree(run_to_view, tmp_path / "run")
    ReviewStore(tmp_path / "run" / "run.sqlite").add(Review("slide_001", "agree", "clear"))
    out = tmp_path / "reviews.csv"
    done = CliRunner().invoke(app, ["view", str(tmp_path / "run"), "--export-reviews", str(out)])
    assert done.exit_code == 0, done.output
    assert "slide_001,agree,clear" in out.read_text()
    path = write_pyramid(tmp_path / "a.tif", gradient_pyramid())
    refused = CliRunner().invoke(app, ["view", str(path), "--export-reviews", str(out)])
    assert refused.exit_code == 2
    assert "only a run has reviews" in refused.output


def test_beyond_this_machine_only_with_the_flag(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", gradient_pyramid())
    done = CliRunner().invoke(app, ["view", str(path), "--host", "0.0.0.0", "--no-browser"])
    assert done.exit_code == 2
    assert "--remote-access" in done.output


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    if find_library() is None:
        pytest.skip("OpenSeadragon is not installed; run `make viewer`")
    path = write_pyramid(tmp_path / "a.tif", gradient_pyramid())
    code = "import sys; from wsi_ips.cli import main; main()"
    command = [sys.executable, "-c", code, "view", str(path), "--port", "0", "--no-browser", "--token"]
    environment = {k: v for k, v in os.environ.items() if k != "WSI_IPS_VIEW_TOKEN"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"viewer: http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32,})", line)
        assert found, line
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().status == 401
        connection.close()
        connection.request("GET", f"/?token={found[2]}")
        answer = connection.getresponse()
        assert answer.status == 303
        connection.close()
        connection.request("GET", "/", headers={"cookie": answer.headers["set-cookie"].partition(";")[0]})
        assert b"openseadragon.js" in connection.getresponse().read()
        connection.close()
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest


def test_torch_is_not_loaded_to_look_at_a_run(run_to_view: Path):
    code = (
        "import sys; from wsi_ips.pipeline.run_viewer import collection_of; c = collection_of(sys.argv[1:]); "
        "c.detail(c.entries()[-3].slide_id); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run_to_view)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
