"""Starting from a trained model: what fits is taken, what does not is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wsi_ips.errors import CheckpointError
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint import (
    add_trunk,
    build_net,
    load_checkpoint,
    load_trunk,
    save_checkpoint,
    start_from_checkpoint,
)
from wsi_ips.model.checkpoint_card import EncoderSpec, ModelCard
from wsi_ips.model.net import IpsNet

LABEL, GRADE = Task("label", ("normal", "tumor")), Task("label", ("low", "high"))
CARD = ModelCard(
    model_id="m",
    tasks=(LABEL,),
    encoder=EncoderSpec("resnet18-1", "group", False, projector=8),
    heads=2,
    key_width=4,
    dropout=0.1,
    memory_size=4,
    patch_mpp=0.5,
    patch_px=32,
    fingerprint="f",
)


def net(card: ModelCard, seed: int) -> IpsNet:
    torch.manual_seed(seed)
    built = build_net(card)
    for parameter in built.parameters():  # some parts begin with the same numbers whatever the seed
        torch.nn.init.normal_(parameter)
    return built


def saved(folder: Path, card: ModelCard = CARD) -> IpsNet:
    trained = net(card, 1)
    save_checkpoint(folder, trained, card)
    return trained


def same(a: IpsNet, b: IpsNet) -> set[str]:
    """Parts of which all numbers are equal."""
    parts: dict[str, bool] = {}
    other = b.state_dict()
    for name, tensor in a.state_dict().items():
        part = ".".join(name.split(".")[: 2 if name.startswith("encoder") else 1])
        parts[part] = parts.get(part, True) and name in other and torch.equal(tensor, other[name])
    return {part for part, equal in parts.items() if equal}


def test_everything_is_taken_where_everything_fits(tmp_path):
    trained, fresh = saved(tmp_path), net(CARD, 2)
    assert same(fresh, trained) == set()
    start_from_checkpoint(fresh, tmp_path)
    assert same(fresh, trained) == {"encoder.trunk", "encoder.standardise", "pooling", "head"}


def test_heads_of_other_classes_stay_fresh(tmp_path):
    trained, fresh = saved(tmp_path), net(replace(CARD, tasks=(GRADE,)), 2)
    start_from_checkpoint(fresh, tmp_path)
    assert same(fresh, trained) == {"encoder.trunk", "encoder.standardise", "pooling"}


def test_a_model_of_imported_features_leaves_the_encoder_alone(tmp_path):
    imported = replace(CARD, encoder=EncoderSpec("imported:x", "batch", True, projector=8, features=64))
    trained, fresh = saved(tmp_path, imported), net(CARD, 2)
    start_from_checkpoint(fresh, tmp_path)
    assert same(fresh, trained) == {"encoder.standardise", "pooling", "head"}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"pooling": "abmil"}, "pooling.to_content.weight absent"),
        ({"key_width": 6}, "pooling.to_query.weight 8x8 for 12x8"),
        ({"encoder": replace(CARD.encoder, projector=0)}, "encoder.standardise.weight absent"),
        ({"encoder": replace(CARD.encoder, name="resnet18-2", projector=8)}, "encoder.trunk.5.0.conv1.weight absent"),
    ],
)
def test_what_is_built_otherwise_is_named(tmp_path, change, part):
    saved(tmp_path)
    fresh = net(replace(CARD, **change), 2)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(CheckpointError, match="is built differently") as caught:
        start_from_checkpoint(fresh, tmp_path)
    assert part in str(caught.value)
    assert "`projector: 8`" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())


def test_a_checkpoint_of_features_becomes_one_of_pixels_with_its_trunk(tmp_path):
    """What training on features saves, and what the trunk put back makes of it."""
    whole = net(CARD, 1).eval()
    patches = torch.rand(3, 3, 32, 32)
    expected = whole.encoder(patches)
    trunk = whole.encoder.take_trunk()
    save_checkpoint(tmp_path, whole, CARD)
    with pytest.raises(CheckpointError, match="does not fit its card"):
        load_checkpoint(tmp_path)
    add_trunk(tmp_path, trunk)
    loaded, _ = load_checkpoint(tmp_path)
    torch.testing.assert_close(loaded.encoder(patches), expected, rtol=0, atol=0)
    other = net(CARD, 3)
    load_trunk(other.encoder.trunk, tmp_path)
    assert same(other, loaded) == {"encoder.trunk"}
