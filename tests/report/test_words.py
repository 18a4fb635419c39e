"""Numbers and foreign text are written so that neither can mislead."""

from __future__ import annotations

import math

import pytest

from leadline.information import Bits
from leadline.report.words import about, interval, plain, short, size_words, span


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, na\u00efve \u6211", "plain text, na\u00efve \u6211"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred\x07", "\\u001b[31mred\\u0007"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("half \ud800 a pair", "half \\ud800 a pair"),
        ("\r\x00", "\\u000d\\u0000"),
    ],
)
def test_unseen_characters_become_visible(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_long_text_says_what_it_leaves_out() -> None:
    assert plain("x" * 12, 10) == "xxxxxxxxxx ... (2 more characters)"
    assert short("a  b\n c " + "y" * 50, 10) == "a b c y..."
    assert len(short("z" * 99, 28)) == 28


def test_numbers_have_sensible_digits() -> None:
    assert about(3.14159) == "3.1"
    assert about(131.26) == "131"
    assert about(0.5, 2) == "0.50"
    assert about(-0.001, 2) == "0.00"
    assert about(None) == about(math.nan) == "-"
    assert about(-math.inf) == "-inf"
    assert span(1.0, math.inf) == "1.0 to inf"
    assert span(None, 2.0) == span(math.nan, 2.0) == "-"


def test_only_a_number_with_an_interval_shows_one() -> None:
    def bits(low: float, high: float) -> Bits:
        return Bits(5.0, "estimate", low, high, 0.95, "MC", "prior")

    assert interval(bits(4.0, 6.0)) == "4.0 to 6.0"
    assert interval(bits(5.0, 5.0)) == interval(None) == "-"


def test_sizes_carry_their_unit() -> None:
    assert size_words("soft_prompt", 1) == "1 soft token"
    assert size_words("soft_subspace", 4) == "4 dimensions"
    assert size_words("prefill", 4) == size_words("soft_prompt", None) == ""
