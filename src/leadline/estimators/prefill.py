"""PREFILL, a certified upper bound: the direct cost of a constant reply, spelling it out (docs/measurement.md
section 2). Functions of per-context losses; knows no model."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def prefill_bits(loss_bits: ArrayLike) -> float:
    """-log2 of the mean over contexts of p(reply | context), from each context's cost in bits, end of reply included.

    loss_bits: (contexts,). Computed without underflow: the smallest cost is taken out of the sum.
    """
    costs = np.asarray(loss_bits, dtype=np.float64)
    if costs.ndim != 1 or not len(costs):
        raise ValueError(f"prefill needs one cost a context, got shape {costs.shape}")
    least = float(costs.min())
    if not np.isfinite(least):
        return float("inf") if least > 0 else float("nan")
    return least - float(np.log2(np.mean(np.exp2(least - costs))))
