"""CODE as bytes: messages of points and cells that another process decodes bit for bit.

A `Point` is an intervention itself, quantised. Under the code's own prior, which gives a message the probability
2^-bits, D is at most the bits of the message of a point that works: no draws, no optimiser, nothing to trust but the
bytes (docs/measurement.md section 2). A cell's message pays for the depths of its coordinates too, which the cell's
length under pi does not.

It does not know what a coordinate does, nor files: `coder.seal` makes a file of a message.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from leadline.coder import COIN, Integers, Reader, Table, Writer, uniform
from leadline.estimators.code import MAX_DEPTH, Cell, drawn_bound, index_bits
from leadline.information import CONFIDENCE, Bits, Bound, Floats

CODE_PRIOR = "leadline's code: 2^-8 a byte of the message"
MAX_COORDINATES = 2**20
"""What a message may claim to hold: a short one can truly hold many coordinates at 0 bits, and memory is finite."""

EXPONENTS = range(-2, 9)
"""Steps of a point are 2^-exponent standard deviations of the prior: 4 down to 1/256."""
TRIED = range(-2, 5)
"""Exponents that a measurement tries, fixed for all behaviours: steps of 4 down to 1/16."""
REACH = 32
"""Standard deviations of the prior beyond which no coordinate of a point may lie."""

_KINDS = COIN
_STEPS = uniform(len(EXPONENTS))
_DEPTHS = Table([2**32 // (depth * (depth + 1)) for depth in range(1, MAX_DEPTH + 1)])
_FIXED_POINT = 192


@dataclass(frozen=True, eq=False)
class Point:
    """integers (d,) in units of the step 2^-exponent: whitened coordinates z that float64 holds exactly."""

    integers: Integers
    exponent: int

    def __post_init__(self) -> None:
        if self.integers.ndim != 1 or self.exponent not in EXPONENTS:
            raise ValueError(f"a point is integers (d,) and an exponent of {EXPONENTS}, not {self.exponent}")
        if self.integers.size and int(np.abs(self.integers).max()) > _farthest(self.exponent):
            raise ValueError(f"a coordinate lies more than {REACH} standard deviations out")

    @property
    def z(self) -> Floats:
        """(d,) the coordinates that a decoder gets, bit for bit."""
        return np.ldexp(self.integers.astype(np.float64), -self.exponent)


def point_of(z: ArrayLike, exponent: int) -> Point:
    """The point nearest to whitened coordinates z (d,) at the step 2^-exponent."""
    coordinates = np.asarray(z, np.float64)
    if not (np.isfinite(coordinates).all() and np.abs(coordinates).max(initial=0.0) <= REACH):
        raise ValueError(f"coordinates must be finite and within {REACH} standard deviations of the prior")
    return Point(np.rint(np.ldexp(coordinates, exponent)).astype(np.int64), exponent)


def encode(content: Point | Cell) -> bytes:
    """The message of a point or a cell; its bits are 8 a byte. No message is the beginning of another."""
    size = content.integers.size if isinstance(content, Point) else content.depth.size
    if size > MAX_COORDINATES:
        raise ValueError(f"a message holds at most {MAX_COORDINATES} coordinates, not {size}")
    writer = Writer()
    writer.put([isinstance(content, Cell)], _KINDS)
    writer.put_number(size)
    if isinstance(content, Point):
        writer.put([content.exponent - EXPONENTS.start], _STEPS)
        writer.put(content.integers + _farthest(content.exponent), _gaussian(content.exponent))
        return writer.message()
    deep = content.depth > 0
    count = int(deep.sum())
    writer.put_number(count)
    if 0 < count < size:
        writer.put(deep, Table([size - count, count]))
    writer.put(content.depth[deep] - 1, _DEPTHS)
    # side and index as one number, the side in front
    number = np.left_shift(content.upper.astype(np.int64), index_bits(content.depth)) + content.index
    owner, shift = _digits(content.depth[deep])
    writer.put(number[deep][owner] >> shift & 1, COIN)
    return writer.message()


def decode(message: bytes) -> Point | Cell:
    """What `encode` was given, bit for bit. ValueError for bytes that are no message; they may come from anywhere."""
    reader = Reader(message)
    is_cell = bool(reader.take(1, _KINDS)[0])
    size = reader.take_number()
    if size > MAX_COORDINATES:
        raise ValueError(f"a message holds at most {MAX_COORDINATES} coordinates, and this one says {size}")
    if not is_cell:
        exponent = EXPONENTS[int(reader.take(1, _STEPS)[0])]
        integers = reader.take(size, _gaussian(exponent)) - _farthest(exponent)
        reader.finish()
        return Point(integers, exponent)
    count = reader.take_number()
    if count > size:
        raise ValueError("these bytes are not a message: more deep coordinates than coordinates")
    deep = np.full(size, count > 0)
    if 0 < count < size:
        deep = reader.take(size, Table([size - count, count])).astype(bool)
    if int(deep.sum()) != count:
        raise ValueError("these bytes are not a message: the deep coordinates do not add up")
    depth, number = np.zeros(size, np.int64), np.zeros(size, np.int64)
    depth[deep] = reader.take(count, _DEPTHS) + 1
    # taken before the places are laid out: a false depth is found out before it costs memory
    digits = reader.take(int((1 + index_bits(depth[deep])).sum()), COIN)
    reader.finish()
    owner, shift = _digits(depth[deep])
    # at most 49 binary digits a coordinate: exact in float64
    number[deep] = np.bincount(owner, np.ldexp(digits.astype(np.float64), shift), minlength=count)
    side = np.left_shift(np.int64(1), index_bits(depth))
    upper = number >= side
    return Cell(depth, upper, number - np.where(upper, side, 0))


def _digits(depth: Integers) -> tuple[Integers, Integers]:
    """The binary digits of deep coordinates in the order they are written: whose each is, and its place value."""
    width = 1 + index_bits(depth)
    owner = np.repeat(np.arange(depth.size), width)
    place = np.arange(owner.size) - np.repeat(np.cumsum(width) - width, width)
    return owner, width[owner] - 1 - place


def _farthest(exponent: int) -> int:
    return int(math.ldexp(REACH, exponent))


@cache
def _gaussian(exponent: int) -> Table:
    """N(0, 1) on the multiples of 2^-exponent: weights exp(-z^2 / 2), in integer arithmetic alone.

    The n-th weight is g^(n^2) with g = exp(-step^2 / 2), and n^2 is a sum of odd numbers. g comes from the smallest
    step by squaring, where its series is short. Products are cut to _FIXED_POINT bits; what that loses is the same on
    every machine. Weights below 2^-32 are 0, and the coder gives those symbols one part in 2^24.
    """
    one = 1 << _FIXED_POINT
    finest = max(EXPONENTS)
    ratio, term = one, one
    for n in range(1, 16):
        term = -term // (n << 2 * finest + 1)
        ratio += term
    for _ in range(2 * (finest - exponent)):
        ratio = ratio * ratio >> _FIXED_POINT
    farthest = _farthest(exponent)
    weight, odd, side = one, ratio, [one]
    while len(side) <= farthest:
        weight, odd = weight * odd >> _FIXED_POINT, odd * ratio * ratio >> 2 * _FIXED_POINT
        side.append(weight)
    half = [weight >> _FIXED_POINT - 32 for weight in side]
    return Table([*reversed(half[1:]), *half])


def message_bound(message: bytes, hits: int | None = None, draws: int | None = None) -> Bound:
    """Certified upper bound on D under the code's own prior, from a message that was decoded and scored.

    Of a point that reached the threshold: the bits of the message, and no sampling. Of a cell with `hits` of `draws`
    fresh draws: those bits - log2 p. The prior draws a message with probability 2^-bits, then within its cell.
    """
    paid = ("message", 8.0 * len(message))
    if isinstance(decode(message), Cell):
        if hits is None or draws is None:
            raise ValueError("a cell works at some rate: its hits and draws are needed")
        return drawn_bound(paid, hits, draws, CONFIDENCE, CODE_PRIOR)
    if hits is not None or draws is not None:
        raise ValueError("a point works or does not: it has no hits and draws")
    bits = paid[1]
    return Bound(
        None, Bits(bits, "certified upper", bits, bits, CONFIDENCE, "CODE", CODE_PRIOR, (paid,)), None, math.nan
    )
