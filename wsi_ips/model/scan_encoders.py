"""Running the encoder in the scan: in parts that fit the cache, in reduced precision, fused or compiled.

Shapes: n patches of h x w pixels, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from wsi_ips.errors import RecipeError
from wsi_ips.model.encoder import Encode, Encoder

Precision = Literal["auto", "fp32", "bf16", "fp16"]

# Pixels that go through the network together on a CPU; measured best for patches of 64 px and of 256 px
PIXELS_AT_A_TIME, PIXELS_AT_A_TIME_FUSED = 2**18, 2**19

# With one thread, PyTorch runs 1 x 1 convolutions of fewer patches without oneDNN, several times slower
LEAST_PATCHES = 16

# `auto` compiles after this time of encoding; compiling takes about as long, so at worst it doubles the time
COMPILE_AFTER_S = 60.0

Run = Callable[[Encoder, Tensor], Tensor]


def auto(encoder: Encoder, precision: Precision = "auto") -> Encode:
    """Return the fastest exact way to run an encoder; a backend, see :mod:`wsi_ips.model.scan_backends`.

    On a CPU a ResNet with batch norm in float32 is fused. On a GPU the encoder is compiled after
    :data:`COMPILE_AFTER_S`, timed against the plain one, and the faster one is kept.
    """
    device = encoder.mean.device
    dtype = scan_dtype(precision, device)
    if device.type == "cpu":
        if dtype == torch.float32 and can_fuse(encoder):
            return partial(in_parts, FusedResNet(encoder), pixels=PIXELS_AT_A_TIME_FUSED)
        return eager(encoder, precision)
    return partial(_trial(encoder, dtype, COMPILE_AFTER_S), encoder)


def eager(encoder: Encoder, precision: Precision = "auto") -> Encode:
    """Run an encoder as it is, on a CPU in parts that fit the cache; a backend."""
    device = encoder.mean.device
    dtype = scan_dtype(precision, device)
    encode = encoder if dtype == torch.float32 else partial(_embed, encoder, dtype=dtype)
    if device.type != "cpu":
        return encode
    # The 1 x 1 convolutions of shortcuts also halve the sides and are too few to matter.
    parts = encoder.trunk.modules()
    has_pointwise = any(isinstance(m, nn.Conv2d) and m.kernel_size == m.stride == (1, 1) for m in parts)
    needs_many = dtype != torch.float32 or (has_pointwise and torch.get_num_threads() == 1)
    return partial(in_parts, encode, at_least=LEAST_PATCHES if needs_many else 1)


def compiled(encoder: Encoder, precision: Precision = "auto") -> Encode:
    """Compile an encoder at its first chunk; a backend."""
    device = encoder.mean.device
    run = partial(_trial(encoder, scan_dtype(precision, device), 0.0), encoder)
    return partial(in_parts, run, at_least=LEAST_PATCHES) if device.type == "cpu" else run


def scan_dtype(precision: Precision, device: torch.device, *, key: str = "compute.precision") -> torch.dtype:
    """Return the type of the encoder's activations; ``auto`` is bfloat16 on a GPU with native support, else float32."""
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise RecipeError(f"key `{key}`: `fp16` needs a GPU; use `auto`")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def in_parts(encode: Encode, patches: Tensor, *, pixels: int = PIXELS_AT_A_TIME, at_least: int = 1) -> Tensor:
    """Encode ``pixels`` at a time, but at least ``at_least`` patches, (n, 3, h, w) to (n, D)."""
    count = max(at_least, pixels // (patches.shape[2] * patches.shape[3]))
    return torch.cat([encode(part) for part in patches.split(count)])


def _embed(encoder: Encoder, patches: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return float32 embeddings, (n, D); autocast keeps norms and the standardisation in float32."""
    out: Tensor
    if dtype == torch.float32:
        out = encoder(patches)
        return out
    with torch.autocast(patches.device.type, dtype=dtype):
        out = encoder(patches)
    return out.float()


@dataclass
class Trial:
    """Runs an encoder uncompiled until compiling may pay off, then in the faster of the two ways.

    Only chunks of the size of the first one are compiled.
    """

    plain: Run
    # Seconds of plain encoding before compiling; 0 compiles at once and keeps the result without timing it
    compile_after_s: float
    compiler: Callable[[Run], Run] = field(default=lambda run: torch.compile(run, dynamic=False))
    seconds: float = 0.0  # time of plain encoding so far
    shape: torch.Size | None = None  # shape of the chunks that are compiled
    chosen: Run | None = None  # the faster way; None until it is known

    def __call__(self, encoder: Encoder, patches: Tensor) -> Tensor:
        """Embed patches, (n, 3, h, w) to (n, D)."""
        if self.shape is None:
            self.shape = patches.shape
        if patches.shape != self.shape:
            return self.plain(encoder, patches)
        if self.chosen is None and self.seconds >= self.compile_after_s:
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
            compiled(encoder, patches)  # the first call compiles
        except Exception as error:  # compilers fail in many ways; the plain encoder still works
            if forced:
                raise RecipeError(
                    f"key `compute.scan_backend`: `compile` does not work here ({type(error).__name__}: {error}); use "
                    "`auto`"
                ) from error
            return self.plain
        if forced:
            return compiled
        times = {run: min(_timed(run, encoder, patches)[1] for _ in range(3)) for run in (self.plain, compiled)}
        return min(times, key=lambda run: times[run])


def _timed(run: Run, encoder: Encoder, patches: Tensor) -> tuple[Tensor, float]:
    def wait() -> None:
        if patches.device.type == "cuda":
            torch.cuda.current_stream(patches.device).synchronize()

    wait()
    began = time.perf_counter()
    out = run(encoder, patches)
    wait()
    return out, time.perf_counter() - began


# Trials of the encoders in memory, so that the next scan continues from this one
_trials: WeakKeyDictionary[Encoder, dict[tuple[torch.dtype, float], Trial]] = WeakKeyDictionary()


def _trial(encoder: Encoder, dtype: torch.dtype, compile_after_s: float) -> Trial:
    known = _trials.setdefault(encoder, {})
    return known.setdefault((dtype, compile_after_s), Trial(partial(_embed, dtype=dtype), compile_after_s))


def can_fuse(encoder: Encoder) -> bool:
    """Return whether :class:`FusedResNet` fits: a float32 ResNet with batch norm, evaluating, on a CPU with oneDNN."""
    trunk = encoder.trunk
    return (
        not encoder.training
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and isinstance(trunk, nn.Sequential)
        and len(trunk) > 6
        and all(isinstance(block, BasicBlock | Bottleneck) for block in _blocks(trunk))
        and isinstance(trunk[1], nn.BatchNorm2d)
        and not any(isinstance(module, nn.GroupNorm) for module in trunk.modules())
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in trunk.parameters())
    )


class FusedResNet:
    """A ResNet with batch norm, fused for a CPU where no gradient is needed: the same embeddings, faster.

    In evaluation mode batch norm is a scale and a shift per channel, so it is folded into a copy of the weights of the
    convolution before it. The convolution also applies ReLU and adds the shortcut. Weights are laid out once for oneDNN
    instead of at every call. Up to rounding (about 1e-6 of the largest value) the result is that of the encoder. Speed
    against ``torch.compile`` and plain PyTorch: ``python benchmarks/encoder_speed.py``.
    """

    @torch.no_grad()
    def __init__(self, encoder: Encoder) -> None:
        trunk: Any = encoder.trunk
        self._scale = 1 / encoder.std
        self._shift = -encoder.mean / encoder.std
        self._stem = _Convolution(trunk[0], trunk[1])
        self._pool = trunk[3]
        self._blocks = [_Block(block) for block in _blocks(trunk)]
        self._standardise = encoder.standardise

    @torch.no_grad()
    def __call__(self, patches: Tensor) -> Tensor:
        """Embed patches, (n, 3, h, w) to (n, D)."""
        x = torch.addcmul(self._shift, patches, self._scale)  # (n, 3, h, w)
        x = self._pool(self._stem(x.contiguous(memory_format=torch.channels_last), relu=True))
        for block in self._blocks:
            x = block(x)
        out: Tensor = self._standardise(x.mean((2, 3)))  # (n, D)
        return out


def _blocks(trunk: nn.Sequential) -> list[Any]:
    """Return the residual blocks of all stages, without the stem before and the pooling after them."""
    return [block for stage in trunk[4:-2] for block in stage.children()]


class _Block:
    """Residual block of either kind: convolutions with ReLU; the last one is added to the shortcut before its ReLU."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        names = ("1", "2", "3") if isinstance(block, Bottleneck) else ("1", "2")
        *self._first, self._last = [_Convolution(getattr(block, f"conv{n}"), getattr(block, f"bn{n}")) for n in names]
        self._shortcut = None if block.downsample is None else _Convolution(*block.downsample)

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self._first:
            y = convolution(y, relu=True)
        shortcut = x if self._shortcut is None else self._shortcut(x, relu=False)
        return self._last.add_to(shortcut, y)


class _Convolution:
    """A convolution with the batch norm after it."""

    def __init__(self, c: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            c.weight, c.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self._layout = (c.padding, c.stride, c.dilation, c.groups)
        self._bias = bias.detach()
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.detach().contiguous(memory_format=torch.channels_last), *self._layout, None
        )

    def __call__(self, x: Tensor, *, relu: bool) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._layout, "relu" if relu else "none", [], ""
        )
        return out

    def add_to(self, shortcut: Tensor, x: Tensor) -> Tensor:
        """Compute ``relu(shortcut + convolution(x))`` in place of ``shortcut``."""
        out: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            shortcut, x, self._weight, self._bias, *self._layout, "add", 1.0, "relu", [], ""
        )
        return out
