"""Conditional prompts: what the prior claims, which rows get which conditions, and planted distances in closed form."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import polars as pl
import pytest
import torch

import leadline
from leadline import plan
from leadline.behaviour import Behaviour, Reply, questions
from leadline.interventions import make
from leadline.interventions.base import edit
from leadline.items import prepare
from leadline.model import load as load_model
from leadline.priors import Priors, normal
from leadline.spec import RunSpec, UserError
from models import random_model, wired_model

SIGNS = tuple((1.0,) if number % 2 else (-1.0,) for number in range(150))


@pytest.fixture(scope="module")
def priors():
    return Priors(random_model("llama"))


def test_a_draw_has_variance_one_over_standardised_conditions(priors):
    """And (1 + |c|^2) / (n + 1) at conditions c. Nine pairs of conditions, whatever their scale was."""
    raw = np.array(list(product((0, 2, 4), (0, 1, 2))))
    conditions = [tuple(map(float, row)) for row in (raw - raw.mean(0)) / raw.std(0)]
    conditional = make("conditional_soft_prompt", 2, priors, 2)
    assert conditional.shape == (3, 2, 32)
    latents = normal((400, *conditional.shape), "draws")
    found = []
    for row in conditions:
        values = edit([conditional], [latents], [row] * 400).values
        whitened = (values - priors.embedding.mean) / priors.embedding.scale
        found.append(float(whitened.square().mean()))
        assert found[-1] == pytest.approx((1 + sum(x * x for x in row)) / 3, rel=0.04)
        assert float(whitened.mean()) == pytest.approx(0.0, abs=0.04)
    assert np.mean(found) == pytest.approx(1.0, rel=0.02)


def test_each_row_is_linear_in_the_conditions_of_its_own_context(priors):
    """Rows of two interventions in one batch, against the formula row by row."""
    conditional, plain = make("conditional_soft_prompt", 1, priors, 2), make("soft_prompt", 3, priors)
    weights, free = normal((3, *conditional.shape), "weights"), normal((2, *plain.shape), "free")
    conditions = [(9.0, 9.0), (9.0, 9.0), (0.5, -1.0), (2.0, 0.0), (0.0, 0.0)]
    whole = edit([plain, conditional], [free, weights], conditions)
    assert whole.lengths == (3, 3, 1, 1, 1)
    mean, scale = priors.embedding.mean, priors.embedding.scale
    for row, (one, two) in enumerate(conditions[2:]):
        latent = weights[row, 0] + one * weights[row, 1] + two * weights[row, 2]
        torch.testing.assert_close(whole.values[2 + row, :1], mean + scale * latent / math.sqrt(3))
    torch.testing.assert_close(whole.values[:2], mean + scale * free)


def test_a_forgotten_condition_is_an_error_and_a_behaviour_without_any_is_refused(priors, tmp_path):
    conditional = make("conditional_soft_prompt", 1, priors, 2)
    latents = normal((2, *conditional.shape), "latents")
    for conditions in ((), [(1.0, 2.0)], [(1.0,), (2.0,)]):
        with pytest.raises(ValueError, match="do not fit the conditions"):
            edit([conditional], [latents], conditions)
    with pytest.raises(UserError, match=r"this behaviour has none \(--family\)\. Use soft_prompt"):
        leadline.measure("organism:random", out=tmp_path / "run", family="conditional_soft_prompt")
    assert not (tmp_path / "run").exists()


def signs(positive: str, negative: str) -> Behaviour:
    """Contexts of four tokens that end with m1; each reply depends on a number that no token shows."""
    fillers = [f"{sign}{i}" for sign in "pm" for i in range(4, 16)]
    contexts = tuple(f"{a} {b} p3 m1" for a in fillers for b in fillers)[: len(SIGNS)]
    texts = tuple(positive if sign > 0 else negative for (sign,) in SIGNS)
    return Behaviour(
        name="sign", contexts=contexts, format="raw", slot="start", reply=Reply(texts=texts), ends=False,
        conditions=tuple((10.0 + 3.0 * sign,) for (sign,) in SIGNS),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("positive", "negative", "cap", "distance"),
    [("p1", "m1", 3.0, 3.0 - math.log2(1 - 2.0**-3)), ("p1", "p1", 2.5, 5.0)],
)
def test_a_planted_pair_of_caps_has_its_known_distance(tmp_path, monkeypatch, positive, negative, cap, distance):
    """Under conditions of +1 and -1 one conditional token is (w_0 + w_1) / sqrt(2) and (w_0 - w_1) / sqrt(2): two
    independent draws of the prior. The wired model flips its reply from m1 to p1 where a token lies in a cap of P =
    2^-cap; so flipping under one condition and not under the other has probability P (1 - P), and under both P^2."""
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(80, 80, 20, 3, 8, 2, 16, 512))
    result = leadline.measure(
        wired_model(16, cap, context_tokens=4), signs(positive, negative), tmp_path / "run", items=20,
        family="conditional_soft_prompt", sizes=(1,), controls=0, prior_draws=2048, scale="ci",
    )  # fmt: skip
    exact = result.points.filter(estimator="MC").row(0, named=True)
    assert abs(exact["estimate_bits"] - distance) < 3 * exact["stderr_bits"]
    cond = result.points.filter(estimator="COND").row(0, named=True)
    assert distance <= cond["upper_bits"] < 3 * distance + 6
    assert result.points.filter(estimator="KL").row(0, named=True)["upper_bits"] >= distance
    assert result.distance().lower.value <= distance


def test_a_prompt_that_sees_no_condition_is_right_under_one_of_them_alone(tmp_path, monkeypatch):
    """The wired model reads nothing of its contexts, so that a soft prompt makes it reply the same to all."""
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(80, 20, 10, 1, 8, 2, 16, 512))
    model, behaviour, fields = wired_model(16, 3.0, context_tokens=4), signs("p1", "m1"), {"items": 20, "controls": 0}
    result = leadline.measure(
        model, behaviour, tmp_path / "run", family="soft_prompt", sizes=(1,), prior_draws=512, scale="ci", **fields
    )
    test = prepare(model, behaviour, RunSpec(**fields))[0].contexts("test")
    assert {context.conditions for context in test} == {(1.0,), (-1.0,)}
    share = sum(context.conditions == (1.0,) for context in test) / len(test)
    scores = result.points.filter(pl.col("score").is_not_null(), split="test", estimator="")["score"].to_list()
    assert scores
    assert all(score == pytest.approx(share) or score == pytest.approx(1 - share) for score in scores)
    assert max(share, 1 - share) < 0.7
    assert result.points.filter(estimator="MC").row(0, named=True)["p_hits"] == 0
    assert result.distance().upper is None


def test_the_tiny_model_says_one_thing_under_one_condition_and_another_under_the_other(tmp_path, monkeypatch):
    """Both replies have a mark, so one token is enough for each. Which is asked for stands in the condition alone: but
    for luck, a prompt that does not see it is right half the time at most."""
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(120, 30, 10, 1, 8, 2, 8, 512))
    count, items = 105, 20
    says = Behaviour(
        name="says", contexts=questions()[:count], conditions=SIGNS[:count],
        reply=Reply(texts=tuple("A" if sign > 0 else "B" for (sign,) in SIGNS[:count])),
    )  # fmt: skip
    result = leadline.measure(
        "organism:tiny", says, tmp_path / "run", family=("soft_prompt", "conditional_soft_prompt"), sizes=(1,),
        controls=0, items=items, draws=64, prior_draws=64, scale="ci",
    )  # fmt: skip
    rows = result.points.filter(pl.col("beta").is_null(), split="test", estimator="", chosen=True)
    scores = {row["family"]: row["score"] for row in rows.to_dicts()}
    assert scores["conditional_soft_prompt"] >= 0.9
    assert scores["soft_prompt"] <= 0.6, "half, and two items of luck"
    stored = prepare(load_model("organism:tiny"), says, RunSpec(items=items, controls=0))[0].contexts("test")
    assert sorted(context.conditions > (0.0,) for context in stored) == [False] * 10 + [True] * 10
    bounded = result.points.filter(pl.col("upper_bits").is_not_null(), estimator="COND")
    assert bounded["family"].to_list() == ["conditional_soft_prompt"]
