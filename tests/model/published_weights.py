"""Weights of the published code (github.com/benbergner/ips, MIT) as weights of ours, one to one.

========================================  =====================================
there                                     here
========================================  =====================================
``encoder.<i>.*`` (i of the Sequential)   ``encoder.trunk.<i>.*``
``transf.crs_attn.q`` (1, T, D)           ``pooling.queries`` (T, D)
``transf.crs_attn.{q,k,v}_w``             ``pooling.to_{query,key,value}``
``transf.crs_attn.fc``                    ``pooling.to_out``
``transf.crs_attn.layer_norm``            ``pooling.norm_attention``
``transf.mlp.w_1``, ``transf.mlp.w_2``    ``pooling.mlp.0``, ``pooling.mlp.3``
``transf.mlp.layer_norm``                 ``pooling.norm_mlp``
``output_layers.<task>.0``                its rows of ``head``
========================================  =====================================

``encoder.standardise`` has no counterpart there and becomes the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

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


def converted_weights(state: Mapping[str, Tensor], net: IpsNet, *, tasks: Sequence[str]) -> dict[str, Tensor]:
    """State dict of the published ``IPSNet`` as one for ``net``, whose tasks have these names there, in order."""
    return {name: _converted(name, own, state, tasks) for name, own in net.state_dict().items()}


def _converted(name: str, own: Tensor, state: Mapping[str, Tensor], tasks: Sequence[str]) -> Tensor:
    module, _, kind = name.rpartition(".")
    if name == "pooling.queries":
        return state["transf.crs_attn.q"].squeeze(0)
    if module == "head":
        return torch.cat([state[f"output_layers.{task}.0.{kind}"] for task in tasks])
    if module == "encoder.standardise":
        return torch.ones_like(own) if kind == "weight" else torch.zeros_like(own)
    if module in _MODULES:
        return state[f"{_MODULES[module]}.{kind}"]
    return state[name.replace(".trunk.", ".", 1)]
