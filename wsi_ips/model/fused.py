"""A faster way to compute the same embeddings on a CPU where no gradient is needed.

Patches go through the encoder a few at a time, so that activations stay in the cache. In evaluation mode batch norm is
a scale and a shift per channel, so it goes into the weights of the convolution before it; ReLU and the sum with the
shortcut are done by the convolution; weights are laid out once for the library (oneDNN) instead of at every call. Up to
rounding (some 1e-6 of the largest value) the result is that of the encoder. Measured on one core:
``python benchmarks/ips_scan.py``.

Shapes: n patches of h x w pixels, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from wsi_ips.model.encoder import Encoder

Encode = Callable[[Tensor], Tensor]
"""Float patches in 0-1, shape (n, 3, h, w), to embeddings, shape (n, D)."""


PIXELS_AT_A_TIME, PIXELS_AT_A_TIME_FUSED = 2**18, 2**19
"""Pixels of the patches that go through the network together on a CPU; measured best for 64 px and for 256 px."""


def scan_encoder(encoder: Encoder) -> Encode:
    """The fastest way to run an encoder as it is now, without gradient.

    Valid until its weights change. On a CPU patches go in parts, and a ResNet with batch norm is fused; elsewhere it is
    the encoder itself.
    """
    if encoder.mean.device.type != "cpu":
        return encoder
    if can_fuse(encoder):
        return partial(in_parts, FusedResNet(encoder), pixels=PIXELS_AT_A_TIME_FUSED)
    # With one thread PyTorch does 1 x 1 convolutions of fewer than 16 patches without oneDNN, several times slower.
    # Those of shortcuts, which also halve the sides, are too few to matter: ResNet-18 is fastest in parts of four.
    pointwise = any(isinstance(m, nn.Conv2d) and m.kernel_size == m.stride == (1, 1) for m in encoder.trunk.modules())
    return partial(in_parts, encoder, at_least=16 if pointwise and torch.get_num_threads() == 1 else 1)


def in_parts(encode: Encode, patches: Tensor, *, pixels: int = PIXELS_AT_A_TIME, at_least: int = 1) -> Tensor:
    """Embed so many pixels at a time, but at least so many patches, (n, 3, h, w) to (n, D)."""
    count = max(at_least, pixels // (patches.shape[2] * patches.shape[3]))
    return torch.cat([encode(part) for part in patches.split(count)])


def can_fuse(encoder: Encoder) -> bool:
    """Whether :class:`FusedResNet` fits: a ResNet with batch norm in evaluation mode, float32, on a CPU with oneDNN."""
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
    """A ResNet encoder with its batch norm folded away; holds copies of its weights."""

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
    """Residual blocks of all stages; stem and pooling stand before and after them."""
    return [block for stage in trunk[4:-2] for block in stage.children()]


class _Block:
    """Residual block of either kind: convolutions with ReLU, the last one added to the shortcut before it."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        names = ("1", "2", "3") if isinstance(block, Bottleneck) else ("1", "2")
        *self._first, self._last = [_Convolution(getattr(block, f"conv{n}"), getattr(block, f"bn{n}")) for n in names]
        self._shortcut = None if block.downsample is None else _Convolution(*block.downsample)

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self._first:
            y = convolution(y, relu=True)
        shortcut = x if self._shortcut is None else self._shortcut(x, relu=False)
        return self._last.onto(shortcut, y)


class _Convolution:
    """A convolution with the batch norm after it."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        c = convolution
        self._where = (c.padding, c.stride, c.dilation, c.groups)
        self._bias = bias.detach()
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.detach().contiguous(memory_format=torch.channels_last), *self._where, None
        )

    def __call__(self, x: Tensor, *, relu: bool) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._where, "relu" if relu else "none", [], ""
        )
        return out

    def onto(self, shortcut: Tensor, x: Tensor) -> Tensor:
        """``relu(shortcut + convolution(x))``, written over ``shortcut``."""
        out: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            shortcut, x, self._weight, self._bias, *self._where, "add", 1.0, "relu", [], ""
        )
        return out
