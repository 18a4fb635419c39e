"""Bits against score, a line a family: what is drawn and what is said of the cheapest way in."""

from __future__ import annotations

import pytest

from leadline.report.ways import cheapest_words, envelope, text_lines, ways_in
from rows_by_hand import brute, cond, null, result, row


def swept(family: str, size: int, kl: float, score: float) -> dict:
    return row(family=family, size=size, split="validation", beta=0.1, kl_bits=kl, score=score, loss_bits=1.0)


TWO = {"family": ["soft_prompt", "steering"], "sizes": [1, 4]}


def two_families():
    rows = [
        null(0.0), *cond(1, 30.0, 28.0), brute(1, 0),
        swept("soft_prompt", 1, 20.0, 0.5), swept("soft_prompt", 1, 25.0, 0.4), swept("soft_prompt", 4, 40.0, 1.0),
        swept("steering", 1, 50.0, 0.9),
        row(family="soft_prompt", size=1, score=1.0, chosen=True, outcome="reached"),
        row(family="steering", size=1, score=0.95, chosen=True, outcome="reached"),
    ]  # fmt: skip
    return result(rows, spec=TWO)


def test_the_envelope_is_the_best_score_up_to_so_many_bits_with_the_size_paid():
    steps = envelope(two_families().curve("soft_prompt"))
    # weights of sizes 1 and 4: 1/2 and 1/12 of 7/12 in all
    assert [(pytest.approx(step["bits"]), step["score"]) for step in steps] == [
        (20.0 + 0.222392421336448, 0.5), (40.0 + 2.807354922057604, 1.0)
    ]  # fmt: skip


def test_it_is_drawn_where_several_families_were_measured():
    assert ways_in(result([null(0.0), *cond(1, 30.0, 28.0)])) is None
    for wide in (True, False):
        drawn = ways_in(two_families(), wide).to_dict()
        points = [value for values in drawn["datasets"].values() for value in values if "family" in value]
        assert {point["family"] for point in points} == {"soft_prompt", "steering"}
        assert any(point["words"] == "soft_prompt: certified at most 30.3 bits" for point in points)


def test_the_cheapest_way_in_words():
    words = cheapest_words(two_families())
    assert words == "The cheapest way in is soft prompt, at most 30.3 bits; without a bound: steering."
    spelled = row(family="prefill", size=5, estimator="PREFILL", upper_bits=9.0, prior="the model")
    found = result([null(0.0), *cond(1, 30.0, 28.0), spelled])
    assert cheapest_words(found).startswith("The cheapest way in is spelling it out (prefill), at most 9.0 bits; soft")
    assert cheapest_words(result([null(0.0), brute(1, 0)])) == "No way in was found: soft prompt."
    assert cheapest_words(result([row(score=None)], behaviour={"name": "skip/1", "kind": "loss"})) == ""


def test_texts_are_quoted_so_that_nothing_hides_in_them():
    found = result([null(0.0)], extra={"texts": {"/text_prompt/8": "a\nb\u202e", "matched-0/text_prompt/8": "c"}})
    assert text_lines(found) == ["The text of 8 tokens: 'a\\nb\\u202e'"]


def test_the_text_that_certified_soft_tokens_stand_around_is_said():
    standing = row(family="vocab_mixture", size=8, seed=1, estimator="COND", upper_bits=40.0, component_bits=30.0)
    anchors = {"/vocab_mixture/8/0": {"string": "no"}, "/vocab_mixture/8/1": {"string": "yes"}}
    texts = {"/few_shot/1": "Q"}
    found = result([null(0.0), standing], extra={"texts": texts, "anchors": anchors})
    assert text_lines(found) == [
        "The text of 1 demonstration: 'Q'", "The text around which 8 soft tokens stand: 'yes'",
    ]  # fmt: skip
