"""Weights of the published code (github.com/benbergner/ips, MIT) as weights of ours, one to one.

========================================  =====================================
there                                     here
========================================  =====================================
``encoder.<i>.*`` (i of the Sequential)   ``encoder.trunk.<i>.*``
``transf.crs_attn.q`` (1, T, D)           ``pooling.queries`` (T, D)
``transf.crs_attn.q_w``                   ``pooling.to_query``
``transf.crs_attn.k_w``                   ``pooling.to_key``
``transf.crs_attn.v_w``                   ``pooling.to_value``
``transf.crs_attn.fc``                    ``pooling.to_out``
``transf.crs_attn.layer_norm``            ``pooling.norm_attention``
``transf.mlp.w_1``, ``transf.mlp.w_2``    ``pooling.mlp.0``, ``pooling.mlp.3``
``transf.mlp.layer_norm``                 ``pooling.norm_mlp``
``output_layers.<task>.0``                its rows of ``head``
========================================  =====================================

``encoder.standardise`` has no counterpart there and becomes the identity. What is no weight does not come along: the
published data sets normalise their patches themselves, ours does in the encoder; ours has dropout after the ReLU
of the block as well (training only); positions are a fixed table there and not in the state dict. The projector
of stored features and encoders of one grey channel have no counterpart here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wsi_ips.errors import CheckpointError
from wsi_ips.model.net import IpsNet

_MODULES = {
    "pooling.to_query": "transf.crs_attn.q_w",
    "pooling.to_key": "transf.crs_attn.k_w",
    "pooling.to_value": "transf.crs_attn.v_w",
    "pooling.to_out": "transf.crs_attn.fc",
    "pooling.norm_attention": "transf.crs_attn.layer_norm",
    "pooling.mlp.0": "transf.mlp.w_1",
    "pooling.mlp.3": "transf.mlp.w_2",
    "pooling.norm_mlp": "transf.mlp.layer_norm",
}
_QUERIES, _STANDARDISE = "pooling.queries", "encoder.standardise"


def convert_reference(state: Mapping[str, Tensor], net: IpsNet, *, tasks: Sequence[str]) -> dict[str, Tensor]:
    """State dict of the published ``IPSNet`` as one for ``net.load_state_dict``.

    Parameters
    ----------
    state
        The published state dict.
    net
        Built alike: same encoder with batch norm, pooling `attention`, H heads, D_k = D_v = key width, D_inner = 4 D,
        and the same tasks. Not changed.
    tasks
        Names of the tasks there, in the order of their ``id``; one per task of ``net``.

    Raises
    ------
    CheckpointError
        A weight is missing, not known, or of another shape; names it as it is called there.
    """
    own = net.state_dict()
    sources = {name: _sources(name, tasks) for name in own}
    needed = [source for names in sources.values() for source in names]
    _refuse("are missing", [name for name in needed if name not in state])
    _refuse("have no counterpart here", [name for name in state if name not in needed])
    converted = {name: _joined([state[s] for s in sources[name]], name, own[name]) for name in own}
    _refuse(
        "have another shape than the network",
        [
            f"{', '.join(sources[name])} {tuple(converted[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if converted[name].shape != tensor.shape
        ],
    )
    return converted


def _sources(name: str, tasks: Sequence[str]) -> list[str]:
    """What one of our weights is made of, by the names there."""
    module, _, kind = name.rpartition(".")
    if name == _QUERIES:
        return ["transf.crs_attn.q"]
    if module == "head":
        return [f"output_layers.{task}.0.{kind}" for task in tasks]
    if module == _STANDARDISE:
        return []
    if module in _MODULES:
        return [f"{_MODULES[module]}.{kind}"]
    if name.startswith("encoder.trunk."):
        return [name.replace(".trunk.", ".", 1)]
    raise CheckpointError(f"weight {name} has no counterpart in the published code; use `model.pooling: attention`")


def _joined(parts: list[Tensor], name: str, own: Tensor) -> Tensor:
    if not parts:
        return torch.ones_like(own) if name.endswith("weight") else torch.zeros_like(own)
    if name == _QUERIES:
        return parts[0].squeeze(0)
    return parts[0].clone() if len(parts) == 1 else torch.cat(parts)


def _refuse(what: str, names: list[str]) -> None:
    if names:
        raise CheckpointError(f"published weights: {len(names)} {what}: {'; '.join(names[:8])}")
