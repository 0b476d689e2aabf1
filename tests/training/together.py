"""What the processes do that ``test_world`` starts: real trainings on small slides, real gloo.

Run as ``python -m tests.training.together FOLDER SCENARIO...`` with the variables of ``torchrun``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.cohort import textured_slide
from tests.training.test_loop import COMPUTE
from wsi_ips.cluster.launch import Launch
from wsi_ips.config import ComputeSection, PlannedTraining
from wsi_ips.errors import RegionReadError, WsiIpsError
from wsi_ips.labels import Task
from wsi_ips.model import IpsNet, NetSettings, build_encoder, encoder_spec
from wsi_ips.tiles import SlideTiles
from wsi_ips.training import EpochRecord, LabelledSlide, StateFile, StopRequest, Trainer
from wsi_ips.training.world import World

TASKS = (Task("label", ("normal", "tumor")), Task("stain", ("a", "b"), "multi"))
SETTINGS = {
    "epochs": 3,
    "batch_slides": 3,
    "learning_rate": 1e-3,
    "warmup_epochs": 0,
    "warm_start_epochs": 1,
    "exploration": 0.5,
    "tile_dropout": 0.2,
    "label_smoothing": 0.1,
    "weight_average": 0.9,
}
STEPS = 7
"""Of the seven slides one step in the warm start, then three in each epoch: of three, two and two slides."""


def cohort() -> list[LabelledSlide]:
    """Slides of 28, 12 and 60 tiles; the second answer of one is not known."""
    sizes = [(7, 4), (4, 3), (10, 6)]
    slides = []
    for i in range(7):
        columns, rows = sizes[i % 3]
        stain = None if i == 2 else (float(i % 2), float(i % 3 == 0))
        tiles = textured_slide(f"s{i}", label=i % 2, seed=i, columns=columns, rows=rows)
        slides.append(LabelledSlide(tiles, (i % 2, stain)))
    return slides


def net() -> IpsNet:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    return IpsNet(encoder, NetSettings(tasks=TASKS, heads=2, key_width=8, dropout=0.3))


def trainer(world: World | None, compute: ComputeSection = COMPUTE, **changes: object) -> Trainer:
    torch.manual_seed(0)
    made = net()
    torch.manual_seed(11 + (world.rank if world else 0))  # aligned by the first when the training begins
    return Trainer(
        made,
        memory_size=5,
        section=PlannedTraining(**(SETTINGS | changes)),
        compute=compute,
        seed=3,
        device=torch.device("cpu"),
        world=world,
    )


def fit(
    world: World | None,
    *,
    state: Path | None = None,
    stop_after: int | None = None,
    compute: ComputeSection = COMPUTE,
    val: bool = True,
) -> tuple[Trainer, list[EpochRecord]]:
    """Train; with ``stop_after`` this process is asked to stop in the step after so many."""
    learner, records, stop = trainer(world, compute), list[EpochRecord](), StopRequest(insistent=world is None)
    file = StateFile(state, "this", every_s=1e9) if state else None
    plain, done = learner._step, 0

    def step(*arguments):
        nonlocal done
        if done == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        done += 1
        return plain(*arguments)

    learner._step = step
    slides = cohort()
    with stop.on_signals():
        learner.fit(
            slides, slides[:3] if val else [], on_epoch=records.append, state=file, on_resume=records.extend, stop=stop
        )
    return learner, records


def keep(path: Path, learner: Trainer, records: list[EpochRecord]) -> None:
    weights = learner.net.state_dict() | {f"average.{k}": v for k, v in learner.result.state_dict().items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, path)
    path.with_suffix(".json").write_text(json.dumps([asdict(replace(r, seconds=0.0)) for r in records]))


class Unreadable:
    """A slide whose pixels are gone."""

    def __init__(self, slide: SlideTiles) -> None:
        self.slide = slide

    def __call__(self):
        raise RegionReadError(f"slide {self.slide.slide_id}: gone", slide_id=self.slide.slide_id)


def scenario(name: str, world: World, folder: Path) -> None:
    path = folder / f"{name}-{world.rank}.safetensors"
    if name == "equal":
        keep(path, *fit(world))
    elif name == "parts":
        keep(path, *fit(world, compute=COMPUTE.model_copy(update={"slides_at_once": 2, "gradient": "two-pass"})))
    elif name == "resumed":
        keep(path, *fit(world, state=folder / "by-one"))
    elif name == "stopped":
        try:
            fit(world, state=folder / "by-two", stop_after=4 if world.rank == 1 else None)
        except KeyboardInterrupt:
            path.with_suffix(".said").write_text("stopped")
    elif name == "unreadable":
        learner, slides = trainer(world), cohort()
        slides[2] = replace(slides[2], tiles=replace(slides[2].tiles, open=Unreadable(slides[2].tiles)))
        try:
            learner.fit(slides, [], on_epoch=lambda _: None)
        except WsiIpsError as error:
            told = {"type": type(error).__name__, "slide_id": getattr(error, "slide_id", None), "told": error.is_told}
            path.with_suffix(".said").write_text(json.dumps(told))
    elif name == "unlike":
        try:
            world.same(f"plan {world.rank}", "plan")
        except WsiIpsError as error:
            path.with_suffix(".said").write_text(str(error))
    elif name == "killed":
        learner = trainer(world)
        learner.on_slides = lambda count: os.kill(os.getpid(), signal.SIGKILL) if count and world.rank == 1 else None
        learner.fit(cohort(), [], on_epoch=lambda _: None)


def main() -> None:
    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    with World.joined(Launch.of(), device="cpu", timeout_s=300) as world:
        for name in names:
            scenario(name, world, folder)


if __name__ == "__main__":
    main()
