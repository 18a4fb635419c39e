"""K7 through `measure` in every family of `--family all`: what nulls are, what counts as reported, and a few of them.
benchmarks/nulls.py has many."""

from __future__ import annotations

from collections import Counter

import pytest
import scipy.stats

from leadline import plan, spec
from leadline.selftest import trained_nulls
from leadline.selftest.trained_nulls import ITEMS, LABELS, SIZES, Verdict, better_than_chance, measured, null

NULLS = 2


@pytest.fixture(scope="module")
def verdicts():
    model = trained_nulls.small_model()
    return [measured(model, null(1000 + number)) for number in range(NULLS)]


def test_k7_nulls_are_reported_in_at_most_five_percent_over_all_families(verdicts):
    families = [verdict.family for verdict in verdicts[0][:-1]]
    assert sorted(families) == sorted(spec.RunSpec(family="all").family), "every family that --family all runs"
    each = [verdict for run in verdicts for verdict in run if verdict.family]
    assert len(each) == NULLS * len(SIZES)
    assert sum(verdict.reported for verdict in each) <= scipy.stats.binom.ppf(0.999, len(each), 0.05)
    assert not any(verdict.bound or verdict.reached for verdict in each), "no null may have a distance"


def test_the_same_runs_learn_their_own_training_items_by_heart(verdicts):
    assert all(run[-1].learnt for run in verdicts), "nulls that cannot even be learnt by heart prove nothing"


def test_a_null_has_each_label_as_often_and_its_number_decides_the_order():
    first, again, other = null(1).reply.texts, null(1).reply.texts, null(2).reply.texts
    assert first is not None
    assert first == again != other
    assert Counter(first) == dict.fromkeys(LABELS, 7)


def test_better_than_chance_is_an_exact_test_at_five_percent():
    """P(5 or more of 16 at 1/8) = 0.0407, P(4 or more) = 0.1302."""
    assert [better_than_chance(right / ITEMS) for right in (3, 4, 5, 16)] == [False, False, True, True]
    assert scipy.stats.binom.sf(4, ITEMS, 1 / 8) < 0.05 < scipy.stats.binom.sf(3, ITEMS, 1 / 8)


@pytest.mark.parametrize("why", ["bound", "reached", "better"])
def test_each_of_the_three_reasons_is_enough(why):
    nothing = {"learnt": True, "bound": False, "reached": False, "better": False}
    assert not Verdict("lora", **nothing).reported
    assert Verdict("lora", **{**nothing, why: True}).reported


def test_small_budgets_are_taken_back():
    before = [dict(table) for table in (spec.DEFAULT_SIZES, plan.BUDGETS, plan.TEXT_BUDGETS)]
    with trained_nulls.small_budgets():
        assert spec.DEFAULT_SIZES["prefix"] == SIZES["prefix"]
    assert before == [dict(table) for table in (spec.DEFAULT_SIZES, plan.BUDGETS, plan.TEXT_BUDGETS)]
