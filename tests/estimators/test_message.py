"""CODE's messages: bit for bit in another process, prefix-free by enumeration, and safe against bytes from anywhere."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from leadline.coder import COIN, Table, Writer, seal, uniform, unseal
from leadline.estimators import Cell, Point, code_bound, decode, draw, encode, message_bound, point_of
from leadline.estimators.code import INDEX_BITS, MAX_DEPTH
from leadline.estimators.message import EXPONENTS, MAX_COORDINATES, REACH
from leadline.information import clopper_pearson_lower

ELSEWHERE = """
import sys
from pathlib import Path
import numpy as np
from leadline.coder import unseal
from leadline.estimators import Point, decode, draw

found = decode(unseal(Path(sys.argv[1]).read_bytes()))
z = found.z if isinstance(found, Point) else draw(found, np.random.default_rng(7).random((20, found.depth.size)))
print(*(float(value).hex() for value in z.ravel()))
"""


def some_cell(rng: np.random.Generator, dims: int) -> Cell:
    """A share of the coordinates is deep, up to MAX_DEPTH, with any index that such a depth has."""
    depth = np.where(rng.random(dims) < rng.random(), rng.integers(0, 12, dims), 0)
    depth[rng.random(dims) < 0.1] = rng.integers(0, MAX_DEPTH + 1)
    index = np.array([rng.integers(0, 2 ** min(max(bits - 1, 0), INDEX_BITS)) for bits in depth], np.int64)
    return Cell(depth, (rng.random(dims) < 0.5) & (depth > 0), index)


def same(one: Point | Cell, other: Point | Cell) -> bool:
    if isinstance(one, Point):
        return isinstance(other, Point) and one.exponent == other.exponent and np.array_equal(one.z, other.z)
    return isinstance(other, Cell) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("depth", "upper", "index")
    )


def contents(rng: np.random.Generator) -> list[Point | Cell]:
    cells = [some_cell(rng, dims) for dims in (0, 1, 2, 16, 16, 300)]
    return [*cells, *(point_of(2.0 * rng.standard_normal(37), exponent) for exponent in EXPONENTS)]


def test_what_was_encoded_is_decoded() -> None:
    rng = np.random.default_rng(0)
    for content in (content for _ in range(5) for content in contents(rng)):
        assert same(decode(encode(content)), content)
    ends = np.array([REACH, -REACH, 0.0, 1.0 / 256.0])
    np.testing.assert_array_equal(decode(encode(point_of(ends, 8))).z, ends)


def test_k10_another_process_decodes_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    point, cell = point_of(rng.standard_normal(576), 5), some_cell(rng, 576)
    wanted = [point.z, draw(cell, np.random.default_rng(7).random((20, 576)))]
    for number, (content, z) in enumerate(zip((point, cell), wanted)):
        file = tmp_path / f"{number}.message"
        file.write_bytes(seal(encode(content)))
        environment = {**os.environ, "OMP_NUM_THREADS": str(2 + number), "PYTHONHASHSEED": str(number)}
        command = [sys.executable, "-c", ELSEWHERE, str(file)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.split() == [float(value).hex() for value in z.ravel()]


def test_the_format_is_frozen() -> None:
    """Bytes written down once, which every later version and every machine has to read and to make."""
    point = point_of([0.0, -1.25, 3.0, 0.5, -0.25, 31.0], 3)
    assert encode(point).hex() == "0e7f8e501dbf34a455"
    cell = Cell(np.array([0, 3, 0, 60, 1]), np.array([False, True, False, False, True]), np.array([0, 2, 0, 2000, 0]))
    assert encode(cell).hex() == "8d14fd464f17a4747a8ce984"


@pytest.mark.parametrize("exponent", [-2, 0, 3, 8])
def test_a_point_costs_what_the_discretised_normal_says(exponent: int) -> None:
    """Against the same law in floating point; the header, and the floor of one part in 2^24, are the rest."""
    z = np.random.default_rng(2).standard_normal(2000)
    point = point_of(z, exponent)
    grid = np.arange(-REACH * 2.0**exponent, REACH * 2.0**exponent + 1.0) * 2.0**-exponent
    law = -0.5 * grid**2 - np.log(np.exp(-0.5 * grid**2).sum())
    wanted = -law[point.integers + grid.size // 2].sum() / math.log(2.0)
    floor = 2000 * grid.size / 2**24 / math.log(2.0)
    header = 1 + 5 + 10 + math.log2(len(EXPONENTS))
    assert wanted + header - 1.0 <= 8 * len(encode(point)) <= wanted + header + floor + 9.0 + 0.001 * wanted
    # the prior's own draws at a fine step cost their entropy: h + log2(1 / step) bits each
    if exponent >= 3:
        entropy = 0.5 * math.log2(2.0 * math.pi * math.e) + exponent
        assert wanted / 2000 == pytest.approx(entropy, abs=0.03)


def test_all_small_messages_obey_kraft() -> None:
    """Points and cells together, of every size from 0 on: one prior for all of them."""
    messages = []
    for size in range(4):
        for exponent, integers in product((-2, 0, 8), product(range(-1, 2), repeat=size)):
            messages.append(encode(Point(np.array(integers, np.int64), exponent)))
    intervals = [(0, False, 0), *((d, u, i) for d in (1, 2, 3) for u in (False, True) for i in range(2 ** (d - 1)))]
    for size in range(3):
        for box in product(intervals, repeat=size):
            depth, upper, index = (np.array([part[k] for part in box], kind) for k, kind in enumerate((int, bool, int)))
            messages.append(encode(Cell(depth, upper, index)))
    assert len(set(messages)) == len(messages) == 3 * 40 + 1 + 15 + 225
    listed = sorted(messages)
    assert sum(Fraction(1, 256 ** len(message)) for message in listed) <= 1
    assert not any(second.startswith(first) for first, second in pairwise(listed))


# Bytes from anywhere


def test_files_that_are_cut_or_damaged_are_refused() -> None:
    for content in contents(np.random.default_rng(3))[::4]:
        file = seal(encode(content))
        for place in range(0, len(file), max(1, len(file) // 40)):
            with pytest.raises(ValueError, match="damaged"):
                unseal(file[:place])
            wrong = bytearray(file)
            wrong[place] ^= 0x10
            with pytest.raises(ValueError, match="damaged"):
                unseal(bytes(wrong))


def test_messages_without_their_check_are_refused_or_are_others() -> None:
    """A bare message cut short or with more behind it is none; one with a wrong byte is none, or another one's own."""
    others = 0
    for content in contents(np.random.default_rng(4))[1::3]:
        message = encode(content)
        for place in range(0, len(message), max(1, len(message) // 20)):
            for cut in (message[:place], message + message[:place] + b"\0"):
                with pytest.raises(ValueError, match=r"cut short|not a message|at most"):
                    decode(cut)
            wrong = bytearray(message)
            wrong[place] ^= 0x10
            try:
                found = decode(bytes(wrong))
            except ValueError:
                continue
            others += 1
            assert not same(found, content)
            assert encode(found) == bytes(wrong)
    assert others < 10


def test_random_bytes_end_in_a_value_error_or_a_message() -> None:
    rng = np.random.default_rng(5)
    for _ in range(1500):
        data = rng.bytes(int(rng.integers(0, 30)))
        try:
            found = decode(data)
        except ValueError:
            continue
        assert encode(found) == data


def test_large_claims_cost_nothing() -> None:
    """A few bytes that claim to hold more than they can, or than is allowed, are refused before they take memory."""
    deep = Table([2**32 // (depth * (depth + 1)) for depth in range(1, MAX_DEPTH + 1)])
    for is_cell, numbers in [(1, [2**31 - 1]), (1, [MAX_COORDINATES + 1, 0]), (0, [MAX_COORDINATES + 1])]:
        writer = Writer()
        writer.put([is_cell], COIN)
        for number in numbers:
            writer.put_number(number)
        with pytest.raises(ValueError, match="at most"):
            decode(writer.message())
    for numbers in ([MAX_COORDINATES, MAX_COORDINATES], [500, 501], [1000, 1000]):
        writer = Writer()
        writer.put([1], COIN)
        for number in numbers:
            writer.put_number(number)
        writer.put([MAX_DEPTH - 1] * 3, deep)
        with pytest.raises(ValueError, match=r"cannot hold|not a message"):
            decode(writer.message())
    writer = Writer()
    writer.put([0], COIN)
    writer.put_number(MAX_COORDINATES)
    writer.put([EXPONENTS[-1] - EXPONENTS[0]], uniform(len(EXPONENTS)))
    with pytest.raises(ValueError, match="cannot hold"):
        decode(writer.message())


def test_a_million_coordinates_of_the_prior_fit_in_a_few_bytes() -> None:
    nothing = np.zeros(MAX_COORDINATES, np.int64)
    message = encode(Cell(nothing, nothing > 0, nothing))
    assert len(message) <= 5
    assert same(decode(message), Cell(nothing, nothing > 0, nothing))
    more = np.zeros(MAX_COORDINATES + 1, np.int64)
    for content in (Cell(more, more > 0, more), Point(more, 0)):
        with pytest.raises(ValueError, match="at most"):
            encode(content)


def test_what_a_point_refuses() -> None:
    for z in ([math.nan], [math.inf], [32.01], [-1e300]):
        with pytest.raises(ValueError, match="32 standard deviations"):
            point_of(z, 3)
    with pytest.raises(ValueError, match="32 standard deviations"):
        Point(np.array([257]), 3)
    for exponent in (-3, 9):
        with pytest.raises(ValueError, match="exponent"):
            Point(np.array([0]), exponent)


# The bound


def test_a_point_pays_its_bytes() -> None:
    message = encode(point_of(np.random.default_rng(6).standard_normal(64), 3))
    found = message_bound(message)
    assert found.upper is not None
    assert found.upper.value == 8 * len(message)
    assert found.upper.ledger == (("message", 8.0 * len(message)),)
    assert (found.upper.kind, found.upper.estimator) == ("certified upper", "CODE")
    assert "2^-8 a byte" in found.upper.prior
    assert (found.estimate, found.lower) == (None, None)
    with pytest.raises(ValueError, match="works or does not"):
        message_bound(message, 64, 64)
    with pytest.raises(ValueError, match="not a message"):
        message_bound(message + b"\0")


def test_a_cell_is_longer_as_a_message_than_under_the_prior() -> None:
    depth = np.zeros(576, np.int64)
    depth[[3, 70, 500]] = 20, 9, 11
    cell = Cell(depth, depth > 9, depth // 3)
    message = encode(cell)
    written, under_pi = message_bound(message, 60, 64).upper, code_bound(cell, 60, 64).upper
    assert written is not None
    assert under_pi is not None
    assert written.value == 8 * len(message) - math.log2(clopper_pearson_lower(60, 64))
    # the message says which coordinates, and how deep, besides
    assert written.value > under_pi.value
    assert written.prior != under_pi.prior
    assert message_bound(message, 0, 64).upper is None
    with pytest.raises(ValueError, match="hits and draws"):
        message_bound(message)
    with pytest.raises(ValueError, match="at least 64"):
        message_bound(message, 3, 3)
