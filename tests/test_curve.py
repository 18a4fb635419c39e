"""Curve from rows written by hand: envelope, C, S and the lower hull."""

from __future__ import annotations

import math
from typing import Any

import pytest

from leadline.information import size_weights
from leadline.result import Result
from rows_by_hand import control, null, result, row

CHARGE = -math.log2(size_weights([1, 2, 4])[1])


def grown(scores: dict[int, float | None], losses: dict[int, float] | None = None) -> Result:
    rows = [null(0.0)]
    for size, score in scores.items():
        loss = (losses or {}).get(size, 10.0 / size)
        rows.append(row(size=size, score=score, loss_bits=loss, chosen=True))
        rows.append(row(size=size, score=1.0, loss_bits=0.0, split="validation"))
    return result(rows)


def test_size_curve_and_envelope() -> None:
    curve = grown({1: 0.3, 2: 0.95, 4: 0.5}, {1: 9.0, 2: math.nan, 4: 7.0}).curves["soft_prompt"]
    assert curve.sizes == (1, 2, 4)
    envelope = curve.envelope()
    assert envelope["size"].to_list() == [0, 1, 2, 4]
    assert envelope["score"].to_list() == [0.0, 0.3, 0.95, 0.95]
    assert envelope["loss_bits"].to_list() == [34.7, 9.0, 9.0, 7.0]
    assert envelope["best_size"].to_list() == [0, 1, 2, 2]
    weights = size_weights([1, 2, 4])
    assert envelope["charge_bits"].to_list() == pytest.approx([0.0, *(-math.log2(weights[k]) for k in (1, 2, 2))])


def test_capacity() -> None:
    curve = grown({1: 0.3, 2: 0.95, 4: 0.5}).curve("soft_prompt")
    assert curve.capacity(0.9) == 2
    assert curve.capacity(0.0) == 0
    assert curve.capacity(0.99) is None


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({1: 0.3, 2: 0.6, 4: 0.62, 8: 0.63}, 2),
        ({1: 0.9, 2: 0.5, 4: 0.91}, 1),
        ({1: 0.0, 2: 0.0, 4: 0.9}, None),
        ({1: 0.0, 2: 0.5, 3: 0.9, 4: 0.52}, None),
        ({1: 0.9}, None),
        ({}, None),
    ],
)
def test_saturation(scores: dict[int, float | None], expected: int | None) -> None:
    assert grown(scores).curve("soft_prompt").saturation(0.05) == expected


def test_a_size_costs_by_what_was_asked_for_and_not_by_what_was_seen() -> None:
    rows = [null(0.0), row(size=1, score=0.3, chosen=True), *sweep([(5.0, 3.0)])]
    seen, asked = result(rows, spec={"sizes": [1]}), result(rows, spec={"sizes": [1, 2, 4]})
    assert [r.curve("soft_prompt").envelope()["charge_bits"][1] for r in (seen, asked)] == [0.0, pytest.approx(CHARGE)]
    assert [r.curve("soft_prompt").hull()["kl_bits"][0] for r in (seen, asked)] == [5.0, pytest.approx(5.0 + CHARGE)]


def test_a_loss_only_envelope() -> None:
    sized = [row(size=k, score=None, loss_bits=loss, chosen=True) for k, loss in ((1, 5.0), (2, 6.0))]
    curve = result([null(0.0) | {"score": None}, *sized], behaviour={"kind": "loss"}).curve("soft_prompt")
    assert curve.envelope()["best_size"].to_list() == [0, 1, 1]
    assert curve.envelope()["score"].to_list() == [None, None, None]
    assert curve.capacity(0.9) is None
    assert curve.saturation(0.1) is None


def sweep(points: list[tuple[float, float]], size: int = 1, **values: Any) -> list[Any]:
    return [
        row(size=size, beta=1.0 / (i + 1), split="validation", kl_bits=x, loss_bits=y, **values)
        for i, (x, y) in enumerate(points)
    ]


def test_hull_is_convex_and_falls() -> None:
    rows = sweep([(0.3, 34.0), (17.0, 28.3), (75.0, 19.3), (80.0, 30.0), (561.0, 2.4), (1385.0, 3.0), (math.nan, 1.0)])
    curve = result([*rows, *sweep([(1.0, 0.0)], **control("uniform-0")), row(size=1, kl_bits=2.0)]).curve("soft_prompt")
    assert curve.hull().select("kl_bits", "loss_bits").rows() == [(0.3, 34.0), (17.0, 28.3), (75.0, 19.3), (561.0, 2.4)]
    assert len(curve.rate_distortion()) == 7
    # a point under the chord from its neighbours takes them off the hull
    rows += sweep([(20.0, 3.0)])
    assert result(rows).curve("soft_prompt").hull()["kl_bits"].to_list() == [0.3, 20.0, 561.0]
    assert result([row()]).curve("soft_prompt").hull().is_empty()


def test_hull_over_sizes_pays_the_choice() -> None:
    hull = result([*sweep([(10.0, 20.0)]), *sweep([(30.0, 5.0)], size=4)]).curve("soft_prompt").hull()
    weights = size_weights([1, 4])
    assert hull["kl_bits"].to_list() == pytest.approx([10.0 - math.log2(weights[1]), 30.0 - math.log2(weights[4])])
    assert hull["size"].to_list() == [1, 4]
