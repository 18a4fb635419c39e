"""Do two priors put behaviours in the same order? Spearman's rank correlation of their bounds, over finished runs.

A distance is prior mass, and another prior gives another number; what should last is who is near and who is far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from leadline.result import NoDistance, Result

FEWEST = 3  # behaviours: two are in the same order or not, which is a coin
ORDERS = 9999  # drawn where there are more orders than that; else all of them are gone through
NO_PRIOR = ("null", "best_of_n")  # a point, and a number for each reply


@dataclass(frozen=True)
class Agreement:
    """Two families over the same behaviours.

    rho:        Spearman's rank correlation of their certified upper bounds, -1 to 1
    p:          share of all orders of one side that agree at least as well (exact up to 7 behaviours, else drawn)
    behaviours: how many have a bound in both; of one that nothing reached it is not known how far it lies
    """

    first: str
    second: str
    rho: float
    p: float
    behaviours: int


def agreements(results: Sequence[Result]) -> list[Agreement]:
    """Every pair of families that bound at least FEWEST of the behaviours, and tell them apart."""
    bounds = [_bounds(result) for result in results]
    found = []
    for first, second in combinations(dict.fromkeys(family for row in bounds for family in row), 2):
        both = np.array([(row[first], row[second]) for row in bounds if first in row and second in row])
        if len(both) >= FEWEST and all(len(set(side)) > 1 for side in both.T):
            one, two = stats.rankdata(both, axis=0).T
            tried = stats.permutation_test(
                (one,), lambda order, two=two: np.corrcoef(order, two)[0, 1], permutation_type="pairings",
                alternative="greater", n_resamples=ORDERS, rng=np.random.default_rng(0),
            )  # fmt: skip
            found.append(Agreement(first, second, float(tried.statistic), float(tried.pvalue), len(both)))
    return found


def _bounds(result: Result) -> dict[str, float]:
    """Certified upper bound in bits of each family that has one. Empty for a loss."""
    try:
        distances = {f: result.distance(family=f) for f in result.families if f not in NO_PRIOR}
    except NoDistance:
        return {}
    return {f: d.upper.value for f, d in distances.items() if d.upper is not None}
