"""MHIS's estimate against enumeration of a small space, exact draws of q in place of a walk."""

from __future__ import annotations

import math

import numpy as np
import pytest

from leadline.estimators import mhis
from leadline.information import Floats

STATES = 40
TEMPERATURE = 0.7


def planted(seed: int = 0) -> tuple[Floats, Floats, np.ndarray, float]:
    """A prior, a logit and an event over a few states, and the event's distance by summing them."""
    random = np.random.default_rng(seed)
    prior = random.dirichlet(np.ones(STATES))
    logit = random.normal(0.0, 1.0, STATES)
    hit = logit > np.quantile(logit, 0.85)
    return prior, logit, hit, -math.log2(prior[hit].sum())


def drawn(seed: int, steps: int) -> tuple[Floats, np.ndarray]:
    """(8, steps) log weights and hits of independent draws of q."""
    prior, logit, hit, _ = planted()
    tempered = prior * np.exp(logit / TEMPERATURE)
    visits = np.random.default_rng(seed).choice(STATES, (8, steps), p=tempered / tempered.sum())
    return -logit[visits] / TEMPERATURE, hit[visits]


def test_it_is_near_the_sum_over_all_states() -> None:
    truth = planted()[-1]
    found = [mhis(*drawn(seed, 500)) for seed in range(200)]
    errors = np.array([bound.estimate.value - truth for bound in found if bound.estimate])
    assert len(errors) == 200
    assert abs(errors.mean()) < 3.0 * errors.std() / math.sqrt(200) + 0.005  # a ratio is biased by one part in 4,000
    # the standard error is the one that runs show, and the interval covers
    assert np.mean([bound.stderr_bits for bound in found]) == pytest.approx(errors.std(), rel=0.15)
    covered = sum(bound.estimate.low <= truth <= bound.estimate.high for bound in found if bound.estimate)
    assert 180 <= covered <= 199


def test_a_dropped_weight_is_noticed() -> None:
    """Without its weights the share is q's, which is more than a bit off."""
    truth = planted()[-1]
    log_weight, hit = drawn(0, 4000)
    right, wrong = mhis(log_weight, hit).estimate, mhis(np.zeros_like(log_weight), hit).estimate
    assert right is not None
    assert wrong is not None
    assert right.low <= truth <= right.high
    assert wrong.value < truth - 1.0
    assert not wrong.low <= truth <= wrong.high


def test_it_is_an_estimate_and_no_bound() -> None:
    found = mhis(*drawn(0, 100), prior="told")
    assert found.upper is None
    assert found.lower is None
    assert found.estimate is not None
    assert found.estimate.kind == "estimate"
    assert found.estimate.estimator == "MHIS"
    assert found.estimate.prior == "told"


def test_the_constant_of_the_weights_does_not_matter() -> None:
    log_weight, hit = drawn(3, 100)
    plain, shifted = mhis(log_weight, hit).estimate, mhis(log_weight + 5000.0, hit).estimate
    assert plain is not None
    assert shifted is not None
    assert shifted.value == pytest.approx(plain.value, abs=1e-9)


def test_weights_further_apart_than_a_float_reaches() -> None:
    hit = np.array([[True, False], [True, False]])
    found = mhis(np.where(hit, -2000.0 * math.log(2.0), 0.0), hit).estimate
    assert found is not None
    assert found.value == pytest.approx(2000.0)


def test_what_it_says_at_the_ends() -> None:
    log_weight = np.zeros((3, 5))
    assert mhis(log_weight, np.zeros((3, 5), bool)).estimate is None
    always = mhis(log_weight, np.ones((3, 5), bool)).estimate
    assert always is not None
    assert (always.value, always.low, always.high) == (0.0, 0.0, 0.0)


def test_a_chain_that_stays_behind_drowns_the_others() -> None:
    """Why it is no bound: seven chains say 0 bits, and one that stayed behind, at 2^20 the weight, makes it 17."""
    hit = np.ones((8, 16), bool)
    hit[0] = False
    found = mhis(np.where(hit, 0.0, 20.0 * math.log(2.0)), hit)
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(20.0 - math.log2(7.0), abs=1e-4)


@pytest.mark.parametrize(
    ("log_weight", "hit"),
    [
        (np.zeros(8), np.ones(8, bool)),
        (np.zeros((1, 8)), np.ones((1, 8), bool)),
        (np.zeros((2, 0)), np.ones((2, 0), bool)),
        (np.zeros((2, 8)), np.ones((2, 7), bool)),
        (np.full((2, 8), math.nan), np.ones((2, 8), bool)),
    ],
)
def test_wrong_draws_are_refused(log_weight: Floats, hit: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"chains|finite"):
        mhis(log_weight, hit)
