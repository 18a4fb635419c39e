"""Messages against exact shares, against every continuation, and against bytes that are no message."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest

from leadline.coder import COIN, Reader, Table, Writer, seal, uniform, unseal

Parts = list[tuple[Sequence[int], Table]]


def exact_shares(weights: Sequence[int]) -> list[Fraction]:
    """What the coder makes of a table: parts in 2^24, every symbol at least one."""
    scale = (2**24 - len(weights)) / float(sum(weights))
    left = [int(float(sum(weights[:symbol])) * scale) + symbol for symbol in range(len(weights))]
    return [Fraction(b - a, 2**24) for a, b in pairwise([*left, 2**24])]


def written(parts: Parts) -> bytes:
    writer = Writer()
    for symbols, table in parts:
        writer.put(symbols, table)
    return writer.message()


def read(message: bytes, parts: Parts) -> list[list[int]]:
    reader = Reader(message)
    found = [reader.take(len(symbols), table).tolist() for symbols, table in parts]
    reader.finish()
    return found


def drawn_parts(rng: np.random.Generator) -> tuple[Parts, Fraction]:
    """Up to 15 symbols under up to three tables, likely and unlikely ones, and their exact probability."""
    parts: Parts = []
    probability = Fraction(1)
    for _ in range(rng.integers(1, 4)):
        weights = rng.integers(0, 50, rng.integers(2, 6))
        weights[0] += 1
        likely = weights / weights.sum() if rng.random() < 0.7 else None
        symbols = rng.choice(weights.size, int(rng.integers(0, 6)), p=likely).tolist()
        share = exact_shares(weights.tolist())
        probability *= math.prod((share[symbol] for symbol in symbols), start=Fraction(1))
        parts.append((symbols, Table(weights)))
    return parts, probability


def assert_prefix_free(messages: Iterable[bytes]) -> None:
    """Kraft's sum is at most 1 and none is the beginning of another; sorted, a beginning stands right before."""
    listed = sorted(messages)
    assert sum(Fraction(1, 256 ** len(message)) for message in listed) <= 1
    assert not any(second.startswith(first) for first, second in pairwise(listed))


def test_a_message_is_as_long_as_its_probability_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        parts, probability = drawn_parts(rng)
        message = written(parts)
        assert read(message, parts) == [list(symbols) for symbols, _ in parts]
        # not one bit shorter than the probability allows; longer by less than a bit and the rest of a byte
        assert Fraction(1, 256 ** len(message)) <= probability
        assert len(message) <= math.ceil((-math.log2(probability) + 1.0) / 8.0)


def test_whatever_follows_a_message_it_decodes_the_same() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        parts, _ = drawn_parts(rng)
        message = written(parts)
        for _ in range(4):
            reader = Reader(message + rng.bytes(12))
            for symbols, table in parts:
                assert reader.take(len(symbols), table).tolist() == list(symbols)


def test_messages_of_a_tiny_alphabet_obey_kraft() -> None:
    table, messages = Table([5, 1, 2]), []
    for size in range(6):
        for symbols in product(range(3), repeat=size):
            writer = Writer()
            writer.put_number(size)
            writer.put(symbols, table)
            messages.append(writer.message())
    assert len(set(messages)) == 364
    assert_prefix_free(messages)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_k3_a_key_costs_three_bits_a_symbol(length: int) -> None:
    """All keys of symbols of 8: within 2 bits, and what is left of the last byte, of 3 bits a symbol."""
    octal = uniform(8)
    messages = []
    for key in product(range(8), repeat=length):
        message = written([(key, octal)])
        assert 3 * length <= 8 * len(message) <= 8 * math.ceil((3 * length + 2) / 8)
        assert read(message, [(key, octal)]) == [list(key)]
        messages.append(message)
    assert_prefix_free(messages)


def test_long_messages_and_sure_symbols() -> None:
    rng = np.random.default_rng(2)
    symbols = rng.integers(0, 200, 20000).tolist()
    assert 8 * len(written([(symbols, uniform(200))])) == pytest.approx(20000 * math.log2(200), abs=16)
    # a symbol that is nearly sure is nearly free, and one of weight 0 costs 24 bits and can still be said
    nearly = Table([1, 0])
    assert len(written([([0] * 1000, nearly)])) <= 1
    assert len(written([([1], nearly)])) in (3, 4)
    assert written([]) == b""


def test_numbers() -> None:
    for number in [0, 1, 2, 3, 575, 576, 2**20, 2**31 - 1]:
        writer = Writer()
        writer.put_number(number)
        message = writer.message()
        assert 8 * len(message) <= 8 * math.ceil((5 + max(number.bit_length() - 1, 0) + 1) / 8)
        reader = Reader(message)
        assert reader.take_number() == number
        reader.finish()
    for number in (-1, 2**31):
        with pytest.raises(ValueError, match="a number"):
            Writer().put_number(number)


def test_the_format_is_frozen() -> None:
    """Bytes written down once: another machine, or another version of the coder's library, has to make the same."""
    weights = [2**32 // (n * (n + 1)) for n in range(1, 300)]
    message = written([([0, 1, 298, 17, 3, 0, 0, 120], Table(weights)), ([1, 0, 1], COIN), ([6], uniform(7))])
    assert message.hex() == "55e6eb18896fa0"


def test_cut_short_or_longer_is_no_message() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        parts, _ = drawn_parts(rng)
        message = written(parts)
        for length in range(len(message)):
            with pytest.raises(ValueError, match=r"cut short|not a message"):
                read(message[:length], parts)
        for more in (b"\0", b"\xff", rng.bytes(5)):
            with pytest.raises(ValueError, match="not a message"):
                read(message + more, parts)


def test_any_bytes_are_one_message_or_none() -> None:
    rng = np.random.default_rng(4)
    told = 0
    for _ in range(600):
        parts: Parts = [([0] * 3, Table([4, 2, 1])), ([0], uniform(7))]
        data = rng.bytes(int(rng.integers(0, 4)))
        try:
            found = read(data, parts)
        except ValueError:
            continue
        told += 1
        assert written([(symbols, table) for symbols, (_, table) in zip(found, parts)]) == data
    assert told > 0


def test_more_symbols_than_the_bytes_can_hold_are_refused_at_once() -> None:
    for table in (uniform(2), uniform(300)):
        with pytest.raises(ValueError, match="cannot hold"):
            Reader(b"abc").take(10**12, table)


def test_what_it_refuses() -> None:
    for weights in ([1], [], [0, 0], [3, -1], [2**52, 2**52]):
        with pytest.raises(ValueError, match="a table"):
            Table(weights)
    for symbol in (-1, 2):
        with pytest.raises(ValueError, match="outside"):
            Writer().put([symbol], COIN)


def test_a_damaged_file_is_found_out() -> None:
    message = written([(list(range(7)), uniform(7))])
    file = seal(message)
    assert unseal(file) == message
    assert unseal(seal(b"")) == b""
    for bit in range(8 * len(file)):
        wrong = bytearray(file)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="damaged"):
            unseal(bytes(wrong))
    for length in range(len(file)):
        with pytest.raises(ValueError, match="damaged"):
            unseal(file[:length])
