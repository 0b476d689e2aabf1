"""Published encoders by a short name: what they are, how they were meant to be used, their licence.

The facts are those of public registries in mid-2026; the model's page decides. Input size, mean, deviation and width
always come from the model's own configuration when it is built; here they inform people. `commercial` and `gated` are
None where the page must be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PoolingOfTokens = Literal["model", "cls", "cls+mean"]


@dataclass(frozen=True)
class Preset:
    """One published encoder.

    Attributes
    ----------
    key
        Short name: ``model.encoder: preset:KEY``.
    model
        Name that builds it, as in ``model.encoder``.
    width
        Width D of an embedding.
    patch_px
        Side of the patches it was trained on, px.
    mpp
        Scales it was trained on, lowest and highest, µm/px; None: photographs.
    pooling
        ``cls``: class token; ``cls+mean``: class token and mean of the patch tokens, side by side; ``model``: what
        the model's own configuration says.
    licence
        Of the weights.
    gated
        Whether its owners must grant access first.
    commercial
        Whether the licence allows commercial use.
    arguments
        Arguments that the model's configuration lacks; layers by name.
    """

    key: str
    model: str
    width: int
    patch_px: int
    mpp: tuple[float, float] | None
    pooling: PoolingOfTokens
    licence: str
    gated: bool | None
    commercial: bool | None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def page(self) -> str:
        """Address of its page; empty for models without a repository of their own."""
        repository = self.model.rpartition(":")[2]
        return f"https://huggingface.co/{repository}" if "/" in repository else ""


_HALF = (0.5, 0.5)
_NC_ND = "CC-BY-NC-ND-4.0"
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_SCALED = {"init_values": 1e-5, "dynamic_img_size": True}
_OPTIMUS = {"init_values": 1e-5, "dynamic_img_size": False}
_UNI2_SIZE = {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536}
_UNI2 = {**_SCALED, **_UNI2_SIZE, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, **_SWIGLU}
_KAIKO = "timm:hf-hub:1aurent/vit_{}_patch{}_224.kaiko_ai_towards_large_pathology_fms"
_LUNIT = "timm:hf-hub:1aurent/vit_small_patch{}_224.lunit_dino"

_ALL = (
    Preset("resnet50", "resnet50-3", 1024, 224, None, "model", "BSD-3-Clause", False, True),
    Preset("uni", "timm:hf-hub:MahmoodLab/uni", 1024, 224, _HALF, "cls", _NC_ND, True, False, _SCALED),
    Preset("uni2-h", "timm:hf-hub:MahmoodLab/UNI2-h", 1536, 224, _HALF, "cls", _NC_ND, True, False, _UNI2),
    Preset("virchow", "timm:hf-hub:paige-ai/Virchow", 2560, 224, _HALF, "cls+mean", "Apache-2.0", True, True, _SWIGLU),
    Preset("virchow2", "timm:hf-hub:paige-ai/Virchow2", 2560, 224, _HALF, "cls+mean", _NC_ND, True, False, _SWIGLU),
    Preset(
        "h-optimus-0", "timm:hf-hub:bioptimus/H-optimus-0", 1536, 224, _HALF, "cls", "Apache-2.0", False, True, _OPTIMUS
    ),
    Preset("h-optimus-1", "timm:hf-hub:bioptimus/H-optimus-1", 1536, 224, _HALF, "cls", _NC_ND, True, False, _OPTIMUS),
    Preset("h0-mini", "timm:hf-hub:bioptimus/H0-mini", 768, 224, _HALF, "cls", _NC_ND, True, False, _SWIGLU),
    Preset(
        "gigapath", "timm:hf-hub:prov-gigapath/prov-gigapath", 1536, 224, _HALF, "cls", "research only", True, False
    ),
    *(
        Preset(
            f"kaiko-{size[0]}{patch}",
            _KAIKO.format(size, patch),
            width,
            224,
            (0.25, 2.0),
            "cls",
            "read the card",
            False,
            None,
        )
        for size, width in (("small", 384), ("base", 768))
        for patch in (16, 8)
    ),
    *(
        Preset(f"lunit-s{patch}", _LUNIT.format(patch), 384, 224, (0.25, 0.5), "cls", "Lunit's own", False, False)
        for patch in (16, 8)
    ),
)

PRESETS: Mapping[str, Preset] = {preset.key: preset for preset in _ALL}
"""All presets by key."""


def scale_text(preset: Preset) -> str:
    """Format the scales of a preset, µm/px: ``0.5`` or ``0.25-2``; empty for photographs."""
    if preset.mpp is None:
        return ""
    low, high = preset.mpp
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
