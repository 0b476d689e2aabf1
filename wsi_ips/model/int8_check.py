"""How near a scan in 8-bit integers is to one in float32; plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_CORRELATION = 0.95
"""Slides whose scores in int8 correlate less with those in float32 are scanned in float32."""


@dataclass(frozen=True)
class Int8Check:
    """Scores in int8 against scores in float32, on tiles that were not used to calibrate.

    Attributes
    ----------
    tiles
        Number of tiles compared.
    error
        Of the embeddings: norm of the difference over norm of the embeddings.
    correlation
        Of the selection scores, Spearman's; 1 where the pooling does not rank tiles.
    kept, overlap
        So many of the best were taken from both, and this share of them is the same.
    """

    tiles: int
    error: float
    correlation: float
    kept: int
    overlap: float

    @property
    def holds(self) -> bool:
        """Whether the scores are near enough to be used."""
        return self.correlation >= LEAST_CORRELATION

    def __str__(self) -> str:
        return (
            f"{self.error:.1%} error of embeddings, correlation of scores {self.correlation:.3f}, {self.overlap:.0%} "
            f"of the best {self.kept} of {self.tiles} tiles the same"
        )
