"""Where deformable attention looks, and how it begins; test_cotr.py compares with recorded numbers."""

import math

import pytest
import torch

from nnunetv2_cads.network_architecture.deformable_transformer import (
    HEADS,
    LAYERS,
    POINTS,
    SAMPLING_ORDERS,
    WIDTH,
    DeformableAttention,
    DeformableTransformer,
    cell_centres,
    position_encoding,
)

CPU = torch.device("cpu")


def attention_to_one_map(order: str, offset: tuple[float, float, float]) -> DeformableAttention:
    """Values and outputs are the tokens; every point lies ``offset`` (depth, width, height) cells from its query."""
    attention = DeformableAttention(order)
    for linear in (attention.value_proj, attention.output_proj):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    for linear in (attention.sampling_offsets, attention.attention_weights):
        torch.nn.init.zeros_(linear.weight)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(torch.tensor(offset).repeat(HEADS * 2 * POINTS))
        # all weight on the first map
        attention.attention_weights.bias.copy_(torch.tensor([0.0] * POINTS + [-1e9] * POINTS).repeat(HEADS))
    return attention


@pytest.mark.parametrize(
    ("order", "offset", "seen"),
    [
        ("published", (0, 0, 0), (2, 3, 1)),
        ("corrected", (0, 0, 0), (1, 2, 3)),
        ("corrected", (1, 0, 0), (2, 2, 3)),
        ("corrected", (0, -2, 0), (1, 2, 1)),
        ("corrected", (0, 0, 1), (1, 3, 3)),
        ("corrected", (0, 0, 2), None),
    ],
)
def test_a_query_looks_at_its_own_place_and_beyond_the_map_at_zeros(order, offset, seen):
    sizes = [(4, 4, 4), (2, 2, 2)]
    tokens = torch.randn(1, 64 + 8, WIDTH)
    places = torch.cat([cell_centres(size, CPU) for size in sizes])
    with torch.no_grad():
        attended = attention_to_one_map(order, offset)(tokens, tokens, places, sizes)
    found = attended[0, :64].view(4, 4, 4, WIDTH)[1, 2, 3]
    expected = torch.zeros(WIDTH) if seen is None else tokens[0, :64].view(4, 4, 4, WIDTH)[seen]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", SAMPLING_ORDERS)
def test_the_second_map_is_seen_from_the_first_at_the_same_relative_place(order):
    sizes = [(4, 8, 6), (2, 4, 3)]
    ramp = torch.linspace(0, 1, 3).expand(2, 4, 3).flatten()  # along the width
    tokens = torch.cat([torch.zeros(4 * 8 * 6), ramp])[None, :, None].repeat(1, 1, WIDTH)
    attention = attention_to_one_map(order, (0, 0, 0))
    with torch.no_grad():
        attention.attention_weights.bias.neg_()
        attention.attention_weights.bias.copy_(torch.tensor([-1e9] * POINTS + [0.0] * POINTS).repeat(HEADS))
        attended = attention(tokens, tokens, torch.cat([cell_centres(size, CPU) for size in sizes]), sizes)
    seen = attended[0, : 4 * 8 * 6, 0].view(4, 8, 6)[1:3, 2:6, 1:5]  # away from the zeros outside
    axis = {"corrected": 2, "published": 0}[order]  # published: the depth of a query is taken for a width
    others = [a for a in range(3) if a != axis]
    assert seen.std(axis).min() > 0.1
    assert all(seen.std(other).max() < 1e-5 for other in others)


def test_position_encodings_have_an_axis_per_third_of_the_channels():
    encoding = position_encoding((2, 3, 4), CPU).view(2, 3, 4, WIDTH)
    third = WIDTH // 3
    for axis, channels in enumerate((slice(third), slice(third, 2 * third), slice(2 * third, None))):
        part = encoding[..., channels]
        others = [a for a in range(3) if a != axis]
        assert all(part.std(other).max() < 1e-6 for other in others)
        phase = 2 * math.pi * 0.5 / part.shape[axis]
        expected = [math.sin(phase), math.cos(phase), math.sin(phase), math.cos(phase / 10_000 ** (3 / 128))]
        assert part[0, 0, 0, :4].tolist() == pytest.approx(expected, abs=1e-5)


def test_attention_begins_equal_on_six_rays_and_layers_share_their_biases():
    transformer = DeformableTransformer("corrected")
    first, *others = transformer.encoder["layers"]
    assert len(others) == LAYERS - 1
    offsets = first.self_attn.sampling_offsets.bias.view(HEADS, 2, POINTS, 3)
    assert offsets[0, 0].tolist() == [[1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]]
    torch.testing.assert_close(offsets[:, 0], offsets[:, 1])
    assert offsets[:, 0, 2].abs().amax(-1).tolist() == pytest.approx([3] * HEADS)
    assert not any(p.any() for p in first.self_attn.attention_weights.parameters())
    assert not first.self_attn.sampling_offsets.weight.any()
    for other in others:
        assert torch.equal(other.linear1.bias, first.linear1.bias)
        assert not torch.equal(other.linear1.weight, first.linear1.weight)
    assert transformer.level_embed.std().item() == pytest.approx(1, rel=0.1)
    assert first.linear1.weight.std().item() == pytest.approx(math.sqrt(2 / (WIDTH + 4 * WIDTH)), rel=0.02)


def test_another_order_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="sampling_order must be one of corrected, published, got 'fixed'"):
        DeformableTransformer("fixed")
