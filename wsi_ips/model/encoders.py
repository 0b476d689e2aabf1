"""Encoders: the choices of ``model.encoder``, and facts about published ones. Importing this module loads no torch.

Each entry names a function ``build(spec, *, pretrained, weights) -> Encoder``; see
:func:`wsi_ips.model.encoder_families.build_encoder`. The facts are those of public registries in mid-2026; the model's
page decides. Input size, mean, deviation and width always come from the model's own configuration when it is built;
here they inform people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wsi_ips.registry import Entry, Registry

# What the model's own configuration says; the class token; class token and mean of the patch tokens, side by side
PoolingOfTokens = Literal["model", "cls", "cls+mean"]


@dataclass(frozen=True)
class Preset:
    """One published encoder."""

    key: str  # short name: `model.encoder: preset:KEY`
    model: str  # name that builds it, as in `model.encoder`
    width: int  # of an embedding
    patch_px: int  # side of the patches it was trained on, px
    mpp: tuple[float, float] | None  # scales it was trained on, lowest and highest, µm/px; None: photographs
    pooling: PoolingOfTokens
    licence: str  # of its weights
    gated: bool | None  # whether its owners must grant access first; None: read the page
    commercial: bool | None  # whether the licence allows commercial use; None: read the page
    arguments: Mapping[str, Any] = field(default_factory=dict)  # that its configuration lacks; layers by name

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

_PUBLISHED = (
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

PRESETS: Mapping[str, Preset] = {preset.key: preset for preset in _PUBLISHED}


def scale_text(preset: Preset) -> str:
    """Format the scales of a preset, µm/px: ``0.5`` or ``0.25-2``; empty for photographs."""
    if preset.mpp is None:
        return ""
    low, high = preset.mpp
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


# A torchvision ResNet; `resnet18-2` has the first two of its four stages
RESNET = re.compile(r"(?P<name>resnet(?:18|34|50|101))(?:-(?P<stages>[1-4]))?")
TIMM = "timm:"
MPP_TOLERANCE = 0.1  # scales closer than this, relative, count as equal


@dataclass(frozen=True)
class EncoderEntry(Entry):
    """One encoder, or a family of encoders."""

    pattern: str = ""  # regular expression of the names of a family; empty: `name` is the only one
    preset: Preset | None = None  # facts about a published encoder


class EncoderRegistry(Registry[EncoderEntry]):
    """Encoders by name; any other name belongs to the first family whose pattern it matches."""

    def __getitem__(self, name: str) -> EncoderEntry:
        """Return the entry of an encoder or of its family."""
        if name not in self:
            for entry in self.values():
                if entry.pattern and re.fullmatch(entry.pattern, name):
                    return entry
        return super().__getitem__(name)


_BUILD_RESNET, _BUILD_TIMM = (f"wsi_ips.model.encoder_families:build_{family}" for family in ("resnet", "timm"))

ENCODERS = EncoderRegistry(
    "encoder",
    [
        *(
            EncoderEntry(name, _BUILD_RESNET, f"ResNet-{name[6:]}", pattern=rf"{name}-[1-4]")
            for name in ("resnet18", "resnet34", "resnet50", "resnet101")
        ),
        EncoderEntry(
            "timm:NAME",
            _BUILD_TIMM,
            "any model of timm; also `timm:hf-hub:OWNER/NAME` and `timm:local-dir:FOLDER`",
            pattern=rf"{TIMM}.+",
        ),
        *(
            EncoderEntry(
                f"preset:{preset.key}",
                _BUILD_TIMM if preset.model.startswith(TIMM) else _BUILD_RESNET,
                f"width {preset.width}, {scale_text(preset) or 'any'} µm/px, licence {preset.licence}",
                preset=preset,
            )
            for preset in PRESETS.values()
        ),
    ],
    group="wsi_ips.encoders",
)


def find_preset(name: str) -> Preset | None:
    """Return the preset of an encoder, None where it has none."""
    return ENCODERS[name].preset if name in ENCODERS else None


def encoder_remarks(name: str, *, mpp: float | None = None, patch_px: int | None = None) -> list[str]:
    """List what people should know before they use an encoder: its licence; tiles of another scale or size."""
    preset = find_preset(name)
    if preset is None:
        return []
    said = []
    if not preset.commercial:
        how = "does not allow commercial use" if preset.commercial is False else "may not allow commercial use"
        said.append(f"encoder {preset.key}: licence {preset.licence} {how}; read {preset.page}")
    if mpp is not None and preset.mpp is not None:
        low, high = preset.mpp
        if not low * (1 - MPP_TOLERANCE) <= mpp <= high * (1 + MPP_TOLERANCE):
            said.append(
                f"encoder {preset.key}: made for {scale_text(preset)} µm/px, the recipe reads tiles at {mpp:g} µm/px; "
                f"set `tiles.mpp` to {low:g} unless that is intended"
            )
    if patch_px is not None and preset.mpp is not None and patch_px != preset.patch_px:
        said.append(
            f"encoder {preset.key}: made for patches of {preset.patch_px} px, the recipe's have {patch_px} px; set "
            f"`tiles.patch_px` to {preset.patch_px} unless that is intended"
        )
    return said
