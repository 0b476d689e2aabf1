"""Every pooling and both selections go through the training loop and change what they should."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.test_loop import Recorder, cohort, trainer
from wsi_ips.model import IpsNet, build_encoder, encoder_spec, selection_rule


def net_with(**arguments: object) -> IpsNet:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    return IpsNet(encoder, classes=2, heads=2, key_width=8, dropout=0.0, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"pooling": "abmil"},
        {"pooling": "mean"},
        {"pooling": "max"},
        {"evidence": True},
        {"rule": selection_rule("paper", iteration_size=6)},
    ],
    ids=["abmil", "mean", "max", "evidence", "paper"],
)
def test_a_step_teaches_every_part(arguments):
    net, listener = net_with(**arguments), Recorder()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    trainer(net, listener=listener, epochs=2, warm_start_epochs=1).fit(cohort(4), cohort(2))
    records = listener.records
    assert all(math.isfinite(record.loss) for record in records)
    assert math.isfinite(records[-1].val_loss)
    for part in ("encoder", "head") if arguments.get("pooling") == "mean" else ("encoder", "pooling", "head"):
        assert any(not torch.equal(before[n], p) for n, p in net.named_parameters() if n.startswith(part))
