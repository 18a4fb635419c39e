"""Rewarded behaviours: replies are written under an edit, a scorer gives each a reward, and solvers learn from it.

Where model, replies and scorer meet. A reward is all there is: no target, no margin, no cost in bits. It knows nothing
of how contexts are chosen, and cannot tell a reward that is earned from one that the scorer gives by mistake.

What a row draws is a function of its name and of the step, and of nothing else: each row is asked on its own, with a
generator of its own, so that neither a stop nor the other rows of a batch change its replies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, final

import torch
from torch import Tensor

from leadline.edits import Edit, no_edit
from leadline.engine import Context, Engine
from leadline.interventions.base import edit as written_by
from leadline.objective import CHUNK_ROWS
from leadline.priors import generator
from leadline.scorers import Scored, Scorer, scored
from leadline.solvers.base import Loss, Row
from leadline.solvers.reward import Rewards, penalised, rloo_loss
from leadline.spec import UserError


class Asked(Protocol):
    """What a reply answers: as text for the scorer, as tokens for the engine, whose target is not looked at."""

    @property
    def prompt(self) -> str: ...

    @property
    def context(self) -> Context: ...


@final
@dataclass(frozen=True)
class Judged:
    """How replies are judged: by whom, the least score of a hit, and the most tokens that a reply takes."""

    scorer: Scorer
    cut: float
    tokens: int

    def margin(self, score: float | None) -> float:
        """The score less the cut, above 0 for a hit: downstream a hit is a positive margin, and a score at the cut is
        one. -1 without a score, which is no hit (docs/measurement.md section 2)."""
        if score is None:
            return -1.0
        return max(score - self.cut, LEAST_MARGIN) if score >= self.cut else score - self.cut


LEAST_MARGIN = 1e-6
SAMPLES = 4  # replies drawn for each context of a step: each is compared with the mean of the others

Ask = Callable[[int, int], Sequence[Asked]]
"""(row, step) -> what is asked, one for each draw of the row."""


def base_rate(
    engine: Engine, items: Sequence[Asked], scorer: Scorer, tokens: int, cut: float = 0.5,
    draws: torch.Generator | None = None,
) -> Scored:  # fmt: skip
    """Size 0: the scores of the untouched model's replies, one an item. Exact for these items where decoding is greedy.

    tokens: the most that a reply takes;  cut: the least score of a hit
    draws:  replies are drawn at temperature 1 from it; without it they are greedy

    Raises ValueError for no items, and for a score that is not between 0 and 1.
    """
    nothing = _nothing(engine, len(items))
    return _scored(engine, items, _replies(engine, items, nothing, tokens, draws), scorer, cut)


def replies_of(
    engine: Engine, items: Sequence[Asked], edit: Edit, tokens: int, draws: torch.Generator | None = None
) -> list[str]:
    """The replies to items in words, each under its own row of the edit; greedy, or drawn at temperature 1."""
    return _texts(engine, _replies(engine, items, edit, tokens, draws))


def margins(engine: Engine, items: Sequence[Asked], edit: Edit, judged: Judged) -> Tensor:
    """(items,) margins of the greedy replies to items, each under its own row of the edit. Raises ValueError for a
    score that is not between 0 and 1."""
    found = _scored(engine, items, _replies(engine, items, edit, judged.tokens, None), judged.scorer, judged.cut)
    return torch.tensor([judged.margin(score) for score in found.scores], device=engine.model.device)


def rloo(
    engine: Engine, rows: Sequence[Row], ask: Ask, scorer: Scorer, tokens: int, samples: int, price: float = 0.0
) -> Loss:
    """The loss of REINFORCE with leave-one-out baselines, for the rows of one training batch: `samples` replies are
    drawn at temperature 1 for each context, and their probabilities computed again with gradient.

    tokens: the most that a reply takes; one that is cut there counts with the probability of the tokens it has
    price:  reward that a bit of divergence from the untouched model costs (`solvers.reward.penalised`)

    A row whose logits are no longer finite has a loss that is not either. Raises ValueError for fewer than two samples,
    which have no baseline, and for a score that is not between 0 and 1.
    """
    if samples < 2:
        raise ValueError(f"{samples} sample a context has no other to be compared with")

    def row_loss(index: int, step: int, latents: Tensor) -> Tensor:
        asked = [item for item in ask(index, step) for _ in range(samples)]
        conditions = [item.context.conditions for item in asked]
        written = written_by([rows[index].intervention], [latents.repeat_interleave(samples, 0)], conditions)
        try:
            replies = _replies(engine, asked, written, tokens, generator("reply", rows[index].name, step))
        except UserError:  # nothing can be drawn from logits that are not finite: an outcome of this row
            return latents.sum() * math.nan
        rewards = _tensor(_scored(engine, asked, replies, scorer), latents)
        said = [replace(item.context, target=reply) for item, reply in zip(asked, replies, strict=True)]
        log_probs = -engine.target_logits(said, written).nats()
        if price:
            with torch.no_grad():
                base = -engine.target_logits(said, _nothing(engine, len(said))).nats()
            rewards = penalised(rewards, log_probs, base, price)
        return rloo_loss(rewards.view(-1, samples), log_probs.view(-1, samples))

    def loss(step: int, latents: list[Tensor]) -> Tensor:
        return torch.stack([row_loss(index, step, drawn) for index, drawn in enumerate(latents)])

    return loss


def greedy_rewards(engine: Engine, rows: Sequence[Row], ask: Ask, scorer: Scorer, tokens: int) -> Rewards:
    """The rewards that `solvers.reward.evolution` learns from: of one greedy reply a draw, which is what the score of a
    behaviour is made of. Draws that mirror each other are asked the same, the first half of what `ask` gives."""

    @torch.no_grad()
    def rewards(index: int, step: int, latents: Tensor) -> Tensor:
        half = list(ask(index, step))[: len(latents) // 2]
        written = written_by([rows[index].intervention], [latents], [item.context.conditions for item in half * 2])
        return _tensor(_scored(engine, half * 2, _replies(engine, half * 2, written, tokens, None), scorer), latents)

    return rewards


def _replies(
    engine: Engine, items: Sequence[Asked], edit: Edit, tokens: int, draws: torch.Generator | None
) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for start in range(0, len(items), CHUNK_ROWS):
        part = [item.context for item in items[start : start + CHUNK_ROWS]]
        change = edit.select(range(start, start + len(part)))
        found += engine.sample(part, change, tokens, draws) if draws else engine.generate(part, change, tokens)
    return found


def _scored(
    engine: Engine, items: Sequence[Asked], replies: Sequence[tuple[int, ...]], scorer: Scorer, cut: float = 0.5
) -> Scored:
    return scored([item.prompt for item in items], _texts(engine, replies), scorer, cut)


def _texts(engine: Engine, replies: Sequence[tuple[int, ...]]) -> list[str]:
    return [engine.model.tokenizer.decode(list(reply), skip_special_tokens=True) for reply in replies]


def _tensor(found: Scored, like: Tensor) -> Tensor:
    """(replies,) scores, NaN where there is none."""
    values = [math.nan if score is None else score for score in found.scores]
    return torch.tensor(values, device=like.device)


def _nothing(engine: Engine, rows: int) -> Edit:
    model = engine.model
    return no_edit(rows, model.hidden_size, model.network.dtype, model.device)
