"""KL: the divergence bound, its closed-form ceiling, and its ends."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadline.estimators import kl, kl_limit_bits
from leadline.information import clopper_pearson_lower, d2_at_distance, h2


@given(st.floats(1e-4, 1.0), st.floats(0.0, 5000.0))
@settings(deadline=None)
def test_the_limit_is_the_largest_distance_allowed(p: float, kl_bits: float) -> None:
    limit = kl_limit_bits(p, kl_bits)
    assert -math.log2(p) - 1e-9 <= limit <= (kl_bits + h2(p)) / p + 1e-9
    assert d2_at_distance(p, limit) == pytest.approx(kl_bits, rel=1e-6, abs=1e-6)


def test_ends() -> None:
    assert kl_limit_bits(1.0, 130.0) == 130.0
    assert kl_limit_bits(0.25, 0.0) == 2.0
    assert kl_limit_bits(0.0, 3.0) == math.inf
    for p, kl_bits in ((1.1, 1.0), (0.5, -1.0), (0.5, math.inf), (0.5, math.nan)):
        with pytest.raises(ValueError, match="KL"):
            kl_limit_bits(p, kl_bits)


def test_the_estimator() -> None:
    found = kl(48, 64, 20.0)
    assert found.upper is not None
    assert found.estimate is not None
    assert found.lower is None
    assert found.upper.value == kl_limit_bits(clopper_pearson_lower(48, 64), 20.0)
    assert found.estimate.value == kl_limit_bits(0.75, 20.0)
    assert found.estimate.low < found.estimate.value < found.upper.value < found.estimate.high
    assert dict(found.upper.ledger)["-log2 p"] == -math.log2(clopper_pearson_lower(48, 64))
    assert found.upper.kind == "certified upper"


def test_no_hit_says_nothing_and_few_draws_certify_nothing() -> None:
    assert kl(0, 64, 20.0).upper is None
    with pytest.raises(ValueError, match="at least 64"):
        kl(30, 40, 20.0)
