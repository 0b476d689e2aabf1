"""Tissue found by a network of the user's own: a TorchScript file (``.pt``, ``.ts``) or an ONNX file (``.onnx``).

The network reads windows of 512 x 512 pixels at the scale of `tissue.mpp`: float32 of shape (1, 3, 512, 512), red,
green and blue from 0 to 1, normalised with the mean and deviation of ImageNet. It returns logits of the same height and
width: (1, 1, 512, 512), positive on tissue, or (1, 2, 512, 512), background and tissue in this order. Wrap a network
with other conventions before you export it. The file is code: use only what you trust.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_ips.errors import RecipeError
from wsi_ips.geometry import Scale

WINDOW_PX, MARGIN_PX = 512, 64  # windows overlap by two margins, whose values are not used
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of red, green and blue
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def tissue_share(thumbnail: NDArray[np.uint8], mpp: Scale, model: Path | None) -> NDArray[np.float32]:  # noqa: ARG001
    """Return how likely each pixel is tissue, float32 (height, width) of 0 to 1; ``mpp`` is that of the thumbnail.

    Raises RecipeError where there is no such file, or where it does not keep the convention.
    """
    network = _network(model)
    height, width = thumbnail.shape[:2]
    step = WINDOW_PX - 2 * MARGIN_PX
    rows, columns = (-(-side // step) * step for side in (height, width))
    beyond = ((MARGIN_PX, rows - height + MARGIN_PX), (MARGIN_PX, columns - width + MARGIN_PX), (0, 0))
    pixels = np.pad(thumbnail, beyond, constant_values=255).astype(np.float32) / 255
    pixels = ((pixels - MEAN) / DEVIATION).transpose(2, 0, 1)
    share = np.empty((rows, columns), np.float32)
    for y in range(0, rows, step):
        for x in range(0, columns, step):
            logits = network(np.ascontiguousarray(pixels[None, :, y : y + WINDOW_PX, x : x + WINDOW_PX]))
            if logits.shape not in ((1, 1, WINDOW_PX, WINDOW_PX), (1, 2, WINDOW_PX, WINDOW_PX)):
                raise RecipeError(
                    f"key `tissue.model`: {model} returns shape {logits.shape}; it must return (1, 1, {WINDOW_PX}, "
                    f"{WINDOW_PX}), or 2 channels for background and tissue"
                )
            margin = slice(MARGIN_PX, -MARGIN_PX)
            tissue = logits[0, -1] if logits.shape[1] == 1 else logits[0, 1] - logits[0, 0]
            share[y : y + step, x : x + step] = 1 / (1 + np.exp(-np.clip(tissue[margin, margin], -30, 30)))
    return share[:height, :width]


def _network(model: Path | None) -> Network:
    if model is None or not model.is_file():
        what = "is not set" if model is None else f"{model} is no file"
        raise RecipeError(f"key `tissue.model` {what}; method `model` needs a TorchScript or ONNX file")
    if model.suffix == ".onnx":
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise RecipeError(f"{model.name} needs onnxruntime: pip install 'wsi-ips[int8]'") from error
        try:
            session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no class in common
            raise RecipeError(f"key `tissue.model`: {model} is no ONNX network ({error})") from error
        name = session.get_inputs()[0].name
        return lambda values: np.asarray(session.run(None, {name: values})[0])
    try:
        script = torch.jit.load(str(model), map_location="cpu").eval()
    except RuntimeError as error:
        raise RecipeError(f"key `tissue.model`: {model} is neither TorchScript nor `.onnx`") from error

    def run(values: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(script(torch.from_numpy(values)))

    return run
