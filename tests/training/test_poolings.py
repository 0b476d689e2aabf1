"""Every pooling goes through the training loop and changes what it should."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.test_loop import Recorder, cohort, trainer
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.model.poolings import POOLINGS


@pytest.mark.parametrize("pooling", list(POOLINGS))
def test_a_step_teaches_every_part(pooling):
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    net = IpsNet(encoder, NetSettings(heads=2, key_width=8, dropout=0.0, pooling=pooling))
    listener = Recorder()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    trainer(net, listener=listener, epochs=2, start_epochs=1).fit(cohort(4), cohort(2))
    records = listener.records
    assert all(math.isfinite(record.loss) for record in records)
    assert math.isfinite(records[-1].val_loss)
    for part in ("encoder", "pooling", "head"):
        assert any(not torch.equal(before[n], p) for n, p in net.named_parameters() if n.startswith(part))
