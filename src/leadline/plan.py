"""From a spec to batches: what is run, in which order, with how many rows and steps, and what it will cost.

Pure: the same spec gives the same plan, and nothing here looks at what is already done. Batches whose rows depend on
earlier results (bisection) get their rows from `rounds`, a pure function of those results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leadline.estimators.lower import PAIRS
from leadline.estimators.message import TRIED
from leadline.refit import MOST_DIMENSIONS, ROUNDS
from leadline.scoring import needed
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
    "default": Budget(100, 100, 40, 8, 16, 2, 32, 64),
    "full": Budget(400, 600, 240, 12, 32, 4, 64, 64, 150, 5, 8, 300),
}


@dataclass(frozen=True)
class TextBudget:
    """How long the search for a text runs at one scale.

    steps, candidates, top_k: of `token_search`
    contexts: training items that a candidate is scored on, the same ones throughout
    drawn:    proposals drawn from the model itself
    judged:   texts at most that are scored on validation items
    shown:    texts of demonstrations drawn for each seed and size
    """

    steps: int
    candidates: int
    top_k: int
    contexts: int
    drawn: int
    judged: int
    shown: int


TEXT_BUDGETS: dict[Scale, TextBudget] = {
    "ci": TextBudget(16, 24, 16, 8, 8, 16, 16),
    "default": TextBudget(32, 32, 64, 8, 16, 32, 32),
    "full": TextBudget(200, 128, 128, 16, 64, 128, 128),
}
WRITE_EMBEDDINGS = ("soft_prompt", "soft_subspace", "vocab_mixture")  # families whose rows share a batch
COUNTED_IN_DIMENSIONS = ("soft_subspace", "tinylora")  # families whose size is the dimension of their latent
FIRST_BETA = 0.01  # bits of loss a bit of KL: low enough that the behaviour is found before it is cheapened
WIDEN = 2.0  # factor between betas while the threshold is not bracketed
FRESH_TRIES = 2  # smaller first betas where none came near: a price so small is none, and what is missed is q's own
UNMOVED = 0.5  # bits of KL to the prior, or to the text's part of it, with which q is as good as that itself
END = 0.05  # of the KL at the threshold: where a curve ends
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


def restarts(spec: RunSpec, family: str) -> int:
    """Rows of one size of a family: around a text, each restart has two."""
    return spec.seeds * (2 if family in ANCHORED else 1)


def gradient_cells(spec: RunSpec, tasks: Sequence[str]) -> list[Cell]:
    """The size curve: every size and seed of the behaviour, and the smallest size of each control."""
    return [
        Cell(task, family, size, seed, None)
        for family in latent_families(spec)
        for task in tasks
        for size in (spec.sizes_of(family)[:1] if task else spec.sizes_of(family))
        for seed in range(restarts(spec, family))
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
    """One round of one curve. Larger betas, each warm-started from the one before, until the score falls below the
    threshold; where it was never reached smaller ones, which narrow a q that has the behaviour and start over where it
    lost it, and none any more where a few of them never came near. Then two betas that cut the bracket in three,
    warm-started from the cell below it, and once the threshold is bracketed a few beyond it."""
    if bracketed(seen, threshold):
        return _beyond(seen, threshold)
    low, high = bracket(seen, threshold)
    if low is None:
        if high is None:
            return []
        beta = high.cell.beta or FIRST_BETA
        if _is_near(high, threshold):
            return [_warm(high, beta / WIDEN)]
        betas = {point.cell.beta for point in seen}
        lost = len(betas) > FRESH_TRIES and not any(_is_near(point, threshold) for point in seen)
        return [] if lost else [_fresh(high.cell, beta / 8)]
    beta = low.cell.beta or FIRST_BETA
    if high is None:
        return [_warm(low, beta * WIDEN)]
    ratio = (high.cell.beta or beta) / beta
    if ratio < 1.01:  # nearer betas would only show the noise of the optimiser
        return _beyond(seen, threshold)
    return [_warm(low, beta * ratio ** (1 / 3)), _warm(low, beta * ratio ** (2 / 3))]


def _beyond(seen: Sequence[Seen], threshold: float) -> list[Cell]:
    """Larger betas still, as long as the score is near the threshold: a bound takes a q that hits at times, and the one
    that seldom hits is often the tightest (docs/measurement.md section 2, KL). Then, for the behaviour alone, in larger
    steps to where hardly a bit is left, so that the curve is seen to its end."""
    last = max(seen, key=lambda point: point.cell.beta or 0.0)
    beta, low = last.cell.beta or FIRST_BETA, bracket(seen, threshold)[0]
    if last.moved_bits < UNMOVED:
        return []
    if _is_near(last, threshold):
        return [_warm(last, beta * WIDEN)]
    if not last.cell.task and low is not None and last.moved_bits > END * low.moved_bits:
        return [_warm(last, beta * 4 * WIDEN)]
    return []


def _is_near(point: Seen, threshold: float) -> bool:
    """Whether a cell is worth drawing from: its score may be NEAR below the threshold, and half of it at least."""
    return point.score >= max(threshold - NEAR, threshold / 2)


def candidates(seen: Sequence[Seen], threshold: float) -> list[Cell]:
    """The cells of one curve worth drawing from on validation items, cheapest first: of all that come near the
    threshold, from the one with the smallest KL up to the one that `bracket` calls reached (else the highest score),
    a few at even steps. Where items hang together a q that hits a draw in ten is the tightest; where they do not, only
    one that reaches the threshold hits at all. Which it is, the draws tell."""
    near = [s for s in seen if _is_near(s, threshold)]
    if not near:
        return []
    low = bracket(best_restarts(seen), threshold)[0] or max(near, key=lambda s: (s.score, -s.kl_bits))
    order = [*sorted((s for s in near if s.kl_bits < low.kl_bits), key=lambda s: s.kl_bits), low]
    last = len(order) - 1
    places = {round(last * step / (CANDIDATES - 1)) for step in range(CANDIDATES)}
    return [order[place].cell for place in sorted(places)]


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
    """Cells in batches that fit into one forward and backward pass, near-equal in size, in order. Those of one batch
    have edits of one kind: soft prompts of any size, else one family and size."""
    kinds: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(("", 0) if cell.family in WRITE_EMBEDDINGS else (cell.family, cell.size), []).append(cell)
    most = max(1, budget.sequences // budget.contexts)
    found = []
    for alike in kinds.values():
        size = math.ceil(len(alike) / math.ceil(len(alike) / most))
        found += [alike[start : start + size] for start in range(0, len(alike), size)]
    return found


@dataclass(frozen=True)
class Line:
    """One line of the printed plan. passes: sequences with a backward pass; scored: sequences without."""

    what: str
    batches: int
    passes: int
    scored: int


def outline(spec: RunSpec, tasks: Sequence[str], exact: bool = True) -> list[Line]:
    """What the run will do; rounds and draws are counted at their most. exact: the behaviour is scored by exact match,
    so it has a threshold to bracket and bounds to certify."""
    budget, items = BUDGETS[spec.scale], spec.items
    cells = gradient_cells(spec, tasks)
    curves = {cell.curve for cell in cells}
    own = [curve for curve in curves if not curve[0]]
    doomed = items - needed(spec.threshold, items) + 1  # a draw that never hits is dropped after so many items
    rounds = budget.rounds if exact else min(LOSS_BETAS - 1, budget.rounds)
    later = len(curves) * (max(0, 2 * rounds - 1) if exact else rounds)  # one cell a curve while it widens, then two
    a_step = len(cells) * budget.contexts
    count = math.ceil(a_step / budget.sequences)
    point = items * budget.curve_draws
    compared, certified = CANDIDATES * budget.choice_draws * items // 2, spec.draws * items * 3 // 4
    training = [
        Line("size 0 and direct cost", 1, 0, 2 * items * len(tasks)),
        Line("size curve (gradient)", count, a_step * budget.gradient_steps, 3 * items * len(cells)),
        Line("rate-distortion curve, first beta", count, a_step * budget.first_steps, point * len(cells)),
        Line(f"at most {rounds} more rounds", rounds * math.ceil(2 * len(curves) * budget.contexts / budget.sequences),
             later * budget.contexts * budget.round_steps, point * later),
    ]  # fmt: skip
    small = [c for c in curves if c[1] in COUNTED_IN_DIMENSIONS and c[2] <= MOST_DIMENSIONS]
    blind = len(own) * spec.prior_draws * (doomed + PAIRS)
    # a text is written for each draw of a mixture
    blind += sum(curve[1] in ANCHORED for curve in own) * spec.prior_draws * (1 + PAIRS)
    certifying = [
        *([Line(f"{ROUNDS} rounds of refits", len(small), 0, len(small) * ROUNDS * certified)] if small else []),
        Line("choice on validation items", len(curves), 0, len(curves) * compared),
        Line(f"certified upper bounds, {spec.draws} draws", len(curves), 0, len(curves) * certified),
        Line("solutions as messages", len(curves), 0, len(curves) * (2 * len(TRIED) + 1) * items),
        Line(f"certified lower bound, {spec.prior_draws} draws", len(own), 0, blind),
    ]  # fmt: skip
    texts = [line for family in spec.family if family in TEXTS for line in _texts(spec, family, len(tasks), exact)]
    return [*_anchors(spec, len(tasks)), *training, *([*certifying, *_splitting(spec)] if exact else []), *texts]


def _anchors(spec: RunSpec, tasks: int) -> list[Line]:
    """The searches for the texts that restarts stand around. One of two is that of `text_prompt` of the same size."""
    found = []
    for family in spec.family:
        if family in ANCHORED:
            budget, curves = TEXT_BUDGETS[spec.scale], len(spec.sizes_of(family)) + tasks - 1
            searches = curves * restarts(spec, family)
            tried = budget.contexts * (budget.drawn + budget.steps * budget.candidates)
            passes = searches * budget.steps * budget.contexts
            found.append(Line("search for texts to stand around", searches, passes, searches * tried))
    return found


def _splitting(spec: RunSpec) -> list[Line]:
    """The particles' line: the pilot, and runs of as many levels, each of which moves every particle. A particle is
    dropped where it cannot stay above its level, so this is far more than most take."""
    budget = BUDGETS[spec.scale]
    if "soft_subspace" not in spec.family or not budget.particles:
        return []
    runs = len(spec.sizes_of("soft_subspace")) * (budget.runs + 1)
    a_run = budget.particles * (1 + budget.moves * (budget.most_levels - 1))
    return [Line(f"splitting, at most {budget.most_levels} levels", runs, 0, runs * a_run * spec.items)]


def _texts(spec: RunSpec, family: str, tasks: int, exact: bool) -> list[Line]:
    """One family of texts: how its texts are found, those that hold on other items, and draws of the prior. A text of k
    demonstrations counts as k contexts beside the one that it stands in; any other as no more than its context."""
    budget, items, sizes = TEXT_BUDGETS[spec.scale], spec.items, spec.sizes_of(family)
    few, edits = family == "few_shot", family == "prompt_edits"
    found = budget.shown if few else budget.judged
    # Validation items, and the nearest on some training items; once per curve the best on test items; of those that
    # hold on validation items all on test items, and the behaviour's that hold there too on the confirmation's.
    a_seed = (
        (found if exact else 0) * items
        + 2 * items
        + budget.contexts * (budget.shown if few else budget.drawn + budget.steps * budget.candidates)
    )
    tested = found * items if exact else 0
    curves = [*((size, True) for size in sizes), *((size, False) for size in sizes[:1] for _ in range(tasks - 1))]
    searches, scored, passes = len(curves) * spec.seeds, 0, 0
    for size, own in curves:
        length = 1 + size if few else 1
        scored += length * (spec.seeds * (a_seed + (2 if own else 1) * tested) + items)
        passes += 0 if few else spec.seeds * budget.steps * budget.contexts
    what = "demonstrations" if few else "search for edits" if edits else "search for texts"
    lines = [Line(f"{what}, and what holds", searches, passes, scored + (2 * items * tasks if edits else 0))]
    if exact and not few and spec.prior_draws:
        doomed = items - needed(spec.threshold, items) + 1
        told = f"{'edits' if edits else 'texts'} drawn blindly, {spec.prior_draws}"
        lines.append(Line(told, len(sizes), 0, len(sizes) * spec.prior_draws * doomed))
    return lines
