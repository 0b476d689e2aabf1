"""Training on stored features is training on pixels with a frozen encoder, to the rounding of 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.cohort import textured_slide
from tests.training.test_loop import Recorder
from wsi_ips.config import AugmentSection, ComputeSection, PlannedTraining
from wsi_ips.inference.slide_prediction import predict_slide
from wsi_ips.model.checkpoint_card import EncoderSpec, NetSettings
from wsi_ips.model.encoder_families import build_encoder
from wsi_ips.model.freezing import freeze
from wsi_ips.model.net import IpsNet
from wsi_ips.model.poolings import POOLINGS
from wsi_ips.scanning import ChunkLimit, ScanOptions, embed_tiles
from wsi_ips.tiles.feature_store import FeatureTiles, open_features, write_features
from wsi_ips.tiles.stream import SlideTiles
from wsi_ips.training.loop import Trainer
from wsi_ips.training.settings import LabelledSlide, Settings

CPU = torch.device("cpu")
UNCHANGED = AugmentSection.nothing()
COMPUTE = ComputeSection(device="cpu", chunk_size=9)
SLIDES = 4


def stored(root: Path, tiles: SlideTiles, net: IpsNet) -> FeatureTiles:
    """The same slide with features in place of its pixels."""
    encoder = build_encoder(EncoderSpec("resnet18-1", "group", False)).eval()
    encoder.trunk.load_state_dict(net.encoder.trunk.state_dict())
    parts = embed_tiles(encoder, tiles, compute=COMPUTE, limit=ChunkLimit(5))
    write_features(root, tiles.slide_id, parts, encoder="e", fingerprint="f", tiles=len(tiles.index))
    features = open_features(root, tiles.slide_id)
    return FeatureTiles(tiles.slot, tiles.slide_id, tiles.index, tiles.open, tiles.tiles, features)


class Rounded(nn.Module):
    """To 16 bits and back."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings.half().float()


def network(pooling: str, projector: int) -> IpsNet:
    torch.manual_seed(4)
    encoder = build_encoder(EncoderSpec("resnet18-1", "group", False, projector=projector))
    freeze(encoder, "all")
    return IpsNet(encoder, NetSettings(heads=2, key_width=8, dropout=0.2, pooling=pooling))


def trained(net: IpsNet, slides: list[SlideTiles], section: PlannedTraining) -> list[float]:
    listener = Recorder()
    learner = Trainer(net, Settings(section, COMPUTE, memory_size=5, seed=2), listener=listener)
    torch.manual_seed(9)
    labelled = [LabelledSlide(tiles, (n % 2,)) for n, tiles in enumerate(slides)]
    learner.fit(labelled, labelled[:2])
    return [loss for record in listener.records for loss in (record.loss, record.val_loss or 0)]


@pytest.mark.parametrize("pooling", list(POOLINGS))
@pytest.mark.parametrize("projector", [0, 16])
def test_it_comes_to_the_same_weights_losses_and_selection(tmp_path, pooling, projector):
    """Pixels are embedded to 16 bits too: else two tiles of nearly one score may change places, and so the loss."""
    section = PlannedTraining(
        epochs=4, start_epochs=1, batch_slides=2, augment=UNCHANGED, tile_dropout=0.2, learning_rate=1e-3
    )
    pixels = [textured_slide(f"s{n}", label=n % 2, seed=n) for n in range(SLIDES)]
    on_pixels, on_features = network(pooling, projector), network(pooling, projector)
    features = [stored(tmp_path, tiles, on_pixels) for tiles in pixels]
    trunk = on_features.encoder.take_trunk()
    on_pixels.encoder.trunk.append(Rounded())
    expected, found = trained(on_pixels, pixels, section), trained(on_features, features, section)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    assert expected[0] != pytest.approx(expected[-2], abs=1e-3)  # it did learn
    own = on_features.state_dict()
    for name, value in on_pixels.state_dict().items():
        if not name.startswith("encoder.trunk."):
            assert (own[name] - value).norm() <= 0.02 * value.norm() + 1e-3, name

    on_features.encoder.trunk = trunk  # the whole model takes either
    for seen, table in zip(pixels, features, strict=True):
        a, b = (predict_slide(on_features, tiles, ScanOptions(5, COMPUTE)) for tiles in (seen, table))
        np.testing.assert_allclose(b.attention_logits, a.attention_logits, rtol=5e-3, atol=5e-3)
        np.testing.assert_allclose(b.tile_probability, a.tile_probability, atol=2e-3)
        np.testing.assert_allclose(b.probability, a.probability, atol=2e-3)
        assert len(set(a.kept.tolist()) & set(b.kept.tolist())) >= 4  # ties may fall otherwise


def test_a_trained_network_is_not_standardised_anew(tmp_path):
    net, slides = network("abmil", 0), [textured_slide(f"s{n}", label=n % 2, seed=n) for n in range(2)]
    weight = net.encoder.standardise.weight.detach().clone()
    section = PlannedTraining(epochs=1, start_epochs=1, learning_rate=1e-9, augment=UNCHANGED)
    for continues in (True, False):
        settings = Settings(section, COMPUTE, memory_size=5, seed=2, continues=continues)
        Trainer(net, settings).fit([LabelledSlide(t, (n,)) for n, t in enumerate(slides)], [])
        assert torch.allclose(net.encoder.standardise.weight, weight, atol=1e-3) == continues
