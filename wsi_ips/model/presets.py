"""Encoders by a short name: what they are, how they were meant to be used, under which licence.

Facts as public registries gave them in mid-2026; where one is unsure it is left open. The model card decides.
Input size, mean, deviation and width always come from the model's own configuration when it is built; they stand
here for people. `commercial` and `gated` are None where the card must be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wsi_ips.errors import RecipeError

PREFIX = "preset:"
PoolingOfTokens = Literal["model", "cls", "cls+mean"]
MPP_TOLERANCE = 0.1
"""Scales closer than this, relative, count as equal."""

_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_NC_ND = "CC-BY-NC-ND-4.0"


@dataclass(frozen=True)
class Preset:
    """One published encoder.

    Attributes
    ----------
    key
        Short name: ``model.encoder: preset:KEY``.
    model
        Name that builds it, as in ``model.encoder``; for those that cannot be built, where it is published.
    width
        Width D of an embedding.
    patch_px
        Side of the patches it was trained on, px.
    mpp
        Scales it was trained on, lowest and highest, µm/px; None for photographs.
    pooling
        ``cls``: class token; ``cls+mean``: class token and mean of the patch tokens, side by side; ``model``: what
        the model's own configuration says.
    licence
        Of the weights.
    gated
        Whether its page must grant access first.
    commercial
        Whether the licence allows commercial use.
    arguments
        What the model's configuration does not say; layers by name.
    missing
        Why it cannot be built; empty where it can.
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
    missing: str = ""

    @property
    def page(self) -> str:
        """Where the model card stands; empty for models that are no repository of their own."""
        repository = self.model.rpartition(":")[2]
        return f"https://huggingface.co/{repository}" if "/" in repository else ""


_CODE = "its loader runs code from the model's repository, which wsi-ips never does"
_NOT_TIMM = "published for another library than timm, which wsi-ips does not use"
_STATE = "published as a bare state dict; convert it to a timm model and use `timm:NAME` with `model.weights`"
_HALF = (0.5, 0.5)

_ALL = (
    Preset("resnet50", "resnet50-3", 1024, 224, None, "model", "BSD-3-Clause", False, True),
    Preset(
        "uni",
        "timm:hf-hub:MahmoodLab/uni",
        1024,
        224,
        _HALF,
        "cls",
        _NC_ND,
        True,
        False,
        {"init_values": 1e-5, "dynamic_img_size": True},
    ),
    Preset(
        "uni2-h",
        "timm:hf-hub:MahmoodLab/UNI2-h",
        1536,
        224,
        _HALF,
        "cls",
        _NC_ND,
        True,
        False,
        {
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **_SWIGLU,
        },
    ),
    Preset("virchow", "timm:hf-hub:paige-ai/Virchow", 2560, 224, _HALF, "cls+mean", "Apache-2.0", True, True, _SWIGLU),
    Preset("virchow2", "timm:hf-hub:paige-ai/Virchow2", 2560, 224, _HALF, "cls+mean", _NC_ND, True, False, _SWIGLU),
    Preset(
        "h-optimus-0",
        "timm:hf-hub:bioptimus/H-optimus-0",
        1536,
        224,
        _HALF,
        "cls",
        "Apache-2.0",
        False,
        True,
        {"init_values": 1e-5, "dynamic_img_size": False},
    ),
    Preset(
        "h-optimus-1",
        "timm:hf-hub:bioptimus/H-optimus-1",
        1536,
        224,
        _HALF,
        "cls",
        _NC_ND,
        True,
        False,
        {"init_values": 1e-5, "dynamic_img_size": False},
    ),
    Preset("h0-mini", "timm:hf-hub:bioptimus/H0-mini", 768, 224, _HALF, "cls", _NC_ND, True, False, _SWIGLU),
    Preset(
        "gigapath",
        "timm:hf-hub:prov-gigapath/prov-gigapath",
        1536,
        224,
        _HALF,
        "cls",
        "research only",
        True,
        False,
    ),
    *(
        Preset(
            f"kaiko-{size[0]}{patch}",
            f"timm:hf-hub:1aurent/vit_{size}_patch{patch}_224.kaiko_ai_towards_large_pathology_fms",
            {"small": 384, "base": 768}[size],
            224,
            (0.25, 2.0),
            "cls",
            "read the card",
            False,
            None,
        )
        for size in ("small", "base")
        for patch in (16, 8)
    ),
    Preset(
        "lunit-s16",
        "timm:hf-hub:1aurent/vit_small_patch16_224.lunit_dino",
        384,
        224,
        (0.25, 0.5),
        "cls",
        "Lunit's own",
        False,
        False,
    ),
    Preset(
        "lunit-s8",
        "timm:hf-hub:1aurent/vit_small_patch8_224.lunit_dino",
        384,
        224,
        (0.25, 0.5),
        "cls",
        "Lunit's own",
        False,
        False,
    ),
    Preset("conch", "MahmoodLab/conch", 512, 448, _HALF, "model", _NC_ND, True, False, missing=_NOT_TIMM),
    Preset("conch-v1.5", "MahmoodLab/conchv1_5", 768, 448, _HALF, "model", _NC_ND, True, False, missing=_CODE),
    Preset("phikon", "owkin/phikon", 768, 224, _HALF, "cls", "Owkin's own", False, False, missing=_NOT_TIMM),
    Preset(
        "phikon-v2",
        "owkin/phikon-v2",
        1024,
        224,
        _HALF,
        "cls",
        "Owkin's own",
        False,
        False,
        missing=_NOT_TIMM,
    ),
    Preset("hibou-b", "histai/hibou-b", 768, 224, _HALF, "cls", "Apache-2.0", True, True, missing=_CODE),
    Preset("hibou-l", "histai/hibou-L", 1024, 224, _HALF, "cls", "Apache-2.0", True, True, missing=_CODE),
    Preset("midnight-12k", "kaiko-ai/midnight", 1536, 224, (0.25, 2.0), "cls", "MIT", None, True, missing=_NOT_TIMM),
    Preset(
        "open-midnight", "SophontAI/OpenMidnight", 1536, 224, _HALF, "cls", "Apache-2.0", True, True, missing=_STATE
    ),
    Preset("gpfm", "majiabo/GPFM", 1024, 224, _HALF, "cls", _NC_ND, False, False, missing=_STATE),
    Preset(
        "genbio-pathfm",
        "genbio-ai/genbio-pathfm",
        4608,
        224,
        _HALF,
        "model",
        "GenBio community",
        None,
        False,
        missing=_NOT_TIMM,
    ),
)

PRESETS: Mapping[str, Preset] = {preset.key: preset for preset in _ALL}
"""All presets by key."""


def find_preset(name: str) -> Preset | None:
    """The preset of an encoder's name; None for a name without ``preset:``.

    Raises
    ------
    RecipeError
        No such preset, or one that cannot be built.
    """
    if not name.startswith(PREFIX):
        return None
    preset = PRESETS.get(name.removeprefix(PREFIX))
    if preset is None:
        buildable = ", ".join(key for key, known in PRESETS.items() if not known.missing)
        raise RecipeError(f"key `model.encoder`: no preset of the name `{name}`; there are {buildable}")
    if preset.missing:
        raise RecipeError(
            f"key `model.encoder`: {name} cannot be built: {preset.missing}; `wsi-ips encoders` lists those that can"
        )
    return preset


def remarks(name: str, *, mpp: float | None = None, patch_px: int | None = None) -> list[str]:
    """What must be said when an encoder is used: its licence, and tiles of a scale or size it was not made for.

    Parameters
    ----------
    name
        As in ``model.encoder``; names without ``preset:`` have no remarks.
    mpp, patch_px
        Scale and side of the tiles, µm/px and px; None leaves them out.
    """
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
                f"set `tiles.mpp` to {low:g} unless that is meant"
            )
    if patch_px is not None and preset.mpp is not None and patch_px != preset.patch_px:
        said.append(
            f"encoder {preset.key}: made for patches of {preset.patch_px} px, the recipe's have {patch_px} px; set "
            f"`tiles.patch_px` to {preset.patch_px} unless that is meant"
        )
    return said


def scale_text(preset: Preset) -> str:
    """Its scales, µm/px: ``0.5`` or ``0.25-2``; empty for photographs."""
    if preset.mpp is None:
        return ""
    low, high = preset.mpp
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
