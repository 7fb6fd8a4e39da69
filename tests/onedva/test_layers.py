"""The transformer's parts against plain references written another way: complex RoPE, einsum attention, float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onedva.layers import (
    ROPE_BASE,
    ROPE_PAIRS,
    SHORT_SEQUENCES,
    Attention,
    Block,
    ResolutionTokens,
    TimeEmbedding,
    anchor_positions,
    grid_positions,
    init_transformer,
    rope_rotations,
    rotate,
)


def complex_rope(x: Tensor, positions: Tensor) -> Tensor:
    """RoPE as (x_c + i·x_{c+32}) times e^{i·position·base^(−j/pairs)}: x (B, heads, N, 64), positions (N, 3)."""
    axis_of = [axis for axis, pairs in enumerate(ROPE_PAIRS) for _ in range(pairs)]
    rate_of = [ROPE_BASE ** (-j / pairs) for pairs in ROPE_PAIRS for j in range(pairs)]
    angles = positions[:, axis_of].double() * torch.tensor(rate_of, dtype=torch.float64)
    pairs = torch.complex(x[..., :32].double(), x[..., 32:].double()) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight


def reference_block(block: Block, hidden: Tensor, positions: Tensor) -> Tensor:
    """A pre-norm block with softmax(q kᵀ / √64) v by einsum."""
    w = {name: parameter.double() for name, parameter in block.named_parameters()}
    x = hidden.double()
    batch, length, width = x.shape

    def heads(name: str) -> Tensor:
        return torch.einsum("bnd,ed->bne", normed, w[f"attention.{name}.weight"]).reshape(batch, length, -1, 64)

    normed = layer_norm(x, w["attention_norm.weight"])
    query = complex_rope(layer_norm(heads("query"), w["attention.query_norm.weight"]).transpose(1, 2), positions)
    key = complex_rope(layer_norm(heads("key"), w["attention.key_norm.weight"]).transpose(1, 2), positions)
    scores = torch.einsum("bhqc,bhkc->bhqk", query, key) / math.sqrt(64)
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    seen = torch.einsum("bhqk,bkhc->bqhc", weights, heads("value")).reshape(batch, length, width)
    x = x + torch.einsum("bnd,ed->bne", seen, w["attention.out.weight"])
    up = torch.einsum("bnd,ed->bne", layer_norm(x, w["mlp_norm.weight"]), w["mlp.up.weight"]) + w["mlp.up.bias"]
    up = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    return x + torch.einsum("bnd,ed->bne", up, w["mlp.down.weight"]) + w["mlp.down.bias"]


def test_a_block_is_plain_attention_with_rope() -> None:
    block = Block(128, 2.0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3).add_(1.0 if parameter.ndim == 1 else 0.0)
    positions = grid_positions(2, 3, 2, torch.device("cpu"))
    hidden = torch.randn(2, 12, 128)
    with torch.no_grad():
        got = block(hidden, rope_rotations(positions)[None])
    wanted = reference_block(block, hidden, positions)
    torch.testing.assert_close(got.double(), wanted, atol=2e-4, rtol=1e-4)
    # positions are seen: the same block without them says something else
    assert (reference_block(block, hidden, positions * 0) - wanted).abs().max() > 0.05


def test_position_zero_rotates_nothing() -> None:
    x = torch.randn(1, 2, 3, 64)
    assert torch.equal(rotate(x, rope_rotations(torch.zeros(1, 3, 3))), x)


def test_rotation_keeps_lengths() -> None:
    x = torch.randn(1, 2, 5, 64)
    turned = rotate(x, rope_rotations(torch.rand(1, 5, 3) * 50))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@settings(max_examples=25, deadline=None)
@given(*[st.tuples(st.integers(0, 8), st.integers(0, 64), st.integers(0, 64)) for _ in range(3)])
def test_scores_depend_on_relative_positions_only(
    query_at: tuple[int, int, int], key_at: tuple[int, int, int], shift: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)

    def score(shift_query: tuple[int, ...], shift_key: tuple[int, ...]) -> float:
        ends = []
        for vector, at, by in ((query, query_at, shift_query), (key, key_at, shift_key)):
            where = torch.tensor([[[float(a + b) for a, b in zip(at, by, strict=True)]]])
            ends.append(rotate(vector, rope_rotations(where)))
        return float((ends[0] * ends[1]).sum())

    still = (0, 0, 0)
    assert score(shift, shift) == pytest.approx(score(still, still), abs=5e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_turns_its_own_pairs(axis: int) -> None:
    position = torch.zeros(1, 1, 3)
    position[..., axis] = 3.0
    x = torch.ones(1, 1, 1, 64)
    changed = (rotate(x, rope_rotations(position)) != x).flatten()
    start = sum(ROPE_PAIRS[:axis])
    wanted = torch.zeros(32, dtype=torch.bool)
    wanted[start : start + ROPE_PAIRS[axis]] = True
    assert torch.equal(changed, torch.cat([wanted, wanted]))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_anchor_positions_are_the_grid_in_storage_order(groups: int, height: int, width: int) -> None:
    positions = grid_positions(groups, height, width, torch.device("cpu"))
    anchors = torch.arange(groups * height * width)[None]
    assert torch.equal(anchor_positions(anchors, height, width)[0], positions)
    wanted = [[t, y, x] for t in range(groups) for y in range(height) for x in range(width)]
    assert positions.tolist() == wanted


def test_resolution_tokens_tell_every_entry_and_the_kind() -> None:
    tokens = ResolutionTokens(64)
    usual = torch.tensor([[17.0, 256.0, 256.0, 24.0]])
    key = torch.ones(1, dtype=torch.bool)
    with torch.no_grad():
        start = tokens(usual, key)
        assert start.shape == (1, 5, 64)
        for entry in range(4):
            changed = usual.clone()
            changed[0, entry] *= 1.5
            moved = (tokens(changed, key) - start).abs().amax(dim=-1)[0]
            assert moved[entry] > 1e-3
            assert moved.sum() == moved[entry]
        moved = (tokens(usual, ~key) - start).abs().amax(dim=-1)[0]
        assert moved[4] > 1e-3 and not moved[:4].any()


def test_time_embedding_starts_at_no_modulation() -> None:
    embedding = TimeEmbedding(64, 10)
    with torch.no_grad():
        assert not embedding(torch.rand(2, 3)).any()
        torch.nn.init.normal_(embedding.out.weight)
        out = embedding(torch.tensor([[0.0, 0.5, 1.0]]))
    assert out.shape == (1, 3, 640)
    assert (out[0, 0] - out[0, 1]).abs().max() > 0.1 and (out[0, 1] - out[0, 2]).abs().max() > 0.1


def test_no_block_starts_at_zero() -> None:
    """Zero block outputs under a zero head are a saddle; outputs are smaller by 1/√(2·depth)."""
    blocks = torch.nn.ModuleList(Block(256, 3.0) for _ in range(8))
    init_transformer(blocks, depth=8)
    for block in blocks:
        assert isinstance(block, Block)
        assert block.attention.query.weight.std().item() == pytest.approx(256**-0.5, rel=0.1)
        assert block.attention.out.weight.std().item() == pytest.approx(256**-0.5 / 4, rel=0.1)
        assert block.mlp.down.weight.std().item() == pytest.approx(768**-0.5 / 4, rel=0.1)
        assert not block.mlp.down.bias.any()


@pytest.mark.parametrize("keys", [7, SHORT_SEQUENCES[torch.float32] + 1])
def test_training_short_sequences_attends_as_the_fused_kernel_does(keys: int) -> None:
    attention = Attention(128)
    query, value = torch.randn(2, 2, 5, 64, requires_grad=True), torch.randn(2, 2, keys, 64)
    key = torch.randn(2, 2, keys, 64)
    found = []
    for mode in (True, False):
        seen = attention.train(mode)(query, key, value)
        found += [seen, torch.autograd.grad(seen.square().sum(), query)[0]]
    torch.testing.assert_close(found[0], found[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], found[3], atol=1e-4, rtol=1e-4)


def test_in_bfloat16_longer_ones_do_too() -> None:
    keys, attention = SHORT_SEQUENCES[torch.float32] + 44, Attention(128)
    query, key, value = (torch.randn(2, 2, count, 64, dtype=torch.bfloat16) for count in (5, keys, keys))
    plain, fused = (attention.train(mode)(query, key, value).float() for mode in (True, False))
    torch.testing.assert_close(plain, fused, atol=0.02, rtol=0.02)
    assert keys <= SHORT_SEQUENCES[torch.bfloat16] and not torch.equal(plain, fused)  # two ways, indeed
