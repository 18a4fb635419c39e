"""From a spec to batches: what is run, in which order, with how many rows and steps.

Pure: the same spec gives the same plan, and nothing here looks at what is already done. Batches whose rows depend on
earlier results (bisection) get their rows from `next_cells`, a pure function of those results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from leadline.spec import ANCHORED, TEXTS, RunSpec, Scale


@dataclass(frozen=True)
class Budget:
    """How long solvers run at one scale.

    gradient_steps: optimiser steps of the size curve
    first_steps:    of the first beta, from what the size curve found
    round_steps:    of every later beta, warm-started from its neighbour
    rounds:         rounds of the rate-distortion curve after the first beta, at most
    contexts:       contexts a row sees in a step, each with its own draw of q
    curve_draws:    draws of q for each validation item of a curve point
    choice_draws:   draws of q with which cells near the threshold are compared on validation items
    sequences:      sequences in one forward and backward pass at most
    particles, moves, runs, most_levels: of splitting in subspaces; no particles: none of it
    """

    gradient_steps: int
    first_steps: int
    round_steps: int
    rounds: int
    contexts: int
    curve_draws: int
    choice_draws: int
    sequences: int
    particles: int = 0
    moves: int = 0
    runs: int = 0
    most_levels: int = 0


BUDGETS: dict[Scale, Budget] = {
    "ci": Budget(120, 150, 40, 6, 8, 2, 16, 512, 40, 2, 4, 40),
    "default": Budget(100, 100, 40, 8, 8, 2, 32, 64),
    "full": Budget(400, 600, 240, 12, 32, 4, 64, 64, 150, 5, 8, 300),
}


@dataclass(frozen=True)
class TextBudget:
    """How long the search for a text runs at one scale.

    steps, candidates, top_k, passed: of `token_search`
    contexts: training items that a candidate is scored on, the same ones throughout;  screening: how many of these it
              is screened on
    drawn:    proposals drawn from the model itself
    judged:   texts at most that are scored on validation items
    shown:    texts of demonstrations drawn for each seed and size
    """

    steps: int
    candidates: int
    top_k: int
    passed: int
    contexts: int
    screening: int
    drawn: int
    judged: int
    shown: int

    @property
    def scored(self) -> int:
        """Sequences of contexts that a search scores without gradients, at most, proposals beyond `drawn` aside."""
        return self.contexts * (self.drawn + self.steps * self.passed) + self.steps * self.screening * self.candidates


TEXT_BUDGETS: dict[Scale, TextBudget] = {
    "ci": TextBudget(24, 24, 16, 6, 8, 2, 8, 16, 16),
    "default": TextBudget(64, 64, 64, 4, 16, 2, 16, 64, 32),
    "full": TextBudget(400, 128, 128, 8, 32, 2, 64, 128, 128),
}
WRITE_EMBEDDINGS = ("soft_prompt", "soft_subspace", "vocab_mixture", "soft_edits")  # families whose rows share a batch
COUNTED_IN_DIMENSIONS = ("soft_subspace", "tinylora")  # families whose size is the dimension of their latent
FIRST_BETA = 0.01  # bits of loss a bit of KL: low enough that the behaviour is found before it is cheapened
WIDEN = 2.0  # factor between betas while the threshold is not bracketed
FINE = 1.06  # betas nearer than this differ by the optimiser's noise: even KL as 1 / beta would be within 5%
COARSE = 1.2  # the same where the score falls below what is near: bounds need no finer one
FRESH_TRIES = 2  # smaller first betas where none came near: a price so small is none, and what is missed is q's own
UNMOVED = 0.5  # bits of KL to the prior, or to the text's part of it, with which q is as good as that itself
END = 0.1  # of the KL at the threshold: where a curve ends
FIRST_REWARD_BETA = 0.002  # the same in reward a bit of KL: all reward there is buys 500 bits
LOSS_BETAS = 4  # betas of a curve that has no threshold, at most
NEAR = 0.4  # cells whose validation score is farther below the threshold are not worth drawing from
CANDIDATES = 4  # cells of one curve that are compared by draws on validation items, at most


@dataclass(frozen=True)
class Cell:
    """What one row of a training batch is asked for.

    task: "" for the behaviour, else the control's name
    beta: None for the gradient solver;  first_beta: where beta starts, to rise to `beta` during the batch
    parent: label of the cell that it goes on from, "" for none
    refit: made from its parent's draws (`refit_stage`) and not trained
    """

    task: str
    family: str
    size: int
    seed: int
    beta: float | None
    first_beta: float | None = None
    parent: str = ""
    refit: bool = False

    @property
    def label(self) -> str:
        """Says all that tells cells of one run apart."""
        beta = "gradient" if self.beta is None else f"beta {self.beta:.6g}"
        return f"{self.task or 'behaviour'} {self.family} {self.size} seed {self.seed} {beta}{' refit' * self.refit}"

    @property
    def part(self) -> tuple[str | int, ...]:
        """What its intervention depends on: family and size, and the restart where each has its own."""
        named = (self.family, self.size)
        return (*named, self.task, self.seed) if self.family in ANCHORED else named

    @property
    def curve(self) -> tuple[str, str, int]:
        """The rate-distortion curve it belongs to: task, family, size."""
        return self.task, self.family, self.size


def latent_families(spec: RunSpec) -> list[str]:
    """Families with a Gaussian prior over latents; texts have stages of their own (`text_stage`)."""
    return [family for family in spec.family if family not in TEXTS]


def gradient_cells(spec: RunSpec, tasks: Sequence[str]) -> list[Cell]:
    """The size curve: every size and seed of the behaviour, and the smallest size of each control."""
    return [
        Cell(task, family, size, seed, None)
        for family in latent_families(spec)
        for task in tasks
        for size in (spec.sizes_of(family)[:1] if task else spec.sizes_of(family))
        for seed in range(spec.seeds)
    ]


def first_cells(spec: RunSpec, tasks: Sequence[str], beta: float = FIRST_BETA) -> list[Cell]:
    """The first beta of every rate-distortion curve."""
    return [_fresh(cell, beta) for cell in gradient_cells(spec, tasks)]


@dataclass(frozen=True)
class Seen:
    """What bisection looks at: a finished cell, its validation score and its KL in bits, and how much of that is the
    price of the text it stands around, which no beta lowers."""

    cell: Cell
    score: float
    kl_bits: float
    component_bits: float = 0.0

    @property
    def moved_bits(self) -> float:
        """What beta has a say in."""
        return self.kl_bits - self.component_bits


def best_restart(points: Sequence[Mapping[str, Any]]) -> int:
    """Which of a size's restarts is reported: the highest score on validation items, then the lowest loss there. A loss
    that is no number comes last."""

    def rank(point: Mapping[str, Any]) -> tuple[float, float]:
        loss = point["loss_bits"]
        return -(point["score"] or 0.0), loss if loss == loss else math.inf

    return min(range(len(points)), key=lambda index: rank(points[index]))


def best_restarts(seen: Sequence[Seen]) -> list[Seen]:
    """One point a beta: the restart with the highest score, then the smallest KL."""
    best: dict[float, Seen] = {}
    for point in seen:
        beta = point.cell.beta or 0.0
        if beta not in best or (-point.score, point.kl_bits) < (-best[beta].score, best[beta].kl_bits):
            best[beta] = point
    return list(best.values())


def bracket(seen: Sequence[Seen], threshold: float) -> tuple[Seen | None, Seen | None]:
    """Of one curve: the neighbours in beta between which the score falls below the threshold, seen from large beta.

    The second is None where no beta is that large, the first where none is that small.
    """
    order = sorted(seen, key=lambda point: point.cell.beta or 0.0)
    reached = [index for index, point in enumerate(order) if point.score >= threshold]
    if not reached:
        return None, order[0]
    last = reached[-1]
    return order[last], order[last + 1] if last + 1 < len(order) else None


def bracketed(seen: Sequence[Seen], threshold: float, tolerance: float = 0.05) -> bool:
    """The threshold lies between two cells whose KL differ by at most 5%, or is reached where q hardly moved."""
    low, high = bracket(seen, threshold)
    if low is not None and low.moved_bits < UNMOVED:
        return True
    return low is not None and high is not None and abs(low.kl_bits - high.kl_bits) <= tolerance * low.kl_bits


def next_cells(seen: Sequence[Seen], threshold: float) -> list[Cell]:
    """One round of one curve. Larger betas, each warm-started from the one before, while the score is near the
    threshold; where it was never reached smaller ones, which narrow a q that has the behaviour and start over where it
    lost it, and none any more where a few of them never came near. Beside that two edges are bisected, each by a cell
    that is warm-started from the one below it: where the score falls below the threshold, and where it falls below what
    is near. The first is what a curve is asked for; the second is where bounds are tightest, since a bound takes a q
    that hits at times (docs/measurement.md section 2, KL). Last, for the behaviour alone, larger steps to where hardly
    a bit is left, so that the curve is seen to its end."""
    low, high = bracket(seen, threshold)
    last = max(seen, key=lambda point: point.cell.beta or 0.0)
    beta, found = last.cell.beta or FIRST_BETA, list[Cell]()
    if low is None and high is not None:
        found += _smaller(seen, high, threshold)
    if last.moved_bits >= UNMOVED and _is_near(last, threshold):
        found.append(_warm(last, beta * WIDEN))
    found += _cut(seen, threshold, FINE) if not bracketed(seen, threshold) else []
    found += _cut(seen, near_score(threshold), COARSE)
    end = max(UNMOVED, END * low.moved_bits) if low is not None else math.inf
    if not found and not last.cell.task and last.moved_bits > end:
        found.append(_warm(last, beta * 4 * WIDEN))
    return list(dict.fromkeys(found))


def _smaller(seen: Sequence[Seen], least: Seen, threshold: float) -> list[Cell]:
    """The smaller beta that follows where none reached the threshold; least: the smallest of them."""
    beta = least.cell.beta or FIRST_BETA
    if _is_near(least, threshold):
        return [_warm(least, beta / WIDEN)]
    lost = len({point.cell.beta for point in seen}) > FRESH_TRIES and not any(_is_near(s, threshold) for s in seen)
    return [] if lost else [_fresh(least.cell, beta / 8)]


def _cut(seen: Sequence[Seen], score: float, ratio: float) -> list[Cell]:
    """The beta half-way, in logarithms, between the neighbours where a score is lost, unless they are within `ratio`
    already: what they differ by then is the noise of the optimiser."""
    low, high = bracket(seen, score)
    if low is None or high is None:
        return []
    begin, end = low.cell.beta or FIRST_BETA, high.cell.beta or FIRST_BETA
    return [_warm(low, math.sqrt(begin * end))] if end > ratio * begin else []


def near_score(threshold: float) -> float:
    """The score from which on a cell is worth drawing from: NEAR below the threshold, and half of it at least."""
    return max(threshold - NEAR, threshold / 2)


def _is_near(point: Seen, threshold: float) -> bool:
    return point.score >= near_score(threshold)


def candidates(seen: Sequence[Seen], threshold: float) -> list[Seen]:
    """The cells of one curve worth drawing from on validation items: of all that come near the threshold the few with
    the smallest KL, the smallest first, and last the one that `bracket` calls reached (else the highest score). Where
    items hang together a q that hits a draw in ten is the tightest; where they do not, only one that reaches the
    threshold hits at all. Which it is, the draws tell."""
    near = [s for s in seen if _is_near(s, threshold)]
    if not near:
        return []
    low = bracket(best_restarts(seen), threshold)[0] or max(near, key=lambda s: (s.score, -s.kl_bits))
    order = [*sorted((s for s in near if s.kl_bits < low.kl_bits), key=lambda s: s.kl_bits), low]
    return [*order[: CANDIDATES - 1], *order[CANDIDATES - 1 :][-1:]]


def loss_cells(seen: Sequence[Seen], rounds: int) -> list[Cell]:
    """One round of a curve without a threshold: the next larger beta, so many times."""
    last = max(seen, key=lambda point: point.cell.beta or 0.0)
    return [_warm(last, (last.cell.beta or FIRST_BETA) * 4 * WIDEN)] if len(seen) < min(LOSS_BETAS, rounds + 1) else []


def _fresh(cell: Cell, beta: float) -> Cell:
    """Starts where the size curve's restart of the same seed ended: what it found need not be found again. Around a
    text q starts as the prior there, which is nearer than any point."""
    found = Cell(cell.task, cell.family, cell.size, cell.seed, None)
    parent = "" if cell.family in ANCHORED else found.label
    return Cell(cell.task, cell.family, cell.size, cell.seed, beta, beta / WIDEN, parent)


def _warm(point: Seen, beta: float) -> Cell:
    cell = point.cell
    return Cell(cell.task, cell.family, cell.size, cell.seed, beta, cell.beta, cell.label)


def batches(cells: Sequence[Cell], budget: Budget) -> list[list[Cell]]:
    """Cells in batches that fit into one forward and backward pass, in order. Those of one batch have edits of one
    kind: soft prompts of any size, else one family and size. Batches of one kind differ by at most one in size."""
    kinds: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(("", 0) if cell.family in WRITE_EMBEDDINGS else (cell.family, cell.size), []).append(cell)
    most = max(1, budget.sequences // budget.contexts)
    found = []
    for alike in kinds.values():
        count = math.ceil(len(alike) / most)
        ends = [len(alike) * number // count for number in range(count + 1)]
        found += [alike[start:stop] for start, stop in pairwise(ends)]
    return found
