"""The page in a real browser: what a reviewer does, by mouse, keyboard and phone."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.viewing import Served, served
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_viewer import RunCollection, view_recipe
from wsi_ips.tiles.store import read_index
from wsi_ips.viewer.assets import find_library

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")

SETTLED = "() => !window.wsiIps.panes[0].viewer.isAnimating?.() && window.wsiIps.panes[0].image?.getFullyLoaded()"
PLACE = "() => window.wsiIps.panes[0].place(true)"
MIDDLE_PIXEL = """() => {
  const canvas = window.wsiIps.panes[0].canvas;
  const at = [Math.floor(canvas.width / 2) - 20, Math.floor(canvas.height / 2) - 20];
  return Array.from(canvas.getContext("2d").getImageData(...at, 1, 1).data);
}"""
COLOURED = """() => {
  const canvas = window.wsiIps.panes[0].canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let at = 3; at < data.length; at += 4) count += data[at] > 0;
  return count;
}"""


def browser_path() -> str | None:
    """Debian's chromium, else whatever playwright has installed; None where there is neither."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found:
        return found
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@pytest.fixture(scope="module")
def run_folder(run_to_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "out"
    shutil.copytree(run_to_view, folder)
    return folder


@pytest.fixture(scope="module")
def server(run_folder: Path) -> Iterator[Served]:
    library = find_library()
    if library is None:
        pytest.skip("OpenSeadragon is not installed; run `make viewer`")
    with served(RunCollection(Run.open(view_recipe(run_folder))), library) as running:
        yield running


@pytest.fixture(scope="module")
def browser(server: Served) -> Iterator[Any]:
    path = browser_path()
    if path is None:
        pytest.skip("no browser: install Debian's chromium, or run `playwright install chromium`")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.getuid() == 0 else []
        running = playwright.chromium.launch(executable_path=path, args=options)
        yield running
        running.close()


def complains(said: Any) -> bool:
    """Errors and warnings; but for the one that is about the tests' own reading of a canvas."""
    return said.type in ("error", "warning") and "willReadFrequently" not in said.text


@pytest.fixture
def open_page(browser: Any, server: Served) -> Iterator[Any]:
    """Opens the page in a fresh profile; at the end nothing must have been complained of in the console."""
    complaints: list[str] = []
    contexts = []

    def opened(hash_: str = "", *, width: int = 1280, height: int = 800, dark: bool = False) -> Any:
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if complains(said) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(server.address) else None)
        page.goto(f"{server.address}/{hash_}")
        page.wait_for_function(SETTLED)
        return page

    opened.complaints = complaints  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def settle(page: Any) -> None:
    page.wait_for_timeout(900)  # the flight takes 0.7 s
    page.wait_for_function(SETTLED)


def predicted(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "scores.zarr").iterdir())


def test_the_most_suspicious_slide_is_opened_first(open_page, run_folder):
    page = open_page()
    suspicion = {name: read_scores(run_folder / "scores.zarr", name).probability[-1] for name in predicted(run_folder)}
    first = max(suspicion, key=suspicion.__getitem__)
    assert page.inner_text("#about-name") == first
    assert page.inner_text("#rows tr.current a") == first
    assert page.locator("#rows tr").count() == 10
    assert page.get_attribute("th.col-suspicion", "aria-sort") == "descending"
    # The picture is there: pixels of the slide's own canvas differ.
    drawn = "() => { const c = document.querySelector('.openseadragon-canvas canvas'); const g = c.getContext('2d');"
    drawn += " return new Set(Array.from(g.getImageData(0, 0, c.width, c.height).data)).size }"
    assert page.evaluate(drawn) > 50


def test_zooming_changes_scale_bar_and_magnification(open_page):
    page = open_page()
    before = page.inner_text(".pane .times"), page.inner_text(".pane .scale")
    box = page.locator(".pane").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(6):
        page.mouse.wheel(0, -300)
        page.wait_for_timeout(80)
    settle(page)
    after = page.inner_text(".pane .times"), page.inner_text(".pane .scale")
    assert after[0] != before[0]
    # The bar is as long as it says: µm by its own text against the µm of a pixel at this zoom.
    said = re.match(r"([\d.]+) (µm|mm)", after[1])
    assert said
    length_um = float(said[1]) * (1000 if said[2] == "mm" else 1)
    width_px = page.evaluate("() => document.querySelector('.scale i').getBoundingClientRect().width")
    zoom = page.evaluate(PLACE)["zoom"]
    assert width_px * 0.5 / zoom == pytest.approx(length_um, rel=0.02)  # 0.5 µm per level-0 pixel


def test_layers_threshold_and_opacity_act_at_once_and_ask_nobody(open_page):
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    pictures = {}
    for kind in ("probability", "attention", "tissue", ""):
        page.check(f"#layers input[value='{kind}']")
        page.wait_for_timeout(80)
        pictures[kind] = page.locator(".pane").first.screenshot()
    assert len(set(pictures.values())) == 4
    page.check("#layers input[value='attention']")
    page.uncheck("#switch-outlines", force=True) if page.is_visible("#switch-outlines") else None
    counts = []
    for threshold in (0, 30, 60, 90, 100):
        page.fill("#threshold-a", str(threshold))
        page.wait_for_timeout(80)
        counts.append(page.evaluate(COLOURED))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 4 * counts[3] > 0
    page.fill("#threshold-a", "0")
    strong = page.locator(".pane").first.screenshot()
    page.fill("#opacity-a", "20")
    page.wait_for_timeout(80)
    assert page.locator(".pane").first.screenshot() != strong
    assert [url for url in asked if "/api/" in url or "/dz/" in url] == []


def test_a_click_on_a_top_tile_lands_there_and_it_is_coloured(open_page, run_folder):
    page = open_page()
    name = page.inner_text("#about-name")
    index, scores = read_index(run_folder / "tiles.zarr", name), read_scores(run_folder / "scores.zarr", name)
    best = np.argsort(-scores.positive_probability, kind="stable")
    page.check("#layers input[value='probability']")
    for rank in (0, 3):
        button = page.locator("#gallery button").nth(rank)
        assert int(button.get_attribute("data-tile")) == best[rank]
        button.click()
        settle(page)
        place, box = page.evaluate(PLACE), index.boxes_px0[best[rank]]
        assert abs(place["x"] - (box[0] + box[2] / 2)) <= box[2] / 2
        assert abs(place["y"] - (box[1] + box[3] / 2)) <= box[3] / 2
        page.wait_for_url(re.compile(f"x={round(place['x'])}&y={round(place['y'])}&"))
        assert page.evaluate(MIDDLE_PIXEL)[3] > 0
        page.fill("#threshold-a", "100")
        page.wait_for_timeout(80)
        assert page.evaluate(MIDDLE_PIXEL)[3] == 0
        page.fill("#threshold-a", "0")


def test_the_pointer_shows_the_numbers_of_its_tile(open_page, run_folder):
    page = open_page()
    name = page.inner_text("#about-name")
    index, scores = read_index(run_folder / "tiles.zarr", name), read_scores(run_folder / "scores.zarr", name)
    tile = int(page.get_attribute("#gallery button >> nth=1", "data-tile"))
    page.click("#gallery button >> nth=1")
    settle(page)
    box = page.locator(".pane").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    page.wait_for_selector(".tip:not([hidden])")
    said = page.inner_text(".tip >> nth=0")
    assert f"{scores.positive_probability[tile]:.3f}" in said
    assert f"{tile} at {index.x[tile]}, {index.y[tile]}" in said


def test_a_review_is_found_after_reload_and_in_the_csv(open_page, server, run_folder):
    name = predicted(run_folder)[1]
    page = open_page(f"#slide={name}")
    page.fill("#reviewer", "KL")
    page.fill("#note", "=mitoses, see \u201cedge\u201d")
    page.click("[data-verdict=disagree]")
    page.wait_for_function("() => document.getElementById('saved').textContent.startsWith('Saved')")
    page.reload()
    page.wait_for_function(SETTLED)
    assert page.inner_text("#about-name") == name
    assert page.input_value("#note") == "=mitoses, see \u201cedge\u201d"
    assert page.get_attribute("[data-verdict=disagree]", "aria-pressed") == "true"
    assert "by KL" in page.inner_text("#saved")
    assert page.get_attribute("#rows tr.current .mark", "aria-label").startswith("disagree · by KL")
    rows = {row["slide_id"]: row for row in csv.DictReader(io.StringIO(server.ask("/reviews.csv").body.decode()))}
    assert rows[name]["verdict"] == "disagree"
    assert rows[name]["note"].startswith("'=mitoses")


def test_two_layers_stay_in_step(open_page):
    page = open_page("#layer=probability&right=attention")
    page.wait_for_selector(".pane >> nth=1 >> visible=true")
    for key in ("+", "+"):
        page.keyboard.press(key)
        settle(page)
    box = page.locator(".pane").nth(1).bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 60, middle[1] - 40, steps=5)
    page.mouse.up()
    settle(page)
    left, right = (page.evaluate(f"() => window.wsiIps.panes[{n}].place(true)") for n in (0, 1))
    for key in ("x", "y", "zoom"):
        assert left[key] == pytest.approx(right[key], rel=1e-3)
    assert "right=attention" in page.url
    texts = [page.locator(".pane-label").nth(n).inner_text() for n in (0, 1)]
    assert texts == ["Tumour probability", "Attention"]


def test_a_link_leads_back_to_the_same_place(open_page):
    page = open_page("#slide=slide_002&x=2600&y=1500&zoom=0.5&layer=tissue")
    settle(page)
    place = page.evaluate(PLACE)
    assert (place["x"], place["y"]) == (pytest.approx(2600, abs=2), pytest.approx(1500, abs=2))
    assert place["zoom"] == pytest.approx(0.5, rel=0.01)
    assert page.is_checked("#layers input[value=tissue]")
    page.evaluate("() => { location.hash = '#slide=slide_003&x=1000&y=900&zoom=0.25&layer=he' }")
    page.wait_for_function("() => window.wsiIps.state.slide?.slide_id === 'slide_003'")
    settle(page)
    assert page.evaluate(PLACE)["x"] == pytest.approx(1000, abs=2)
    assert page.is_checked("#layers input[value='']")


def test_everything_is_done_by_keys(open_page):
    page = open_page()
    first = page.inner_text("#about-name")
    page.keyboard.press("j")
    page.wait_for_function(f"() => window.wsiIps.state.slide?.slide_id !== '{first}'")
    page.wait_for_function(SETTLED)
    page.keyboard.press("3")
    assert page.is_checked("#layers input[value=attention]")
    page.keyboard.press("]")
    assert page.input_value("#threshold-a") == "55"
    page.keyboard.press("n")
    settle(page)
    assert "Top tile 1: Tumour probability" in page.inner_text("#announce")
    page.keyboard.press("m")
    assert "Tissue" in page.inner_text("#announce")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("slide_00")
    assert page.locator("#rows tr").count() == 8
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    page.wait_for_function("() => window.wsiIps.state.slide?.slide_id === 'slide_005'")


def test_the_worklist_is_sorted_by_what_is_clicked(open_page):
    page = open_page()
    page.click("[data-sort=slide]")
    names = page.locator("#rows a").all_inner_texts()
    assert names == sorted(names)
    page.click("[data-sort=slide]")
    assert page.locator("#rows a").all_inner_texts() == names[::-1]
    page.click("[data-sort=state]")
    assert page.locator("#rows .state").first.inner_text() == "failed"
    page.fill("#search", "failed")
    assert set(page.locator("#rows a").all_inner_texts()) == {"gone", "damaged (1)"}
    assert page.inner_text("#count") == "2 of 10 slides"


def test_a_slide_that_cannot_be_shown_says_why(open_page):
    page = open_page()
    page.click("#rows a:text-is('damaged (1)')")
    page.wait_for_selector("#problem:not([hidden])")
    assert "no reader opens it" in page.inner_text("#problem")
    page.click("#rows a:text-is('slide_001')")
    page.wait_for_selector("#problem", state="hidden")
    page.wait_for_function(SETTLED)
    # A browser reports every 503 in the console; nothing else may stand there.
    assert [text for text in open_page.complaints if "503" not in text] == []
    open_page.complaints.clear()


UNNAMED = """() => [...document.querySelectorAll('button, input, select, textarea, a, [role=img], [role=application]')]
  .filter((node) => node.offsetParent !== null)
  .filter((node) => !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length))
  .map((node) => node.outerHTML.slice(0, 120))"""
FAINT = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')].filter((node) => node.offsetParent !== null)
    .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()))
    .filter((node) => !node.closest('.hidden, .skip, option, .navigator'))
    .map((node) => {
      const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
      return [node.textContent.trim().slice(0, 30), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    })
    .filter(([, contrast]) => contrast < 4.5);
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_names_contrast_and_room_for_everyone(open_page, dark, width):
    page = open_page(width=width, height=844, dark=dark)
    panels = ["worklist", "layers", "tiles", "review"] if width == 390 else [None]
    for panel in panels:
        if panel:
            page.click(f".tabs [data-show={panel}]")
        assert page.evaluate(UNNAMED) == []
        assert page.evaluate(FAINT) == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    stage = page.locator("#stage").bounding_box()
    assert stage["width"] >= min(width, 390)
    assert stage["height"] >= 300


def test_the_focus_is_seen_and_nothing_traps_it(open_page):
    page = open_page()
    reached = []
    for _ in range(140):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.className || ''"))
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    page.focus("#search")
    page.keyboard.press("Tab")
    assert page.evaluate(outline) != "none"
    assert {"theme", "search", "note", "threshold-a", "top-by"} <= set(reached)
    assert any("openseadragon-canvas" in name for name in reached)
