"""Scoring latents on items: curve points, and which draws belong to S. Forward passes only.

A draw is dropped as soon as it has missed too many items to reach the threshold: membership of S is then settled, and
what was not computed is NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from leadline.edits import no_edit
from leadline.engine import Context
from leadline.interventions.base import Writes, edit
from leadline.objective import CHUNK_ROWS, Objective
from leadline.scoring import hits, level, needed


def score_null(objective: Objective, contexts: Sequence[Context]) -> tuple[Tensor, Tensor]:
    """(items,) bits and (items,) margins with nothing in the slot."""
    model = objective.engine.model
    return objective.evaluate(contexts, no_edit(len(contexts), model.hidden_size, model.network.dtype, model.device))


def score_latents(
    objective: Objective, contexts: Sequence[Context], intervention: Writes, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """(items,) bits and (items,) margins, item i under its own latent: latents is (items, *shape)."""
    conditions = [context.conditions for context in contexts]
    with torch.no_grad():
        return objective.evaluate(contexts, edit([intervention], [latents], conditions))


def score_draws(
    objective: Objective,
    contexts: Sequence[Context],
    intervention: Writes,
    latents: Tensor,
    threshold: float,
    margins: Tensor | None = None,
    after_item: Callable[[Tensor], None] = lambda margins: None,
    floor: float = 0.0,
) -> Tensor:
    """(draws, items) margins of every draw on every item, NaN where a draw was dropped before.

    latents: (draws, *shape);  margins: what an earlier, interrupted call had got to;  after_item: called with the
    margins so far, to save and to report;  floor: a draw is dropped once its level cannot exceed it
    """
    draws, items = len(latents), len(contexts)
    if margins is None:
        margins = torch.full((draws, items), float("nan"))
    most_misses = items - needed(threshold, items)
    item = int((~margins.isnan()).any(0).sum())
    while item < items:
        misses = (~(margins > floor) & ~margins.isnan()).sum(1)
        alive = (misses <= most_misses).nonzero()[:, 0]
        if not len(alive):
            break
        # Few draws left: take several items at once, so that the batch stays worth its overhead.
        upto = min(items, item + max(1, CHUNK_ROWS // len(alive)))
        rows = [contexts[column] for _ in range(len(alive)) for column in range(item, upto)]
        _, found = score_latents(objective, rows, intervention, latents[alive].repeat_interleave(upto - item, 0))
        # A margin that is no number is a miss that was scored; NaN here means: not scored.
        found = found.view(len(alive), upto - item).nan_to_num(nan=float("-inf"))
        margins[alive, item:upto] = found.cpu()
        item = upto
        after_item(margins)
    return margins


def in_s(margins: Tensor, threshold: float) -> Tensor:
    """(draws,) True where a draw reaches the threshold; `margins` as `score_draws` returns them."""
    return level(margins, threshold) > 0


def first_item_hits(margins: Tensor, threshold: float) -> tuple[int, int]:
    """Hits and trials among the items that every draw was scored on whatever it had missed: an unbiased rate."""
    always = margins[:, : margins.shape[1] - needed(threshold, margins.shape[1]) + 1]
    scored = ~always.isnan()
    return int((hits(always) & scored).sum()), int(scored.sum())
