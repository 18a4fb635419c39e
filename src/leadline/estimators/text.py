"""TEXT, a certified upper bound: the prior mass of texts that are known to work, added up (docs/measurement.md
section 2).

The texts are distinct points of S, so their mass is part of pi(S). However they were found, nothing was drawn to score
them and greedy scoring is deterministic: the bound holds without an error probability, up to the rounding of the
probabilities themselves. It does not know what a text is, nor whether it works: that is the caller's word.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from leadline.information import Bits, Bound

ROUNDING_BITS = 1e-3
"""How far above 1 a mass may lie, in bits, before it is an error: probabilities come from float32 logits."""


def text_bound(log2_probabilities: ArrayLike, prior: str = "", texts: Sequence[Hashable] | None = None) -> Bound:
    """Certified upper bound D <= -log2 sum p(text) from the probabilities of distinct successful texts.

    log2_probabilities: (texts,) log2 of each text's prior probability, -inf allowed; summed in logarithms, so texts
                        of any length count
    texts:              the texts themselves (tuples of tokens), to be checked for duplicates; the same text twice would
                        be counted twice. Without them that is the caller's to see to
    No text: nothing is said (all fields None). ValueError: duplicates, NaN, a shape that does not fit, or a mass above
    1 (probabilities of duplicates, or not log2). The interval has no width and the confidence is 1: nothing is sampled.
    Source: docs/measurement.md, bounds, TEXT.
    """
    logs = np.asarray(log2_probabilities, np.float64)
    if logs.ndim != 1 or np.isnan(logs).any():
        raise ValueError(f"TEXT needs one log2 probability a text, none of them NaN, got shape {logs.shape}")
    if texts is not None and len(texts) != len(logs):
        raise ValueError(f"{len(texts)} texts for {len(logs)} probabilities")
    if texts is not None and len(set(texts)) != len(texts):
        raise ValueError(f"{len(texts) - len(set(texts))} of {len(texts)} texts are there twice and would count twice")
    if not len(logs):
        return Bound(None, None, None, math.nan)
    most = float(logs.max())
    paid: tuple[tuple[str, float], ...] = ()
    if math.isinf(most) and most < 0:
        value = math.inf
    else:
        # the likeliest text is taken out of the sum, so that nothing underflows
        together = float(np.log2(np.sum(np.exp2(logs - most))))
        if not most + together <= ROUNDING_BITS:
            raise ValueError(f"the texts have a mass of 2^{most + together:.3g}: counted twice, or not log2")
        value = max(-most - together, 0.0)
        paid = (("the likeliest text", -most), (f"{len(logs) - 1} other texts", value + most))
    upper = Bits(value, "certified upper", value, value, 1.0, "TEXT", prior, paid)
    return Bound(None, upper, None, math.nan)
