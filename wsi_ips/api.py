"""The public functions of ``import wsi_ips``: from a slide to its map, and whole cohorts by recipe.

They have working defaults, accept paths, and use the same code as the commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.annotations import read_annotation
from wsi_ips.config import ComputeSection, Recipe, SlidesSection, TilesSection, TissueSection, load_recipe
from wsi_ips.errors import CheckpointError, TileIndexError
from wsi_ips.evaluation.calibration import Calibration, read_calibration
from wsi_ips.geometry import Point, Scale
from wsi_ips.inference.slide_scores import SlideScores
from wsi_ips.results.score_maps import SCORE_MAPS
from wsi_ips.results.score_raster import Raster, tile_raster
from wsi_ips.slides import SlideReader, open_slide, read_overview
from wsi_ips.tiles.index import IndexOrigin, TileIndex, TileRules, build_index
from wsi_ips.tiles.stream import SlideTiles
from wsi_ips.tissue.artifacts import excluding, flag_tiles
from wsi_ips.tissue.mask import TissueMask
from wsi_ips.tissue.segmentation import TissueRules, segment_tissue

if TYPE_CHECKING:
    from wsi_ips.evaluation.summary import Evaluation
    from wsi_ips.model.checkpoint_card import ModelCard
    from wsi_ips.model.net import IpsNet
    from wsi_ips.pipeline.progress import Progress
    from wsi_ips.pipeline.stages import Outcome

__all__ = [
    "Model",
    "Prediction",
    "evaluate",
    "find_tissue",
    "load_model",
    "make_tiles",
    "predict_slide",
    "run",
    "train",
    "train_encoder",
]

DEFAULT_TISSUE, DEFAULT_TILES, DEFAULT_SLIDES = TissueSection(), TilesSection(), SlidesSection()


def find_tissue(slide: SlideReader, settings: TissueSection = DEFAULT_TISSUE) -> TissueMask:
    """Find the tissue of an open slide.

    Parameters
    ----------
    slide
        From :func:`wsi_ips.open_slide`.
    settings
        Section ``tissue`` of a recipe.

    Returns
    -------
    TissueMask
        ``mask`` is a bool array over the whole slide, ``[y, x]``, at about ``settings.mpp`` µm/px.

    Raises
    ------
    ResolutionError
        The slide states no scale; open it with ``mpp_override``.
    """
    overview = read_overview(slide, settings.mpp)
    rules = TissueRules(**settings.segmentation())
    return segment_tissue(overview.thumbnail, mpp=overview.mpp, px0_size=slide.info.size_px0, rules=rules)


def make_tiles(
    path: Path | str,
    *,
    tiles: TilesSection = DEFAULT_TILES,
    tissue: TissueSection = DEFAULT_TISSUE,
    annotation: Path | None = None,
    mpp_override: Scale | float | None = None,
) -> SlideTiles:
    """Find the tissue of a slide file and lay tiles over it.

    Parameters
    ----------
    path
        Slide file or URL.
    tiles, tissue
        Sections of a recipe, e.g. ``TilesSection(mpp=0.5, patch_px=256)``.
    annotation
        Outlined tumour (ASAP XML or QuPath GeoJSON); gives ``index.tumour_fraction``.
    mpp_override
        µm per level-0 pixel, for a file that states none or a wrong one.

    Returns
    -------
    SlideTiles
        ``index.x`` and ``index.y`` are the top-left corners in level-0 pixels, shape (N,); ``read()`` gives the pixels,
        uint8, shape (N, h, w, 3). Pass it to :func:`predict_slide` or :class:`PatchDataset`.

    Raises
    ------
    SlideError
        The slide cannot be opened or read, or states no scale.
    AnnotationError
        The annotation cannot be used.
    """
    reopen = partial(open_slide, path, mpp_override=mpp_override)
    with reopen() as slide:
        info = slide.info
        mask = find_tissue(slide, tissue)
        region = None
        if annotation is not None:
            origin, classes = Point(info.bounds.x, info.bounds.y), tiles.annotation_classes
            region = read_annotation(annotation, bounds_origin=origin, classes=classes).tumour
        rules = TileRules(tiles.mpp, tiles.patch_px, tiles.stride, tiles.min_tissue_fraction)
        every = build_index(info, mask, rules, IndexOrigin(Path(info.name).stem), tumour_region=region)
        flags = flag_tiles(read_overview(slide, tissue.mpp), mask, every.boxes_px0)
    exclude, _ = excluding(tiles.exclude_flags, flags, every.tissue_fraction, mask)
    index = every.flagged(flags, exclude=exclude)
    return SlideTiles(slot=0, slide_id=index.slide_id, index=index, open=reopen, tiles=None)


@dataclass(frozen=True)
class Model:
    """A trained model, ready to predict.

    Attributes
    ----------
    net
        The network, a ``torch.nn.Module`` in evaluation mode.
    card
        Description: classes, scale, patch size, training.
    calibration
        Temperature and thresholds.
    tiles, tissue, slides
        The settings it was trained with; prediction must use the same.
    """

    net: IpsNet
    card: ModelCard
    calibration: Calibration
    tiles: TilesSection
    tissue: TissueSection
    slides: SlidesSection = DEFAULT_SLIDES


def load_model(folder: Path | str, *, device: str = "auto") -> Model:
    """Load a trained model.

    Parameters
    ----------
    folder
        Folder of the model (``model`` in a run folder), or the run folder itself.
    device
        ``auto`` uses a GPU if there is one; else ``cpu``, ``cuda``, ``cuda:1`` ...

    Raises
    ------
    CheckpointError
        The model is missing or damaged, or was trained on tiles of another tool.
    """
    from wsi_ips.inference.preparation import pinned_sections
    from wsi_ips.model.checkpoint import load_checkpoint
    from wsi_ips.model.checkpoint_card import checkpoint_fingerprint
    from wsi_ips.pipeline.new_slides import bundle_folder
    from wsi_ips.scanning import choose_device

    place = bundle_folder(Path(folder))
    net, card = load_checkpoint(place)
    if card.encoder.features:
        raise CheckpointError(f"checkpoint {place}: trained on features of another tool, so it cannot take pixels")
    pinned = pinned_sections(card)
    calibration = read_calibration(place, card.tasks, checkpoint_fingerprint(place))
    sections = TilesSection(**pinned["tiles"]), TissueSection(**pinned["tissue"]), SlidesSection(**pinned["slides"])
    return Model(net.to(choose_device(device)), card, calibration, *sections)


@dataclass(frozen=True)
class Prediction:
    """Prediction of one slide.

    Attributes
    ----------
    tiles
        The tiles that were scored.
    scores
        All scores: attention and probability of each tile, the selected tiles and their embeddings.
    model_id
        Identity of the model, shown on pictures.
    """

    tiles: SlideTiles
    scores: SlideScores
    model_id: str

    @property
    def label(self) -> str:
        """Predicted class."""
        return self.scores.label

    @property
    def probability(self) -> dict[str, float]:
        """Calibrated probability of each class."""
        return dict(zip(self.scores.classes, self.scores.probability, strict=True))

    def heatmap(self, name: str = "probability") -> Raster:
        """Return a score map as an array with its position on the slide.

        Parameters
        ----------
        name
            A score map: ``probability`` (what the model predicts from each tile alone), ``attention`` (rank within the
            slide), or one that another package registers.

        Returns
        -------
        Raster
            ``values``: float32, ``[row, column]``, NaN where there is no tile; ``origin_px0``: top-left corner of the
            first cell in level-0 pixels; ``cell_px0``: size of a cell in level-0 pixels.

        Raises
        ------
        RecipeError
            There is no such map.
        """
        index: TileIndex = self.tiles.index
        values: NDArray[np.float32] = SCORE_MAPS[name].values(self.scores)
        return tile_raster(
            index.x,
            index.y,
            values,
            bounds=index.grid,
            stride_px0=index.stride_px0,
            footprint_px0=index.plan.footprint_px0,
        )

    def save_heatmap(self, path: Path | str, name: str = "probability") -> None:
        """Draw a score map over the slide as PNG, with a JSON file beside it that gives its position on level 0."""
        from wsi_ips.results.overlay import Caption, write_overlay
        from wsi_ips.results.slide_heatmaps import SlideHeatmaps, best_tiles, view_of

        scores, index, best = self.scores, self.tiles.index, best_tiles(self.scores)
        with self.tiles.open() as slide:
            view = view_of(slide, index, 4.0, None)
        caption = Caption(index.slide_id, scores.classes[-1], scores.probability[-1], self.model_id)
        pixels = self.tiles.only(best).read()
        maps = SlideHeatmaps(index, scores, view, caption, best, pixels, note=lambda _: None)
        picture, facts = maps.draw(name, scores.fingerprint)
        write_overlay(Path(path), picture, facts)


def predict_slide(model: Model, slide: Path | str | SlideTiles, compute: ComputeSection | None = None) -> Prediction:
    """Predict one slide: its label, and a score for every tile.

    Parameters
    ----------
    model
        From :func:`load_model`.
    slide
        Slide file, tiled as the model was trained; or tiles from :func:`make_tiles`.
    compute
        Section ``compute`` of a recipe: chunk size, precision, reading threads.

    Raises
    ------
    SlideError
        The slide cannot be read, or states no scale.
    TileIndexError
        It has no tile, for example because no tissue was found.
    """
    from wsi_ips.inference.slide_prediction import predict_slide as scored
    from wsi_ips.scanning import ScanOptions

    if isinstance(slide, SlideTiles):
        tiles = slide
    else:
        tiles = make_tiles(slide, tiles=model.tiles, tissue=model.tissue, mpp_override=model.slides.mpp_override)
    if not len(tiles.index):
        raise TileIndexError(f"slide {tiles.slide_id}: no tile; look at its tissue with `find_tissue`")
    scores = scored(model.net, tiles, ScanOptions(model.card.memory_size, compute or ComputeSection()))
    return Prediction(tiles, replace(scores, calibration=model.calibration), model.card.model_id)


def run(
    recipe: Recipe | Path | str, settings: Mapping[str, Any] | None = None, *, progress: Progress | None = None
) -> Outcome:
    """Run a recipe: tile, train, predict, draw, report; skip what is up to date.

    Parameters
    ----------
    recipe
        Recipe, its file, or a run folder.
    settings
        Dotted keys that replace those of the file, e.g. ``{"training.epochs": 3}``.
    progress
        Progress listener; None for none.

    Raises
    ------
    WsiIpsError
        The recipe, manifest or training cannot be used. A bad slide does not raise: it alone fails.
    """
    from wsi_ips.pipeline.stages import run_pipeline

    return run_pipeline(_loaded(recipe, settings), progress)


def train(
    recipe: Recipe | Path | str, settings: Mapping[str, Any] | None = None, *, progress: Progress | None = None
) -> Model:
    """Train the model of a recipe, after tiling slides that are not tiled yet, and load it; see :func:`run`."""
    from wsi_ips.pipeline.stages import run_stage

    done = run_stage(_loaded(recipe, settings), "train", progress)
    return load_model(done.folder.model, device=done.recipe.compute.device)


def train_encoder(
    recipe: Recipe | Path | str,
    path: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    splits: Sequence[str] = ("train",),
    progress: Progress | None = None,
) -> Path:
    """Train the encoder of a recipe on tiles without labels; return the file of its weights, for ``model.weights``.

    Parameters
    ----------
    recipe, settings, progress
        As in :func:`run`.
    path
        File to write, .safetensors.
    splits
        Splits whose slides to learn from, labelled or not.

    Raises
    ------
    WsiIpsError
        The recipe or manifest cannot be used, the encoder is frozen, there are too few tiles, or nothing was learned.
    """
    from wsi_ips.pipeline.stages import train_encoder_file

    train_encoder_file(_loaded(recipe, settings), Path(path), splits=splits, progress=progress)
    return Path(path)


def evaluate(
    recipe: Recipe | Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    split: str = "test",
    by: Sequence[str] = (),
) -> Evaluation:
    """Measure the predictions of a run: slides with intervals, calibration, subgroups, lesions; see :func:`run`.

    Parameters
    ----------
    recipe, settings
        As in :func:`run`.
    split
        Slides to report on; the ``val`` slides set the threshold.
    by
        Manifest columns that make subgroups.

    Raises
    ------
    EvaluationError
        There are no predictions, or nothing to compare them with.
    """
    from wsi_ips.pipeline.evaluate_run import evaluate_run
    from wsi_ips.pipeline.run import Run

    with Run.open(_loaded(recipe, settings)) as opened:
        return evaluate_run(opened.predictions, split=split, by=by)


def _loaded(recipe: Recipe | Path | str, settings: Mapping[str, Any] | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe if not settings else Recipe.model_validate(recipe.model_dump() | dict(settings))
    return load_recipe(Path(recipe), dict(settings or {}))
