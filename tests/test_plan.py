"""The plan is a pure function of the spec and of what earlier batches gave."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadline.estimators.splitting import Schedule, advance, start
from leadline.outline import outline
from leadline.plan import (
    BUDGETS,
    FIRST_BETA,
    Cell,
    Seen,
    batches,
    best_restarts,
    bracket,
    bracketed,
    candidates,
    first_cells,
    gradient_cells,
    loss_cells,
    next_cells,
)
from leadline.spec import RunSpec


def seen(beta: float, score: float, kl_bits: float, seed: int = 0) -> Seen:
    return Seen(Cell("", "soft_prompt", 1, seed, beta), score, kl_bits)


def test_controls_run_at_the_smallest_size_and_the_behaviour_at_all():
    cells = gradient_cells(RunSpec(sizes=(2, 4, 8), seeds=2), ["", "uniform-0"])
    own = [("", size, seed) for size in (2, 4, 8) for seed in (0, 1)]
    assert [(c.task, c.size, c.seed) for c in cells] == [*own, ("uniform-0", 2, 0), ("uniform-0", 2, 1)]
    assert [c.beta for c in first_cells(RunSpec(), [""])] == [FIRST_BETA] * 2


def test_while_the_threshold_holds_beta_doubles_from_the_last_cell():
    (cell,) = next_cells([seen(0.01, 1.0, 500.0), seen(0.02, 0.95, 400.0)], 0.9)
    assert (cell.beta, cell.first_beta) == (0.04, 0.02)
    assert cell.parent == seen(0.02, 0, 0).cell.label


def test_where_the_threshold_was_never_reached_beta_falls_from_scratch():
    (cell,) = next_cells([seen(0.01, 0.2, 500.0)], 0.9)
    assert cell.beta == pytest.approx(0.01 / 8)
    assert cell.parent == Cell("", "soft_prompt", 1, 0, None).label, "from what the size curve found"


def test_a_q_that_has_the_behaviour_and_is_too_wide_is_narrowed():
    smaller, larger = next_cells([seen(0.01, 0.85, 800.0)], 0.9)
    assert (smaller.beta, larger.beta) == (pytest.approx(0.005), pytest.approx(0.02)), "and bounds may lie beyond it"
    assert smaller.parent == larger.parent == seen(0.01, 0, 0).cell.label
    smaller, cut = next_cells([seen(0.01, 0.85, 800.0), seen(0.02, 0.3, 600.0)], 0.9)
    assert (smaller.beta, cut.beta) == (pytest.approx(0.005), pytest.approx(0.0141, rel=0.01))


def test_candidates_hold_the_reached_cell_and_cheaper_ones_near_it():
    curve = [seen(0.01 * 2**n, score, 500.0 - 50 * n) for n, score in enumerate((1.0, 0.95, 0.8, 0.7, 0.6, 0.55, 0.1))]
    found = [point.cell.beta for point in candidates(curve, 0.9)]
    assert found == pytest.approx([0.01 * 2**n for n in (5, 4, 3, 1)]), "the cheapest near it, and the reached one"
    assert [point.cell.beta for point in candidates(curve[:2], 0.9)] == pytest.approx([0.02])
    assert [point.cell.beta for point in candidates(curve[2:4], 0.9)] == pytest.approx([0.08, 0.04]), "none reached"
    assert candidates(curve[6:], 0.9) == []
    assert candidates([seen(0.01, 0.0, 9.0)], 0.3) == [], "a low threshold does not make a cell that never hits near"


def test_two_edges_are_bisected_where_the_threshold_is_lost_and_where_nearness_is():
    points = [seen(0.01, 1.0, 500.0), seen(0.04, 0.8, 300.0), seen(0.16, 0.1, 100.0)]
    assert not bracketed(points, 0.9)
    first, second = next_cells(points, 0.9)
    assert (first.beta, first.parent) == (pytest.approx(0.02), points[0].cell.label)
    assert (second.beta, second.parent) == (pytest.approx(0.08), points[1].cell.label)
    (only,) = next_cells([points[0], points[2]], 0.9)
    assert only.beta == pytest.approx(0.04), "one edge is both: it is cut once"


def test_while_the_score_is_near_beta_goes_on_and_a_threshold_that_is_bracketed_is_left_alone():
    assert bracketed([seen(0.01, 1.0, 100.0), seen(0.011, 0.8, 95.1)], 0.9)
    (cell,) = next_cells([seen(0.01, 1.0, 100.0), seen(0.011, 0.8, 95.1)], 0.9)
    assert (cell.beta, cell.parent) == (pytest.approx(0.022), seen(0.011, 0, 0).cell.label)
    wider, cut = next_cells([seen(0.01, 1.0, 100.0), seen(0.02, 0.8, 80.0)], 0.9)
    assert (wider.beta, cut.beta) == (pytest.approx(0.04), pytest.approx(0.0141, rel=0.01))


def test_betas_that_differ_by_noise_are_not_bisected_further():
    """KL that falls by a tenth between betas 5% apart falls because a cell was trained longer."""
    control = replace(seen(0.0105, 0.2, 90.0), cell=replace(seen(0.0105, 0.2, 90.0).cell, task="uniform-0"))
    own = replace(seen(0.01, 1.0, 100.0), cell=replace(seen(0.01, 1.0, 100.0).cell, task="uniform-0"))
    assert not bracketed([own, control], 0.9)
    assert next_cells([own, control], 0.9) == []


def test_beyond_the_threshold_the_behaviours_curve_is_followed_to_its_end_and_a_controls_is_not():
    curve = [seen(0.01, 1.0, 100.0), seen(0.0104, 0.8, 95.1), seen(0.0124, 0.4, 60.0)]
    (cell,) = next_cells(curve, 0.9)
    assert cell.beta == pytest.approx(0.0992)
    assert next_cells([*curve, seen(0.0992, 0.0, 4.9)], 0.9) == [], "hardly a bit is left"
    assert next_cells([replace(s, cell=replace(s.cell, task="uniform-0")) for s in curve], 0.9) == []


def test_the_bracket_is_at_the_largest_beta_that_reaches_whatever_noise_lies_below():
    points = [seen(0.01, 1.0, 9.0), seen(0.02, 0.85, 8.0), seen(0.03, 0.92, 7.0), seen(0.04, 0.5, 6.0)]
    low, high = bracket(points, 0.9)
    assert (low, high) == (points[2], points[3])


def test_of_several_restarts_the_best_at_each_beta_counts():
    points = [seen(0.01, 0.8, 9.0, 0), seen(0.01, 1.0, 8.0, 1), seen(0.01, 1.0, 7.0, 2)]
    assert best_restarts(points) == [points[2]]


@given(st.integers(1, 60), st.sampled_from(["ci", "default", "full"]))
def test_batches_hold_every_cell_once_in_order_and_fit(count, scale):
    cells = [Cell("", "soft_prompt", 1, seed, None) for seed in range(count)]
    parts = batches(cells, BUDGETS[scale])
    assert [cell for part in parts for cell in part] == cells
    most = max(1, BUDGETS[scale].sequences // BUDGETS[scale].contexts)
    assert all(1 <= len(part) <= most for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_bisection_ends_within_the_rounds_on_a_smooth_curve():
    """KL falls as a power of beta, the score through a logistic: the default rounds bracket tau within 5%."""

    def measured(cell: Cell) -> Seen:
        kl_bits = 500 * (cell.beta / 0.01) ** -0.9
        return Seen(cell, 1 / (1 + 2.718 ** (-(kl_bits - 160) / 20)), kl_bits)

    points = [measured(cell) for cell in first_cells(RunSpec(sizes=(1,)), [""])]
    for _ in range(BUDGETS["default"].rounds):
        points += [measured(cell) for cell in next_cells(points, 0.9)]
    assert bracketed(points, 0.9)


@pytest.mark.parametrize("rounds", [1, 2, 8])
@pytest.mark.parametrize("exact", [True, False])
def test_the_outline_is_never_exceeded_by_the_rounds(monkeypatch, rounds, exact):
    """A curve that is bracketed at once and then slowly: nearly as many cells a round as there can be."""
    budget = replace(BUDGETS["ci"], rounds=rounds)
    monkeypatch.setitem(BUDGETS, "ci", budget)
    spec = RunSpec(scale="ci", sizes=(1,), items=10)
    told = outline(spec, [""], exact)[3]
    points, trained = [seen(FIRST_BETA, 1.0, 500.0)], 0
    for number in range(rounds):
        more = next_cells(points, 0.9) if exact else loss_cells(points, rounds)
        trained += len(more)
        points += [Seen(cell, 0.0, 100.0 * 0.5**number) for cell in more]
    assert told.passes >= trained * budget.contexts * budget.round_steps > 0


def test_the_outline_counts_all_stages():
    lines = outline(RunSpec(), ["", "matched-0", "uniform-0"])
    assert len(lines) == 8
    # two solutions at seven steps on validation items, and one message on test items
    assert lines[-2].scored == 4 * 40 * (2 * 7 + 1), (
        "two solutions at seven steps on validation items, one on test items"
    )
    assert len(outline(RunSpec(), ["", "permuted-0"], exact=False)) == 4, "no threshold, nothing to certify"
    assert lines[1].passes == 4 * 8 * BUDGETS["default"].gradient_steps
    # draws that never hit are dropped after 5 of 40 items, and 4 pairs stand beside each of them
    assert lines[-1].scored == 2 * 512 * (5 + 4)
    # two sizes of the behaviour and one of each control; proposals, steps, judged texts and the best on two splits; the
    # best on test items, and what holds on test items and, of the behaviour, on the confirmation's
    texts = outline(RunSpec(family="text_prompt", sizes="8,16"), ["", "matched-0", "uniform-0"])[-2:]
    a_search = 16 * 16 + 64 * (2 * 64 + 4 * 16)  # 64 steps, 64 candidates screened on 2 contexts, 4 scored on 16
    assert texts[0].scored == 4 * (a_search + 64 * 40 + 80 + 40) + (2 + 2 + 1 + 1) * 64 * 40
    assert texts[0].passes == 4 * 64 * 16, "one gradient a step"
    assert texts[1].scored == 2 * 512 * 5
    loss = outline(RunSpec(family="text_prompt", sizes="8"), [""], exact=False)[4:]
    assert [line.scored for line in loss] == [a_search + 80 + 40], "nothing holds, nothing is drawn blindly"


def test_the_outline_counts_the_batches_that_are_made_of_several_families():
    """Rows whose edits are of one kind share a batch, and no others."""
    spec, tasks = RunSpec(family="soft_prompt,vocab_mixture,steering,prefix", sizes="1"), ["", "matched-0"]
    kinds = 3  # soft prompts and mixtures write embeddings
    _, curve, first, rounds = [line for line in outline(spec, tasks) if "stand around" not in line.what][:4]
    assert curve.batches == first.batches == len(batches(gradient_cells(spec, tasks), BUDGETS["default"])) == kinds
    assert rounds.batches == kinds * BUDGETS["default"].rounds, "two cells a curve still fit"
    spec = spec.model_copy(update={"sizes": (1, 2)})
    assert outline(spec, tasks)[2].batches == 1 + 2 * 2, "other sites, or keys of another length, are no one batch"


def test_the_outline_counts_demonstrations_and_edits():
    tasks = ["", "matched-0"]
    (few,) = outline(RunSpec(family="few_shot", sizes="1,3", seeds=2), tasks)[8:]
    # 32 texts on 16 items, then on 40; the nearest on two splits; 32 on test items and of the behaviour on 40 more
    own, control = 2 * (32 * 16 + 32 * 40 + 80 + 2 * 32 * 40) + 40, 2 * (32 * 16 + 32 * 40 + 80 + 32 * 40) + 40
    assert (few.batches, few.passes) == (6, 0)
    assert few.scored == (2 + 4) * own + 2 * control, "with its k demonstrations a sequence is 1 + k as long"
    edits, blind = outline(RunSpec(family="prompt_edits", sizes="1,2"), tasks)[8:]
    a_search = 16 * 16 + 64 * (2 * 64 + 4 * 16) + 64 * 40 + 80 + 40
    assert edits.scored == 3 * a_search + (2 + 2 + 1) * 64 * 40 + 2 * 2 * 40, "the unedited prompt on two splits"
    assert (edits.batches, edits.passes, blind.scored) == (3, 3 * 64 * 16, 2 * 512 * 5)


def test_the_outline_counts_the_texts_that_mixtures_stand_around():
    line = outline(RunSpec(family="vocab_mixture", sizes="4,8", seeds=3), ["", "matched-0"])[0]
    assert line.batches == 3 * 3, "three curves, three restarts"
    assert (line.passes, line.scored) == (9 * 64 * 16, 9 * (16 * 16 + 64 * (2 * 64 + 4 * 16)))
    both = outline(RunSpec(family="text_prompt,vocab_mixture", sizes="4,8"), ["", "matched-0"])
    assert not [line for line in both if "stand around" in line.what], "those that text_prompt finds"


def test_the_outline_counts_particles_as_splitting_does():
    """A run in which every particle passes every level scores as many rows, each on all items."""
    budget = BUDGETS["ci"]
    levels = tuple(float(level) for level in range(-budget.most_levels, 0))
    schedule = Schedule(2, budget.particles, budget.moves, levels, (0.5,) * (len(levels) - 1))
    rows = 0

    def phi(z, floor):
        nonlocal rows
        rows += len(z)
        return 1.0 + z[:, 0] ** 2

    state = start(schedule, phi, 0, 1)
    while not state.done(schedule):
        state = advance(state, schedule, phi)
    spec = RunSpec(family="soft_subspace", sizes="1,2", scale="ci", items=10)
    line = outline(spec, [""])[-1]
    assert line.scored == 2 * (budget.runs + 1) * rows * 10
    assert line.batches == 2 * (budget.runs + 1)
    assert len(outline(spec.model_copy(update={"scale": "default"}), [""])) == 10, "no particles there"
    assert len(outline(spec, [""], exact=False)) == 4


def test_a_curve_that_never_came_near_is_given_up():
    """After the first beta and two that are far smaller; one that came near goes on."""

    def at(beta: float, score: float) -> Seen:
        return Seen(Cell("", "soft_subspace", 16, 0, beta), score, 50.0)

    far = [at(0.01, 0.1), at(0.01 / 8, 0.2)]
    (more,) = next_cells(far, 0.9)
    assert more.beta == pytest.approx(0.01 / 64)
    assert next_cells([*far, at(0.01 / 64, 0.1)], 0.9) == []
    assert next_cells([*far, at(0.01 / 64, 0.6)], 0.9) != []


def test_a_text_that_works_by_itself_ends_its_curve():
    """q is the prior around the text, all but its price: no larger beta has anything left to take away."""
    cell = Cell("", "vocab_mixture", 8, 1, 0.04)
    done = Seen(cell, 1.0, 40.3, component_bits=40.0)
    assert bracketed([done], 0.9)
    assert next_cells([done], 0.9) == []
    moved = Seen(cell, 1.0, 46.0, component_bits=40.0)
    assert not bracketed([moved], 0.9)
    (more,) = next_cells([moved], 0.9)
    assert more.beta == pytest.approx(0.08)
