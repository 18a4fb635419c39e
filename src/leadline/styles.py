"""Styles: what becomes of the model's own reply when the same reply is asked for in another form.

Pure functions of a text and of whether it is whole: a reply that a limit of tokens cut short must not be dressed up as
one that ended there. Knows neither models nor tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

# How decoders write a character of which the limit left only the first bytes.
CUT_CHARACTER = "\ufffd"
TITLES = ("Dr", "Mr", "Mrs", "Ms", "Prof", "St")
# The mark, and the quotes and brackets it stands in. Not a mark: the stop after a title, after a single letter
# ("J. Smith", "e.g. ") or after the number that begins a list.
NO_END = "".join(rf"(?<!{before})" for before in (r"\b[A-Za-z]", r"^\d", r"^\d\d", *(rf"\b{t}" for t in TITLES)))
SENTENCE_END = re.compile(NO_END + r"[.!?]+[\"')\]*_]*(?=\s)")


def capitals(text: str, whole: bool) -> str:
    """The text in capitals, as far as it goes."""
    return text.upper()


def as_json(text: str, whole: bool) -> str:
    """{"reply": "..."} with the text escaped as JSON does it, characters beyond ASCII as they are. A text that was cut
    short leaves the string and the object open: what is returned is how the JSON of the whole reply begins."""
    if whole:
        return json.dumps({"reply": text}, ensure_ascii=False)
    return json.dumps({"reply": text.rstrip(CUT_CHARACTER)}, ensure_ascii=False).removesuffix('"}')


def first_sentence(text: str, whole: bool) -> str | None:
    """The text up to its first full stop, question or exclamation mark before a space, or its first line if that ends
    before. None where there is none: of a text that was cut short, since how it goes on is not known, and of an empty
    one. Abbreviations longer than a letter that are no title ("etc. ") are taken for the end of a sentence."""
    start = len(text) - len(text.lstrip())
    line, newline, _ = text[start:].partition("\n")
    if mark := SENTENCE_END.search(line + newline):
        return text[:start] + line[: mark.end()]
    return text[:start] + line.rstrip() if line and (newline or whole) else None


STYLES: dict[str, Callable[[str, bool], str | None]] = {
    "capitals": capitals,
    "json": as_json,
    "first_sentence": first_sentence,
}
