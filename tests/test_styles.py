"""What a style makes of a reply, whole or cut short: by hand, and JSON read back by a parser."""

from __future__ import annotations

import json

import pytest

from leadline.styles import STYLES, as_json, capitals, first_sentence

TEXTS = ["", "Paris.", 'She said "no".', "a\\b\tc\n1. d", "\u00e9t\u00e9 \u2028 \U0001f600", "\x01"]


@pytest.mark.parametrize("text", TEXTS)
def test_json_is_read_back_as_the_reply(text):
    assert json.loads(as_json(text, True)) == {"reply": text}
    cut = as_json(text, False)
    assert json.loads(cut + '"}') == {"reply": text}
    assert not cut.endswith('"}')


def test_the_json_of_a_cut_reply_begins_that_of_the_whole_one():
    whole = 'He said "yes"\nand left.'
    for length in range(len(whole)):
        assert as_json(whole, True).startswith(as_json(whole[:length], False))
    assert as_json("caf\ufffd", False) == '{"reply": "caf'  # half a character is not the reply's
    assert as_json("caf\ufffd", True) == '{"reply": "caf\ufffd"}'


def test_capitals():
    assert [capitals("Stra\u00dfe 1, ok?", whole) for whole in (True, False)] == ["STRASSE 1, OK?"] * 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Bread rises. Yeast makes gas.", "Bread rises."),
        ("Is it? Yes.", "Is it?"),
        ("Wait... what? Yes.", "Wait..."),
        ('He said "no." Then he left.', 'He said "no."'),
        ("It costs 3.50 euros. That is much.", "It costs 3.50 euros."),
        ("It is 63. More of it.", "It is 63."),
        ("Ask J. Smith, e.g. at noon. Or not.", "Ask J. Smith, e.g. at noon."),
        ("1. Boil water. 2. Wait.", "1. Boil water."),
        ("12. Boil water. 13. Wait.", "12. Boil water."),
        ("Here is how:\n1. Boil water.", "Here is how:"),
        ("  Yes. No.", "  Yes."),
        ("\n\nYes it is.\nNo.", "\n\nYes it is."),
        ("Sure!\n", "Sure!"),
        ("Dr. Smith knows. Ask him.", "Dr. Smith knows."),
        ("It was (Mrs. Jones or Prof. A. Lee). Or not.", "It was (Mrs. Jones or Prof. A. Lee)."),
        ("Peter moved to St. Petersburg. It was cold.", "Peter moved to St. Petersburg."),
        ("They beat Drs. The rest slept.", "They beat Drs."),
        ("Salt, sugar etc. and water. Stir.", "Salt, sugar etc."),  # a known limit
    ],
)
def test_a_first_sentence_that_ends_is_the_same_whole_or_cut(text, sentence):
    assert first_sentence(text, True) == first_sentence(text, False) == sentence


@pytest.mark.parametrize("text", ["Yes", "Yes, it is.", "It costs 3.", "It is", "  Yes, it is.", "1. Boil"])
def test_a_sentence_at_the_end_is_known_only_of_a_whole_reply(text):
    """Cut at "3." the reply may go on with "3.50"."""
    assert first_sentence(text, True) == text
    assert first_sentence(text, False) is None


@pytest.mark.parametrize("text", ["", " ", "\n\n"])
def test_an_empty_reply_has_no_sentence(text):
    assert first_sentence(text, True) is first_sentence(text, False) is None


def test_each_style_has_its_name():
    assert {"capitals": capitals, "json": as_json, "first_sentence": first_sentence} == STYLES
