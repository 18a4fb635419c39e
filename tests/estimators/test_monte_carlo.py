"""MC: counts in, limits out."""

from __future__ import annotations

import math

import pytest

from leadline.estimators import monte_carlo
from leadline.information import clopper_pearson_lower, clopper_pearson_upper


def test_hits_bound_both_ways() -> None:
    found = monte_carlo(16, 512, prior="N(0, I)")
    assert found.estimate is not None
    assert found.upper is not None
    assert found.lower is not None
    assert found.estimate.value == 5.0
    assert found.upper.value == -math.log2(clopper_pearson_lower(16, 512))
    assert found.lower.value == -math.log2(clopper_pearson_upper(16, 512))
    assert found.lower.value < 5.0 < found.upper.value
    # the interval is two-sided, so it is wider than the two one-sided limits
    assert found.estimate.low < found.lower.value < found.upper.value < found.estimate.high
    assert (found.estimate.kind, found.upper.kind, found.lower.kind) == ("exact", "certified upper", "certified lower")
    assert found.upper.ledger == (("-log2 p", found.upper.value),)
    assert found.upper.prior == "N(0, I)"
    # the delta method: a share of 1/32 from 512 draws
    assert found.stderr_bits == pytest.approx(math.sqrt((31 / 32) / 16) / math.log(2))


def test_no_hit_leaves_the_lower_bound() -> None:
    found = monte_carlo(0, 512)
    assert found.upper is None
    assert found.estimate is None
    assert math.isnan(found.stderr_bits)
    assert found.lower is not None
    assert found.lower.value == pytest.approx(math.log2(512 / 3), abs=0.01)
    assert found.lower.high == math.inf


def test_all_hits() -> None:
    found = monte_carlo(64, 64)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower.value == 0.0
    assert 0.0 < found.upper.value < 0.1
