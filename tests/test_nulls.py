"""K7 without a model: 200 nulls through the choice of a restart and the scores that points are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats

from known_answers import assert_nominal, half_space, measured_cond
from leadline.controls import CONTROL_KINDS
from leadline.plan import best_restart
from leadline.records import POINTS
from leadline.result import Result
from leadline.selftest.nulls import NULLS, reported


def test_at_most_five_percent_of_200_synthetic_nulls_are_reported():
    assert reported(0, "test") <= scipy.stats.binom.ppf(0.999, NULLS, 0.05)


def test_k16_judging_a_cell_on_the_items_it_was_chosen_on_is_seen():
    assert reported(0, "validation") > scipy.stats.binom.ppf(0.999, NULLS, 0.05)


def test_a_loss_that_is_no_number_is_never_the_best():
    points = [{"score": 0.0, "loss_bits": float("nan")}, {"score": 0.0, "loss_bits": 9.0}]
    assert best_restart(points) == 1
    with pytest.raises(ValueError):
        best_restart([])


def test_of_behaviours_that_are_controls_at_most_five_percent_are_called_nearer_or_farther():
    """200 times nine half-spaces whose depths come from one law; one of them is taken for the behaviour, and the others
    are controls of the kinds that eight controls have. Through the shipped COND, rows, Result and its words."""
    rng = np.random.default_rng(0)
    called = []
    for _ in range(NULLS):
        depths = rng.normal(40.0, 6.0, 9)
        rows_ = [bound_row(name, depth, rng) for name, depth in zip(["", *map(str, range(8))], depths)]
        spec = {"family": ["soft_prompt"], "threshold": 0.9, "seeds": 1, "sizes": [1]}
        controls = [{"name": str(n), "kind": CONTROL_KINDS[n % len(CONTROL_KINDS)]} for n in range(8)]
        document = {"spec": spec, "behaviour": {"name": "b"}, "controls": controls}
        result = Result(pl.DataFrame(rows_, schema=POINTS, orient="row"), document)
        sentence = result.distance().sentence
        assert "no nearer and no farther" in sentence or " bits nearer " in sentence or " bits farther " in sentence
        called.append("no nearer and no farther" not in sentence)
    assert_nominal(called)
    assert sum(called) > 0, "a test that can never fail finds nothing either"


def bound_row(control: str, depth: float, rng: np.random.Generator) -> dict[str, Any]:
    """The COND row of a half-space of this depth in one dimension, as `measure` writes it."""
    found = measured_cond(half_space(1, depth), rng, 128)
    assert found.upper is not None
    assert found.estimate is not None
    return dict.fromkeys(POINTS) | {
        "family": "soft_prompt", "size": 1, "seed": 0, "role": "control" if control else "behaviour", "beta": 0.1,
        "control": control, "split": "test", "estimator": "COND", "p_hits": 20, "p_draws": 128, "kl_bits": depth,
        "upper_bits": found.upper.value, "estimate_bits": found.estimate.value, "stderr_bits": found.stderr_bits,
        "prior": "N(0, I)", "chosen": True,
    }  # fmt: skip
