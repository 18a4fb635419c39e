"""The table of known answers, one row after the other: `leadline doctor --self-test`. It does not print."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from leadline.model import load
from leadline.progress import Reporter
from leadline.selftest import mistakes, with_models, without_models
from leadline.selftest.row import Row

TABLE: dict[str, Callable[[], Row]] = {
    "K1": without_models.k1,
    "K2": without_models.k2,
    "K3": without_models.k3,
    "K4": with_models.k4,
    "K5": with_models.k5,
    "K6": without_models.k6,
    "K7": without_models.k7,
    "K8": with_models.k8,
    "K9": with_models.k9,
    "K10": with_models.k10,
    "K11": with_models.k11,
    "K12": with_models.k12,
    "K13": with_models.k13,
    "K14": with_models.k14,
    "K15": without_models.k15,
    "K16": mistakes.k16,
}
"""Each known answer of docs/measurement.md section 8; deterministic on one machine, without a network."""


def rows(report: Reporter) -> Iterator[Row]:
    """The rows in order, each as soon as it is there. One that ends in an exception fails, and the next one follows."""
    report.stage("organism:tiny, trained once in about a minute")
    load(with_models.TINY, progress=lambda doing, share: report.progress(share, 1, doing))
    report.stage(f"{len(TABLE)} known answers")
    for number, (name, known) in enumerate(TABLE.items()):
        report.progress(number, len(TABLE), name)
        began = time.monotonic()
        try:
            row = known()
        except Exception as error:  # one part that is broken must not hide how the others fare
            row = Row(name, (known.__doc__ or name).strip(), f"{type(error).__name__}: {error}", False)
        report.note(f"  {name} {row.verdict}, {time.monotonic() - began:.1f} s")
        yield row
    report.progress(len(TABLE), len(TABLE))
