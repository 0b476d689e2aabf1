"""Everything a run knows about one slide."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from wsi_ips.errors import SlideError, TileIndexError
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_states import SlideState, StateTable
from wsi_ips.pipeline.survey import survey
from wsi_ips.slides.source import is_url

TRACEBACK_LINES = 12
PATIENCE_S = 10.0
Lines = list[tuple[str, str]]


def explain(slides: RunSlides, states: StateTable, slide_id: str) -> Lines:
    """Return what is known about a slide, and what to do next, as names and values; changes nothing.

    A file that does not answer within ten seconds is reported as such.
    """
    (record,) = slides.named([slide_id])
    state, folder = states[slide_id], states.folder
    lines = [*_state_lines(state), *_manifest_lines(record), *_index_lines(slides, record)]
    lines += [("what to do", _advice(folder, state)), ("traceback", _traceback(folder, state))]
    return [(name, value) for name, value in lines if value]


def _state_lines(state: SlideState) -> Lines:
    figures = ((state.seconds, "s"), (state.cpu_seconds, "s of CPU"), (state.rss_mb, "MB resident"))
    return [
        ("state", state.state),
        ("reason", state.reason),
        ("remarks", state.remarks),
        ("last", f"stage {state.stage}, {state.attempts} attempts" if state.stage else "not worked on yet"),
        ("took", ", ".join(f"{value:g} {unit}" for value, unit in figures if value is not None)),
        ("tissue", "" if state.tissue_mm2 is None else f"{state.tissue_mm2:g} mm²"),
        ("not analysed", str(state.not_analysed or "")),
        ("remarks", state.remarks or ""),
    ]


def _manifest_lines(record: SlideRecord) -> Lines:
    return [
        ("file", f"{record.path} ({_file_facts(record)})"),
        ("label", record.label or ""),
        ("split", record.split or ""),
        ("patient", record.patient_id or ""),
        ("mpp in the manifest", "" if record.mpp is None else f"{record.mpp.x:g} x {record.mpp.y:g} µm/px"),
        ("annotation", str(record.annotation or "")),
    ]


def _file_facts(record: SlideRecord) -> str:
    if is_url(record.path):
        return "behind a URL"

    def look(path: Path) -> str:
        try:
            facts = path.stat()
        except OSError as error:
            return str(error.strerror)
        changed = datetime.fromtimestamp(facts.st_mtime).astimezone().isoformat(timespec="seconds")
        return f"{facts.st_size / 1e6:.1f} MB, changed {changed}"

    return survey([Path(record.path)], look, otherwise="does not answer: check the mount", patience_s=PATIENCE_S)[0]


def _index_lines(slides: RunSlides, record: SlideRecord) -> Lines:
    try:
        index = slides.index(record)
    except TileIndexError as error:
        return [("index", str(error))]

    def compare(record: SlideRecord) -> str:
        try:
            is_current = slides.tiles_fingerprint(record) == index.fingerprint
        except (OSError, SlideError) as error:
            return f"cannot be compared ({error})"
        return "up to date" if is_current else "slide, annotation or recipe changed since; it will be tiled again"

    up_to_date = survey([record], compare, otherwise="its file does not answer", patience_s=PATIENCE_S)[0]
    plan, patch = index.plan, index.plan.patch_size
    return [
        ("reader", index.reader),
        ("level 0", f"{index.size_px0.width} x {index.size_px0.height} px"),
        ("scanned part", " ".join(str(v) for v in index.bounds) + " (x y width height, px of level 0)"),
        ("scale", f"{index.mpp.x:g} x {index.mpp.y:g} µm/px, from {index.mpp_source}"),
        (
            "tiles",
            f"{len(index)} of {patch.width} x {patch.height} px at {plan.effective_mpp.x:.4g} µm/px, read from level "
            f"{plan.level}, step {index.stride_px} px",
        ),
        ("tissue found by", index.tissue_method),
        ("index", f"fingerprint {index.fingerprint}: {up_to_date}"),
    ]


def _advice(folder: RunFolder, state: SlideState) -> str:
    advice = {
        "pending": "run `wsi-ips tile`",
        "failed": "do what the reason says, then `wsi-ips run --retry`",
        "unsuited": f"look at {folder.tissue_picture(state.slide_id)}; the slide is neither learned from nor predicted",
        "empty": f"look at {folder.tissue_picture(state.slide_id)}; the slide is left out of training",
    }
    return advice.get(state.state, "nothing")


def _traceback(folder: RunFolder, state: SlideState) -> str:
    path = folder.root / state.traceback
    if not state.traceback or not path.is_file():
        return ""
    return f"{path}, last lines:\n" + "\n".join(path.read_text("utf-8").rstrip().splitlines()[-TRACEBACK_LINES:])
