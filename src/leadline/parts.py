"""Rows in parts: a batch cut into parts of some hundred tokens that threads run side by side, one thread a part.

On a processor that is faster than one batch whose every operation is shared out among threads: what a part holds stays
in its core's own cache, rows of one length stand together, and nobody waits within a pass (benchmarks/README.md). Rows
know nothing of each other, so a part finds its gradient along with its values, and no graph is kept. A GPU wants whole
batches: there a part is what its memory holds, and one follows the other.

The slow twin is `Engine.target_logits` on all rows, and a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from leadline.edits import Edit, EmbeddingEdit
from leadline.engine import Context, Engine, TargetLogits
from leadline.model import FrozenModel
from leadline.probe import is_tiny

# Tokens of a part, measured on SmolLM2: at 1024 a step takes 5% longer, at 128 it takes 16% longer. Half of a tiny
# model's pass is Python: 512 tokens take 20% longer there.
TOKENS, OF_TINY = 512, 2048
SHARE = 0.5  # of a GPU's free memory that a part may take: padding, logits and scratch come on top of what is counted
T = TypeVar("T")


def nats(engine: Engine, contexts: Sequence[Context], edit: Edit) -> Tensor:
    """(rows,) cost of each row's target in nats, differentiable once in the edit's tensors."""
    if not _pays(engine, contexts, edit):
        return engine.target_logits(contexts, edit).nats()
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in edit.tensors)):
        return each(engine, contexts, edit, TargetLogits.nats)
    found: Tensor = _Nats.apply(engine, contexts, edit, *edit.tensors)  # type: ignore[no-untyped-call]
    return found


def each(engine: Engine, contexts: Sequence[Context], edit: Edit, read: Callable[[TargetLogits], Tensor]) -> Tensor:
    """(rows, ...) what `read` finds in the logits of some rows, for all rows, without gradients. read: gives a line a
    row"""
    if not _pays(engine, contexts, edit):
        with torch.no_grad():
            return read(engine.target_logits(contexts, edit))

    def one(rows: list[int]) -> Tensor:
        with torch.no_grad():
            return read(engine.logits([contexts[row] for row in rows], edit.select(rows)))

    parts = cut(engine, contexts, edit)
    found = _side_by_side(engine, edit, one, parts)
    order = torch.tensor([row for rows in parts for row in rows], device=found[0].device)
    return torch.cat(found)[order.argsort()]


def cut(engine: Engine, contexts: Sequence[Context], edit: Edit) -> list[list[int]]:
    """The rows of each part, the longest first: as many parts as lanes, or twice as many, and so on, until none has
    more tokens than a part should have, rows apart that have more alone."""
    lengths = tokens_run(engine, contexts, edit)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    lanes, most = lanes_of(engine.model), most_tokens(engine, contexts, edit)
    count = min(len(order), lanes * math.ceil(sum(lengths) / (lanes * most)))
    ends: list[int] = []
    done, goal = 0, sum(lengths) / count
    for place, row in enumerate(order):
        done += lengths[row]
        left = len(order) - place - 1
        if done >= goal * (len(ends) + 1) - lengths[row] / 2 and len(ends) < count - 1 and left:
            ends.append(place + 1)
    return [order[start:stop] for start, stop in zip([0, *ends], [*ends, len(order)], strict=True)]


def lanes_of(model: FrozenModel) -> int:
    """How many parts run side by side."""
    return model.compute.threads if model.device.type == "cpu" else 1


def most_tokens(engine: Engine, contexts: Sequence[Context], edit: Edit) -> int:
    """How many tokens a part of these rows should have at most. On a GPU by its memory, and by what rows as long as the
    longest, with as many targets as any, keep of each token."""
    model = engine.model
    if model.device.type == "cpu":
        return OF_TINY if is_tiny(model.network) else TOKENS
    longest, targets = max(tokens_run(engine, contexts, edit)), max(len(context.target) for context in contexts)
    # Counted anew for each power of two, not for each length: a longer row keeps more by token, and is counted as one.
    longest, targets = (1 << (count - 1).bit_length() for count in (longest, targets))
    longest = max(2, min(longest, model.window - 1))
    return max(1, int(SHARE * _free_bytes(model) / bytes_of_a_token(model, longest, min(targets, longest - 1))))


@lru_cache(maxsize=1)
def _free_bytes(model: FrozenModel) -> int:
    """Of a GPU, when this model was first asked."""
    free, _ = torch.cuda.mem_get_info(model.device)
    return int(free + torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device))


@lru_cache(maxsize=4)
def bytes_of_a_token(model: FrozenModel, tokens: int, targets: int) -> float:
    """What a row of so many tokens, `targets` of them those of its reply, keeps for the backward pass by token."""
    row = Context((), (model.start_token,) * max(1, tokens - targets), (model.start_token,) * targets)
    values = torch.zeros(1, 1, model.hidden_size, device=model.device, requires_grad=True)
    return bytes_kept(Engine(model), [row], EmbeddingEdit(values, (1,))) / tokens


def bytes_kept(engine: Engine, contexts: Sequence[Context], edit: Edit) -> int:
    """What autograd keeps of these rows in one batch for the backward pass: each storage once, the weights left out."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        costs = engine.target_logits(contexts, edit).nats()
    for weight in (*engine.model.network.parameters(), *engine.model.network.buffers()):
        kept.pop(weight.untyped_storage().data_ptr(), None)
    del costs  # until here it kept all of that alive, so that no address was used twice
    return sum(kept.values())


def tokens_run(engine: Engine, contexts: Sequence[Context], edit: Edit) -> list[int]:
    """Tokens of each row behind the shared prefix."""
    skipped = engine.skipped(edit)
    return [
        len(context.before) + inserted + len(context.after) + len(context.target) - skipped
        for context, inserted in zip(contexts, edit.lengths, strict=True)
    ]


class _Nats(torch.autograd.Function):
    """Forward: every part's values, and the gradient of each by its own row of the edit's tensors. Backward: that times
    what the value is worth."""

    @staticmethod
    def forward(ctx: Any, engine: Engine, contexts: Sequence[Context], edit: Edit, *tensors: Tensor) -> Tensor:
        def one(rows: list[int]) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                leaves = [tensor.detach()[rows].requires_grad_() for tensor in tensors]
                costs = engine.logits([contexts[row] for row in rows], edit.select(rows).having(leaves)).nats()
                if not costs.requires_grad:  # rows that insert nothing
                    return (costs, *map(torch.zeros_like, leaves))
                slopes = torch.autograd.grad(costs.sum(), leaves, materialize_grads=True)
            return (costs.detach(), *slopes)

        parts = cut(engine, contexts, edit)
        found = _side_by_side(engine, edit, one, parts)
        order = torch.tensor([row for rows in parts for row in rows]).argsort()
        values, *slopes = (torch.cat(pieces)[order] for pieces in zip(*found, strict=True))
        ctx.save_for_backward(*slopes)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, worth: Tensor) -> tuple[Tensor | None, ...]:
        slopes = ctx.saved_tensors
        return None, None, None, *(slope * worth.to(slope.dtype).view(-1, *[1] * (slope.ndim - 1)) for slope in slopes)


def _pays(engine: Engine, contexts: Sequence[Context], edit: Edit) -> bool:
    """Not for one row, nor for what one part holds."""
    return len(contexts) > 1 and (engine.model.device.type == "cpu" or len(cut(engine, contexts, edit)) > 1)


def _side_by_side(engine: Engine, edit: Edit, one: Callable[[list[int]], T], parts: Sequence[list[int]]) -> list[T]:
    """What `one` gives for each part, in order."""
    threads, lanes = torch.get_num_threads(), lanes_of(engine.model)

    def alone(rows: list[int]) -> T:
        torch.set_num_threads(1)
        return one(rows)

    with engine.carrying(edit):
        running = [_pool(lanes).submit(alone, rows) for rows in parts]
        try:
            return [part.result() for part in running]
        finally:
            for part in running:
                part.cancel()
            wait(running)  # the hooks stay in place as long as anybody runs through them
            torch.set_num_threads(threads)  # one library underneath has one number for all threads


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that are kept: each new one would have memory of its own to fill."""
    return ThreadPoolExecutor(threads, "leadline-parts")
