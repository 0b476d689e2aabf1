"""Saved bytes are counted once per storage, while they are kept and no longer."""

from __future__ import annotations

import torch
from torch import nn

from wsi_ips.training.gradient import SavedBytes

KILO = 1000 * 4
"""Bytes of a thousand floats."""


def test_a_tensor_kept_by_two_operations_counts_once_and_is_released_by_the_backward_pass():
    x = torch.rand(1000, requires_grad=True)
    with SavedBytes() as saved:
        y = x.square() + x.sin()
        assert saved.now == KILO
        z = y.square().sum()  # keeps y
        assert saved.now == 2 * KILO
        z.backward()
        assert saved.now == 0
    assert saved.peak == 2 * KILO


def test_views_are_their_storage():
    x = torch.rand(1000, requires_grad=True)
    with SavedBytes() as saved:
        parts = [part.square() for part in x.split(100)]
        assert saved.now == KILO
    del parts
    assert saved.now == 0


def test_nothing_is_kept_without_gradient():
    with SavedBytes() as saved, torch.no_grad():
        nn.Conv2d(3, 8, 3)(torch.rand(4, 3, 16, 16)).relu().sum()
    assert saved.peak == 0


def test_weights_are_counted_and_do_not_grow_with_the_batch():
    layers = nn.Sequential(nn.Linear(10, 100), nn.Tanh(), nn.Linear(100, 1))
    peaks = []
    for count in (1, 2, 3):
        with SavedBytes() as saved:
            layers(torch.rand(count, 10)).sum().backward()
        peaks.append(saved.peak)
    assert peaks[2] - peaks[1] == peaks[1] - peaks[0] == (10 + 100) * 4  # input and tanh of one row
    assert peaks[0] == (10 + 100) * 4 + 100 * 4  # and the weights that the gradient of tanh needs
