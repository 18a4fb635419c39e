"""How numbers and foreign text are written in a report: digits, intervals, sizes with their unit, unseen characters.

Knows nothing of runs. Certified bounds are written by `information.at_most` and `at_least`, which round against us.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from leadline.information import Bits

NONE = "-"
# Characters that move the cursor, hide or turn the direction of text round, and those that no UTF-8 file can hold.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)
UNITS = {
    "soft_prompt": "soft token", "soft_subspace": "dimension", "vocab_mixture": "soft token", "steering": "site",
    "prefix": "prefix token", "lora": "rank", "tinylora": "number", "text_prompt": "token", "few_shot": "demonstration",
    "prompt_edits": "edit", "soft_edits": "noise eighth", "conditional_soft_prompt": "conditional token",
}  # fmt: skip


def plain(text: object, limit: int | None = None) -> str:
    """Text from a model or a file, made safe to show: control and direction-changing characters as visible escapes.

    limit: most characters shown; how many more there are is said in words at the end.
    """
    shown = UNSEEN.sub(lambda hit: f"\\u{ord(hit.group()):04x}", str(text))
    if limit is None or len(shown) <= limit:
        return shown
    return f"{shown[:limit]} ... ({len(shown) - limit} more characters)"


def short(text: object, limit: int = 28) -> str:
    """One line of at most `limit` characters, for labels of figures and cells of tables."""
    line = " ".join(plain(text).split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


def about(value: float | None, digits: int | None = None) -> str:
    """An estimate or a measured number: tenths below 100, whole above, unless `digits` says otherwise."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    text = f"{value:.{(0 if abs(value) >= 100 else 1) if digits is None else digits}f}"
    return text.removeprefix("-") if float(text) == 0.0 else text


def span(low: float | None, high: float | None, digits: int | None = None) -> str:
    """An interval, or a dash where there is none."""
    ends = about(low, digits), about(high, digits)
    return NONE if NONE in ends else f"{ends[0]} to {ends[1]}"


def interval(bits: Bits | None) -> str:
    """The interval of a number, or a dash where it has none of its own (exact and computed numbers)."""
    if bits is None or bits.low == bits.high:
        return NONE
    return span(bits.low, bits.high) if bits.low > -math.inf else "no interval"


BOUND_NOTES = {
    "not broken": "nothing that was tried reached the threshold, which says nothing of how far it lies",
    "no bound": "reached by a prompt around which too few draws hit for a bound",
    "unreached": "the model as it is does not do it",
}
"""What stands in the place of an upper bound where there is none."""


def bound_notes(cells: Iterable[str]) -> list[str]:
    """What has to be said below a table of upper bounds. cells: its column of them, as printed"""
    shown = set(cells)
    return [
        "at most, at least: limits, one-sided at 95% or computed; its 95%: where the draws behind the upper bound put "
        "it, two-sided, so that the limit may lie outside of it",
        *(f"{word}: {said}" for word, said in BOUND_NOTES.items() if word in shown),
    ]


def size_words(family: str, size: int | None) -> str:
    """A size with its unit: "4 soft tokens"; nothing for families that have no size."""
    if size is None or family not in UNITS:
        return ""
    return f"{size} {UNITS[family]}{'' if size == 1 else 's'}"


def finite(value: float | None) -> bool:
    """Whether this is a number."""
    return value is not None and math.isfinite(value)
