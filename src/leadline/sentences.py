"""A distance, its rank and its excess in plain words: what a table, a page and a score card say alike.

Knows the numbers and nothing of where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from leadline.information import Distance, at_least, at_most


def distance_sentence(distance: Distance, size: int | None, seeds: int | None) -> str:
    """What is known of a distance. size, seeds: the largest size and the restarts that were tried, where it matters"""
    upper, lower = distance.upper, distance.lower
    if upper is not None:
        words = f"at most {at_most(upper.value)} bits"
        words += f" and at least {at_least(lower.value)}" if lower is not None else ""
    else:
        known = f"certified only D >= {at_least(lower.value)}" if lower is not None else "nothing certified"
        if distance.reached is not None:
            how = f"reached at size {distance.reached}" if distance.reached else "what the model does unasked"
            words = f"{how}, without an upper bound in bits, {known}"
        else:
            tries = f" up to size {size}" if size is not None else ""
            tries += f" with {seeds} seed{'s' if seeds > 1 else ''}" if seeds else ""
            words = f"not broken{tries}, {known}"
    if distance.excess is not None:
        words += f"; {difference_words(distance)}"
    if distance.unreached_controls:
        words += f" ({distance.unreached_controls} of the controls not reached there)"
    return words


def rank_words(distance: Distance) -> str:
    """A distance's rank in words, "2 of 3"; a range where controls were not reached."""
    if distance.rank is None:
        return ""
    (place, of), unreached = distance.rank, distance.unreached_controls
    return f"{place} of {of}" if not unreached else f"{place} to {place + unreached} of {of}"


def difference_words(distance: Distance) -> str:
    """A distance's excess in words: no side is named where its interval holds both."""
    excess, whom = distance.excess, distance.whom
    if excess is None:
        return f"nothing is known beside {whom}"
    if math.isinf(excess.low):
        return f"{abs(excess.value):.0f} bits {'less' if excess.value > 0.0 else 'more'} than {whom}, which may be luck"
    if excess.low <= 0.0 <= excess.high:
        return f"no nearer and no farther than {whom} by the same bound"
    size = abs(excess.value)
    words = f"{size:.0f}" if size >= 10.0 else f"{size:.1f}"
    return f"about {words} bits {'nearer' if excess.value > 0.0 else 'farther'} than {whom} by the same bound"


UNCHOSEN = "no bound of all together, since no draw of the family that validation draws chose hit"


def frontier_sentence(distances: Mapping[str, Distance], best: str | None, value: float) -> str:
    """What every family costs by itself, the chosen one first; best: None where there is none. value: bits of all of
    them together"""
    bounds = [d.upper.value for family, d in distances.items() if d.upper is not None and family != "best_of_n"]
    if not bounds:
        return "no family reaches the behaviour"
    parts, least = [UNCHOSEN] if best is None else [], min(bounds)
    for family, distance in distances.items():
        if distance.upper is None:
            parts.append(f"{family}: {distance.sentence}")
        elif family == "best_of_n":
            parts.append(f"best_of_n, {distance.sentence}")
        elif family == best:
            own, all_in = at_most(distance.upper.value), at_most(value)
            by = "" if distance.upper.value == least else " by validation draws"
            parts.insert(0, f"cheapest{by} is {family}, at most {own} bits ({all_in} with the choice among families)")
        else:
            parts.append(f"{family}, at most {at_most(distance.upper.value)} bits by itself")
    return "; ".join(parts)
