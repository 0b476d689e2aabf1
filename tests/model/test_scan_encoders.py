"""Every scan backend gives the embeddings of the encoder; the faster way is chosen."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
import torch
from torch import nn

from wsi_ips.errors import RecipeError
from wsi_ips.model import scan_encoders
from wsi_ips.model.encoder import Encoder, EncoderSpec
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.scan_backends import SCAN_BACKENDS
from wsi_ips.model.scan_encoders import Trial, auto, compiled, eager, in_parts, scan_dtype

CPU = torch.device("cpu")


def encoder_of(name: str = "resnet18-2") -> Encoder:
    torch.manual_seed(0)
    return build_encoder(encoder_spec(name, norm="auto", has_weights=True)).eval()


@torch.no_grad()
def plain(encoder: Encoder, patches: torch.Tensor) -> torch.Tensor:
    return encoder(patches)


@torch.no_grad()
def slow(encoder: Encoder, patches: torch.Tensor) -> torch.Tensor:
    time.sleep(0.05)
    return encoder(patches)


def test_auto_is_float32_on_a_cpu():
    assert scan_dtype("auto", CPU) == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_gpu_is_bfloat16_where_the_gpu_computes_with_it(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert scan_dtype("auto", torch.device("cuda")) == dtype


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(RecipeError, match=r"compute\.precision.*GPU"):
        scan_dtype("fp16", CPU)


def test_bf16_is_near_and_comes_back_as_float32():
    encoder, patches = encoder_of(), torch.rand(18, 3, 32, 32)
    with torch.no_grad():
        exact, near = encoder(patches), auto(encoder, "bf16")(patches)
    assert near.dtype == torch.float32
    error = float((near - exact).norm() / exact.norm())
    assert 0 < error < 0.02


def test_without_wishes_a_cpu_scans_in_float32_uncompiled():
    encoder, patches = encoder_of(), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(auto(encoder)(patches), encoder(patches))
    assert encoder not in scan_encoders._trials


def test_the_faster_way_is_kept():
    encoder, patches = encoder_of(), torch.rand(2, 3, 32, 32)
    for before, after in ((slow, plain), (plain, slow)):
        trial = Trial(before, compile_after_s=1e-9, compiler=lambda _, after=after: after)
        torch.testing.assert_close(trial(encoder, patches), plain(encoder, patches))
        assert trial.chosen is None
        trial(encoder, patches)
        assert trial.chosen is plain


def test_nothing_is_compiled_before_so_much_time_went_into_encoding():
    encoder, patches = encoder_of(), torch.rand(2, 3, 32, 32)
    trial = Trial(plain, compile_after_s=1000.0, compiler=lambda _: pytest.fail("compiled"))
    for _ in range(3):
        trial(encoder, patches)
    assert 0 < trial.seconds < 1000


def test_a_compiler_that_fails_leaves_the_plain_way():
    def failing(_: object) -> object:
        def run(*_: object) -> torch.Tensor:
            raise RuntimeError("no compiler here")

        return run

    encoder, patches = encoder_of(), torch.rand(2, 3, 32, 32)
    trial = Trial(plain, compile_after_s=1e-9, compiler=failing)
    for _ in range(3):
        torch.testing.assert_close(trial(encoder, patches), plain(encoder, patches))
    with pytest.raises(RecipeError, match=r"compute\.scan_backend.*no compiler here.*`auto`"):
        Trial(plain, compile_after_s=0.0, compiler=failing)(encoder, patches)


def test_a_last_chunk_of_another_size_is_not_compiled():
    seen = []

    def counting(run: scan_encoders.Run) -> scan_encoders.Run:
        def compiled(encoder: Encoder, patches: torch.Tensor) -> torch.Tensor:
            seen.append(len(patches))
            return run(encoder, patches)

        return compiled

    encoder, patches = encoder_of(), torch.rand(8, 3, 32, 32)
    trial = Trial(plain, compile_after_s=0.0, compiler=counting)
    for count in (8, 3, 8):
        torch.testing.assert_close(trial(encoder, patches[:count]), plain(encoder, patches[:count]))
    assert set(seen) == {8}


def test_what_was_measured_is_kept_from_scan_to_scan_but_not_beyond_the_encoder(monkeypatch):
    monkeypatch.setattr(Trial, "__call__", lambda self, encoder, patches: self.plain(encoder, patches))
    encoder = encoder_of()
    with torch.no_grad():
        for _ in range(2):
            compiled(encoder)(torch.rand(2, 3, 32, 32))
    assert len(scan_encoders._trials[encoder]) == 1
    alive = weakref.ref(encoder)
    del encoder
    gc.collect()
    assert alive() is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_embeddings_are_the_same():
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = Encoder(trunk, spec=EncoderSpec("tiny", "group", False), width=8).eval()
    patches = torch.rand(16, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(encoder)(patches), encoder(patches), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_reduced_precision_on_a_gpu(precision):
    encoder, patches = encoder_of().cuda(), torch.rand(16, 3, 64, 64, device="cuda")
    with torch.no_grad():
        exact, near = encoder(patches), auto(encoder, precision)(patches)
    assert near.dtype == torch.float32
    assert float((near - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("name", [name for name, backend in SCAN_BACKENDS.items() if not backend.is_calibrated])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_exact_backend_gives_the_embeddings_of_the_encoder(monkeypatch, name, norm):
    monkeypatch.setattr(torch, "compile", lambda run, dynamic: run)  # compiling takes a minute; tested above
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-2", norm=norm, has_weights=norm == "batch")).eval()
    patches = torch.rand(5, 3, 64, 64)
    backend = SCAN_BACKENDS[name]
    backend.check(encoder, 64)
    with torch.no_grad():
        expected = encoder(patches)
        tolerance = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(backend.load()(encoder, "auto")(patches), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("side", [100, 600])
def test_patches_go_in_parts_in_their_order(side):
    sizes = []

    def first_pixel(patches: torch.Tensor) -> torch.Tensor:
        sizes.append(len(patches))
        return patches[:, :2, 0, 0]

    patches = torch.rand(60, 3, side, side // 2)
    torch.testing.assert_close(in_parts(first_pixel, patches), patches[:, :2, 0, 0])
    assert max(sizes) == {100: 52, 600: 1}[side]


@torch.no_grad()
def test_eager_runs_the_encoder_itself():
    encoder, patches = encoder_of(), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(eager(encoder)(patches), encoder(patches), rtol=0, atol=0)
