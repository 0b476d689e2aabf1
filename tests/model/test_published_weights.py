"""Weights of the published code give the published outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from tests.model.published_weights import converted_weights
from tests.model.test_published_rule import greedy_rule
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.model.selection import selection_score

HEADS, KEY_WIDTH, WIDTH = 4, 6, 128
TASKS = (Task("grade", ("low", "mid", "high")), Task("tumour", ("yes",), "multi"))


class Paper(nn.Module):
    """The network of the paper written from its description, with the names of the published state dict."""

    def __init__(self, tasks: Sequence[Task] = TASKS, *, heads: int = HEADS, key_width: int = KEY_WIDTH) -> None:
        super().__init__()
        self.tasks, self.heads, self.key_width = tasks, heads, key_width
        trunk = resnet18()
        self.encoder = nn.Sequential(
            trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1, trunk.layer2, trunk.avgpool
        )
        attention, mlp = nn.Module(), nn.Module()
        attention.q = nn.Parameter(torch.randn(1, len(tasks), WIDTH))
        for name in ("q_w", "k_w", "v_w"):
            setattr(attention, name, nn.Linear(WIDTH, heads * key_width, bias=False))
        attention.fc = nn.Linear(heads * key_width, WIDTH, bias=False)
        attention.layer_norm, mlp.layer_norm = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        mlp.w_1, mlp.w_2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.transf = nn.ModuleDict({"crs_attn": attention, "mlp": mlp})
        self.output_layers = nn.ModuleDict(
            {t.name: nn.Sequential(nn.Linear(WIDTH, t.width), nn.Identity()) for t in tasks}
        )

    def attention(self, embeddings: Tensor) -> Tensor:
        """(n, D) to softmax attention (T, H, n)."""
        block = self.transf["crs_attn"]
        query = block.q_w(block.q[0]).view(len(self.tasks), self.heads, self.key_width)
        key = block.k_w(embeddings).view(-1, self.heads, self.key_width)
        return torch.einsum("the,khe->thk", query / math.sqrt(self.key_width), key).softmax(-1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of all tasks of one slide from its tiles, (n, D) to (C,)."""
        block, mlp = self.transf["crs_attn"], self.transf["mlp"]
        value = block.v_w(embeddings).view(-1, self.heads, self.key_width)
        pooled = torch.einsum("thk,khe->the", self.attention(embeddings), value).flatten(1)
        x = block.layer_norm(block.fc(pooled) + block.q[0])
        x = mlp.layer_norm(mlp.w_2(torch.relu(mlp.w_1(x))) + x)
        return torch.cat([self.output_layers[t.name](x[i]) for i, t in enumerate(self.tasks)])


def ours() -> IpsNet:
    encoder = build_encoder(encoder_spec("resnet18-2", norm="auto", has_weights=True))
    return IpsNet(encoder, NetSettings(tasks=TASKS, heads=HEADS, key_width=KEY_WIDTH))


@pytest.fixture
def published() -> Paper:
    torch.manual_seed(3)
    net = Paper()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return net.eval()


@torch.no_grad()
def test_converted_weights_give_equal_outputs(published):
    net = ours()
    net.load_state_dict(converted_weights(published.state_dict(), net, tasks=["grade", "tumour"]))
    net.eval()
    patches = torch.rand(9, 3, 32, 32)
    there = published.encoder((patches - net.encoder.mean) / net.encoder.std).flatten(1)
    here = net.encoder(patches)
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
    published.double()
    net.double()
    tiles = there.double()
    logits = net(tiles[None], torch.ones(1, 9, dtype=torch.bool))[0]
    torch.testing.assert_close(logits, published(tiles), rtol=1e-6, atol=1e-6)
    attention = published.attention(tiles)  # (T, H, n)
    raw = net.pooling.logits(tiles)
    torch.testing.assert_close(raw.softmax(0), attention.permute(2, 0, 1), rtol=1e-6, atol=1e-6)
    score = torch.from_numpy(selection_score(raw.numpy()))
    torch.testing.assert_close(score, attention.mean((0, 1)), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_converted_weights_select_the_tiles_of_the_published_loop(published):
    net = ours().eval()
    net.load_state_dict(converted_weights(published.state_dict(), net, tasks=["grade", "tumour"]))
    tiles = torch.randn(300, WIDTH) * 6
    buffer = torch.arange(20)
    for chunk in torch.arange(20, 300).split(16):
        both = torch.cat([buffer, chunk])
        buffer = both[published.attention(tiles[both]).mean((0, 1)).topk(20).indices]
    assert set(greedy_rule(net.pooling.logits(tiles).numpy(), 20, 16)) == set(buffer.tolist())
