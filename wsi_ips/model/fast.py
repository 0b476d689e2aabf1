"""The encoder as the scan runs it: in reduced precision and compiled, where that is asked for or measured to pay.

Pooling and heads stay in float32, and so does the gradient; only the scan of all tiles goes through here.

Shapes: n patches of h x w pixels, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from wsi_ips.errors import RecipeError
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.fused import Encode, in_parts, scan_encoder

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Compiling = Literal["auto", "on", "off"]

COMPILE_AFTER_S = 60.0
"""``auto`` compiles when so much time went into encoding: about what compiling takes, so at worst that is doubled."""

Run = Callable[[Encoder, Tensor], Tensor]


def scan_dtype(precision: Precision, device: torch.device, *, key: str = "compute.precision") -> torch.dtype:
    """Type of the encoder's activations; ``auto`` is bfloat16 on CUDA that computes with it, else float32.

    Parameters
    ----------
    precision
        What the recipe asks for.
    device
        Where the encoder lives.
    key
        Of the recipe, for the message.

    Raises
    ------
    RecipeError
        float16 on a CPU, which is slower there and overflows.
    """
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError(f"key `{key}`: `fp16` needs a GPU; use `auto`")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def fast_encoder(encoder: Encoder, *, precision: Precision = "auto", compiling: Compiling = "off") -> Encode:
    """How the scan runs an encoder as it is now, without gradient.

    Parameters
    ----------
    encoder
        In evaluation mode; results are valid until its weights change.
    precision
        Of its activations; embeddings are float32 again.
    compiling
        ``on``; ``off``; ``auto``, on a GPU only, when a minute went into encoding: both ways are then timed after
        a warm-up and the faster is kept. Chunks of another size than the first are never compiled.

    Raises
    ------
    RecipeError
        A precision that the device has not, or ``compiling: on`` where it is not possible.
    """
    device = encoder.mean.device
    dtype = scan_dtype(precision, device)
    on_cpu = device.type == "cpu"
    if dtype == torch.float32 and (compiling == "off" or (compiling == "auto" and on_cpu)):
        return scan_encoder(encoder)
    run = partial(_embed, dtype=dtype)
    if compiling == "off" or (compiling == "auto" and on_cpu):
        return _in_parts_on_cpu(partial(run, encoder), on_cpu)
    known = _trials.setdefault(encoder, {})
    trial = known.setdefault((dtype, compiling), Trial(run, compile_after_s=0.0 if compiling == "on" else None))
    return _in_parts_on_cpu(partial(trial, encoder), on_cpu)


def _in_parts_on_cpu(encode: Encode, on_cpu: bool) -> Encode:
    return partial(in_parts, encode, at_least=16) if on_cpu else encode


def _embed(encoder: Encoder, patches: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Embeddings, float32, (n, D); autocast keeps norms and the standardisation in float32."""
    out: Tensor
    if dtype == torch.float32:
        out = encoder(patches)
        return out
    with torch.autocast(patches.device.type, dtype=dtype):
        out = encoder(patches)
    return out.float()


@dataclass
class Trial:
    """Runs an encoder plainly until compiling may pay, then whichever way was faster.

    Attributes
    ----------
    plain
        The encoder and patches to embeddings.
    compile_after_s
        Seconds of plain encoding before it is compiled; 0 compiles at once and keeps that whatever the clock says, None
        is :data:`COMPILE_AFTER_S`.
    compiler
        Makes a function compiled.
    seconds
        Spent plainly so far.
    shape
        Of the patches it is compiled for.
    chosen
        The faster way; None until measured.
    """

    plain: Run
    compile_after_s: float | None = None
    compiler: Callable[[Run], Run] = field(default=lambda run: torch.compile(run, dynamic=False))
    seconds: float = 0.0
    shape: torch.Size | None = None
    chosen: Run | None = None

    def __call__(self, encoder: Encoder, patches: Tensor) -> Tensor:
        """Embed patches, (n, 3, h, w) to (n, D)."""
        if self.shape is None:
            self.shape = patches.shape
        if patches.shape != self.shape:
            return self.plain(encoder, patches)
        after = COMPILE_AFTER_S if self.compile_after_s is None else self.compile_after_s
        if self.chosen is None and self.seconds >= after:
            self.chosen = self._choose(encoder, patches)
        if self.chosen is not None:
            return self.chosen(encoder, patches)
        out, seconds = _timed(self.plain, encoder, patches)
        self.seconds += seconds
        return out

    def _choose(self, encoder: Encoder, patches: Tensor) -> Run:
        forced = self.compile_after_s == 0.0
        compiled = self.compiler(self.plain)
        try:
            compiled(encoder, patches)  # the warm-up compiles
        except Exception as error:  # compilers fail in many ways, none of which harms the plain one
            if forced:
                raise RecipeError(
                    f"key `compute.compile`: `on` does not work here ({type(error).__name__}: {error}); use `off`"
                ) from error
            return self.plain
        if forced:
            return compiled
        times = {run: min(_timed(run, encoder, patches)[1] for _ in range(3)) for run in (self.plain, compiled)}
        return min(times, key=lambda run: times[run])


def _timed(run: Run, encoder: Encoder, patches: Tensor) -> tuple[Tensor, float]:
    on_cuda = patches.device.type == "cuda"
    if on_cuda:
        torch.cuda.current_stream(patches.device).synchronize()
    began = time.perf_counter()
    out = run(encoder, patches)
    if on_cuda:
        torch.cuda.current_stream(patches.device).synchronize()
    return out, time.perf_counter() - began


_trials: WeakKeyDictionary[Encoder, dict[tuple[torch.dtype, Compiling], Trial]] = WeakKeyDictionary()
"""What was measured of the encoders that live."""
