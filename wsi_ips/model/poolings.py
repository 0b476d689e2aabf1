"""Poolings: the choices of ``model.pooling``. Importing this module loads no torch.

Each entry names a :class:`wsi_ips.model.pooling.Pooling`, which is built as
``pooling(width, queries=T, heads=H, key_width=E, dropout=p)``.
"""

from __future__ import annotations

from wsi_ips.registry import Entry, Registry

POOLINGS: Registry[Entry] = Registry(
    "pooling",
    [
        Entry("attention", "wsi_ips.model.pooling:CrossAttentionPooling", "cross-attention of the method"),
        Entry(
            "abmil", "wsi_ips.model.pooling:GatedAttentionPooling", "gated attention, for comparison; it has one head"
        ),
    ],
    group="wsi_ips.poolings",
)
