"""How little it takes to break a solution: noise, rounding, and the slope and curvature of the loss around it.

Source: docs/measurement.md section 7. A latent has the prior N(0, I) in whitened coordinates, so every scale here is a
share of the prior's own, and rescaling the model's embeddings changes nothing. It sees closures and knows no model.

What it does not know: what a fragile solution says of the behaviour. Two warnings. KL contains the widths of q, so KL
and noise tolerance correlate by construction: compare fragility at one size across behaviours, or with the size or
`location_bits`, never with KL. And noise in d coordinates has length scale * sqrt(d): sizes differ for that alone.
Nor does it know rounding: give it a loss in float32 or better, as bfloat16 swallows small rises and all curvature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from leadline.curvature import Loss, extreme_eigenvalues, trace_samples
from leadline.information import (
    BITS_PER_NAT,
    CONFIDENCE,
    KINDS,
    clopper_pearson_lower,
    clopper_pearson_upper,
    student_interval,
)
from leadline.priors import generator, normal

# (draws, *shape) latents -> (draws,) score in [0, 1] on the items, each of its own latent only
Score = Callable[[Tensor], Tensor]

PASSING = 0.9  # the share of noisy draws that must reach the threshold; at a half, a flat boundary bears any noise
OCTAVE = 8  # noise scales tried to a doubling
NOISE_GRID = tuple(2.0 ** (step / OCTAVE) for step in range(-10 * OCTAVE, 3 * OCTAVE + 1))
SCALES = (0.01, 0.03, 0.1, 0.3, 1.0)  # noise scales at which slope and rise of the loss are taken
PRECISIONS = range(-3, 17)  # bits after the binary point tried: steps of 8 down to 2^-16 of the prior's scale
LANCZOS_STEPS = 40
SLACK = 1e-6  # float32 rounds a share of items by less, and one item of fewer than a million weighs more


@dataclass(frozen=True)
class Measured:
    """One number with what makes it believable.

    value:     None where `outcome` says that there is no number
    low, high: interval at `confidence`, of this number alone; infinite ends where nothing is known, NaN for none
    kind:      one of information.KINDS;  unit: in words
    outcome:   "found", or what happened instead
    """

    value: float | None
    low: float
    high: float
    kind: str
    unit: str
    outcome: str = "found"
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {KINDS}")

    def __str__(self) -> str:
        if self.value is None:
            return self.outcome
        return f"{self.value:.3g}" + ("" if self.low == self.high else f" ({self.low:.3g} to {self.high:.3g})")


@dataclass(frozen=True)
class Around:
    """The loss around a solution under Gaussian noise of `scale`, of length about scale * sqrt(d); over noise.

    gradient_norm: E norm(grad loss(z + delta)), bits per unit of whitened distance
    rise:          E[loss(z + delta) - loss(z)], bits a reply
    """

    scale: float
    gradient_norm: Measured
    rise: Measured


@dataclass(frozen=True)
class Fragility:
    """What one solution bears.

    score, threshold: the untouched solution's score, and what it has to reach
    dimensions, draws, probes: free numbers of the latent; noise directions; Hutchinson's probes
    location_bits:    z^2 / 2 in bits, the part of KL that is free of widths
    noise:            the largest noise scale at which PASSING of the draws reach the threshold
    precision:        the fewest bits after the binary point such that z, rounded to them or to more, reaches it
    around:           slope and rise of the loss, a noise scale each
    trace:            of the Hessian of the loss at z
    largest, smallest: its algebraically largest and smallest eigenvalue; the larger in magnitude may be either
    """

    score: float
    threshold: float
    dimensions: int
    draws: int
    probes: int
    location_bits: float
    noise: Measured
    precision: Measured
    around: tuple[Around, ...]
    trace: Measured
    largest: Measured
    smallest: Measured
    prior: str = "N(0, I) in whitened coordinates"

    @property
    def sentence(self) -> str:
        """The numbers in plain words, intervals in brackets."""
        middle = self.around[len(self.around) // 2]
        return (
            f"Noise that {PASSING:.0%} of {self.draws} draws bear with a score of {self.threshold:g}, as a share of "
            f"the prior's scale: {self.noise}. Bits after the binary point that a coordinate needs: {self.precision}. "
            f"Noise of {middle.scale:g} raises the loss by, in bits a reply: {middle.rise}. Hessian of the loss in "
            f"bits a reply, trace: {self.trace}; largest eigenvalue: {self.largest}; smallest: {self.smallest}. "
            f"{self.dimensions} dimensions, prior {self.prior}, intervals at {CONFIDENCE:.0%}."
        )


def fragility(
    z: Tensor,
    loss: Loss,
    score: Score,
    threshold: float,
    *labels: object,
    draws: int = 64,
    probes: int = 64,
    batch: int = 16,
) -> Fragility:
    """Measures one solution z (*shape), whitened coordinates.

    loss:   (draws, *shape) latents -> (draws,) bits a reply, twice differentiable, each row of its own latent only
    score:  likewise -> (draws,) score in [0, 1] on fixed items; z is a solution if its score reaches `threshold`
    labels: all randomness hashes them and nothing else (`priors.normal`)
    draws, probes, batch: directions of noise; Hutchinson's probes; latents handed to a closure at once
    Calls: at most 23 draws + 23 scores, 5 draws + 1 losses with gradient, probes + 40 products with the Hessian.
    """
    directions = normal((draws, *z.shape), "fragility noise", *labels).to(z)
    signs = torch.randint(0, 2, (probes, *z.shape), generator=generator("fragility probes", *labels)).to(z) * 2 - 1
    start = normal(tuple(z.shape), "fragility start", *labels).to(z)
    largest, smallest = eigenvalues(z, loss, start)
    return Fragility(
        score=float(_scores(z[None], score, batch)[0]),
        threshold=threshold,
        dimensions=z.numel(),
        draws=draws,
        probes=probes,
        location_bits=float(z.double().square().sum()) / 2 * BITS_PER_NAT,
        noise=noise_tolerance(z, score, threshold, directions, batch),
        precision=precision(z, score, threshold, batch),
        around=tuple(around(z, loss, scale, directions, batch) for scale in SCALES),
        trace=_mean(trace_samples(loss, z, signs, batch), "bits a reply per squared unit"),
        largest=largest,
        smallest=smallest,
    )


def noise_tolerance(z: Tensor, score: Score, threshold: float, directions: Tensor, batch: int) -> Measured:
    """The largest scale s of NOISE_GRID up to which at least PASSING of z + s * directions reach the threshold.

    Octave by octave upwards until one fails, then by bisection: a larger scale at which draws are back in S is not
    counted. The interval is of the scale at which the true share is PASSING: from the largest scale whose
    Clopper-Pearson lower limit is still PASSING to the smallest whose upper limit is not. As the directions are the
    same at all scales this is an order statistic's interval, and covers at its level wherever a direction that has left
    S does not come back (S seen from z is star-shaped); counts that rise with the scale are an outcome. Ends: censored,
    and no number, where the smallest scale fails or the largest passes.
    """
    unit, draws = "share of the prior's scale", len(directions)
    if not _reaches(z[None], score, threshold, 1)[0]:
        return Measured(None, math.nan, math.nan, "estimate", unit, "z misses the threshold")
    counts: dict[int, int] = {}

    def count(index: int) -> int:
        if index not in counts:
            counts[index] = int(_reaches(z + NOISE_GRID[index] * directions, score, threshold, batch).sum())
        return counts[index]

    each = (1 + CONFIDENCE) / 2
    last = _last(lambda index: count(index) >= PASSING * draws - SLACK)
    sure = _last(lambda index: clopper_pearson_lower(count(index), draws, each) >= PASSING)
    doubt = _last(lambda index: clopper_pearson_upper(count(index), draws, each) >= PASSING)
    low = NOISE_GRID[sure] if sure >= 0 else 0.0
    high = NOISE_GRID[doubt + 1] if doubt + 1 < len(NOISE_GRID) else math.inf
    ordered = [counts[index] for index in sorted(counts)]
    outcome = "found" if ordered == sorted(ordered, reverse=True) else "found, but a larger noise passed more draws"
    if last < 0:
        return Measured(None, low, high, "estimate", unit, f"below the smallest tried, {NOISE_GRID[0]:.2g}")
    if last == len(NOISE_GRID) - 1:
        return Measured(None, low, high, "estimate", unit, f"above the largest tried, {NOISE_GRID[-1]:.2g}")
    return Measured(NOISE_GRID[last], low, high, "estimate", unit, outcome)


def precision(z: Tensor, score: Score, threshold: float, batch: int) -> Measured:
    """The fewest bits k of PRECISIONS such that z rounded to multiples of 2^-k of the prior's scale reaches the
    threshold, and so does every finer rounding tried. A coarser one that passes by luck does not count. Exact."""
    unit = "bits after the binary point, a coordinate"
    if not _reaches(z[None], score, threshold, 1)[0]:
        return Measured(None, math.nan, math.nan, "exact", unit, "z misses the threshold")
    rounded = torch.stack([torch.round(z.double() * 2.0**bits) / 2.0**bits for bits in PRECISIONS]).to(z)
    passed = _reaches(rounded, score, threshold, batch).tolist()
    if not passed[-1]:
        return Measured(None, PRECISIONS[-1] + 1, math.inf, "exact", unit, f"more than {PRECISIONS[-1]}")
    first = max((place + 1 for place, good in enumerate(passed) if not good), default=0)
    if first == 0:
        return Measured(None, -math.inf, PRECISIONS[0], "exact", unit, f"at most {PRECISIONS[0]}")
    return Measured(PRECISIONS[first], PRECISIONS[first], PRECISIONS[first], "exact", unit)


def around(z: Tensor, loss: Loss, scale: float, directions: Tensor, batch: int) -> Around:
    """Slope and rise of the loss at z + scale * directions, with Student's intervals over the directions.

    On a quadratic loss the mean rise is scale^2 trace(H) / 2 for any z.
    """
    with torch.no_grad():
        before = loss(z[None])[0].double()
    norms, rises = [], []
    for part in torch.split(directions, batch):
        points = (z + scale * part).detach().requires_grad_()
        found = loss(points)
        (gradient,) = torch.autograd.grad(found.sum(), points)
        norms.append(gradient.double().flatten(1).norm(dim=1))
        rises.append(found.detach().double() - before)
    slope = _mean(torch.cat(norms), "bits a reply per unit of whitened distance")
    return Around(scale, slope, _mean(torch.cat(rises), "bits a reply"))


def eigenvalues(z: Tensor, loss: Loss, start: Tensor) -> tuple[Measured, Measured]:
    """The algebraically largest and smallest eigenvalue of the Hessian at z, by Lanczos from `start` (*shape).

    A Ritz value lies inside the spectrum, so the interval goes outwards from it, by the residual. That an eigenvalue is
    in there is certain; that it is the outermost one holds unless `start` was all but orthogonal to that one.
    """
    unit = "bits a reply per squared unit"
    ends = extreme_eigenvalues(loss, z, start, LANCZOS_STEPS)
    if math.isnan(ends.largest):
        lost = Measured(None, math.nan, math.nan, "estimate", unit, "not finite")
        return lost, lost
    high, low = ends.largest + ends.largest_error, ends.smallest - ends.smallest_error
    return (
        Measured(ends.largest, ends.largest, high, "estimate", unit),
        Measured(ends.smallest, low, ends.smallest, "estimate", unit),
    )


def _last(passes: Callable[[int], bool]) -> int:
    """The index of NOISE_GRID before the first that fails, up to what happens within an octave; -1 where the smallest
    fails, the last index where none does."""
    good, bad = -1, len(NOISE_GRID)
    for index in range(0, len(NOISE_GRID), OCTAVE):
        if not passes(index):
            bad = index
            break
        good = index
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if passes(middle) else (good, middle)
    return good


@torch.no_grad()
def _scores(latents: Tensor, score: Score, batch: int) -> Tensor:
    return torch.cat([score(part).double() for part in torch.split(latents, batch)])


def _reaches(latents: Tensor, score: Score, threshold: float, batch: int) -> Tensor:
    return _scores(latents, score, batch) >= threshold - SLACK


def _mean(values: Tensor, unit: str) -> Measured:
    if not bool(torch.isfinite(values).all()):
        lost = int((~torch.isfinite(values)).sum())
        return Measured(None, math.nan, math.nan, "estimate", unit, f"not finite in {lost} of {len(values)} draws")
    mean, low, high = student_interval(values.cpu().numpy())
    return Measured(mean, low, high, "estimate", unit)
