"""Prediction in 8-bit integers on a CPU: the trunk quantised after training, by ONNX Runtime (extra ``int8``).

Activations are uint8, weights int8 per channel, ranges those seen on some tiles of the slide that is to be scanned. The
standardisation of embeddings, the pooling and the heads stay in float32. Other tiles of the slide, scored both
ways, tell how far the scores can be trusted.

Shapes: n patches of h x w pixels, D width, T queries, H heads.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from wsi_ips.errors import RecipeError
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.int8_check import Int8Check
from wsi_ips.model.net import IpsNet
from wsi_ips.model.rules import selection_score

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
AT_A_TIME = 16
OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool"]
"""What is computed in integers; the rest is a small part of the time."""


class Int8Exporter:
    """Makes quantised versions of one encoder, each calibrated on other tiles.

    Parameters
    ----------
    encoder
        In evaluation mode, on a CPU; its weights must not change any more.

    Raises
    ------
    RecipeError
        The libraries are not installed, the device is no CPU with 8-bit dot products, or the encoder cannot be
        exported.
    """

    def __init__(self, encoder: Encoder, patch_px: int) -> None:
        check_possible(encoder.mean.device)
        self._encoder = encoder
        self._model = _exported(encoder, patch_px)

    def calibrated(self, patches: Tensor) -> Int8Encoder:
        """Quantise with the ranges that these patches give, shape (n, 3, h, w)."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        with tempfile.TemporaryDirectory() as folder, _quiet():
            exported, path = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
            exported.write_bytes(self._model)
            quantize_static(
                exported,
                path,
                _Calibration(patches),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=OPERATORS,
            )
            return Int8Encoder(path.read_bytes(), self._encoder)


class Int8Encoder:
    """A quantised encoder: called with patches, it gives embeddings."""

    def __init__(self, model: bytes, encoder: Encoder) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._encoder = encoder

    @torch.inference_mode()
    def __call__(self, patches: Tensor) -> Tensor:
        """Float patches in 0-1, (n, 3, h, w), to embeddings, (n, D)."""
        parts = [
            torch.from_numpy(self._session.run(None, {"patches": part.contiguous().numpy()})[0])
            for part in patches.split(AT_A_TIME)
        ]
        out: Tensor = self._encoder.standardise(torch.cat(parts))  # (n, D)
        return out


def check_possible(device: torch.device) -> None:
    """Refuse where int8 cannot be had.

    Raises
    ------
    RecipeError
        Says what is missing.
    """
    if device.type != "cpu":
        raise RecipeError(
            "key `predict.scan_precision`: `int8` is for CPUs; use `fp32` and `compute.precision` on a GPU"
        )
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        raise RecipeError(
            "key `predict.scan_precision`: this CPU has no 8-bit dot product (AVX512-VNNI), without which `int8` is "
            "neither fast nor exact; use `fp32`"
        )
    for library in LIBRARIES:
        try:
            import_module(library)
        except ImportError as error:
            raise RecipeError(
                f"key `predict.scan_precision`: `int8` needs {library}; install it with pip install 'wsi-ips[int8]', "
                "or use `fp32`"
            ) from error


@torch.inference_mode()
def compare(net: IpsNet, encode: Int8Encoder, patches: Tensor, *, memory_size: int) -> Int8Check:
    """Score patches both ways.

    Parameters
    ----------
    net
        In evaluation mode; positions of tiles are left out.
    encode
        Its encoder, quantised.
    patches
        Float in 0-1, shape (n, 3, h, w), n > 1.
    memory_size
        Tiles kept per slide (M); at most a quarter of the patches are compared as kept.
    """
    exact = torch.cat([net.encoder(part) for part in patches.split(AT_A_TIME)])  # (n, D)
    near = encode(patches)  # (n, D)
    scores = [selection_score(net.pooling.logits(e).float().numpy()) for e in (exact, near)]  # (n,) each
    kept = max(1, min(memory_size, len(patches) // 4))
    best = [set(np.argsort(-score, kind="stable")[:kept].tolist()) for score in scores]
    ranked = all(np.ptp(score) > 0 for score in scores)
    return Int8Check(
        tiles=len(patches),
        error=float((near - exact).norm() / exact.norm()),
        correlation=float(spearmanr(*scores).statistic) if ranked else 1.0,
        kept=kept,
        overlap=len(best[0] & best[1]) / kept,
    )


class _Raw(nn.Module):
    """An encoder without its standardisation."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, patches: Tensor) -> Tensor:
        return self.encoder.embed_raw(patches)


def _exported(encoder: Encoder, patch_px: int) -> bytes:
    """The encoder as an ONNX file that takes any number of patches."""
    example = torch.zeros(2, 3, patch_px, patch_px)
    try:
        with _quiet():
            program = torch.onnx.export(
                _Raw(encoder).eval(),
                (example,),
                input_names=["patches"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        data: bytes = program.model_proto.SerializeToString()
        return data
    except Exception as error:  # the exporter fails in many ways
        raise RecipeError(
            f"key `predict.scan_precision`: encoder {encoder.spec.name} cannot be exported for `int8` "
            f"({type(error).__name__}: {error}); use `fp32`"
        ) from error


class _Calibration:
    """Hands patches to the calibration, some at a time."""

    def __init__(self, patches: Tensor) -> None:
        self._parts: Iterator[Tensor] = iter(patches.split(AT_A_TIME))

    def get_next(self) -> dict[str, Any] | None:
        part = next(self._parts, None)
        return None if part is None else {"patches": part.contiguous().numpy()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that exporter and quantiser give to developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
