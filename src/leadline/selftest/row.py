"""What one known answer came to on this machine. Knows nothing of how it is found."""

from __future__ import annotations

from dataclasses import dataclass

from leadline.information import Bits, Bound, at_least, at_most


@dataclass(frozen=True)
class Row:
    """One line of the table.

    id:    K1 to K16, of docs/measurement.md section 8
    truth: what was planted and what must hold, in words
    found: the numbers, with their intervals; or why there are none
    holds: whether they are as they must be; None where this machine lacks what the row needs
    """

    id: str
    truth: str
    found: str
    holds: bool | None

    @property
    def verdict(self) -> str:
        """In one or two words."""
        return {True: "holds", False: "FAILS", None: "not here"}[self.holds]


def near(bound: Bound, truth: float) -> bool:
    """The estimate is there, and within three standard errors."""
    return bound.estimate is not None and bool(abs(bound.estimate.value - truth) <= 3.0 * bound.stderr_bits)


def said(bits: Bits | None) -> str:
    """A number of bits, short: its estimator, its value and, unless it is a limit, its interval."""
    if bits is None:
        return "nothing"
    if bits.kind == "certified upper":
        return f"{bits.estimator} at most {at_most(bits.value)}"
    if bits.kind == "certified lower":
        return f"{bits.estimator} at least {at_least(bits.value)}"
    return f"{bits.estimator} {bits.value:.2f} ({bits.low:.2f} to {bits.high:.2f})"
