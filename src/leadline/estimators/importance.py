"""IW: importance weights. What the prior's mass of S is, read from draws of q that were weighted back to the prior.

pi(S) = E_q[1(S) pi / q] holds for any q that covers S, without a closed form, and unlike COND's bound it loses nothing
to Jensen; in exchange a few draws may carry all the weight. It does not know what q, S or a draw is: log ratios, hits
and one divergence come in, bits go out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from leadline.estimators.cond import check_draws
from leadline.estimators.markov import log2_mean, markov
from leadline.estimators.monte_carlo import monte_carlo
from leadline.information import BITS_PER_NAT, CONFIDENCE, Bits, Bound, Floats, student_quantile

BATCHES = 8
MIN_ESS = 10.0
MAX_PARETO_K = 0.7
MIN_TAIL = 5
"""Draws below which the shape of a tail is not judged."""
TINY = 1e-300


@dataclass(frozen=True)
class WeightDiagnostics:
    """Whether the weights w = pi / q of some draws may be averaged.

    draws, hits: counts
    ess:         effective sample size of the hits, (sum w)^2 / sum w^2; 0 without a hit
    pareto_k:    shape of the tail of the hits' weights (`pareto_k`); inf where too few hits show one
    spread_bits: standard deviation of log2 w over all draws, of q alone: it can be known before anything is scored
    """

    draws: int
    hits: int
    ess: float
    pareto_k: float
    spread_bits: float

    @property
    def skip(self) -> bool:
        """So many draws of q do not average such weights out: do not score them for IW alone."""
        return self.spread_bits > math.log2(self.draws)

    @property
    def pareto_k_limit(self) -> float:
        """Largest tail shape at which so many hits can be averaged (Vehtari et al., arXiv 1507.02646)."""
        return min(1.0 - 1.0 / math.log10(self.hits), MAX_PARETO_K) if self.hits > 1 else -math.inf

    @property
    def trusted(self) -> bool:
        """Whether there is a two-sided estimate."""
        return self.ess > MIN_ESS and self.pareto_k < self.pareto_k_limit

    @property
    def sentence(self) -> str:
        """The same for people."""
        borne = f"{self.draws} draws bear {math.log2(self.draws):.1f}"
        spread = f"the log2 weights of q spread by {self.spread_bits:.1f} bits and {borne}"
        spread += ": skip" if self.skip else ""
        if self.hits == 0:
            return f"no hit to weigh; {spread}"
        tail = f"{self.pareto_k:.2f}" if math.isfinite(self.pareto_k) else "unknown" if self.pareto_k > 0 else "none"
        hits = f"{self.hits} hits count as {self.ess:.1f}, tail shape {tail} (limit {self.pareto_k_limit:.2f})"
        verdict = "a two-sided estimate" if self.trusted else "no estimate, only the certified bound"
        return f"{verdict}: {hits}; {spread}"


def importance(
    log_ratio_bits: ArrayLike,
    hit: ArrayLike,
    kl_bits: float,
    batches: int = BATCHES,
    confidence: float = CONFIDENCE,
    prior: str = "",
) -> Bound:
    """Certified upper bound on D from fresh draws z of q, and an estimate of D where the weights bear one.

    log_ratio_bits: (n,) log2 q(z) / pi(z) of every draw, misses too, in bits
    hit:            (n,) whether the draw does it
    kl_bits:        closed-form KL(q || pi) of the same q, in bits; it enters no bound, but shows ratios of another q or
                    in other units, and that q is pi
    batches:        R, fixed before the draws are seen; the draws are cut into R runs in their order
    ValueError: as for `cond`; R outside 1..n. Source: docs/measurement.md, bounds, IW.

    **The limit.** Y_r = mean of 1(S) pi / q over the draws of batch r. E[Y_r] is the integral of q pi / q over S where
    q > 0: pi(S), or less if q leaves part of S out. The Y_r are independent and not negative, so their product has mean
    pi(S)^R or less, and by Markov's inequality D < -mean_r log2 Y_r + log2(1 / delta) / R but for probability delta
    (`markov`): 0.54
    bits for 8 batches at 95%, for any q, any n and any tail of the weights. A narrow q makes Y_r too small nearly
    always and too large hardly ever; both are covered. A batch without a hit bounds nothing: no upper bound then.

    **The estimate** is -log2 of the mean over all draws. It is given only where `diagnostics` trusts the weights, since
    a heavy tail makes mean and standard error wrong together: both miss the few draws that matter. Trust is no proof: a
    tail that no draw has shown is not always suspected (6% of the runs of such a case in the tests), and parts of S
    where q hardly draws never are: a q at one of two equal halves is 1 bit too high and trusted. The standard error
    is that of the mean, carried through the logarithm; Student's t has the effective sample size less one as degrees of
    freedom, because that many draws have shown their spread. Where it is not trusted the interval of the upper bound
    is what is certain: from 0 to that bound.

    **q = pi** (kl_bits = 0): all weights are 1 and the answer is MC's, under this name. The rule reads the divergence
    and never the draws, or two limits would share one delta. MC's lower limit is left to MC.
    """
    ratio, is_hit = np.asarray(log_ratio_bits, np.float64), np.asarray(hit, bool)
    check_draws(ratio, is_hit, kl_bits)
    draws, hits = int(is_hit.size), int(is_hit.sum())
    if not 1 <= batches <= draws:
        raise ValueError(f"need between 1 and {draws} batches, not {batches}")
    if hits == 0:
        return Bound(None, None, None, math.nan)
    if kl_bits == 0.0:
        found = monte_carlo(hits, draws, confidence, prior)
        estimate = found.estimate and replace(found.estimate, kind="estimate", estimator="IW")
        upper = found.upper and replace(found.upper, estimator="IW")
        return Bound(estimate, upper, None, found.stderr_bits)

    log2_terms = np.where(is_hit, -ratio, -math.inf)
    log2_masses = [log2_mean(batch) for batch in np.array_split(log2_terms, batches)]
    weights = diagnostics(ratio, is_hit)
    if not weights.trusted:
        upper = markov(log2_masses, math.nan, math.nan, confidence, "IW", prior)
        return Bound(None, upper and replace(upper, low=0.0, high=upper.value), None, math.nan)

    value = -log2_mean(log2_terms)
    terms = np.exp2(log2_terms + value)
    stderr = float(terms.std(ddof=1)) / math.sqrt(draws) * BITS_PER_NAT
    half = student_quantile((1.0 + confidence) / 2.0, weights.ess - 1.0) * stderr
    low, high = value - half, value + half
    paid = (("-log2 of the mean weight of the hits", value),)
    estimate = Bits(value, "estimate", low, high, confidence, "IW", prior, paid)
    return Bound(estimate, markov(log2_masses, low, high, confidence, "IW", prior), None, stderr)


def diagnostics(log_ratio_bits: ArrayLike, hit: ArrayLike) -> WeightDiagnostics:
    """What the weights of draws of q look like; arguments as for `importance`. Read it before trusting an estimate."""
    ratio, is_hit = np.asarray(log_ratio_bits, np.float64), np.asarray(hit, bool)
    hits = int(is_hit.sum())
    ess = 0.0
    if hits:
        weight = np.exp2(ratio[is_hit].min() - ratio[is_hit])
        ess = float(weight.sum() ** 2 / (weight @ weight))
    return WeightDiagnostics(int(ratio.size), hits, ess, pareto_k(-ratio[is_hit]), float(ratio.std()))


def pareto_k(log2_weights: ArrayLike) -> float:
    """Shape k of the generalised Pareto law of the largest weights: moments below 1 / k exist: no variance from 0.5 on.

    log2_weights: (n,). The tail is the min(n / 5, 3 sqrt(n)) largest, above the largest of the others. inf where the
    tail has fewer than MIN_TAIL values, -inf where nothing exceeds the others: equal weights have no tail.
    Source: the quasi-Bayesian fit of Zhang and Stephens (Technometrics 51, 2009) as PSIS uses it, with its weak prior
    of ten draws at k = 1/2 (Vehtari, Simpson, Gelman, Yao, Gabry, arXiv 1507.02646).
    """
    log2_sorted = np.sort(np.asarray(log2_weights, np.float64))
    length = math.ceil(min(log2_sorted.size / 5.0, 3.0 * math.sqrt(log2_sorted.size)))
    if length < MIN_TAIL:
        return math.inf
    # weights as shares of the largest: a shape has no scale
    weights = np.exp2(log2_sorted - log2_sorted[-1])
    excess = weights[-length:] - weights[-length - 1]
    excess = excess[excess > TINY]
    if not excess.size:
        return -math.inf
    if excess.size < MIN_TAIL:
        return math.inf
    fitted = _shape(excess)
    return float((excess.size * fitted + 5.0) / (excess.size + 10.0))


def _shape(excess: Floats) -> float:
    """k of values x > 0, ascending, by the mean of theta under its profile likelihood on a grid; 1 - theta x > 0."""
    count = excess.size
    points = 30 + math.isqrt(count)
    first_quartile = excess[(count + 2) // 4 - 1]
    grid = np.arange(1, points + 1) - 0.5
    theta = 1.0 / excess[-1] + (1.0 - np.sqrt(points / grid)) / (3.0 * first_quartile)
    # theta = 0 is the exponential law, where the likelihood below is 0 / 0
    theta = theta[theta != 0.0]
    shape = np.log1p(-theta[:, None] * excess).mean(axis=1)
    log_likelihood = count * (np.log(-theta / shape) - shape - 1.0)
    weight = np.exp(log_likelihood - log_likelihood.max())
    mean_theta = float((weight * theta).sum() / weight.sum())
    return float(np.log1p(-mean_theta * excess).mean())
