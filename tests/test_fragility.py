"""Fragility where it is known: half-spaces and balls for noise, quadratics for slope and rise, one dimension by hand
for rounding, and embeddings scaled tenfold and compensated (K14)."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import optimize, special, stats

from known_answers import assert_nominal
from leadline import fragility as module
from leadline.edits import EmbeddingEdit
from leadline.engine import Context, Engine
from leadline.fragility import PASSING, Measured, around, fragility, noise_tolerance, precision
from leadline.objective import Objective
from leadline.priors import EmbeddingPrior, Priors, normal
from models import cosine_at, wired_model

STEP = 2 ** (1 / module.OCTAVE)


def beyond(margin: float):
    """The score of the half-space in which 0 lies `margin` deep."""
    return lambda latents: (latents.flatten(1)[:, 0] >= -margin).float()


def tolerance(score, dims: int, label: object = 0, draws: int = 64) -> Measured:
    zero = torch.zeros(dims, dtype=torch.float64)
    return noise_tolerance(zero, score, 0.9, normal((draws, dims), "test", label).double(), 32)


def sizes(margin: float) -> float:
    """The scale at which a share PASSING of N(0, scale^2) stays above -margin."""
    return float(margin / stats.norm.ppf(PASSING))


def test_tolerance_of_a_half_space_is_margin_over_quantile():
    for margin in (0.01, 0.3, 2.0):
        found = tolerance(beyond(margin), 50, draws=4000)
        assert found.outcome == "found"
        assert found.low <= sizes(margin) <= found.high
        assert found.value == pytest.approx(sizes(margin), rel=0.08 + STEP - 1)
        assert found.low <= found.value <= found.high


def test_tolerance_of_a_ball_is_its_radius_over_a_chi_quantile():
    for dims in (1, 50):
        truth = 0.5 / math.sqrt(stats.chi2.ppf(PASSING, dims))
        found = tolerance(lambda latents: (latents.norm(dim=1) <= 0.5).float(), dims, draws=1000)
        assert found.low <= truth <= found.high
        assert found.value == pytest.approx(truth, rel=0.12)


def test_the_interval_of_a_tolerance_covers_at_its_level():
    found = [tolerance(beyond(0.2), 1, seed) for seed in range(300)]
    assert_nominal(not one.low <= sizes(0.2) <= one.high for one in found)
    # and it is of use: with 64 draws it is narrower than a factor of six
    assert max(one.high / one.low for one in found if one.low > 0) < 6


def test_a_tolerance_beyond_the_grid_is_censored_and_no_number():
    never = tolerance(beyond(1e9), 3)
    assert (never.value, never.high) == (None, math.inf)
    assert "above the largest" in never.outcome
    at_once = tolerance(beyond(1e-9), 3)
    assert (at_once.value, at_once.low) == (None, 0.0)
    assert "below the smallest" in at_once.outcome
    missed = tolerance(beyond(-0.1), 3)
    assert (missed.value, missed.outcome) == (None, "z misses the threshold")
    assert math.isnan(missed.low)


def test_draws_that_come_back_farther_out_are_not_counted():
    def score(latents):
        length = latents.norm(dim=1)
        return ((length <= 0.5) | (length >= 2.0)).float()

    truth = 0.5 / math.sqrt(stats.chi2.ppf(PASSING, 50))
    assert tolerance(score, 50).value == pytest.approx(truth, rel=0.2)


def test_counts_that_rise_with_the_noise_are_said():
    def score(latents):
        length = latents.norm(dim=1)
        return ((length <= 0.53) | ((length >= 0.7) & (length <= 0.9))).float()

    assert tolerance(score, 200).outcome == "found, but a larger noise passed more draws"


def test_a_share_of_items_in_float32_counts_as_reached():
    """36 of 40 items is 0.9, though float32 has it as 0.89999998."""
    found = precision(torch.zeros(2), lambda latents: torch.full((len(latents),), 36 / 40), 0.9, 4)
    assert found.outcome == f"at most {module.PRECISIONS[0]}"


def test_precision_by_hand_and_luck_does_not_count():
    """0.8 in {z >= 0.77}: multiples of 1 and of 1/2 give 1 and pass, of 1/4 and 1/8 give 3/4 and miss, and from 1/16 on
    all pass."""
    found = precision(torch.tensor([[0.8]]), lambda latents: (latents[:, 0, 0] >= 0.77).float(), 1.0, 5)
    assert (found.value, found.kind, found.low, found.high) == (4, "exact", 4, 4)


def test_precision_of_a_margin_is_at_most_what_rounding_can_take():
    """Rounding moves a coordinate by at most 2^-(k + 1)."""
    for place in (0.3, 1.7, -0.9):
        for margin in (0.05, 0.02, 0.001):
            cut = place - margin
            found = precision(
                torch.tensor([place], dtype=torch.float64), lambda z, cut=cut: (z[:, 0] >= cut).float(), 1, 8
            )
            fine = [
                k for k in module.PRECISIONS if all(math.floor(place * 2**j + 0.5) / 2**j >= cut for j in range(k, 17))
            ]
            assert found.value == fine[0] <= math.ceil(-math.log2(margin) - 1)


def test_a_precision_beyond_the_grid_is_censored():
    only = torch.tensor([1 / 3], dtype=torch.float64)
    found = precision(only, lambda z: (z[:, 0] == only).float(), 1.0, 8)
    assert (found.value, found.high) == (None, math.inf)
    assert found.outcome == f"more than {module.PRECISIONS[-1]}"


def dense(kind: str, dims: int) -> torch.Tensor:
    root = normal((dims, dims), "root").double() / math.sqrt(dims)
    return root @ root.T if kind == "definite" else (root + root.T) / 2 + 0.2 * torch.eye(dims, dtype=torch.float64)


def quadratic(hessian: torch.Tensor):
    return lambda latents: 0.5 * ((latents.flatten(1) @ hessian) * latents.flatten(1)).sum(1)


@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_the_rise_on_a_quadratic_is_half_the_trace_times_the_variance(kind):
    hessian = dense(kind, 30)
    directions = normal((4000, 30), "directions").double()
    truth = float(hessian.trace()) / 2
    at_rest = around(torch.zeros(30, dtype=torch.float64), quadratic(hessian), 0.1, directions, 500).rise
    assert at_rest.value == pytest.approx(0.01 * truth, rel=0.05)
    assert at_rest.low <= 0.01 * truth <= at_rest.high
    # on a slope it is the same, with more scatter
    sloped = around(0.3 * normal((30,), "z").double(), quadratic(hessian), 0.3, directions, 500).rise
    assert sloped.low <= 0.09 * truth <= sloped.high


def test_the_rise_of_a_solution_in_float32_has_its_digits():
    directions = normal((4000, 30), "directions")
    loss = quadratic(dense("definite", 30).float())
    found = around(torch.zeros(30), loss, 0.01, directions, 500).rise
    assert found.value == pytest.approx(0.0001 * float(dense("definite", 30).trace()) / 2, rel=0.05)


def test_the_slope_around_a_round_bowl_is_a_chi_mean():
    """grad = c delta, and E norm(delta) = scale sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2)."""
    for dims in (1, 30):
        mean = math.sqrt(2) * math.exp(special.gammaln((dims + 1) / 2) - special.gammaln(dims / 2))
        bowl = quadratic(3 * torch.eye(dims, dtype=torch.float64))
        directions = normal((4000, dims), "directions").double()
        found = around(torch.zeros(dims, dtype=torch.float64), bowl, 0.2, directions, 500).gradient_norm
        assert found.value == pytest.approx(3 * 0.2 * mean, rel=0.03)
        assert found.low <= 3 * 0.2 * mean <= found.high


def whole(z, loss, score, label="label", **options):
    return fragility(z, loss, score, 0.9, label, **options)


def test_a_solution_on_a_quadratic_is_measured_as_it_is():
    hessian = dense("indefinite", 48)
    z = 0.1 * normal((3, 16), "z").double()
    score = lambda latents: (latents[:, 0, 0] >= float(z[0, 0]) - 0.2).float()  # noqa: E731
    found = whole(z, quadratic(hessian), score, draws=256, probes=512, batch=128)
    spectrum = torch.linalg.eigvalsh(hessian)
    assert found.score == 1
    assert found.dimensions == 48
    assert found.location_bits == pytest.approx(float(z.square().sum()) / 2 / math.log(2))
    assert found.noise.low <= sizes(0.2) <= found.noise.high
    assert found.trace.value == pytest.approx(float(hessian.trace()), rel=0.05)
    assert found.trace.low <= float(hessian.trace()) <= found.trace.high
    assert found.largest.value == pytest.approx(float(spectrum[-1]), rel=0.01)
    assert found.smallest.value == pytest.approx(float(spectrum[0]), rel=0.01)
    assert found.smallest.low <= float(spectrum[0]) + 1e-9
    assert found.largest.high >= float(spectrum[-1]) - 1e-9
    assert [one.scale for one in found.around] == list(module.SCALES)
    for one in found.around:
        assert one.rise.low <= one.scale**2 * float(hessian.trace()) / 2 <= one.rise.high
    assert str(found.noise) in found.sentence
    assert "48 dimensions, prior N(0, I)" in found.sentence


def test_it_depends_on_its_labels_and_on_nothing_else():
    z, loss, score = torch.full((4,), 0.5), quadratic(dense("definite", 4).float()), beyond(-0.3)
    before = torch.get_rng_state()
    one, again = whole(z, loss, score, batch=16), whole(z, loss, score, batch=16)
    assert torch.equal(before, torch.get_rng_state())
    assert one == again
    assert whole(z, loss, score, "another").trace != one.trace
    single = whole(z, loss, score, batch=1)
    assert single.noise == one.noise
    assert single.trace.value == pytest.approx(one.trace.value, rel=1e-5)


def test_k14_scaling_the_embeddings_changes_nothing_if_the_model_compensates():
    table = 0.05 * normal((40, 6), "table").double() + 0.01
    hidden, target = normal((6, 6), "weights").double(), normal((6,), "target").double()

    def measured(scale: float, compensation: float):
        scaled = scale * table
        prior = EmbeddingPrior(scaled.mean(0), scaled.std(0, correction=0))

        def loss(latents):
            seen = prior.embeddings(latents) / compensation
            return ((20 * seen @ hidden).tanh().mean(1) - target).square().sum(-1)

        z = 0.5 * normal((2, 6), "z").double()
        bar = 1.3 * float(loss(z[None]))
        return whole(z, loss, lambda latents: (loss(latents) <= bar).float(), draws=64, probes=16)

    plain, scaled, broken = measured(1.0, 1.0), measured(10.0, 10.0), measured(10.0, 1.0)
    assert scaled.noise == plain.noise
    assert plain.noise.value is not None
    assert scaled.precision == plain.precision
    for name in ("trace", "largest", "smallest"):
        assert getattr(scaled, name).value == pytest.approx(getattr(plain, name).value, rel=1e-6)
    for one, other in zip(scaled.around, plain.around):
        assert one.rise.value == pytest.approx(other.rise.value, rel=1e-6)
        assert one.gradient_norm.value == pytest.approx(other.gradient_norm.value, rel=1e-6)
    # without the compensation it is another model
    assert broken.trace.value != pytest.approx(plain.trace.value, rel=0.1)


def test_k11_the_wired_transformer_bears_the_noise_that_its_cone_allows():
    """Its reply flips iff z_0 / norm(z) >= c. From z = (r, 0, ...) under noise of scale s, z_0 over the root mean
    square of the other coordinates is noncentral t with d - 1 degrees of freedom around r / s."""
    dims, far = 8, 3.0
    model = wired_model(dims, 5.0, context_tokens=4)
    cosine = cosine_at(5.0, dims)
    edge = cosine / math.sqrt(1 - cosine**2) * math.sqrt(dims - 1)
    truth = optimize.brentq(lambda s: stats.nct.sf(edge, dims - 1, far / s) - PASSING, 0.05, 3)
    # tokens by number: p1 is 1, p3 and p4 are 3 and 4, m1 is the first after the eight p and "</s>"
    context = Context((), (4, 4, 3, dims + 1), (1,))
    prior, objective = Priors(model).embedding, Objective(Engine(model))

    def edited(latents):
        return [context] * len(latents), EmbeddingEdit(prior.embeddings(latents), (1,) * len(latents))

    z = torch.zeros(1, dims)
    z[0, 0] = far
    found = whole(
        z,
        lambda latents: objective.bits(*edited(latents)),
        lambda latents: (objective.evaluate(*edited(latents))[1] > 0).float(),
        draws=400,
        batch=100,
    )
    assert found.score == 1
    assert found.noise.low <= truth <= found.noise.high
    assert found.noise.value == pytest.approx(truth, rel=0.2)


def test_a_loss_that_is_not_finite_is_an_outcome_and_the_rest_stands():
    """The square root of something that noise makes negative."""
    z = torch.full((2,), 0.2, dtype=torch.float64)
    found = whole(z, lambda latents: latents.sum(1).sqrt(), beyond(-0.1), draws=64)
    assert found.around[0].rise.outcome == "found"
    lost = found.around[-1].rise
    assert lost.value is None
    assert lost.outcome.startswith("not finite in ")
    assert found.noise.outcome == "found"
    assert lost.outcome not in found.sentence
    broken = whole(z, lambda latents: math.nan * latents.sum(1).square(), beyond(-0.1), draws=64)
    assert broken.largest.outcome == broken.smallest.outcome == "not finite"
    assert "largest eigenvalue: not finite" in broken.sentence


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="kind"):
        Measured(1.0, 1.0, 1.0, "certain", "bits")
