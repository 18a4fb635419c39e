"""Messages: integers, each under an integer table, as bytes that end by themselves.

A range coder (constriction) turns symbols into an interval of [0, 1); the message is a shortest string of bytes found
all of whose continuations lie in that interval. So no message is the beginning of another, and 2^-bits summed over all
messages is at most 1 (Kraft): a length in bits is -log2 of a probability that needs no normalising.

Tables are integers. constriction scales them to 24 bits by one division, additions and products in IEEE float64, which
are the same on every machine; every symbol keeps at least one part in 2^24. It does not know what the symbols mean.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import constriction  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import ArrayLike, NDArray

Integers = NDArray[np.int64]

RESOLUTION_BITS = 24
CHECK_BYTES = 4
_WORD_BYTES = 4
# the coder holds two words back, so a decoder may look this far past the last byte
_LOOKAHEAD_BYTES = 4 * _WORD_BYTES


class Table:
    """The weights of the symbols 0 .. n-1: whole numbers, at least two of them, whose sum is below 2^53."""

    def __init__(self, weights: Sequence[int] | Integers) -> None:
        whole = np.asarray(weights, np.int64)
        total = int(whole.sum())
        if not (whole.ndim == 1 and whole.size >= 2 and whole.min() >= 0 and 0 < total < 2**53):
            raise ValueError("a table is two or more weights, none negative and not all 0, with a sum below 2^53")
        self.size = int(whole.size)
        self._model = constriction.stream.model.Categorical(whole.astype(np.float64), perfect=False)
        # how little a symbol can cost, which bounds how many of them a file of some length can hold
        self.least_bits = -math.log2(min(int(whole.max()) / total + 2.0**-23, 1.0 - 2.0 ** -(RESOLUTION_BITS + 1)))

    def encode(self, coder: Any, symbols: Integers) -> None:
        coder.encode(symbols.astype(np.int32), self._model)

    def decode(self, coder: Any, count: int) -> Integers:
        """ValueError where the bytes are no encoding under these tables."""
        try:
            return np.asarray(coder.decode(self._model, count), np.int64)
        except AssertionError as error:
            raise ValueError("these bytes are not a message") from error


def uniform(size: int) -> Table:
    """The table in which `size` symbols weigh the same."""
    return Table([1] * size)


COIN = uniform(2)
_LENGTH = uniform(32)


class Writer:
    """Collects symbols and writes the message that holds them."""

    def __init__(self) -> None:
        self._coder: Any = constriction.stream.queue.RangeEncoder()
        self._parts: list[tuple[Integers, Table]] = []

    def put(self, symbols: ArrayLike, table: Table) -> None:
        """Appends symbols (n,), whole numbers in 0 .. table.size - 1, all under one table."""
        whole = np.asarray(symbols, np.int64)
        if whole.size and not (whole.min() >= 0 and whole.max() < table.size):
            raise ValueError(f"a symbol lies outside 0..{table.size - 1}")
        table.encode(self._coder, whole)
        self._parts.append((whole, table))

    def put_number(self, number: int) -> None:
        """Appends a number from 0 to 2^31 - 1: five bits for its length, then its digits after the first."""
        if not 0 <= number < 2**31:
            raise ValueError(f"a number in a message lies in 0..2^31 - 1, not {number}")
        length = number.bit_length()
        self.put([length], _LENGTH)
        self.put([number >> shift & 1 for shift in reversed(range(length - 1))], COIN)

    def message(self) -> bytes:
        """The message: at most a bit and the rest of a byte longer than -log2 of the product of the tables' shares."""
        # a word of zeros more: behind a point inside the interval there is room for it
        sealed = self._coder.get_compressed().astype(">u4").tobytes() + b"\0" * _WORD_BYTES
        inside = int.from_bytes(sealed)
        for length in range(max(0, len(sealed) - 3 * _WORD_BYTES), len(sealed) + 1):
            start = inside >> 8 * (len(sealed) - length)
            # the string that `inside` itself begins with, and the next one
            for found in (start, start + 1):
                if found < 256**length and self._holds(found.to_bytes(length)):
                    return found.to_bytes(length)
        raise RuntimeError("the range coder wrote what it does not read")

    def _holds(self, start: bytes) -> bool:
        """Whether every continuation of `start` decodes to the symbols put in.

        A range decoder is monotone: a larger fraction decodes to the same symbols or to later ones in the order of the
        tables. So the smallest and the largest continuation speak for all between.
        """
        for filler in (b"\0", b"\xff"):
            decoder = _decoder(start, filler)
            for symbols, table in self._parts:
                try:
                    if not np.array_equal(table.decode(decoder, symbols.size), symbols):
                        return False
                except ValueError:
                    return False
        return True


class Reader:
    """Takes symbols out of a message in the order they were put in; the bytes may come from anywhere."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._decoder: Any = _decoder(message, b"\0")
        self._again = Writer()

    def take(self, count: int, table: Table) -> Integers:
        """The next `count` symbols (count,). ValueError where these bytes cannot hold so many."""
        if count * table.least_bits > 8 * (len(self._message) + _LOOKAHEAD_BYTES):
            raise ValueError(f"{len(self._message)} bytes cannot hold {count} more symbols: cut short or damaged")
        symbols = table.decode(self._decoder, count)
        self._again.put(symbols, table)
        return symbols

    def take_number(self) -> int:
        """The next number, as `Writer.put_number` wrote it."""
        length = int(self.take(1, _LENGTH)[0])
        number = min(length, 1)
        for digit in self.take(max(length - 1, 0), COIN):
            number = 2 * number + int(digit)
        return number

    def finish(self) -> None:
        """ValueError unless these bytes are the one message of what was taken: nothing missing, nothing behind it."""
        if self._again.message() != self._message:
            raise ValueError("these bytes are not a message: cut short, damaged, or with more behind it")


def _decoder(start: bytes, filler: bytes) -> Any:
    """A range decoder on `start` and then `filler` for as long as it looks ahead."""
    padding = -len(start) % _WORD_BYTES + _LOOKAHEAD_BYTES
    words = np.frombuffer(start + filler * padding, ">u4").astype(np.uint32)
    return constriction.stream.queue.RangeDecoder(words)


def seal(message: bytes) -> bytes:
    """The file of a message: the message and its CRC-32, which guards the file and is no part of the message."""
    return message + zlib.crc32(message).to_bytes(CHECK_BYTES)


def unseal(file: bytes) -> bytes:
    """The message of a file. ValueError where file and check do not agree."""
    message, check = file[:-CHECK_BYTES], file[-CHECK_BYTES:]
    if len(file) < CHECK_BYTES or zlib.crc32(message).to_bytes(CHECK_BYTES) != check:
        raise ValueError("the check at the end of the file does not agree with it: cut short or damaged")
    return message
