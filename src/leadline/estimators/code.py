"""CODE in the prior's quantiles: a cell to draw in, whose length is exactly -log2 of its prior mass.

A `Cell` is a box of dyadic quantile intervals. pi(cell) = 2^-L exactly, and with p the share of draws within the cell
that do it, pi(S) >= 2^-L p, so D <= L - log2 p under pi = N(0, I) (docs/measurement.md section 2). The same cell as
bytes, and points under the code's own prior, are in message.py.

It does not know what a coordinate does, nor whether a draw works: hits are counted elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # type: ignore[import-untyped]

from leadline.information import (
    BITS_PER_NAT,
    CONFIDENCE,
    MIN_DRAWS,
    NATS_PER_BIT,
    Bits,
    Bound,
    Floats,
    clopper_pearson_lower,
    clopper_pearson_upper,
    surprisal,
)

Integers = NDArray[np.int64]

MAX_DEPTH = 1024
"""Bits of a coordinate: down to an interval from 37 standard deviations outwards."""
INDEX_BITS = 48
"""A cell is at least 2^-48 of its distance from the end of the tail: float64 draws still differ within it."""
PRICES = (1.0, 0.5, 0.25)
"""Of a bit of depth against the fit of a cell (`cell_of`), what a measurement tries on validation draws."""
_NODES = 16


@dataclass(frozen=True, eq=False)
class Cell:
    """A dyadic box in quantiles: coordinate i is one of the 2^depth[i] intervals of equal prior mass.

    depth: (d,) bits, 0 .. MAX_DEPTH; 0 is the whole line
    upper: (d,) bool, whether the interval lies above the median, False at depth 0
    index: (d,) its number counted from the end of its own tail, 0 .. 2^(depth - 1) - 1 and below 2^INDEX_BITS, 0 at
           depth 0. Counted so, intervals far out in the upper tail are as exact as those in the lower one.
    """

    depth: Integers
    upper: NDArray[np.bool_]
    index: Integers

    def __post_init__(self) -> None:
        if not (self.depth.ndim == 1 and self.depth.shape == self.upper.shape == self.index.shape):
            raise ValueError("a cell is a depth, a side and an index a coordinate")
        if self.depth.size and not (self.depth.min() >= 0 and self.depth.max() <= MAX_DEPTH):
            raise ValueError(f"the depth of a cell lies in 0..{MAX_DEPTH}")
        count = np.left_shift(np.int64(1), index_bits(self.depth))
        if ((self.index < 0) | (self.index >= count)).any() or self.upper[self.depth == 0].any():
            raise ValueError(f"no cell of this depth has this index, or it is past {INDEX_BITS} bits")

    @property
    def bits(self) -> int:
        """L = -log2 pi(cell), exactly."""
        return int(self.depth.sum())


def cell_of(mean: ArrayLike, scale: ArrayLike, price: float = 1.0) -> Cell:
    """The cell for q = N(mean, diag scale^2), both (d,): a depth of 0 wherever q is the prior.

    mean, scale: of a trained q or, closer, the moments of those validation draws of it that hit
    price:       what a bit of depth counts for against the fit. Below 1 the cell is narrower and its draws hit more
                 often, which many weak coordinates need. Chosen on validation draws, like beta, at no bits: L pays for
                 the cell, whatever chose it

    A solver trains q to minimise KL(q, pi) + E_q[loss] / beta. If q is the best law there is, which is the prior times
    exp(-loss / beta), then that sum is KL(r, q) and a constant for any other law r. The law of a cell is r = pi within
    it, so each coordinate takes the dyadic interval that makes KL(r, q) = depth - E_r[log2 q / pi] least, by
    quadrature. A poor choice costs bits and not truth: the bound holds for every cell.
    """
    means, scales = np.asarray(mean, np.float64), np.asarray(scale, np.float64)
    if not (means.ndim == 1 and means.shape == scales.shape and np.isfinite(means).all()):
        raise ValueError(f"need a finite mean and a scale a coordinate, not shapes {means.shape} and {scales.shape}")
    if not (np.all(scales > 0.0) and np.isfinite(scales).all() and price > 0.0):
        raise ValueError("scales and price must be positive")
    depth, index = np.zeros(means.size, np.int64), np.zeros(means.size, np.int64)
    centre = np.abs(means)  # the upper tail is the lower one's mirror image
    tail_nats = special.log_ndtr(-centre)
    least = (((1.0 + centre**2) / scales**2 - 1.0) / 2.0 + np.log(scales)) * BITS_PER_NAT

    # no price makes a cell far narrower than q worth it, and none is narrower than its index can say
    density_nats = -(centre**2 + math.log(2.0 * math.pi)) / 2.0
    narrow = 2.0 - (density_nats + np.log(scales * min(1.0, math.sqrt(price)))) * BITS_PER_NAT
    deepest = np.minimum(np.ceil(narrow), np.floor(INDEX_BITS - 1 - tail_nats * BITS_PER_NAT)).clip(0, MAX_DEPTH)
    nodes = (np.arange(_NODES) + 0.5)[:, None] / _NODES
    for level in range(1, int(deepest.max(initial=0.0)) + 1):
        at = np.flatnonzero(deepest >= level)
        last = 2 ** min(level - 1, INDEX_BITS) - 1
        around = np.floor(np.exp(tail_nats[at] + level * NATS_PER_BIT)).astype(np.int64)
        for candidate in (around - 1, around, around + 1):
            tried = candidate.clip(0, last)
            z = -_tail_quantile(tried + nodes, level)
            square = (z**2 - ((z - centre[at]) / scales[at]) ** 2).mean(axis=0)
            cost = price * level - (square / 2.0 - np.log(scales[at])) * BITS_PER_NAT
            better = cost < least[at]
            least[at[better]], depth[at[better]], index[at[better]] = cost[better], level, tried[better]
    return Cell(depth, (means > 0.0) & (depth > 0), index)


def draw(cell: Cell, uniforms: ArrayLike) -> Floats:
    """z (n, d): the prior within the cell, from uniforms (n, d) in [0, 1), in float64. Rounding aside, uniform there.

    A coordinate of depth 0 is a draw of the prior. The last digits depend on the machine's logarithm, the cell does
    not.
    """
    share = np.asarray(uniforms, np.float64)
    if share.shape[1:] != cell.depth.shape or not ((share >= 0.0) & (share < 1.0)).all():
        raise ValueError(f"need uniforms (n, {cell.depth.size}) in [0, 1), not of shape {share.shape}")
    whole = cell.depth == 0
    upper = np.where(whole, share >= 0.5, cell.upper)
    # half a spacing of the uniforms in from the end, so that 0 is no infinity
    within = np.where(whole & upper, 1.0 - share - 2.0**-54, share + 2.0**-54)
    z = _tail_quantile(cell.index + within, cell.depth)
    return np.where(upper, -z, z)


def _tail_quantile(position: ArrayLike, depth: ArrayLike) -> Floats:
    """Normal quantile of position * 2^-depth, in logarithms: no depth underflows."""
    quantile: Floats = special.ndtri_exp(np.log(position) - np.asarray(depth) * NATS_PER_BIT)
    return quantile


def index_bits(depth: Integers) -> Integers:
    """Binary digits that the index of an interval can have at each depth."""
    return np.clip(depth - 1, 0, INDEX_BITS)


def code_bound(cell: Cell, hits: int, draws: int, confidence: float = CONFIDENCE, prior: str = "") -> Bound:
    """Certified upper bound on D under pi: L + (-log2 p), p the share of the cell's law that does it.

    `hits` of `draws` fresh draws of this cell; the estimate has p = hits / draws and the limit its Clopper-Pearson
    lower limit at `confidence`. A cell of 0 bits gives MC's upper limit. Without a hit nothing is said. ValueError
    below MIN_DRAWS draws. Source: docs/measurement.md section 2, CODE.
    """
    return drawn_bound(("cell", float(cell.bits)), hits, draws, confidence, prior)


def drawn_bound(paid: tuple[str, float], hits: int, draws: int, confidence: float, prior: str) -> Bound:
    """Certified upper bound: bits already paid, by name, and -log2 of the share of draws that hit."""
    if draws < MIN_DRAWS:
        raise ValueError(f"a certified bound needs at least {MIN_DRAWS} draws, not {draws}")
    two_sided = (1.0 + confidence) / 2.0
    low = paid[1] + surprisal(clopper_pearson_upper(hits, draws, two_sided))
    high = paid[1] + surprisal(clopper_pearson_lower(hits, draws, two_sided))

    def bits(p: float, kind: str) -> Bits:
        ledger = (paid, ("-log2 p", surprisal(p)))
        return Bits(paid[1] + surprisal(p), kind, low, high, confidence, "CODE", prior, ledger)

    if hits == 0:
        return Bound(None, None, None, math.nan)
    share = hits / draws
    upper = bits(clopper_pearson_lower(hits, draws, confidence), "certified upper")
    return Bound(bits(share, "estimate"), upper, None, math.sqrt((1.0 - share) / (share * draws)) * BITS_PER_NAT)
