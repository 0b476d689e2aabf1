"""The recipe that trains as published: one of its steps is a step of the published code, written from its description.

The reference selects by the published rule with one iteration over all patches, where it equals the exact rule: softmax
inside buffer and chunk is then softmax over the image. Positions and dropout are off; the recipe says how they differ.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.cohort import textured_slide
from tests.model.published_weights import converted_weights
from tests.model.test_published_rule import greedy_rule
from tests.model.test_published_weights import Paper
from wsi_ips.config import ComputeSection, load_recipe, planned
from wsi_ips.errors import TrainingError
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.tiles.stream import read_tiles
from wsi_ips.training.loop import Trainer
from wsi_ips.training.settings import LabelledSlide, Settings

RECIPE = load_recipe(Path(__file__).parents[2] / "pipelines" / "as_published.yaml")
TASKS, MODEL = RECIPE.labels.tasks, RECIPE.model
MEMORY, SLIDES, EPS = 6, 5, 1e-6


def slides() -> list[LabelledSlide]:
    targets = [(i, i + 2, 9 - i, tuple(float(k in (i, 7)) for k in range(10))) for i in range(SLIDES)]
    return [LabelledSlide(textured_slide(f"s{i}", label=i % 2, seed=i), t) for i, t in enumerate(targets)]


def both() -> tuple[Paper, IpsNet]:
    """The published network, and that of the recipe with its weights; eight heads, four tasks."""
    torch.manual_seed(5)
    paper = Paper(TASKS, heads=MODEL.heads, key_width=MODEL.key_width)
    encoder = build_encoder(encoder_spec(MODEL.encoder, norm=MODEL.norm, has_weights=False))
    settings = NetSettings(
        tasks=TASKS, heads=MODEL.heads, key_width=MODEL.key_width, pooling=MODEL.pooling, dropout=0.0
    )
    net = IpsNet(encoder, settings)
    net.load_state_dict(converted_weights(paper.state_dict(), net, tasks=[task.name for task in TASKS]))
    return paper, net


def trainer(net: IpsNet, *, epochs: int = 150, **compute: object) -> Trainer:
    section = planned(RECIPE.training, SLIDES).model_copy(update={"epochs": epochs, "warmup_steps": 3})
    return Trainer(net, Settings(section, ComputeSection(device="cpu", **compute), memory_size=MEMORY, seed=0))


def published_step(paper: Paper, patches: list[Tensor], targets: list[tuple]) -> tuple[Tensor, list[list[int]]]:
    """Select, encode with batch statistics of the winners of all images, and take the loss; the winners of each."""
    paper.eval()
    kept = []
    with torch.no_grad():
        for image in patches:
            embeddings = paper.encoder(image).flatten(1)
            block = paper.transf["crs_attn"]
            query = block.q_w(block.q[0]).view(len(TASKS), paper.heads, paper.key_width)
            key = block.k_w(embeddings).view(-1, paper.heads, paper.key_width)
            logits = torch.einsum("the,khe->kth", query, key) / math.sqrt(paper.key_width)
            kept.append(sorted(greedy_rule(logits.numpy(), MEMORY, len(image))))
    paper.train()
    winners = torch.cat([image[chosen] for image, chosen in zip(patches, kept, strict=True)])
    embeddings = paper.encoder(winners).view(len(patches), MEMORY, -1)
    logits = torch.stack([paper(tiles) for tiles in embeddings])  # (B, C)
    losses = []
    for number, (task, part) in enumerate(zip(TASKS, logits.split([t.width for t in TASKS], 1), strict=True)):
        truth = torch.tensor([target[number] for target in targets])
        if task.kind == "single":
            losses.append(functional.nll_loss(torch.log(part.softmax(-1) + EPS), truth))
        else:
            losses.append(functional.binary_cross_entropy(part.sigmoid().view(-1), truth.view(-1)))
    return sum(losses) / len(losses), kept


def published_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """The learning rate of a step, counted from 1."""
    if step < warmup:
        return peak * step / warmup
    q = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    return peak * q + 0.001 * peak * (1 - q)


def test_a_step_has_the_selection_loss_gradients_and_weights_of_the_published_one():
    paper, net = both()
    cohort, loop = slides(), trainer(net)
    optimiser = loop._first_or_stored_state(cohort, None).optimiser
    reference = torch.optim.AdamW(paper.parameters(), lr=optimiser.param_groups[0]["lr"], weight_decay=0.1)
    patches = [(to_float(torch.from_numpy(read_tiles(s.tiles))) - net.encoder.mean) / net.encoder.std for s in cohort]
    chosen: list[list[int]] = []
    plain = loop.step.choice.kept

    def kept(*given):
        found = plain(*given)
        chosen.extend(sorted(one.tiles.tolist()) for one in found)
        return found

    loop.step.choice.kept = kept
    loss, _ = loop.step.learn(cohort, 1, loop._class_weights(cohort, []), optimiser)
    theirs, winners = published_step(paper, patches, [slide.targets for slide in cohort])
    theirs.backward()
    reference.step()
    assert chosen == winners
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    names = [task.name for task in TASKS]
    gradients = {name: p.grad for name, p in paper.named_parameters()}
    gradients |= dict(paper.named_buffers())  # a state dict holds both
    expected = converted_weights(gradients, net, tasks=names)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
    assert norm > 1.2  # it would have been clipped
    for name, parameter in net.named_parameters():
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < 1e-4, (name, error)
    weights, lr = converted_weights(paper.state_dict(), net, tasks=names), reference.param_groups[0]["lr"]
    far, count = 0.0, 0
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            far += float(((tensor - weights[name]).abs() > 0.01 * lr + 1e-5 * tensor.abs()).sum())
            count += tensor.numel()
        else:
            assert torch.equal(tensor, weights[name])  # batches that the running statistics have seen
    # Adam's first step is the sign of the gradient, which is rounding where the gradient is nearly 0.
    assert far < 2e-4 * count


def test_every_step_has_the_published_learning_rate_and_decay_of_all_weights():
    _, net = both()
    loop, seen = trainer(net, epochs=9), []

    def learn(batch, epoch, weights, optimiser):
        seen.append({(group["lr"], group["weight_decay"]) for group in optimiser.param_groups if group["params"]})
        return 1.0, 0.0

    loop.step.learn = learn
    loop.fit(slides(), [])
    rate = [published_rate(step, steps=9, warmup=1, peak=0.001) for step in range(1, 10)]  # at most a fifth of them
    assert [len(groups) for groups in seen] == [1] * 9
    assert [next(iter(groups)) for groups in seen] == [(pytest.approx(r), 0.1) for r in rate]


def test_a_scan_uses_the_running_statistics_and_a_step_those_of_its_winners():
    _, net = both()
    cohort, loop = slides(), trainer(net)
    before = net.encoder.trunk[1].running_mean.clone()
    modes = []
    net.encoder.trunk[1].register_forward_hook(lambda module, given, out: modes.append((module.training, len(out))))
    loop.step.learn(cohort, 1, [torch.ones(10)] * 4, torch.optim.SGD(net.parameters(), lr=0.0))
    assert modes == [(True, SLIDES * MEMORY)]  # the scan has the batch norm fused into the convolutions
    assert not torch.equal(net.encoder.trunk[1].running_mean, before)


def test_batch_statistics_need_the_whole_step():
    with pytest.raises(TrainingError, match=r"`model\.norm: batch`.*leave `compute\.slides_at_once` out"):
        trainer(both()[1], slides_at_once=2)
