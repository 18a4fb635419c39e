"""K11: the wired transformer, whose distance is known in any dimension, end to end through measure()."""

from __future__ import annotations

import math

import pytest
import torch

import leadline
from leadline.interventions import make
from leadline.priors import Priors
from leadline.selftest.wired import cap_distance, cosine_at, flip, quadrature, wired_model


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
    assert exact.high - exact.low < 1.1
    assert found.lower.value <= distance
    # COND of a trained q: an upper bound, and within the bits that a Gaussian must pay for a cone
    cond = result.points.filter(estimator="COND").row(0, named=True)
    assert distance <= cond["upper_bits"] <= 3 * distance + 6
    kl = result.points.filter(estimator="KL").row(0, named=True)
    assert kl["upper_bits"] >= distance


def test_k14_embeddings_scaled_by_ten_with_compensation_leave_the_distance_as_it_is(tmp_path):
    """The residual stream carries the embedding, so what the layer adds is scaled with it; norms undo the rest."""
    found = []
    for scale in (1.0, 10.0):
        model = wired_model(16, 4.0, context_tokens=4)
        model.network.get_input_embeddings().weight.data.mul_(scale)
        model.network.model.layers[0].self_attn.o_proj.weight.data.mul_(scale)
        run = tmp_path / str(scale)
        result = leadline.measure(
            model, flip(16, 80), run, sizes=(1,), controls=0, prior_draws=1024, items=16, scale="ci"
        )
        found.append(result.points.filter(estimator="MC").row(0, named=True)["p_hits"])
        assert result.distance().estimate.low <= 4.0 <= result.distance().estimate.high
    # the same draws in whitened coordinates hit in both
    assert found[0] == found[1] > 0


@pytest.mark.parametrize(("dimensions", "share"), [(1, 0.5), (2, None)])
def test_k13_grid_quadrature_in_a_subspace_equals_mc_and_bounds_cond(tmp_path, dimensions, share):
    """A line through the origin that meets the cone lies in it with one half; a plane with the arc in which its
    largest cosine with the axis, times the cosine within it, is large enough."""
    model = wired_model(8, 2.5, context_tokens=4, axis=2)
    behaviour = flip(8, 80)
    if share is None:
        basis = make("soft_subspace", 2, Priors(model)).edit(torch.eye(2)).values[:, 0]
        reach = float((basis / basis.norm(dim=1, keepdim=True))[:, 2].norm())
        share = math.acos(cosine_at(2.5, 8) / reach) / math.pi
    result = leadline.measure(
        model, behaviour, tmp_path / "run", family="soft_subspace", sizes=(dimensions,), controls=0, prior_draws=4096,
        items=16, scale="ci",
    )  # fmt: skip
    assert quadrature(model, dimensions) == pytest.approx(share, abs=3e-3)
    truth = -math.log2(share)
    exact = result.points.filter(estimator="MC").row(0, named=True)
    assert abs(exact["estimate_bits"] - truth) < 3 * exact["stderr_bits"]
    cond = result.points.filter(estimator="COND").row(0, named=True)
    assert truth <= cond["upper_bits"] < truth + 3
    # particles that climb find the same mass, and Markov's inequality leaves it within its charge and their spread
    split = result.points.filter(estimator="SPLIT").row(0, named=True)
    assert abs(split["estimate_bits"] - truth) < 3 * split["stderr_bits"] + 0.05
    assert truth <= split["upper_bits"] < truth + math.log2(20) / 4 + 1
    # one item a draw: an item is the whole behaviour here, so the share of right pairs is the mass itself
    pairs = result.points.filter(estimator="LOWER").row(0, named=True)
    assert pairs["p_draws"] == 4 * 4096
    assert pairs["p_hits"] / pairs["p_draws"] == pytest.approx(share, abs=4 * math.sqrt(share / pairs["p_draws"]))
    # E[s] >= tau pi(S): with one item the bound gives tau away
    assert truth - 0.5 < pairs["lower_bits"] <= truth + math.log2(0.9)
