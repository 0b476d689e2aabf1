"""What the processes do that ``test_processes`` starts: real trainings on small slides, real gloo.

Run as ``python -m tests.training.in_processes FOLDER SCENARIO...`` with the variables of ``torchrun``.
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

from tests.cohort import outlines_of, textured_slide
from tests.training.test_loop import COMPUTE, Recorder
from wsi_ips.cluster.machine import Launch
from wsi_ips.config import PlannedTraining
from wsi_ips.errors import RegionReadError, WsiIpsError
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.tiles.stream import SlideTiles
from wsi_ips.training.loop import Trainer
from wsi_ips.training.processes import Processes
from wsi_ips.training.resume import StateFile, StopRequest
from wsi_ips.training.self_supervision import EncoderTrainer, SelfSupervision
from wsi_ips.training.settings import LabelledSlide, Listener, Settings
from wsi_ips.training.tile_truth import tile_truth
from wsi_ips.training.tracking import EpochRecord

TASKS = (Task("label", ("normal", "tumor")), Task("stain", ("a", "b"), "multi"))
SETTINGS = {
    "epochs": 3,
    "batch_slides": 3,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "start_epochs": 1,
    "exploration": 0.5,
    "tile_dropout": 0.2,
    "weight_average": 0.9,
    "grid_shift": True,
}
STEPS = 7
"""Of the seven slides one step in the warm start, then three in each epoch: of three, two and two slides."""


def cohort() -> list[LabelledSlide]:
    """Slides of 28, 12 and 60 tiles; the second answer of one is not known, two of four have outlines."""
    sizes = [(7, 4), (4, 3), (10, 6)]
    slides = []
    for i in range(7):
        columns, rows = sizes[i % 3]
        stain = None if i == 2 else (float(i % 2), float(i % 3 == 0))
        tiles = textured_slide(f"s{i}", label=i % 2, seed=i, columns=columns, rows=rows)
        areas = outlines_of(seed=i, columns=columns, rows=rows) if i in (1, 5) else None
        truth = tile_truth(tiles.index, (i % 2, None), TASKS, areas, complete=i == 1)
        slides.append(LabelledSlide(tiles, (i % 2, stain), truth=truth))
    return slides


def net() -> IpsNet:
    torch.manual_seed(2)  # with others, gradients near 0 are rounding, of which Adam makes whole steps
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    return IpsNet(encoder, NetSettings(tasks=TASKS, heads=2, key_width=8, dropout=0.3))


def trainer(
    processes: Processes | None, listener: Listener, *, in_parts: bool = False, start: str = "random-tiles"
) -> Trainer:
    """A trainer; ``in_parts`` takes two slides of a step at a time, and their gradient in two passes."""
    torch.manual_seed(0)
    made = net()
    torch.manual_seed(11 + (processes.rank if processes else 0))  # aligned by the first when the training begins
    settings = Settings(
        PlannedTraining(**SETTINGS, start=start),
        COMPUTE.model_copy(update={"slides_at_once": 2}) if in_parts else COMPUTE,
        memory_size=5,
        seed=3,
        gradient="two-pass" if in_parts else "auto",
    )
    return Trainer(made, settings, processes=processes, listener=listener)


def fit(
    processes: Processes | None,
    *,
    state: Path | None = None,
    stop_after: int | None = None,
    in_parts: bool = False,
    start: str = "random-tiles",
) -> tuple[Trainer, list[EpochRecord]]:
    """Train; with ``stop_after`` this process is asked to stop in the step after so many."""
    listener, stop = Recorder(), StopRequest(insistent=processes is None)
    learner = trainer(processes, listener, in_parts=in_parts, start=start)
    file = StateFile(state, "this", every_s=1e9) if state else None
    plain, done = learner.step.learn, 0

    def step(*arguments):
        nonlocal done
        if done == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        done += 1
        return plain(*arguments)

    learner.step.learn = step
    slides = cohort()
    with stop.on_signals():
        learner.fit(slides, slides[:3], file=file, stop=stop)
    return learner, listener.records


def keep(path: Path, learner: Trainer, records: list[EpochRecord]) -> None:
    weights = learner.net.state_dict() | {f"average.{k}": v for k, v in learner.result.state_dict().items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, path)
    path.with_suffix(".json").write_text(json.dumps([asdict(replace(r, seconds=0.0)) for r in records]))


def encoder_alone(processes: Processes | None) -> dict[str, torch.Tensor]:
    """Weights of an encoder after two steps of self-supervision, of three groups each."""
    torch.manual_seed(5 + (processes.rank if processes else 0))
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    given = SelfSupervision(2, 3, COMPUTE, groups=3, group_tiles=12)
    EncoderTrainer(encoder, given, processes=processes).fit([slide.tiles for slide in cohort()])
    return {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}


class Unreadable:
    """A slide whose pixels are gone."""

    def __init__(self, slide: SlideTiles) -> None:
        self.slide = slide

    def __call__(self):
        raise RegionReadError(f"slide {self.slide.slide_id}: gone", slide_id=self.slide.slide_id)


def scenario(name: str, processes: Processes, folder: Path) -> None:
    path = folder / f"{name}-{processes.rank}.safetensors"
    if name == "equal":
        keep(path, *fit(processes))
    elif name == "parts":
        keep(path, *fit(processes, in_parts=True))
    elif name == "outlines":
        keep(path, *fit(processes, in_parts=True, start="outlines"))
    elif name == "resumed":
        keep(path, *fit(processes, state=folder / "by-one"))
    elif name == "stopped":
        try:
            fit(processes, state=folder / "by-two", stop_after=4 if processes.rank == 1 else None)
        except KeyboardInterrupt:
            path.with_suffix(".said").write_text("stopped")
    elif name == "unreadable":
        learner, slides = trainer(processes, Recorder()), cohort()
        slides[2] = replace(slides[2], tiles=replace(slides[2].tiles, open=Unreadable(slides[2].tiles)))
        try:
            learner.fit(slides, [])
        except WsiIpsError as error:
            told = {"type": type(error).__name__, "slide_id": getattr(error, "slide_id", None), "told": error.is_told}
            path.with_suffix(".said").write_text(json.dumps(told))
    elif name == "encoder":
        save_file(encoder_alone(processes), path)
    elif name == "unlike":
        try:
            processes.same(f"plan {processes.rank}", "plan")
        except WsiIpsError as error:
            path.with_suffix(".said").write_text(str(error))
    elif name == "killed":
        learner = trainer(processes, Recorder())
        learner.listener.on_slides = lambda count: (
            os.kill(os.getpid(), signal.SIGKILL) if count and processes.rank == 1 else None
        )
        learner.fit(cohort(), [])


def main() -> None:
    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    with Processes.joined(Launch.of(), device="cpu", timeout_s=300) as processes:
        for name in names:
            scenario(name, processes, folder)


if __name__ == "__main__":
    main()
