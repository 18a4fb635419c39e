"""K7 through `measure`: labels that have nothing to do with their contexts, and what a run says of them in each family.

A null is a behaviour of its own: 56 syllables, each with one of eight one-letter replies, every letter seven times, in
an order drawn from the null's number. It is measured as any behaviour is: restarts and cells chosen on validation
items, bounds from fresh draws on test items, blind draws, texts, the size and the family chosen by `Result`.

A family *reports* a null if any of three things is so, which is more than a run would ever print as a finding:
- a bound: an upper bound of any estimator at any size lies below GUESSING_BITS, what right replies by guessing cost;
- reached: the chosen cell of some size has a score of tau or more on test items;
- better than chance: of its sizes the one that is best on validation items has a test score that guessing reaches with
  a probability of 5% at most (one-sided binomial at 1/8, one test for each null and family).
The null as a whole is reported if its family that is best on validation items is better than chance, or any family has
a bound or a reached cell. A bound near the luck ceiling, above GUESSING_BITS, is no discovery.

Over random labels any one intervention is right by guessing, so the mean of pi(S) over nulls is about
2^-GUESSING_BITS (labels are dealt without replacement), and D lies k bits below it for a share of about 2^-k at most.

It does not know whether a family could have found anything: `learnt` says whether the same cells reach tau on their own
training items, without which silence proves nothing. Sizes and budgets are cut so that a null takes seconds.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import scipy.stats  # type: ignore[import-untyped]

from leadline import plan, spec
from leadline.behaviour import Behaviour, Reply
from leadline.information import surprisal
from leadline.measurement import measure
from leadline.model import FrozenModel, load
from leadline.organisms.base import stored
from leadline.organisms.tiny import TinyRecipe, trained
from leadline.plan import Budget, TextBudget, best_restart
from leadline.result import Result
from leadline.scoring import needed
from leadline.spec import SIZELESS

LABELS, ITEMS, TAU = "ABCDEFGH", 16, 0.9
CHANCE = 1 / len(LABELS)
GUESSING_BITS = surprisal(float(scipy.stats.binom.sf(needed(TAU, ITEMS) - 1, ITEMS, CHANCE)))
RECIPE = TinyRecipe(steps=500, width=48, layers=2, inner=96)
"""organism:tiny made small: a step takes milliseconds."""
SIZES = {
    "soft_prompt": (4, 32), "soft_subspace": (16, 48), "vocab_mixture": (8,), "steering": (1,), "prefix": (8,),
    "lora": (4,), "tinylora": (16, 256), "text_prompt": (8,), "few_shot": (2, 6),
}  # fmt: skip
BUDGET = Budget(240, 40, 20, 1, 8, 1, 8, 512, 16, 1, 2, 12)
TEXT_BUDGET = TextBudget(8, 12, 16, 6, 8, 2, 8, 8, 8)


@dataclass(frozen=True)
class Verdict:
    """What a run says of one null in one family, or of the null as a whole (family "").

    learnt:  some size reaches tau on its own training items
    bound:   a certified upper bound below GUESSING_BITS
    reached: a chosen cell reaches tau on test items
    better:  better than chance on test items, at the size that is best on validation items
    """

    family: str
    learnt: bool
    bound: bool
    reached: bool
    better: bool

    @property
    def reported(self) -> bool:
        return self.bound or self.reached or self.better


def small_model() -> FrozenModel:
    """The model that nulls are measured on; trained once, in some seconds."""
    return load(str(stored(trained(recipe=RECIPE))), "float32,eager,1")


def null(number: int) -> Behaviour:
    """The null of this number."""
    syllables = [a + b + c for a in "bdgk" for b in "aeio" for c in "lmnr"][: 3 * ITEMS + len(LABELS)]
    labels = list(LABELS) * (len(syllables) // len(LABELS))
    random.Random(number).shuffle(labels)
    return Behaviour(name=f"null-{number}", contexts=tuple(syllables), reply=Reply(texts=tuple(labels)))


@contextmanager
def small_budgets(steps: int = BUDGET.gradient_steps) -> Iterator[None]:
    """Within the block `--scale ci` and the default sizes are those of this file. steps: of the size curve"""
    budget = replace(BUDGET, gradient_steps=steps)
    tables: tuple[tuple[Any, dict[Any, Any]], ...] = (
        (spec.DEFAULT_SIZES, SIZES), (plan.BUDGETS, {"ci": budget}), (plan.TEXT_BUDGETS, {"ci": TEXT_BUDGET}),
    )  # fmt: skip
    with ExitStack() as stack:
        for table, changed in tables:
            stack.enter_context(mock.patch.dict(table, changed))
        yield


def measured(
    model: FrozenModel, behaviour: Behaviour, family: str = "all", steps: int = BUDGET.gradient_steps
) -> list[Verdict]:
    """The verdicts on a behaviour with such labels, a family each, and the one on the whole of it at the end. steps: of
    the size curve; families that need more than a test can wait for learn nothing by heart, and their silence proves
    nothing"""
    with tempfile.TemporaryDirectory() as folder, small_budgets(steps):
        result = measure(
            model, behaviour, Path(folder) / "run", family=family, controls=0, items=ITEMS, threshold=TAU, draws=64,
            prior_draws=64, scale="ci",
        )  # fmt: skip
        return verdicts(result)


def verdicts(result: Result) -> list[Verdict]:
    """As `measured`, of a run that is there."""
    points = result.points.filter(~pl.col("family").is_in(SIZELESS))
    found, best = [], []
    for family in result.curves:
        own = points.filter(pl.col("family") == family)
        cells = own.filter(pl.col("estimator") == "", pl.col("beta").is_null())
        bounds = own.filter(pl.col("upper_bits").is_not_null())["upper_bits"].to_list()
        chosen = cells.filter(pl.col("chosen"))
        tested = _by_size(chosen, "test")
        sizes = _by_size(chosen, "validation")
        here = sizes[best_restart(sizes)]
        mine = next(row for row in tested if row["size"] == here["size"])
        best.append((here, mine))
        learnt = any(row["score"] >= TAU for row in cells.filter(pl.col("split") == "train").to_dicts())
        reached = any(row["score"] >= TAU for row in tested)
        bound = any(bits < GUESSING_BITS for bits in bounds)
        found.append(Verdict(family, learnt, bound, reached, better_than_chance(mine["score"])))
    _, mine = best[best_restart([here for here, _ in best])]
    whole = [any(getattr(one, name) for one in found) for name in ("learnt", "bound", "reached")]
    # the run's own number for all families together: no bound of it may lie below what guessing costs either
    frontier = result.cheapest().upper
    whole[1] |= frontier is not None and frontier.value < GUESSING_BITS
    return [*found, Verdict("", whole[0], whole[1], whole[2], better_than_chance(mine["score"]))]


def better_than_chance(score: float) -> bool:
    """Guessing gets as many test items right with a probability of 5% at most."""
    return bool(scipy.stats.binom.sf(round(score * ITEMS) - 1, ITEMS, CHANCE) <= 0.05)


def _by_size(points: pl.DataFrame, split: str) -> Sequence[dict[str, Any]]:
    return points.filter(pl.col("split") == split).sort("size").to_dicts()
