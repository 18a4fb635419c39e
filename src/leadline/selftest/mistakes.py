"""K16: the table can fail. Mistakes made on purpose, in memory, each with a row that has to see it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from leadline.selftest import mutations
from leadline.selftest.row import Row
from leadline.selftest.with_models import k12
from leadline.selftest.without_models import k1, k6

Mistake = Callable[[], AbstractContextManager[None]]
MISTAKES: dict[str, tuple[Mistake, Callable[[], Row]]] = {
    "nats for bits": (mutations.nats_for_bits, k1),
    "sigma for its square": (mutations.variance_for_scale, k1),
    "a lost Jacobian": (mutations.dropped_jacobian, k1),
    "a target off by one": (mutations.target_off_by_one, k12),
    "the mean of q for its draws": (mutations.mean_for_draws, k6),
}
"""p on training draws is seen by K7's second number, and in a real run by tests/test_fresh_draws.py."""


def k16() -> Row:
    """The table can fail."""
    seen = {}
    for name, (mistake, known) in MISTAKES.items():
        with mutations.no_guard(), mistake():
            row = known()
        seen[f"{name} breaks {row.id}"] = row.holds is False
    found = "; ".join(f"{name}: {'yes' if broken else 'no'}" for name, broken in seen.items())
    truth = f"{len(seen)} mistakes made on purpose, in memory: each makes its row fail"
    return Row("K16", truth, found, all(seen.values()))
