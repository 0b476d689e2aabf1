"""Scan backend in 8-bit integers on a CPU: the trunk quantised after training by ONNX Runtime (extra ``int8``).

Activations are uint8, weights int8 per channel, with the ranges seen on some tiles of the slide that is scanned. The
standardisation of embeddings, the pooling and the heads stay in float32. Scoring other tiles of the slide both ways
shows how far the scores can be trusted.

Shapes: n patches of h x w pixels, D width.
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
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from wsi_ips.errors import RecipeError
from wsi_ips.model.encoder import Encode, Encoder

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
AT_A_TIME = 16
# Operators computed in integers; the others take a small part of the time
OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool"]

# ONNX files of the encoders in memory; their weights must not change any more
_exported_models: WeakKeyDictionary[Encoder, bytes] = WeakKeyDictionary()


def check_int8(encoder: Encoder, patch_px: int) -> None:
    """Export an encoder; raise a `RecipeError` if it or this machine is not supported."""
    require_int8(encoder.mean.device)
    _export(encoder, patch_px)


def int8(encoder: Encoder, patches: Tensor) -> Encode:
    """Quantise an encoder with ranges measured on some patches of a slide, shape (n, 3, h, w); a backend."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, _quiet():
        exported, path = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        exported.write_bytes(_export(encoder, patches.shape[-1]))
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
        return Int8Encoder(path.read_bytes(), encoder)


class Int8Encoder:
    """A quantised encoder: called with patches, it returns embeddings."""

    def __init__(self, model: bytes, encoder: Encoder) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._encoder = encoder

    @torch.inference_mode()
    def __call__(self, patches: Tensor) -> Tensor:
        """Embed float patches in 0-1, (n, 3, h, w) to (n, D)."""
        parts = [
            torch.from_numpy(self._session.run(None, {"patches": part.contiguous().numpy()})[0])
            for part in patches.split(AT_A_TIME)
        ]
        out: Tensor = self._encoder.standardise(torch.cat(parts))  # (n, D)
        return out


def require_int8(device: torch.device) -> None:
    """Raise a `RecipeError` that says what the machine or its libraries lack."""
    if device.type != "cpu":
        raise RecipeError("key `compute.scan_backend`: `int8` is for CPUs; use `auto` and `compute.precision` on a GPU")
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        raise RecipeError(
            "key `compute.scan_backend`: this CPU has no 8-bit dot product (AVX512-VNNI), without which `int8` is "
            "neither fast nor exact; use `auto`"
        )
    for library in LIBRARIES:
        try:
            import_module(library)
        except ImportError as error:
            raise RecipeError(
                f"key `compute.scan_backend`: `int8` needs {library}; install it with pip install 'wsi-ips[int8]', "
                "or use `auto`"
            ) from error


class _RawEncoder(nn.Module):
    """An encoder without its standardisation."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, patches: Tensor) -> Tensor:
        return self.encoder.embed_raw(patches)


def _export(encoder: Encoder, patch_px: int) -> bytes:
    """Return the encoder as an ONNX file that takes any number of patches; it is exported once."""
    if encoder in _exported_models:
        return _exported_models[encoder]
    example = torch.zeros(2, 3, patch_px, patch_px)
    try:
        with _quiet():
            program = torch.onnx.export(
                _RawEncoder(encoder).eval(),
                (example,),
                input_names=["patches"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        _exported_models[encoder] = program.model_proto.SerializeToString()
    except Exception as error:  # the exporter fails in many ways
        raise RecipeError(
            f"key `compute.scan_backend`: encoder {encoder.spec.name} cannot be exported for `int8` "
            f"({type(error).__name__}: {error}); use `auto`"
        ) from error
    return _exported_models[encoder]


class _Calibration:
    """Patches for the quantiser, some at a time."""

    def __init__(self, patches: Tensor) -> None:
        self._parts: Iterator[Tensor] = iter(patches.split(AT_A_TIME))

    def get_next(self) -> dict[str, Any] | None:
        part = next(self._parts, None)
        return None if part is None else {"patches": part.contiguous().numpy()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice that exporter and quantiser give to developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
