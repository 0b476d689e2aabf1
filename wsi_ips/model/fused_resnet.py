"""A ResNet with batch norm, fused for a CPU where no gradient is needed: the same embeddings, faster.

In evaluation mode batch norm is a scale and a shift per channel, so it is folded into the weights of the convolution
before it. The convolution also applies ReLU and adds the shortcut. Weights are laid out once for oneDNN instead of at
every call. Up to rounding (about 1e-6 of the largest value) the result is that of the encoder. Speed against
``torch.compile`` and plain PyTorch: ``python benchmarks/encoder_speed.py``.

Shapes: n patches of h x w pixels, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from wsi_ips.model.encoder import Encoder


def can_fuse(encoder: Encoder) -> bool:
    """Tell whether :class:`FusedResNet` fits: a float32 ResNet with batch norm, evaluating, on a CPU with oneDNN."""
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
    """A ResNet encoder with its batch norm folded away. It holds copies of the weights."""

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
