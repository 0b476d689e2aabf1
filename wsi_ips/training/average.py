"""A running average of the weights (EMA): smoother than the weights of any one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from wsi_ips.model.net import IpsNet


def averaged(net: IpsNet, decay: float) -> AveragedModel:
    """PyTorch's copy of a network whose weights follow it; buffers (batch statistics) are those of the network.

    The decay is ``min(decay, (1 + n) / (10 + n))`` after n steps, so the first weights, which mean nothing, are soon
    forgotten.
    """

    def average(averages: Sequence[Tensor], now: Sequence[Tensor], steps: Tensor | int) -> None:
        n = int(steps)
        torch._foreach_lerp_(list(averages), list(now), 1 - min(decay, (1 + n) / (10 + n)))

    with torch.no_grad():
        return AveragedModel(net, multi_avg_fn=torch.no_grad()(average))
