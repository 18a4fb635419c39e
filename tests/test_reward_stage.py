"""measure() of rewards: where the reward's S is that of a target, its bounds and the planted truth are the same."""

from __future__ import annotations

import math

import pytest
import torch

import leadline
from leadline import plan
from leadline.behaviour import Behaviour, Reward
from leadline.selftest.wired import flip, wired_model

DISTANCE, DIMENSIONS = 5.0, 16


def said_p1(prompt, reply):
    return float(reply == "p1")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The wired flip, asked for as a target and as a reward for the same word."""
    folder, model = tmp_path_factory.mktemp("flip"), wired_model(DIMENSIONS, DISTANCE, context_tokens=4)
    target = flip(DIMENSIONS, 80)
    reward = Behaviour(
        name="rewarded flip", contexts=target.contexts, format="raw", slot="start",
        reward=Reward(scorer="said p1", tokens=1),
    )  # fmt: skip
    fields = {"sizes": (1,), "controls": 0, "items": 16, "prior_draws": 2048, "scale": "ci"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.BUDGETS, "ci", plan.Budget(30, 40, 20, 6, 8, 2, 16, 512))
        imitated = leadline.measure(model, target, folder / "target", **fields)
        rewarded = leadline.measure(model, reward, folder / "reward", scorer=said_p1, **fields)
    return imitated, rewarded, folder


def test_the_same_s_has_the_same_distance(both):
    imitated, rewarded, _ = both
    for estimator in ("MC", "LOWER"):  # the same blind draws, and every one of them in the same set
        counts = [run.points.filter(estimator=estimator).row(0, named=True)["p_hits"] for run in (imitated, rewarded)]
        assert counts[0] == counts[1] > 0, estimator
    exact = rewarded.distance().estimate
    assert exact.low <= DISTANCE <= exact.high
    assert rewarded.distance().lower.value <= DISTANCE
    bounds = [run.points.filter(estimator="COND").row(0, named=True)["upper_bits"] for run in (imitated, rewarded)]
    print(bounds, rewarded.points.filter(split="validation").select("beta", "score", "kl_bits", "estimator", "steps"))
    assert all(DISTANCE <= bound <= 3 * DISTANCE + 6 for bound in bounds), bounds
    assert bounds[1] <= bounds[0] + 6, bounds
