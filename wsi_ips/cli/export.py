"""``wsi-ips export``: a run in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from wsi_ips.cli.cohort import Debug, export_tiles
from wsi_ips.cli.console import EXIT_PARTIAL, Bars, explained, out
from wsi_ips.errors import RecipeError

if TYPE_CHECKING:
    from wsi_ips.pipeline.run import Run

RunOrRecipe = Annotated[
    Path, typer.Argument(metavar="RUN|RECIPE", help="Run folder, or recipe file (YAML).", show_default=False)
]
Slides = Annotated[list[str] | None, typer.Argument(metavar="[SLIDE]...", help="slide_id's; none = all predicted.")]
To = Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Folder to write to.")]
NOTES_SHOWN = 3


class _TilesByDefault(TyperGroup):
    """``export RECIPE`` is ``export tiles RECIPE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = ["tiles", *args]
        return list(super().parse_args(ctx, args))


export = typer.Typer(
    cls=_TilesByDefault,
    no_args_is_help=True,
    help="Write a run in the formats of other programs: tiles for CLAM and TRIDENT, a QuPath project, DICOM maps.",
)
export.command("tiles")(export_tiles)


@export.command("dicom")
def export_dicom_maps(target: RunOrRecipe, slides: Slides = None, to: To = None, debug: Debug = False) -> None:
    """Write probability and attention of DICOM slides as DICOM Parametric Maps (extra `dicom`).

    Float pixels, a pyramid, on the frame of reference of the slide, with its patient, study and specimen. A slide that
    is not DICOM is refused (exit code 3).
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.maps.export_dicom import export_dicom

        folder = _folder(to)
        with _run(target) as run:
            found = export_dicom(run, folder, slides or ())
        for slide_id, files in found.written.items():
            out.print(f"[bold]{escape(slide_id)}[/]: {len(files)} files", soft_wrap=True)
            for note in found.notes[slide_id]:
                out.print(f"  [yellow]{escape(note)}[/]", soft_wrap=True)
        _finish(len(found.written), found.refused, folder)


@export.command("qupath")
def export_qupath_project(target: RunOrRecipe, slides: Slides = None, to: To = None, debug: Debug = False) -> None:
    """Write a QuPath project: an image per slide, and a script that loads lesions and tiles into them.

    The script, scripts/load_wsi_ips.groovy, also works in a project that is already there: images are found by the
    names of the slides' files.
    """
    with explained(debug=debug):
        from wsi_ips.pipeline.maps.export_qupath import export_qupath

        folder = _folder(to)
        with _run(target) as run:
            found = export_qupath(run, folder, slides or ())
        out.print(f"open in QuPath: {folder / 'project.qpproj'}; then run its script load_wsi_ips", soft_wrap=True)
        _finish(len(found.written), found.refused, folder)


def _folder(to: Path | None) -> Path:
    if to is None:
        raise RecipeError("--to: name the folder to write to")
    return to


def _run(target: Path) -> Run:
    from wsi_ips.pipeline.run import Run
    from wsi_ips.pipeline.view import view_recipe

    return Run.open(view_recipe(target), Bars())


def _finish(written: int, refused: Any, folder: Path) -> None:
    for slide_id, why in refused.items():
        out.print(f"[bold]{escape(slide_id)}[/]: [red]{escape(why)}[/]", soft_wrap=True)
    out.print(f"{written} slides written to {folder}, {len(refused)} refused", soft_wrap=True)
    if refused:
        raise typer.Exit(EXIT_PARTIAL)
