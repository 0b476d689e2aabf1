"""``wsi-ips heatmap --scores``: options, and what is printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape

from wsi_ips.cli.console import Bars, out
from wsi_ips.config import HandoffSection, HeatmapSection
from wsi_ips.errors import RecipeError

if TYPE_CHECKING:
    from wsi_ips.pipeline.maps.other_scores import OtherScores

Settings = TypeVar("Settings", HeatmapSection, HandoffSection)
SECTIONS = ("heatmap", "handoff")

ScoresFile = Annotated[
    Path | None, typer.Option("--scores", metavar="FILE", help="Scores of another model: .csv or .h5.")
]
ScoredSlide = Annotated[Path | None, typer.Option("--slide", metavar="SLIDE", help="With --scores: the slide.")]
MapsFolder = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="With --scores: folder for the pictures.")
]
ScoreColumns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="NAME", help="With --scores: draw these scores only (several times)."),
]
DrawnAs = Annotated[
    str, typer.Option("--as", metavar="auto|probability|rank", help="With --scores: scale of the colours.")
]
TileSide = Annotated[
    float | None,
    typer.Option("--tile-px0", min=1, help="With --scores: side of a tile, level-0 px, where FILE has no sizes."),
]
PatchesFile = Annotated[
    Path | None,
    typer.Option("--patches", metavar="FILE", help="With --scores: coordinate file of CLAM or TRIDENT behind them."),
]
SlideScale = Annotated[
    float | None, typer.Option("--mpp", help="With --scores: µm per level-0 px of a slide that does not state it.")
]


def other_scores(
    scores: Path,
    slide: Path | None,
    columns: list[str] | None,
    draw_as: str,
    tile_px0: float | None,
    patches: Path | None,
    mpp: float | None,
) -> OtherScores:
    """Options as one request.

    Raises
    ------
    RecipeError
        An option is missing or has no known value.
    """
    from wsi_ips.pipeline.maps.other_scores import OtherScores

    if slide is None:
        raise RecipeError("--scores: name the slide they belong to with --slide")
    if draw_as not in ("auto", "probability", "rank"):
        raise RecipeError(f"--as {draw_as}: one of auto, probability, rank")
    if mpp is not None and mpp <= 0:
        raise RecipeError(f"--mpp {mpp:g}: must be above 0")
    return OtherScores(scores, slide, tuple(columns or ()), draw_as, tile_px0, patches, mpp)  # type: ignore[arg-type]


def draw_scores(wanted: OtherScores, output: Path | None, settings: Mapping[str, Any]) -> None:
    """Draw, and print a line per map.

    Raises
    ------
    RecipeError
        No folder to write to, or a setting that is none of sections `heatmap` and `handoff`.
    WsiIpsError
        The file or the slide cannot be used.
    """
    from wsi_ips.pipeline.maps.other_scores import draw_other_scores

    if output is None:
        raise RecipeError("--scores: name the folder for the pictures with --output")
    pictures = _section(settings, "heatmap", HeatmapSection)
    handoff = _section(settings, "handoff", HandoffSection)
    drawn = draw_other_scores(wanted, output, pictures=pictures, handoff=handoff, note=Bars().note)
    for one in drawn:
        how = "0 to 1" if one.kind == "probability" else "rank"
        test = "" if one.alignment is None else f", alignment {one.alignment:.2f}"
        package = "" if one.package is None else f", {one.package.name}/"
        text = f"[bold]{escape(one.column)}[/] {how}{test}: {escape(one.path.name + package)}"
        out.print(text, soft_wrap=True)
    out.print(f"pictures and packages: {output}", soft_wrap=True)


def _section(settings: Mapping[str, Any], name: str, kind: type[Settings]) -> Settings:
    """A section of the recipe with the keys of ``--set``, written ``heatmap.mpp=2`` as for a recipe."""
    strange = [key for key in settings if key.partition(".")[0] not in SECTIONS or not key.partition(".")[2]]
    if strange:
        raise RecipeError(f"--set {strange[0]}: with --scores only keys of sections {' and '.join(SECTIONS)}")
    values = {key.partition(".")[2]: value for key, value in settings.items() if key.partition(".")[0] == name}
    try:
        return kind.model_validate(values)
    except ValueError as error:
        raise RecipeError(f"section `{name}`: {error}") from error
