"""Everything a run knows about one slide."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from wsi_ips.errors import SlideError, TileIndexError
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.slide_states import SlideState
from wsi_ips.pipeline.survey import survey
from wsi_ips.slides.source import is_url

TRACEBACK_LINES = 12
PATIENCE_S = 10.0
Lines = list[tuple[str, str]]


def explain(run: Run, slide_id: str) -> Lines:
    """Collect what is known about a slide, and what to do next, as names and values.

    Changes nothing. A file that does not answer within ten seconds is reported as such.

    Raises
    ------
    ManifestError
        The manifest has no such slide.
    """
    (record,) = run.named([slide_id])
    state = run.states[slide_id]
    return [
        *_state_lines(state),
        *_manifest_lines(record),
        *_index_lines(run, record),
        ("what to do", _advice(run, state)),
        *_traceback_lines(run, state),
    ]


def _state_lines(state: SlideState) -> Lines:
    last = f"stage {state.stage}, {state.attempts} attempts" if state.stage else "not worked on yet"
    took = [
        f"{value:g} {unit}"
        for value, unit in ((state.seconds, "s"), (state.cpu_seconds, "s of CPU"), (state.rss_mb, "MB resident"))
        if value is not None
    ]
    tissue = "" if state.tissue_mm2 is None else f"{state.tissue_mm2:g} mm²"
    lines = [("state", state.state), ("reason", state.reason), ("last", last), ("took", ", ".join(took))]
    return [line for line in [*lines, ("tissue", tissue)] if line[1]]


def _manifest_lines(record: SlideRecord) -> Lines:
    values = [
        ("file", f"{record.path} ({_file_facts(record)})"),
        ("label", record.label or ""),
        ("split", record.split or ""),
        ("patient", record.patient_id or ""),
        ("mpp in the manifest", "" if record.mpp is None else f"{record.mpp.x:g} x {record.mpp.y:g} µm/px"),
        ("annotation", str(record.annotation or "")),
    ]
    return [line for line in values if line[1]]


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


def _index_lines(run: Run, record: SlideRecord) -> Lines:
    try:
        index = run.index(record)
    except TileIndexError as error:
        return [("index", str(error))]
    plan, patch = index.plan, index.plan.patch_size
    up_to_date = survey(
        [record],
        lambda r: _is_current(run, r, index.fingerprint),
        otherwise="its file does not answer",
        patience_s=PATIENCE_S,
    )[0]
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


def _is_current(run: Run, record: SlideRecord, stored: str) -> str:
    try:
        wanted = run.tiles_fingerprint(record)
    except (OSError, SlideError) as error:
        return f"cannot be compared ({error})"
    return "up to date" if wanted == stored else "slide, annotation or recipe changed since; it will be tiled again"


def _advice(run: Run, state: SlideState) -> str:
    if state.state == "pending":
        return "run `wsi-ips tile`"
    if state.state == "failed":
        return "do what the reason says, then `wsi-ips run --retry`"
    if state.state == "empty":
        return f"look at {run.folder.tissue_picture(state.slide_id)}; the slide is left out of training"
    return "nothing"


def _traceback_lines(run: Run, state: SlideState) -> Lines:
    path = run.folder.root / state.traceback
    if not state.traceback or not path.is_file():
        return []
    tail = path.read_text(encoding="utf-8").rstrip().splitlines()[-TRACEBACK_LINES:]
    return [("traceback", f"{path}, last lines:\n" + "\n".join(tail))]
