"""What a plan will do, line by line, with rounds and draws counted at their most: batches, sequences with a backward
pass and without; and what lines and families take at given rates. Pure, as the plan is; `costs` times the rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leadline.estimators.code import PRICES
from leadline.estimators.lower import PAIRS
from leadline.estimators.message import TRIED
from leadline.plan import (
    BUDGETS,
    CANDIDATES,
    COUNTED_IN_DIMENSIONS,
    LOSS_BETAS,
    TEXT_BUDGETS,
    batches,
    gradient_cells,
)
from leadline.refit import MOST_DIMENSIONS, ROUNDS
from leadline.scoring import needed
from leadline.solvers.variational import AIM_PASSES
from leadline.spec import ANCHORED, TEXTS, WEIGHTS, RunSpec

Rates = Mapping[str, tuple[float, float]]  # of each family: seconds of a sequence with a backward pass and without


@dataclass(frozen=True)
class Line:
    """One line of the printed plan. passes: sequences with a backward pass; scored: sequences without."""

    what: str
    batches: int
    passes: int
    scored: int


def outline(spec: RunSpec, tasks: Sequence[str], exact: bool = True, aimed: bool = True) -> list[Line]:
    """What the run will do; rounds and draws are counted at their most. exact: the behaviour is scored by exact match,
    so it has a threshold to bracket and bounds to certify. aimed: q's directions are, as they are not in a reward"""
    budget, items, aiming = BUDGETS[spec.scale], spec.items, AIM_PASSES if aimed else 0
    cells = gradient_cells(spec, tasks)
    curves = {cell.curve for cell in cells}
    own = [curve for curve in curves if not curve[0]]
    doomed = items - needed(spec.threshold, items) + 1  # a draw that never hits is dropped after so many items
    rounds = budget.rounds if exact else min(LOSS_BETAS - 1, budget.rounds)
    later = len(curves) * (max(0, 2 * rounds - 1) if exact else rounds)  # one cell a curve while it widens, then two
    a_step, count = len(cells) * budget.contexts, len(batches(cells, budget))
    a_round = [*{cell.curve: cell for cell in cells}.values()] * (2 if exact else 1)
    point = items * budget.curve_draws
    compared, certified = CANDIDATES * budget.choice_draws * items // 2, spec.draws * items * 3 // 4
    training = [
        Line("size 0 and direct cost", 1, 0, 2 * items * len(tasks)),
        Line("size curve (gradient)", count, a_step * budget.gradient_steps, 3 * items * len(cells)),
        Line("rate-distortion curve, first beta", count, a_step * (aiming + budget.first_steps),
             point * len(cells)),
        Line(f"at most {rounds} more rounds", rounds * len(batches(a_round, budget)),
             later * budget.contexts * (aiming + budget.round_steps), point * later),
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
        *([_cells(spec, small)] if any(not curve[0] for curve in small) else []),
        Line(f"certified lower bound, {spec.prior_draws} draws", len(own), 0, blind),
    ]  # fmt: skip
    texts = [line for family in spec.family if family in TEXTS for line in _texts(spec, family, len(tasks), exact)]
    return [*_anchors(spec, len(tasks)), *training, *([*certifying, *_splitting(spec)] if exact else []), *texts]


def family_line(family: str, spec: RunSpec, seconds: float) -> str:
    """A family with its sizes and its share of the minutes, its controls' among them."""
    sizes = f"{family}, sizes {', '.join(map(str, spec.sizes_of(family)))}"
    return f"  {sizes:<67}{seconds / 60:>9.1f}"


def priced(
    spec: RunSpec, tasks: Sequence[str], exact: bool, aimed: bool, rates: Rates
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each line of the outline, and of each family: what it adds to those named before it, so that a search
    which two of them share is counted once, and all families and size 0 come to the sum of the lines."""
    stages: dict[str, float] = {}
    families: dict[str, float] = {}
    first, *_ = outline(spec, tasks, exact, aimed)  # size 0 is nobody's
    before = {first.what: first}
    stages[first.what] = first.scored * rates[spec.family[0]][1]
    for count, family in enumerate(spec.family, 1):
        part = spec.model_copy(update={"family": spec.family[:count]})
        now = {line.what: line for line in outline(part, tasks, exact, aimed)}
        train, score = rates[family]
        families[family] = 0.0
        for what in now | before:
            passes, scored = (
                getattr(now.get(what), kind, 0) - getattr(before.get(what), kind, 0) for kind in ("passes", "scored")
            )
            seconds = passes * train + scored * score
            stages[what] = stages.get(what, 0.0) + seconds
            families[family] += seconds
        before = now
    return stages, families


def rate_lines(rates: Rates) -> list[str]:
    """The rates, those of families that change weights by themselves."""
    plain, dear = (next((rates[f] for f in rates if (f in WEIGHTS) is changed), None) for changed in (False, True))
    pairs = [pair for pair in (plain, dear) if pair is not None]
    said = [f"{1e3 * train:.1f} ms a trained and {1e3 * score:.1f} ms a scored sequence" for train, score in pairs]
    if dear:
        said[-1] += " where weights change"
    return ["  (estimates, just measured:", *(f"   {line}" for line in said[:-1]), f"   {said[-1]})"]


def _anchors(spec: RunSpec, tasks: int) -> list[Line]:
    """The searches for the texts that restarts stand around, but for those that are `text_prompt`'s own."""
    found = []
    for family in spec.family:
        if family in ANCHORED:
            budget, sizes = TEXT_BUDGETS[spec.scale], spec.sizes_of(family)
            others = spec.sizes_of("text_prompt") if "text_prompt" in spec.family else ()
            curves = len(set(sizes) - set(others)) + (tasks - 1 if sizes[:1] != others[:1] else 0)
            searches = curves * spec.seeds
            passes = searches * budget.steps * budget.contexts
            if searches:
                found.append(Line("search for texts to stand around", searches, passes, searches * budget.scored))
    return found


def _cells(spec: RunSpec, small: Sequence[tuple[str, str, int]]) -> Line:
    """The behaviour's small latents as cells: draws for their moments, of each price, and those that are counted."""
    own, items = sum(not curve[0] for curve in small), spec.items
    draws = 2 * spec.draws + len(PRICES) * BUDGETS[spec.scale].choice_draws
    return Line("cells of the prior as messages", own, 0, own * draws * items * 3 // 4)


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
    a_seed = (found if exact else 0) * items + 2 * items + (budget.contexts * budget.shown if few else budget.scored)
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
