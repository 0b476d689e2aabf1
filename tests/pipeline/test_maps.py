"""The map the recipe asks for comes first."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.config.sections import HeatmapSection
from wsi_ips.errors import ScoresError
from wsi_ips.pipeline.maps.layers import map_kinds
from wsi_ips.results import odds_share


def test_probability_and_attention_are_always_drawn():
    assert map_kinds(HeatmapSection()) == ("probability", "attention")
    assert map_kinds(HeatmapSection(score="attention")) == ("attention", "probability")


def test_share_of_the_odds_is_what_they_lose():
    np.testing.assert_allclose(odds_share(np.log([1.0, 2.0, 0.1, 10.0])), [0, 0.5, 0, 0.9], rtol=1e-6)
    with pytest.raises(ScoresError, match="not finite"):
        odds_share(np.array([np.nan]))
