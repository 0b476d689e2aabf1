"""Two passes give the ordinary gradient, in memory that depends on neither M nor B."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wsi_ips.errors import TrainingError
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.scanning import Winners, plain_patches
from wsi_ips.training.gradient import (
    SavedBytes,
    StepGradient,
    activation_bytes,
    plain_gradient,
    two_pass_gradient,
    uses_batch_statistics,
)
from wsi_ips.training.tile_choice import Kept

PX = 32


def winners(*counts: int, seed: int = 0) -> Winners:
    rng = np.random.default_rng(seed)
    kept = [Kept(np.sort(rng.permutation(500)[:k]), rng.integers(0, 255, (k, PX, PX, 3), np.uint8)) for k in counts]
    return Winners(
        [entry.pixels for entry in kept],
        np.repeat(np.arange(len(counts)), counts),
        np.concatenate([entry.tiles for entry in kept]),
        counts,
    )


def small_net(*, dropout: float = 0.3, norm: str = "group") -> IpsNet:
    torch.manual_seed(1)
    spec = encoder_spec("resnet18-2", norm=norm, has_weights=False)
    return IpsNet(build_encoder(spec), NetSettings(heads=2, key_width=8, dropout=dropout)).train()


class Noisy(nn.Module):
    """An encoder that draws random numbers for each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * PX * PX, 12), nn.Dropout(0.5), nn.Linear(12, 6))

    def forward(self, patches: Tensor) -> Tensor:
        out: Tensor = self.layers(patches)
        return out


def loss_of(net: IpsNet):
    truth = torch.tensor([0, 1, 1])

    def loss(embeddings: Tensor, mask: Tensor) -> Tensor:
        tiles = net.pooling.alone(embeddings[mask])  # part of the loss, as `tile_loss` is
        return nn.functional.cross_entropy(net(embeddings, mask), truth) + tiles.square().mean()

    return loss


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def as_double(prepare):
    return lambda *where: prepare(*where).double()


@pytest.mark.parametrize("micro_batch", [1, 3, 7, 12, 100])
def test_equal_to_the_ordinary_gradient_in_float64_with_dropout(micro_batch):
    net = small_net().double()
    prepare = as_double(plain_patches(torch.device("cpu")))
    kept = winners(7, 1, 4)
    torch.manual_seed(5)
    loss = plain_gradient(net.encoder, kept, prepare, loss_of(net))
    expected = gradients(net)
    net.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    again = two_pass_gradient(net.encoder, kept, prepare, loss_of(net), micro_batch=micro_batch)
    found = gradients(net)
    assert float(again) == pytest.approx(float(loss), rel=1e-12)
    assert found.keys() == expected.keys()
    assert any(name.startswith("encoder") for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("micro_batch", [2, 5])
def test_equal_in_float32(micro_batch):
    net, prepare, kept = small_net(), plain_patches(torch.device("cpu")), winners(7, 1, 4)
    torch.manual_seed(5)
    plain_gradient(net.encoder, kept, prepare, loss_of(net))
    expected = gradients(net)
    net.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    two_pass_gradient(net.encoder, kept, prepare, loss_of(net), micro_batch=micro_batch)
    for name, value in gradients(net).items():
        off = (value - expected[name]).norm() / expected[name].norm().clamp_min(1e-6)
        assert off < 1e-5, name


def one_pass_in_parts(encoder, kept, prepare, loss_of, *, micro_batch):
    """The ordinary gradient by way of the same micro-batches: all activations kept, one backward pass."""
    parts = [encoder(kept.patches(a, b, prepare)) for a, b in kept.parts(micro_batch)]
    return loss_of(*kept.padded(torch.cat(parts)))


@pytest.mark.parametrize("micro_batch", [1, 5, 12])
def test_under_autocast_it_is_the_gradient_of_the_same_casts(micro_batch):
    net, prepare, kept = small_net(), plain_patches(torch.device("cpu")), winners(7, 1, 4)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = one_pass_in_parts(net.encoder, kept, prepare, loss_of(net), micro_batch=micro_batch)
    loss.backward()
    expected = gradients(net)
    net.zero_grad(set_to_none=True)
    backward: list[bool] = []
    for weight in (net.head.weight, net.encoder.standardise.weight):
        weight.register_hook(lambda _: backward.append(torch.is_autocast_enabled("cpu")))
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        found_loss = two_pass_gradient(net.encoder, kept, prepare, loss_of(net), micro_batch=micro_batch)
        assert torch.is_autocast_enabled("cpu")
    assert backward == [False] * len(backward)
    assert len(backward) > 1
    torch.testing.assert_close(found_loss, loss.detach(), rtol=1e-6, atol=0)
    found = gradients(net)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() < 1e-4 * value.norm().clamp_min(1e-6), name


def test_weights_cast_without_gradient_are_forgotten_before_the_second_pass(monkeypatch):
    """Under older versions of PyTorch they come back in the second pass, and the encoder learns nothing."""
    net, prepare, kept, order = small_net(), plain_patches(torch.device("cpu")), winners(3, 2), []
    net.encoder.register_forward_hook(lambda *_: order.append(torch.is_grad_enabled()))
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: order.append("cleared"))
    with torch.autocast("cpu", torch.bfloat16):
        two_pass_gradient(net.encoder, kept, prepare, lambda e, m: e.sum(), micro_batch=3)
        assert order == [False, False, "cleared", True, True]


def test_a_scaled_loss_gives_scaled_gradients_and_an_overflow_is_seen_in_the_encoder():
    net, prepare, kept = small_net(dropout=0.0), plain_patches(torch.device("cpu")), winners(7, 1, 4)
    two_pass_gradient(net.encoder, kept, prepare, loss_of(net), micro_batch=5)
    expected = gradients(net)
    for start, skipped in ((2.0**8, False), (float("inf"), True)):
        net.zero_grad(set_to_none=True)
        optimiser = torch.optim.SGD(net.encoder.parameters(), lr=0.1)
        before = net.encoder.standardise.weight.detach().clone()
        scaler = torch.amp.GradScaler("cpu", init_scale=start)
        two_pass_gradient(net.encoder, kept, prepare, lambda e, m, s=scaler: s.scale(loss_of(net)(e, m)), micro_batch=5)
        scaler.unscale_(optimiser)
        if not skipped:
            for name, value in gradients(net.encoder).items():
                torch.testing.assert_close(value, expected[f"encoder.{name}"], rtol=1e-4, atol=1e-6)
        scaler.step(optimiser)
        assert torch.equal(before, net.encoder.standardise.weight) == skipped


@pytest.mark.parametrize("micro_batch", [1, 4, 12])
def test_random_numbers_of_the_encoder_are_drawn_again(micro_batch):
    """Dropout in the encoder: the gradient is that of the very embeddings the loss has seen."""
    encoder, kept = Noisy().double().train(), winners(7, 1, 4)
    prepare = as_double(plain_patches(torch.device("cpu")))
    seen: list[Tensor] = []

    def loss(embeddings: Tensor, mask: Tensor) -> Tensor:
        seen.append(embeddings[mask].detach())
        return (embeddings[mask] ** 3).sum() + nn.functional.dropout(embeddings, 0.5).sum()

    torch.manual_seed(3)
    two_pass_gradient(encoder, kept, prepare, loss, micro_batch=micro_batch)
    found, after = gradients(encoder), torch.rand(3)

    # One pass through the same micro-batches, so that the same random numbers are drawn.
    encoder.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    one_pass_in_parts(encoder, kept, prepare, loss, micro_batch=micro_batch).backward()
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    for name, value in gradients(encoder).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.rand(3), after, rtol=0, atol=0)


def saved_by(run) -> int:
    """Most bytes kept for a backward pass at any time."""
    with SavedBytes() as saved:
        run()
    return saved.peak


def test_memory_depends_on_neither_the_winners_nor_the_slides():
    net, prepare = small_net(), plain_patches(torch.device("cpu"))

    def plain(*counts: int) -> int:
        return saved_by(lambda: plain_gradient(net.encoder, winners(*counts), prepare, mean_of))

    def two(*counts: int) -> int:
        run = lambda: two_pass_gradient(net.encoder, winners(*counts), prepare, mean_of, micro_batch=4)  # noqa: E731
        return saved_by(run)

    def mean_of(embeddings: Tensor, mask: Tensor) -> Tensor:
        return embeddings[mask].square().mean()

    assert plain(32) > 2.5 * plain(8)  # weights are kept too
    few = two(8)
    assert two(64) < 1.05 * few
    assert two(*[8] * 12) < 1.05 * few
    assert two(64) < plain(64) / 5


def test_live_batch_statistics_are_refused():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    prepare, kept = plain_patches(torch.device("cpu")), winners(2, 2)
    with pytest.raises(TrainingError, match=r"model\.norm: auto"):
        two_pass_gradient(encoder.train(), kept, prepare, lambda e, m: e.sum(), micro_batch=2)
    assert not uses_batch_statistics(encoder.eval())
    two_pass_gradient(encoder.eval(), kept, prepare, lambda e, m: e.sum(), micro_batch=2)
    assert uses_batch_statistics(nn.BatchNorm2d(4, track_running_stats=False).eval())


def test_a_frozen_encoder_is_embedded_once():
    net, calls = small_net(), []
    net.encoder.requires_grad_(requires_grad=False)
    net.encoder.register_forward_hook(lambda *_: calls.append(1))
    two_pass_gradient(net.encoder, winners(3, 2, 1), plain_patches(torch.device("cpu")), loss_of(net), micro_batch=6)
    assert len(calls) == 1
    assert net.head.weight.grad is not None


def test_auto_takes_two_passes_where_the_budget_asks_for_it():
    net, prepare, kept, notes = small_net(), plain_patches(torch.device("cpu")), winners(7, 1, 4), []
    each = activation_bytes(net.encoder, kept, prepare)
    assert each > PX * PX * 3 * 4
    calls: list[int] = []
    net.encoder.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    roomy = StepGradient("auto", micro_batch=5, budget_gb=12 * each * 2 / 1e9, note=notes.append)
    roomy(net, kept, prepare, loss_of(net))
    assert calls[-1] == 12
    assert notes == []
    calls.clear()
    tight = StepGradient("auto", micro_batch=5, budget_gb=12 * each / 1e9, note=notes.append)
    net.zero_grad(set_to_none=True)
    tight(net, kept, prepare, loss_of(net))
    assert calls[-6:] == [5, 5, 2, 5, 5, 2]
    assert "compute.gpu_memory_gb" in notes[0]


class OutOfMemoryBelow:
    """The encoder runs out of memory with more than so many patches that carry gradient."""

    def __init__(self, net: IpsNet, patches: int) -> None:
        self.patches = patches
        net.encoder.register_forward_pre_hook(self.check)

    def check(self, module: nn.Module, given: tuple[Tensor]) -> None:
        if torch.is_grad_enabled() and len(given[0]) > self.patches:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("kind", "micro_batch", "fits"), [("plain", 4, 4), ("auto", 4, 4), ("two-pass", 8, 4)])
def test_where_memory_runs_out_it_comes_down_once_and_the_gradient_is_right(kind, micro_batch, fits):
    net, prepare, kept, notes = small_net(), plain_patches(torch.device("cpu")), winners(7, 1, 4), []
    torch.manual_seed(6)
    plain_gradient(net.encoder, kept, prepare, loss_of(net))
    expected = gradients(net)
    net.zero_grad(set_to_none=True)
    OutOfMemoryBelow(net, fits)
    step = StepGradient(kind, micro_batch=micro_batch, budget_gb=1, note=notes.append)
    torch.manual_seed(6)
    step(net, kept, prepare, loss_of(net))
    assert notes == ["memory ran out: continuing in two passes of 4 patches at a time"]
    for name, value in gradients(net).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_what_was_added_before_memory_ran_out_is_taken_back():
    net, prepare, kept = small_net(), plain_patches(torch.device("cpu")), winners(7, 1, 4)
    torch.manual_seed(6)
    plain_gradient(net.encoder, kept, prepare, loss_of(net))
    expected = gradients(net)
    net.zero_grad(set_to_none=True)
    learned: list[int] = []

    def fail_at_the_second(module: nn.Module, given: tuple[Tensor]) -> None:
        if torch.is_grad_enabled():
            learned.append(len(given[0]))
        if torch.is_grad_enabled() and learned == [2, 1, 6, 6]:  # two measurements, two micro-batches
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    net.encoder.register_forward_pre_hook(fail_at_the_second)
    torch.manual_seed(6)
    StepGradient("two-pass", micro_batch=6, budget_gb=1, note=lambda _: None)(net, kept, prepare, loss_of(net))
    assert learned == [2, 1, 6, 6, 3, 3, 3, 3]
    for name, value in gradients(net).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_random_numbers_drawn_before_memory_ran_out_are_drawn_again():
    net, prepare, kept, tries = small_net(), plain_patches(torch.device("cpu")), winners(7, 1, 4), []

    def loss(embeddings: Tensor, mask: Tensor) -> Tensor:
        tries.append(loss_of(net)(embeddings, mask))
        if len(tries) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return tries[-1]

    StepGradient("two-pass", micro_batch=4, budget_gb=1, note=lambda _: None)(net, kept, prepare, loss)
    torch.testing.assert_close(tries[0], tries[1])


def test_a_second_time_it_is_an_error_that_names_the_keys():
    net, prepare, kept = small_net(), plain_patches(torch.device("cpu")), winners(7, 1, 4)
    OutOfMemoryBelow(net, 2)
    step = StepGradient("two-pass", micro_batch=8, budget_gb=1, note=lambda _: None)
    with pytest.raises(TrainingError, match=r"with 4 patches at a time.*`compute\.gpu_memory_gb`"):
        step(net, kept, prepare, loss_of(net))


def test_with_live_batch_statistics_there_is_no_second_try():
    net, prepare, kept = small_net(norm="batch"), plain_patches(torch.device("cpu")), winners(7, 1, 4)
    OutOfMemoryBelow(net, 2)
    step = StepGradient("auto", micro_batch=8, budget_gb=1e-9, note=lambda _: pytest.fail("it has no choice"))
    with pytest.raises(TrainingError, match=r"`model\.norm: auto`.*`training\.batch_slides`"):
        step(net, kept, prepare, loss_of(net))


def test_live_batch_statistics_see_all_winners_together_whatever_the_budget():
    net, prepare, kept, calls = small_net(norm="batch"), plain_patches(torch.device("cpu")), winners(7, 1, 4), []
    net.encoder.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    StepGradient("auto", micro_batch=2, budget_gb=1e-9, note=lambda _: None)(net, kept, prepare, loss_of(net))
    assert calls == [12]


def test_the_micro_batch_is_brought_within_the_budget():
    net, prepare, kept, notes, calls = small_net(), plain_patches(torch.device("cpu")), winners(7, 1, 4), [], []
    each = activation_bytes(net.encoder, kept, prepare)
    net.encoder.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    step = StepGradient("two-pass", micro_batch=64, budget_gb=1.5 * 4.5 * each / 1e9, note=notes.append)
    step(net, kept, prepare, loss_of(net))
    assert max(calls) == 4
    assert len(notes) == 1
    assert "64 patches at a time would need" in notes[0]
    assert "4 at a time" in notes[0]


class Constant(nn.Module):
    """An encoder that keeps nothing of a patch."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(6))

    def forward(self, patches: Tensor) -> Tensor:
        return patches.mean((1, 2, 3))[:, None] + self.shift


def test_an_encoder_that_keeps_nothing_fits_into_any_budget():
    net, kept = nn.Module(), winners(7, 1, 4)
    net.encoder = Constant()
    step = StepGradient("auto", micro_batch=5, budget_gb=1e-6, note=lambda _: pytest.fail("no need"))
    step(net, kept, plain_patches(torch.device("cpu")), lambda e, m: e[m].sum())
    assert net.encoder.shift.grad.tolist() == [12] * 6


def test_a_frozen_encoder_embeds_a_micro_batch_at_a_time_also_by_choice():
    net, prepare, kept, calls = small_net(), plain_patches(torch.device("cpu")), winners(7, 1, 4), []
    net.encoder.requires_grad_(requires_grad=False)
    net.encoder.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    StepGradient("auto", micro_batch=5, budget_gb=1, note=lambda _: None)(net, kept, prepare, loss_of(net))
    assert calls == [5, 5, 2]
