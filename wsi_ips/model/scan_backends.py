"""Scan backends: the choices of ``compute.scan_backend``. Importing this module loads no torch.

A backend is one function ``backend(encoder, precision) -> encode``; a calibrated one is ``backend(encoder, patches) ->
encode``. ``encode`` turns a batch of patches, float in 0-1, shape (n, 3, h, w), into embeddings, float32, shape (n, D).
It is valid until the encoder's weights change. Pooling, heads and gradient never use it: they stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsi_ips.registry import Entry, Registry

if TYPE_CHECKING:
    from wsi_ips.model.encoder import Encoder

LEAST_CORRELATION = 0.95  # a slide whose scores correlate less with those in float32 is scanned in float32


@dataclass(frozen=True)
class ScanBackend(Entry):
    """One way to run the encoder in the scan."""

    # It is calibrated on patches of the slide, its scores differ from those in float32 by more than rounding, and it
    # serves prediction only; training and stored features use `auto`
    is_calibrated: bool = False
    # `module:function` called with the encoder and the side of a patch before the first slide; it raises a
    # `RecipeError` where the backend cannot run. Empty: nothing to check
    checker: str = ""

    def check(self, encoder: Encoder, patch_px: int) -> None:
        """Raise a `RecipeError` that says what is missing where the backend cannot run an encoder on this machine."""
        if self.checker:
            check: Callable[[Any, int], None] = Entry(self.name, self.checker, "", extra=self.extra).load()
            check(encoder, patch_px)


_HOME = "wsi_ips.model.scan_encoders"

SCAN_BACKENDS: Registry[ScanBackend] = Registry(
    "scan backend",
    [
        ScanBackend(
            "auto",
            f"{_HOME}:auto",
            "the fastest exact one: on a CPU fused convolutions where they fit; on a GPU compiled after a minute of "
            "encoding, where it is measured to be faster",
        ),
        ScanBackend("eager", f"{_HOME}:eager", "the encoder as it is"),
        ScanBackend("compile", f"{_HOME}:compiled", "compiled at once by `torch.compile`; needs a C++ compiler"),
        ScanBackend(
            "int8",
            "wsi_ips.model.int8:int8",
            "8-bit integers on a CPU, for prediction only, calibrated and checked on tiles of each slide; the slide's "
            "label still comes from its kept tiles in float32",
            extra="int8",
            is_calibrated=True,
            checker="wsi_ips.model.int8:check_int8",
        ),
    ],
    group="wsi_ips.scan_backends",
)


@dataclass(frozen=True)
class ScanCheck:
    """Difference between the scores of a calibrated backend and those in float32, on tiles not used to calibrate."""

    tiles: int  # number of tiles compared
    error: float  # relative error of the embeddings: norm of the difference over norm of the embeddings
    correlation: float  # Spearman's correlation of the selection scores; 1 where all tiles score alike
    kept: int  # number of best tiles taken from both
    overlap: float  # share of them that is the same

    @property
    def holds(self) -> bool:
        """Whether the scores are close enough to be used."""
        return self.correlation >= LEAST_CORRELATION

    def __str__(self) -> str:
        return (
            f"{self.error:.1%} error of embeddings, correlation of scores {self.correlation:.3f}, {self.overlap:.0%} "
            f"of the best {self.kept} of {self.tiles} tiles the same"
        )
