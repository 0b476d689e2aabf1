"""From gigapixel slides to slide labels and heatmaps, learned end to end on pixels.

::

    import wsi_ips

    model = wsi_ips.load_model("runs/demo/model")
    prediction = wsi_ips.predict_slide(model, "slide.svs")
    prediction.label, prediction.probability  # "tumor", {"normal": 0.03, "tumor": 0.97}
    heatmap = prediction.heatmap("probability")  # heatmap.values, heatmap.origin_px0, heatmap.cell_px0

Names are imported when they are first used; ``import wsi_ips`` loads neither torch nor any other large library.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsi_ips.api import (
        Model,
        Prediction,
        evaluate,
        find_tissue,
        load_model,
        make_tiles,
        predict_slide,
        run,
        train,
        train_encoder,
    )
    from wsi_ips.config import load_recipe
    from wsi_ips.patch_dataset import PatchDataset
    from wsi_ips.pipeline.demo_slides import make_slides
    from wsi_ips.slides import open_slide

__all__ = [
    "Model",
    "PatchDataset",
    "Prediction",
    "evaluate",
    "find_tissue",
    "load_model",
    "load_recipe",
    "make_slides",
    "make_tiles",
    "open_slide",
    "predict_slide",
    "run",
    "train",
    "train_encoder",
]

_ELSEWHERE = {
    "PatchDataset": "wsi_ips.patch_dataset",
    "load_recipe": "wsi_ips.config",
    "make_slides": "wsi_ips.pipeline.demo_slides",
    "open_slide": "wsi_ips.slides",
}
"""Modules of the names that are not in :mod:`wsi_ips.api`."""

try:
    __version__ = version("wsi-ips")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "wsi_ips.api")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
