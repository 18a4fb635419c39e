"""distances.json: what a finished run says, as plain data. Every number stands there as it was printed, with its kind,
interval, confidence, prior and ledger, for whoever reads runs without leadline, or with another version of it.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from leadline.result import Result


def told(result: Result) -> dict[str, Any]:
    """The distance of every family, the messages, and all families together; nothing for a behaviour of losses alone.

    A number that is not finite, for which JSON has no word, is null: in a bound it says that nothing is bounded.
    """
    if result.spec["behaviour"]["kind"] == "loss":
        return {}
    frontier = result.cheapest()
    messages = {family: result.message(family) for family in result.curves}
    found: dict[str, Any] = _plain({
        "threshold": result.threshold,
        "families": {family: asdict(distance) for family, distance in frontier.distances.items()},
        "messages": {family: asdict(message) for family, message in messages.items() if message is not None},
        "all_together": {
            "family": frontier.family,
            "upper": asdict(frontier.upper) if frontier.upper is not None else None,
            "sentence": frontier.sentence,
        },
    })  # fmt: skip
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
