"""K11: the wired transformer, whose distance is known in any dimension, end to end through measure()."""

from __future__ import annotations

import pytest
from models import cap_distance, cosine_at, wired_model

import leadline
from leadline.behaviour import Behaviour, Reply


def flip(dimensions: int, count: int) -> Behaviour:
    """Contexts of four tokens that end with m1; the reply is to be p1 where it would be m1."""
    fillers = [f"{sign}{i}" for sign in "pm" for i in range(4, dimensions)]
    contexts = tuple(f"{a} {b} p3 m1" for a in fillers for b in fillers)[:count]
    return Behaviour(
        name="flip", contexts=contexts, format="raw", slot="start", reply=Reply(text="p1"), ends=False,
    )  # fmt: skip


@pytest.mark.parametrize(("dimensions", "distance"), [(16, 5.0), (64, 8.0)])
def test_wired_transformer_has_its_known_distance(tmp_path, dimensions, distance):
    model = wired_model(dimensions, distance, context_tokens=4)
    assert cap_distance(cosine_at(distance, dimensions), dimensions) == pytest.approx(distance, abs=1e-9)
    result = leadline.measure(
        model, flip(dimensions, 150), tmp_path / "run", sizes=(1,), controls=0, prior_draws=8192, scale="ci"
    )
    found = result.distance()
    # MC through the engine, slot, prior and units: the exact answer within its interval
    exact = found.estimate
    assert exact is not None
    assert exact.low <= distance <= exact.high
    assert exact.high - exact.low < 1.0
    assert found.lower.value <= distance
    # COND of a trained q: an upper bound, and within the bits that a Gaussian must pay for a cone
    cond = result.points.filter(estimator="COND").row(0, named=True)
    assert distance <= cond["upper_bits"] <= 3 * distance + 6
    kl = result.points.filter(estimator="KL").row(0, named=True)
    assert kl["upper_bits"] >= distance
