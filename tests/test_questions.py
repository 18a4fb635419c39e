"""The pool of everyday questions that behaviours are asked with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import leadline

LINES = (Path(leadline.__file__).parent / "behaviours" / "questions.txt").read_text(encoding="ascii").splitlines()


def test_there_are_320_questions() -> None:
    assert len(LINES) == 320


def test_no_question_comes_twice_whatever_its_case_and_punctuation() -> None:
    bare = [re.sub(r"[^a-z0-9]+", " ", line.lower()).strip() for line in LINES]
    assert len(set(bare)) == len(LINES)


@pytest.mark.parametrize("line", LINES)
def test_a_question_is_one_short_plain_line(line: str) -> None:
    assert 3 <= len(line.split()) <= 14
    assert line == line.strip()
    assert line.endswith("?")
    assert line.isprintable()
    assert line[0].isupper()


def test_the_order_is_mixed_because_splits_go_by_position() -> None:
    """No quarter of the pool is made of one kind of question: each has most of the common first words."""
    common = {"What", "How", "Which", "Why", "Where", "When", "Can", "Who"}
    for start in range(0, len(LINES), 80):
        first_words = {line.split()[0] for line in LINES[start : start + 80]}
        assert len(common & first_words) >= 7, start
