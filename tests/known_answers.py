"""The checks that tests make on planted regions (`leadline.selftest.planted`), and those regions under one name."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from leadline.information import Floats
from leadline.selftest.planted import (
    Bools,
    Proposal,
    Region,
    allowed_failures,
    ball,
    box,
    half_space,
    half_space_population,
    measured_cond,
    measured_importance,
    measured_mc,
    measured_splitting,
    noncentral_chi2_logcdf,
    planned,
    prior,
    shell,
    split_mass,
    two_half_spaces,
)

__all__ = [
    "Bools",
    "Floats",
    "Proposal",
    "Region",
    "allowed_failures",
    "assert_certified",
    "assert_nominal",
    "ball",
    "box",
    "half_space",
    "half_space_population",
    "measured_cond",
    "measured_importance",
    "measured_mc",
    "measured_splitting",
    "noncentral_chi2_logcdf",
    "planned",
    "prior",
    "shell",
    "split_mass",
    "two_half_spaces",
]


def assert_nominal(failures: Iterable[bool], rate: float = 0.05) -> None:
    """The failures come at no more than their nominal rate."""
    outcome = [bool(failed) for failed in failures]
    assert sum(outcome) <= allowed_failures(len(outcome), rate), f"{sum(outcome)} failures in {len(outcome)} tries"


def assert_certified(region: Region, seeds: int, draws: int) -> list[float]:
    """COND's upper limit lies below the truth in at most 5% of the seeds, and always says something; the limits."""
    uppers = []
    for seed in range(seeds):
        upper = measured_cond(region, np.random.default_rng(seed), draws).upper
        assert upper is not None
        uppers.append(upper.value)
    assert_nominal(value < region.distance_bits for value in uppers)
    return uppers
