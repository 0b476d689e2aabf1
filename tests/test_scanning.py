"""A scan keeps the best tiles, on every device and with little memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.cohort import textured_slide
from wsi_ips.config import ComputeSection
from wsi_ips.errors import DeviceMemoryError
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.model.selection import best_tiles
from wsi_ips.scanning import (
    CHUNKS_STAGED,
    ChunkLimit,
    ScanOptions,
    fast_encoder,
    page_locked,
    plain_patches,
    scan_slides,
    staged,
)
from wsi_ips.tiles.stream import PatchStream


@pytest.mark.parametrize("chunk_size", [7, 100])
def test_a_scan_keeps_the_best_tiles_whatever_the_chunk_size_of_the_machine(chunk_size):
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    net = IpsNet(encoder, NetSettings(heads=8, key_width=8, dropout=0.0))
    options = ScanOptions(4, ComputeSection(device="cpu", chunk_size=chunk_size))
    requests = [textured_slide(f"s{i}", label=i, seed=i).at_slot(i) for i in range(2)]
    for found in scan_slides(net, requests, plain_patches(torch.device("cpu")), options):
        assert len(found.scanned) == len(found.logits) == 28
        assert found.tiles.tolist() == found.scanned[best_tiles(found.logits, 4)].tolist()


@pytest.mark.parametrize("backend", ["auto", "eager", "int8"])
def test_training_and_features_scan_exactly_whatever_the_backend(backend):
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False)).eval()
    patches = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        found = fast_encoder(encoder, ComputeSection(device="cpu", scan_backend=backend))(patches)
        torch.testing.assert_close(found, encoder(patches))


def test_staged_chunks_are_the_chunks():
    slide = textured_slide("s", label=0, seed=0)
    with PatchStream([slide], chunk_size=5, readers=2, prefetch_chunks=2) as stream:
        tiles = []
        for chunk in staged(stream, torch.device("cpu")):
            np.testing.assert_array_equal(chunk.on_device.numpy(), chunk.pixels)
            tiles += chunk.tile.tolist()
    assert tiles == list(range(28))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_sees_the_pixels_of_the_slides_however_busy_it_is():
    """Chunks are copied beside computing: none may be overwritten before it has been used."""
    device = torch.device("cuda")
    slides = [textured_slide(f"s{i}", label=0, seed=i).at_slot(i) for i in range(6)]
    busy = torch.rand(4000, 4000, device=device)
    with PatchStream(
        slides, chunk_size=7, readers=2, prefetch_chunks=2, held_chunks=CHUNKS_STAGED, allocate=page_locked
    ) as stream:
        for chunk in staged(stream, device):
            busy = (busy @ busy).clamp(0, 1)
            seen = chunk.on_device.clone()
            np.testing.assert_array_equal(seen.cpu().numpy(), chunk.pixels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_scan_on_a_gpu_keeps_the_tiles_of_a_scan_on_the_cpu():
    torch.manual_seed(0)
    net = IpsNet(build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))).eval()
    requests = [textured_slide(f"s{i}", label=i, seed=i).at_slot(i) for i in range(2)]
    compute = ComputeSection(readers=2, chunk_size=7)
    found = []
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        found.append(scan_slides(net.to(device), requests, plain_patches(device), ScanOptions(6, compute)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-2)
        assert len(set(one.tiles.tolist()) & set(other.tiles.tolist())) >= 5


@pytest.mark.parametrize(("fits", "left"), [(100, 40), (10, 10), (3, 2)])
def test_a_scan_that_runs_out_of_memory_goes_on_with_smaller_parts_and_says_so(fits, left):
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    net = IpsNet(encoder, NetSettings(heads=8, key_width=8, dropout=0.0)).eval()
    requests = [textured_slide(f"s{i}", label=i, seed=i).at_slot(i) for i in range(2)]
    options = ScanOptions(4, ComputeSection(device="cpu", chunk_size=40), with_probability=True)
    prepare = plain_patches(torch.device("cpu"))
    whole = scan_slides(net, requests, prepare, replace(options, encode=encoder))

    def encode(patches: torch.Tensor) -> torch.Tensor:
        if len(patches) > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return encoder(patches)

    notes: list[str] = []
    limit = ChunkLimit(40, notes.append)
    counted: list[int] = []
    options = replace(options, encode=encode, limit=limit, on_tiles=counted.append)
    found = scan_slides(net, requests, prepare, options)
    assert limit.patches == left
    assert all(f"compute.chunk_size: {n}" in text for n, text in zip((20, 10, 5, 2), notes, strict=False))
    assert len(notes) == {40: 0, 10: 2, 2: 4}[left]
    assert sum(counted) == 56  # no tile is counted twice
    for one, other in zip(whole, found, strict=True):
        assert one.tiles.tolist() == other.tiles.tolist()
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.probability, other.probability, rtol=1e-5, atol=1e-5)


def test_a_device_without_memory_for_one_patch_is_an_error_with_advice():
    limit = ChunkLimit(1)
    with pytest.raises(DeviceMemoryError, match=r"single patch.*model.encoder"):
        limit.halve(torch.cuda.OutOfMemoryError("CUDA out of memory"))
