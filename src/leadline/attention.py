"""Attention by blocks of queries: `blockwise`, one more of the implementations that transformers can be asked for.

No head's and no layer's weights, queries x keys, outlive a block: the backward pass works them out again, as flash
attention does (Dao et al. 2022, arXiv 2205.14135), but in whole lines, by torch's own products. Keys that no query of a
block can see are left out, and heads that share their keys are one product with them instead of copies. On processors
that is as fast as eager attention at some dozen tokens and twice as fast at a thousand (LOG.md).

The slow twin is eager attention, and tests hold the two together. Masks are the eager ones, one for all layers that are
alike, so that windows and all else that a mask can say are kept, as long as no query sees a key behind it. What a mask
cannot say (soft caps, sinks, biases) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "blockwise"
BLOCK = 128  # queries; at 64 and at 256 a step takes up to 5% longer


class _Blockwise(torch.autograd.Function):
    """Causal attention. In the flattened forms below a head's queries stand one after the other, and so do the heads
    that share keys, which makes them one matrix for each pair of row and group."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(rows, queries, heads, width of a value)

        query: (rows, heads, queries, width), scaled;  key, value: (rows, groups, keys, width)
        mask:  (rows or 1, 1, queries, keys) that is added to the scores
        """
        ctx.save_for_backward(query, key, value, mask)
        rows, heads, queries, _ = query.shape
        found = value.new_empty(rows, queries, heads, value.shape[-1])
        values = value.flatten(0, 1)
        for now, seen, _, weights in _blocks(query, key, mask):
            found[:, now] = _by_head(weights @ values[:, :seen], rows, heads).transpose(1, 2)
        return found

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants a second derivative, which a Hessian is made of
            wanted = [place for place, needed in enumerate(ctx.needs_input_grad) if needed]
            # Names of their own: a key made from the value would else have the value's slope in its own once more.
            query, key, value = inputs = tuple(tensor.view_as(tensor) for tensor in (query, key, value))
            outputs = _plain(query, key, value, mask)
            slopes = torch.autograd.grad(outputs, [inputs[place] for place in wanted], slope, create_graph=True)
            found = dict(zip(wanted, slopes, strict=True))
            return tuple(found.get(place) for place in range(4))
        rows, heads = query.shape[:2]
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
        of_query = torch.empty_like(query)
        exact = torch.promote_types(key.dtype, torch.float32)  # blocks add up
        of_key, of_value = (torch.zeros_like(whole, dtype=exact) for whole in (keys, values))
        for now, seen, asked, weights in _blocks(query, key, mask):
            given = _by_group(slope[:, now].transpose(1, 2), key.shape[1])
            of_value[:, :seen] += weights.transpose(1, 2) @ given
            of_weight = given @ values[:, :seen].transpose(1, 2)
            of_score = torch.ops.aten._softmax_backward_data(of_weight, weights, -1, weights.dtype)
            of_query[:, :, now] = _by_head(of_score @ keys[:, :seen], rows, heads)
            of_key[:, :seen] += of_score.transpose(1, 2) @ asked
        return of_query, of_key.to(key.dtype).view_as(key), of_value.to(value.dtype).view_as(value), None


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The same by its formula, differentiable as often as one likes."""
    rows, heads = query.shape[:2]
    scores = _by_head(_by_group(query, key.shape[1]) @ key.flatten(0, 1).transpose(1, 2), rows, heads)
    weights = (scores if mask is None else scores + mask[..., : key.shape[2]]).softmax(-1)
    return _by_head(_by_group(weights, key.shape[1]) @ value.flatten(0, 1), rows, heads).transpose(1, 2)


def _blocks(query: Tensor, key: Tensor, mask: Tensor | None) -> Iterator[tuple[slice, int, Tensor, Tensor]]:
    """Of each block: its queries, how many keys they can see, (rows x groups, heads of a group x queries, width) the
    queries, and (rows x groups, heads of a group x queries, keys seen) their weights."""
    rows, heads, queries, _ = query.shape
    groups, count = key.shape[1:3]
    for start in range(0, queries, BLOCK):
        now = slice(start, min(start + BLOCK, queries))
        seen = count - queries + now.stop if mask is not None else count  # the last query stands at the last key
        asked = _by_group(query[:, :, now], groups)
        scores = asked @ key.flatten(0, 1)[:, :seen].transpose(1, 2)
        if mask is not None:
            scores.view(rows, heads, -1, seen).add_(mask[:, :, now, :seen])
        yield now, seen, asked, scores.softmax(-1)


def _by_group(by_head: Tensor, groups: int) -> Tensor:
    """(rows x groups, heads of a group x queries, width) of (rows, heads, queries, width)."""
    return by_head.reshape(len(by_head) * groups, -1, by_head.shape[-1])


def _by_head(by_group: Tensor, rows: int, heads: int) -> Tensor:
    """The way back."""
    return by_group.view(rows, heads, -1, by_group.shape[-1])


def blockwise(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """In the form of transformers' attention functions. Raises ValueError for what a mask cannot say."""
    if unknown := [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]:
        raise ValueError(f"{NAME} attention knows no {unknown[0]}")
    if dropout:
        raise ValueError(f"{NAME} attention drops nothing out")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _Blockwise.apply(query * scale, key, value, attention_mask), None  # type: ignore[no-untyped-call]


AttentionInterface.register(NAME, blockwise)
AttentionMaskInterface.register(NAME, eager_mask)


@torch.no_grad()
def fits(network: Any) -> bool:
    """Whether this network gives with it, in blocks of few queries, the logits that it gives with eager attention."""
    global BLOCK
    if not getattr(network, "_supports_attention_backend", False):
        return False
    had, block, found = network.config._attn_implementation, BLOCK, []
    tokens = torch.arange(40, device=network.device).view(2, -1) % network.config.get_text_config().vocab_size
    try:
        BLOCK = 3  # or every key would be seen by some query of the one block
        for kind in ("eager", NAME):
            network.set_attn_implementation(kind)
            found.append(network(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1))
    except (ValueError, RuntimeError):
        return False
    finally:
        BLOCK = block
        network.set_attn_implementation(had)
    return bool((found[0] - found[1]).abs().max() < 1e-3)
