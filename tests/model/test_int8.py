"""Int8: near to float32 on tiles it was not calibrated on, and a check that tells when it is not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from tests.cohort import textured_slide
from wsi_ips.config import ComputeSection
from wsi_ips.errors import RecipeError
from wsi_ips.inference import slide_prediction
from wsi_ips.inference.slide_prediction import compare_scores, predict_slide
from wsi_ips.inference.slide_scores import read_scores, write_scores
from wsi_ips.model import int8, scan_backends
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.int8 import require_int8
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.scan_backends import ScanCheck
from wsi_ips.model.selection import selection_score
from wsi_ips.scanning import ScanOptions

CPU = torch.device("cpu")
PATCH_PX = 48


def patches_of(count: int, seed: int) -> torch.Tensor:
    """Patches that differ in colour and grain, (n, 3, h, w)."""
    rng = np.random.default_rng(seed)
    colour = rng.uniform(60, 220, (count, 1, 1, 3))
    grain = rng.normal(0, 1, (count, PATCH_PX, PATCH_PX, 3)) * rng.uniform(5, 60, (count, 1, 1, 1))
    return to_float(torch.from_numpy((colour + grain).clip(0, 255).astype(np.uint8)))


@pytest.fixture(scope="module")
def net() -> IpsNet:
    torch.manual_seed(0)
    net = IpsNet(
        build_encoder(encoder_spec("resnet18-2", norm="auto", has_weights=True)), NetSettings(heads=2, key_width=16)
    )
    for part in net.encoder.modules():  # statistics as after training, so that activations have their usual range
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
            part.train()
    with torch.no_grad():
        net.encoder.trunk((patches_of(64, 1) - net.encoder.mean) / net.encoder.std)
    net.eval()
    net.encoder.start(patches_of(64, 2))
    return net


def check_without(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    for name in int8.LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None if name == library else sys)
    require_int8(CPU)


@pytest.mark.parametrize("library", int8.LIBRARIES)
def test_without_a_library_the_error_names_it_and_the_extra(monkeypatch, library):
    with pytest.raises(RecipeError, match=rf"`int8` needs {library};.*wsi-ips\[int8\]"):
        check_without(monkeypatch, library)


def test_processors_without_8_bit_dot_products_and_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(RecipeError, match="no 8-bit dot product"):
        require_int8(CPU)
    with pytest.raises(RecipeError, match="is for CPUs"):
        require_int8(torch.device("cuda"))


@pytest.mark.parametrize(("noise", "holds"), [(0.0, True), (1.0, False)])
def test_the_check_tells_near_scores_from_far_ones(net, noise, holds):
    patches = patches_of(40, 3)

    @torch.no_grad()
    def encode(part: torch.Tensor) -> torch.Tensor:
        exact = net.encoder(part)
        return exact + noise * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))

    check = compare_scores(net, encode, patches, memory_size=100)
    assert check.holds is holds
    assert (check.tiles, check.kept) == (40, 10)
    with torch.no_grad():
        scores = [selection_score(net.pooling.logits(e).numpy()) for e in (net.encoder(patches), encode(patches))]
    best = [set(np.argsort(-s)[:10]) for s in scores]
    assert check.correlation == pytest.approx(spearmanr(*scores).statistic, abs=1e-3)
    assert check.overlap == pytest.approx(len(best[0] & best[1]) / 10, abs=0.11)
    assert (check.error < 1e-4) is holds


def test_the_check_says_its_figures():
    text = str(ScanCheck(tiles=128, error=0.021, correlation=0.9912, kept=32, overlap=0.9375))
    assert text == ("2.1% error of embeddings, correlation of scores 0.991, 94% of the best 32 of 128 tiles the same")


class TestQuantised:
    @pytest.fixture(autouse=True)
    def _libraries(self):
        for name in int8.LIBRARIES:
            pytest.importorskip(name, reason=f"{name} is not installed (extra `int8`)")
        if not torch.cpu._is_vnni_supported():
            pytest.skip("this CPU has no 8-bit dot product")

    def test_scores_of_other_tiles_are_near_those_in_float32(self, net):
        encode = int8.int8(net.encoder, patches_of(64, 4))
        check = compare_scores(net, encode, patches_of(64, 5), memory_size=8)
        assert 0 < check.error < 0.08
        assert check.correlation > 0.98
        assert check.overlap >= 0.75
        assert check.kept == 8

    def test_embeddings_do_not_depend_on_how_many_patches_come_together(self, net):
        encode, patches = int8.int8(net.encoder, patches_of(32, 6)), patches_of(19, 7)
        torch.testing.assert_close(encode(patches)[17:18], encode(patches[17:18]))

    def test_calibration_on_other_tiles_gives_another_encoder(self, net):
        patches = patches_of(8, 8)
        usual, narrow = (int8.int8(net.encoder, p)(patches) for p in (patches_of(32, 9), patches_of(32, 9) * 0.2))
        exact = net.encoder(patches).detach()
        assert (usual - exact).norm() < (narrow - exact).norm()
        torch.testing.assert_close(int8.int8(net.encoder, patches_of(32, 9))(patches), usual)

    def test_a_slide_is_predicted_in_int8_and_the_check_is_stored(self, net, tmp_path, monkeypatch):
        slide = textured_slide("s", label=1, seed=1).at_slot(0)
        exact_options = ScanOptions(4, ComputeSection(device="cpu"))
        options = ScanOptions(4, ComputeSection(device="cpu", scan_backend="int8"))
        exact, few = predict_slide(net, slide, exact_options), predict_slide(net, slide, options)
        assert few.check is None
        assert np.array_equal(few.attention_logits, exact.attention_logits)
        monkeypatch.setattr(slide_prediction, "CALIBRATION_TILES", 10)
        monkeypatch.setattr(slide_prediction, "CHECKED_TILES", 12)
        monkeypatch.setattr(slide_prediction, "LEAST_TILES_CALIBRATED", 28)
        monkeypatch.setattr(scan_backends, "LEAST_CORRELATION", -1.0)
        int8._exported_models.clear()  # these patches have another side
        near = predict_slide(net, slide, options)
        assert near.check is not None
        assert near.check.tiles == 12
        assert not np.array_equal(near.attention_logits, exact.attention_logits)
        write_scores(tmp_path, near)
        assert read_scores(tmp_path, "s").check == near.check
        monkeypatch.setattr(scan_backends, "LEAST_CORRELATION", 2.0)
        refused = predict_slide(net, slide, options)
        assert refused.check is not None
        assert not refused.check.holds
        assert np.array_equal(refused.attention_logits, exact.attention_logits)
