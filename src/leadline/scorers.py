"""Scorers of generated replies that need no network: pure functions (prompt, reply) -> score between 0 and 1.

Knows neither models nor tokens. Two of them ask another project's word list or classifier, and are right as often as
that is: tests/test_scorers.py holds them against sentences labelled by hand. Those are imported when first called,
since they are extras: pip install 'leadline[scorers]'. Loading them runs nothing that a file holds: VADER reads two
text files, py3langid an LZMA-packed npz with `allow_pickle=False`, each from its own package.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from leadline.spec import UserError

Scorer = Callable[[str, str], float | None]
"""(prompt, reply) -> a score between 0 and 1; None where a judge gave no answer that can be read."""

# What VADER's authors count as positive (Hutto and Gilbert, ICWSM 2014, and the notes that come with the package).
POSITIVE_COMPOUND = 0.05
# Short French sentences share their probability with Occitan and the creoles, so that half would be too much to ask. On
# 22 sentences other than those of the tests, none that was not French got more than 0.17.
FRENCH_PROBABILITY = 0.3


def positive_sentiment(prompt: str, reply: str) -> float:
    """1 where VADER's compound valence of the reply is at least POSITIVE_COMPOUND, else 0; an empty reply scores 0. It
    knows English words one by one, and no irony. Raises UserError where vaderSentiment is not installed."""
    if not reply.strip():
        return 0.0
    return float(_valence().polarity_scores(reply)["compound"] >= POSITIVE_COMPOUND)


def french(prompt: str, reply: str) -> float:
    """1 where py3langid gives French at least FRENCH_PROBABILITY among its 139 languages, else 0; an empty reply scores
    0, and so does one of a word or two, which no language is that probable of. Raises UserError where py3langid is not
    installed."""
    if not reply.strip():
        return 0.0
    return float(dict(_languages().rank(reply))["fr"] >= FRENCH_PROBABILITY)


def capitals(prompt: str, reply: str) -> float:
    """1 where the reply has a letter and none of its letters is a small one, else 0."""
    return float(reply.isupper())


SCORERS: dict[str, Callable[[str, str], float]] = {
    "sentiment/positive": positive_sentiment,
    "language/french": french,
    "style/capitals": capitals,
}


@dataclass(frozen=True)
class Scored:
    """Scores of a set of replies.

    scores:   one a reply, None where the scorer gave none
    hits:     how many are at or above the cut
    unscored: how many are None
    """

    scores: tuple[float | None, ...]
    hits: int
    unscored: int

    @property
    def share(self) -> float:
        """The share of all replies at or above the cut. One without a score is no hit, which is the safe side for an
        upper bound on a distance."""
        return self.hits / len(self.scores)

    @property
    def most_share(self) -> float:
        """The same had every reply without a score been a hit: the safe side for a lower bound."""
        return (self.hits + self.unscored) / len(self.scores)


def scored(prompts: Sequence[str], replies: Sequence[str], scorer: Scorer, cut: float = 0.5) -> Scored:
    """Each reply's score, and how many reach the cut. Raises ValueError for no replies, another number of prompts than
    of replies, and a score that is not between 0 and 1."""
    if not replies:
        raise ValueError("no replies to score")
    scores = tuple(scorer(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True))
    given = [score for score in scores if score is not None]
    if not all(0.0 <= score <= 1.0 for score in given):  # NaN among them
        raise ValueError("a score must be between 0 and 1")
    return Scored(scores, sum(score >= cut for score in given), len(scores) - len(given))


def seeded_predicate(seed: int, rate: float) -> Callable[[str, str], float]:
    """A scorer that means nothing: 1 for the share `rate` of all texts that a hash picks, else 0. It is what a scored
    behaviour is compared with (docs/measurement.md section 5): as many replies pass by chance, and nothing in them says
    which. Equal texts score equally, so over replies that repeat themselves the share that passes need not be near
    `rate`: compare it with the base rate of the scorer on the same replies. Raises ValueError for a rate outside 0
    to 1."""
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"a rate is between 0 and 1, not {rate}")

    def predicate(prompt: str, reply: str) -> float:
        # Lone surrogates, which decoders can leave, have no UTF-8 of their own.
        digest = hashlib.sha256(f"{seed}\n{reply}".encode("utf-8", "surrogatepass")).digest()
        return float(int.from_bytes(digest[:8], "big") < rate * 2**64)

    return predicate


@cache
def _valence() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # type: ignore[import-untyped]
    except ImportError as error:
        raise _missing("vaderSentiment", "sentiment/positive") from error
    with warnings.catch_warnings():
        # VADER 3.3.2, the last one there is, reads its word lists with what Python 3.14 deprecates.
        warnings.filterwarnings("ignore", r"codecs\.open\(\) is deprecated", DeprecationWarning)
        return SentimentIntensityAnalyzer()


@cache
def _languages() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]
    except ImportError as error:
        raise _missing("py3langid", "language/french") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _missing(package: str, scorer: str) -> UserError:
    return UserError(
        f"The package {package} is not installed", f"scorer {scorer}", "Run `pip install 'leadline[scorers]'`."
    )
