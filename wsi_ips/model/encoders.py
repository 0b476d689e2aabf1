"""Encoders: the choices of ``model.encoder``. Importing this module loads no torch.

Each entry names a function ``build(spec, *, pretrained, weights) -> Encoder``; see
:func:`wsi_ips.model.encoder_families.build_encoder`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wsi_ips.model.presets import PRESETS, Preset, scale_text
from wsi_ips.registry import Entry, Registry

RESNET = re.compile(r"(?P<name>resnet(?:18|34|50|101))(?:-(?P<stages>[1-4]))?")
"""A torchvision ResNet; ``resnet18-2`` has the first two of its four stages."""
TIMM = "timm:"
MPP_TOLERANCE = 0.1
"""Scales closer than this, relative, count as equal."""


@dataclass(frozen=True)
class EncoderEntry(Entry):
    """One encoder, or a family of encoders.

    Attributes
    ----------
    pattern
        Regular expression of the names of a family; empty: ``name`` is the only one.
    preset
        Facts about a published encoder.
    """

    pattern: str = ""
    preset: Preset | None = None


class EncoderRegistry(Registry[EncoderEntry]):
    """Encoders by name; a name that is no entry belongs to the first family whose pattern it matches."""

    def __getitem__(self, name: str) -> EncoderEntry:
        """Return the entry of an encoder.

        Raises
        ------
        RecipeError
            There is no such encoder; names the choices.
        """
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
    """List what people should know before they use an encoder: its licence, and tiles of another scale or size.

    Parameters
    ----------
    name
        As in ``model.encoder``; an encoder without a preset has no remarks.
    mpp, patch_px
        Scale and side of the tiles, µm/px and px; None skips the check.
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
