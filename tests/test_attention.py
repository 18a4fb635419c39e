"""Attention by blocks of queries against eager attention: costs, gradients and replies, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GptOssConfig, GptOssForCausalLM

from leadline import attention, parts
from leadline.curvature import hessian_products
from leadline.edits import EmbeddingEdit, KeyValueEdit
from leadline.engine import Context, Engine
from leadline.model import FrozenModel
from models import random_model

FITTING = ("llama", "neox", "mistral", "gpt2")
SHARED = (7, 8, 9)


def contexts() -> list[Context]:
    """Rows of several lengths, the longest of several blocks."""
    return [
        Context((*SHARED, *range(10, 10 + 3 * row)), tuple(range(20, 24 + 2 * row)), (30 + row, 31, 2))
        for row in range(5)
    ]


def run(model: FrozenModel, kind: str, way: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Costs in nats, and the gradient of their sum in an edit's tensors."""
    draws = torch.Generator().manual_seed(3)
    if kind == "embeddings":
        leaves = [torch.randn(5, 2, 32, generator=draws).requires_grad_()]
        edit = EmbeddingEdit(leaves[0], (2, 1, 2, 0, 2))
    else:
        heads = model.network.config.to_dict().get("num_key_value_heads", 4)
        leaves = [torch.randn(5, 2, heads, 3, 8, generator=draws).requires_grad_() for _ in range(2)]
        edit = KeyValueEdit(*leaves)
    model.network.set_attn_implementation(way)
    costs = parts.nats(Engine(model, SHARED), contexts(), edit)
    return costs.detach(), list(torch.autograd.grad(costs.sum(), leaves))


@pytest.mark.parametrize("block", [3, 128])
@pytest.mark.parametrize("kind", ["embeddings", "keys and values"])
@pytest.mark.parametrize("architecture", FITTING)
def test_costs_and_gradients_are_those_of_eager_attention(monkeypatch, architecture, kind, block):
    monkeypatch.setattr(attention, "BLOCK", block)
    model = random_model(architecture)
    wanted, wanted_slopes = run(model, kind, "eager")
    found, slopes = run(model, kind, attention.NAME)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    for slope, wanted_slope in zip(slopes, wanted_slopes, strict=True):
        assert wanted_slope.norm() > 0
        assert (slope - wanted_slope).norm() <= 1e-5 * wanted_slope.norm()


def test_first_derivatives_are_exact_in_float64(monkeypatch):
    """Blocks are added up no less exactly than they come."""
    monkeypatch.setattr(attention, "BLOCK", 3)
    draws = torch.Generator().manual_seed(7)
    query, key, value = (
        torch.randn(2, heads, 11, 8, generator=draws, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)
    )
    mask = torch.full((1, 1, 11, 11), float("-inf"), dtype=torch.float64).triu(1)
    found = attention.blockwise(torch.nn.Identity(), query, key, value, mask, scaling=1.0)[0]
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask.expand(2, 4, 11, 11), scale=1.0, enable_gqa=True
    ).transpose(1, 2)
    slope = torch.randn(found.shape, generator=draws, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    leaves = (query, key, value)
    slopes, wanted_slopes = (torch.autograd.grad(one, leaves, slope) for one in (found, wanted))
    for mine, theirs in zip(slopes, wanted_slopes, strict=True):
        assert (mine - theirs).norm() <= 1e-12 * theirs.norm()


def test_a_key_made_from_the_value_has_its_slope_once():
    draws = torch.Generator().manual_seed(7)
    query, value = (torch.randn(1, 2, 6, 4, generator=draws, requires_grad=True) for _ in range(2))
    mask = torch.full((1, 1, 6, 6), float("-inf")).triu(1)
    slopes = []
    for found in (
        attention.blockwise(torch.nn.Identity(), query, value.sin(), value, mask, scaling=1.0)[0],
        attention._plain(query, value.sin(), value, mask),
    ):
        slopes.append(torch.autograd.grad(found.square().sum(), value, create_graph=True)[0])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("block", "length"), [(3, 40), (16, 700)])
def test_in_bfloat16_it_is_as_exact_as_bfloat16_can_be(monkeypatch, block, length):
    """Beside float32 with the same, rounded inputs: 8 bits leave 0.3 to 0.5% of every result, of eager attention's as
    well. Sums in bfloat16 would leave 0.6 to 1.1% of the slopes of keys and values."""
    monkeypatch.setattr(attention, "BLOCK", block)
    draws = torch.Generator().manual_seed(11)
    shapes = [(2, heads, length, 16) for heads in (4, 2, 2)]
    query, key, value = (torch.randn(shape, generator=draws) for shape in shapes)
    rounded = [(query / 4).bfloat16(), key.bfloat16(), value.bfloat16()]
    mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
    slope = torch.randn(2, length, 4, 16, generator=draws).bfloat16()

    def run_in(dtype: torch.dtype, way: Any) -> list[torch.Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in rounded]
        found = way(*leaves, mask.to(dtype))
        return [found.detach().float(), *(one.float() for one in torch.autograd.grad(found, leaves, slope.to(dtype)))]

    def in_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return attention.blockwise(torch.nn.Identity(), query, key, value, mask, scaling=1.0)[0]

    exact = run_in(torch.float32, attention._plain)
    for place, found in enumerate(run_in(torch.bfloat16, in_blocks)):
        assert (found - exact[place]).norm() <= 0.005 * exact[place].norm(), ("output", "query", "key", "value")[place]


def test_keys_that_no_query_of_a_block_sees_are_left_out(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 4)
    query, key = torch.zeros(1, 2, 10, 8), torch.zeros(1, 2, 13, 8)
    mask = torch.zeros(1, 1, 10, 13)
    seen = [(weights.shape[-1], asked.shape[1]) for _, _, asked, weights in attention._blocks(query, key, mask)]
    assert seen == [(7, 4), (11, 4), (13, 2)]


def test_a_hessian_is_that_of_eager_attention(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 3)
    model, rows = random_model("llama"), contexts()[2:3]
    draws = torch.Generator().manual_seed(5)
    point, vectors = torch.randn(2, 32, generator=draws), torch.randn(3, 2, 32, generator=draws)

    def loss(points: torch.Tensor) -> torch.Tensor:
        return Engine(model).target_logits(rows * len(points), EmbeddingEdit(points, (2,) * len(points))).nats()

    found = []
    for way in ("eager", attention.NAME):
        model.network.set_attn_implementation(way)
        found.append(hessian_products(loss, point, vectors, 3))
    assert found[0].norm() > 0
    assert (found[1] - found[0]).norm() <= 1e-5 * found[0].norm()


def test_replies_are_those_of_eager_attention():
    model, rows = random_model("mistral"), contexts()
    edit = EmbeddingEdit(torch.zeros(5, 1, 32), (1,) * 5)
    found = []
    for way in ("eager", attention.NAME):
        model.network.set_attn_implementation(way)
        found.append(Engine(model, SHARED).generate(rows, edit, 12))
    assert found[0] == found[1]
    assert max(map(len, found[0])) > 3


@pytest.mark.parametrize("architecture", FITTING)
def test_it_fits_an_architecture_whose_mask_says_everything(architecture):
    network = random_model(architecture).network
    assert attention.fits(network)
    assert network.config._attn_implementation == "eager"


@pytest.mark.parametrize("architecture", ["gemma", "mpt"])
def test_it_does_not_fit_soft_caps_and_biases(architecture):
    assert not attention.fits(random_model(architecture).network)


def test_it_does_not_fit_sinks():
    config = GptOssConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, attn_implementation="eager",
        pad_token_id=0,
    )  # fmt: skip
    assert not attention.fits(GptOssForCausalLM(config).eval())


def test_it_does_not_fit_a_model_that_looks_ahead():
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_implementation="eager", pad_token_id=0,
    )  # fmt: skip
    assert attention.fits(Gemma3ForCausalLM(config).eval())
    config.use_bidirectional_attention = True
    assert not attention.fits(Gemma3ForCausalLM(config).eval())
    assert attention.BLOCK == 128


def test_nothing_of_the_size_queries_times_keys_is_kept_but_the_mask(monkeypatch):
    """What autograd holds of a layer grows with the length, not with its square; the mask is the same for all."""
    monkeypatch.setattr(attention, "BLOCK", 8)
    held = {}
    for length in (64, 128):
        query, key = torch.randn(1, 4, length, 8, requires_grad=True), torch.randn(1, 2, length, 8)
        mask = torch.full((1, 1, length, length), float("-inf")).triu(1)
        sizes: list[int] = []

        def kept(one: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(one.numel())
            return one

        with torch.autograd.graph.saved_tensors_hooks(kept, lambda one: one):
            attention.blockwise(torch.nn.Identity(), query, key, key, mask)
        held[length] = sum(sizes) - mask.numel()
    assert held[128] == 2 * held[64]
