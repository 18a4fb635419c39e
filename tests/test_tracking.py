"""--track: a tracker of accelerate's is sent what the run's own records say, and the run is the same without it."""

from __future__ import annotations

import json
from collections import Counter
from typing import ClassVar

import polars as pl
import pytest
from accelerate import tracking as trackers
from accelerate.tracking import GeneralTracker

from commands import FEW, call, refused, small
from leadline import plan
from leadline.result import Result
from leadline.spec import UserError
from leadline.tracking import bound_values, known_trackers, point_values
from rows_by_hand import null, result, row


class Kept(GeneralTracker):
    """Keeps what it is sent."""

    name = "kept"
    requires_logging_directory = False
    main_process_only = False
    config: ClassVar[dict] = {}
    logged: ClassVar[list] = []
    ended = 0

    def __init__(self, run_name, **kwargs):
        super().__init__()
        assert run_name == "leadline"

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        Kept.config = values

    def log(self, values, step=None, **kwargs):
        Kept.logged.append((step, values))

    def finish(self):
        Kept.ended += 1


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "kept", Kept)
    monkeypatch.setattr(Kept, "logged", [])
    monkeypatch.setattr(Kept, "ended", 0)
    return Kept


def test_a_tracker_is_sent_each_record_once_and_the_bounds_at_the_end(capsys, tmp_path, monkeypatch, kept):
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)
    assert call(capsys, "measure", *small(out=tmp_path / "plain"))[0] == 0
    assert not kept.logged
    code, _, said = call(capsys, "measure", *small(out=tmp_path / "run", track="kept"))
    assert code == 0, said
    assert kept.ended == 1
    assert kept.config["model"] == "organism:random"
    found, plain = Result.load(tmp_path / "run"), Result.load(tmp_path / "plain")
    *cells, (last, bounds) = kept.logged
    sent = [(key, value) for _, values in cells for key, value in values.items()]
    rows = found.points.filter(pl.col("estimator") == "", pl.col("control") == "").to_dicts()
    wanted = Counter(
        (f"behaviour/{r['family']}/{r['size']}/{r['split']}/loss_bits", r["loss_bits"]) for r in rows
        if r["loss_bits"] is not None
    )  # fmt: skip
    losses = [pair for pair in sent if pair[0].startswith("behaviour/") and pair[0].endswith("/loss_bits")]
    assert Counter(losses) == wanted
    steps = [step for step, _ in kept.logged]
    assert steps == sorted(steps)
    assert last == len(list((tmp_path / "run" / "cells").iterdir()))
    assert bounds == bound_values(found)
    assert bounds["bounds/soft_prompt/lower_bits"] == found.distance(family="soft_prompt").lower.value
    # nothing that a run is told by knows of it
    drop = ["wall_seconds"]
    assert found.points.drop(drop).equals(plain.points.drop(drop))
    specs = [json.loads((tmp_path / name / "spec.json").read_text()) for name in ("plain", "run")]
    assert specs[0]["hash"] == specs[1]["hash"]
    assert "kept" not in json.dumps(specs[1])
    # a finished run has nothing new but its bounds
    kept.logged.clear()
    assert call(capsys, "measure", *small(out=tmp_path / "run", track="kept"))[0] == 0
    assert [values for _, values in kept.logged] == [bounds]


def test_numbers_of_points_are_named_by_who_what_and_where():
    plain = row(size=2, score=0.5, loss_bits=3.0, split="validation", kl_bits=7.0, beta=0.1)
    bound = row(size=2, estimator="COND", upper_bits=9.0)
    missing = row(size=4, score=None, loss_bits=float("nan"))
    place = "behaviour/soft_prompt/2"
    found = point_values([plain, bound, missing])
    assert {key: found[key] for key in found if key.startswith(f"{place}/validation")} == {
        f"{place}/validation/score": 0.5, f"{place}/validation/loss_bits": 3.0, f"{place}/validation/kl_bits": 7.0,
        f"{place}/validation/beta": 0.1,
    }  # fmt: skip
    assert found[f"{place}/COND/upper_bits"] == 9.0
    assert not [key for key in found if key.startswith("behaviour/soft_prompt/4")], "null and NaN are no numbers"


def test_a_behaviour_with_a_loss_alone_has_no_bounds_to_send():
    assert bound_values(result([null(0.0)], behaviour={"kind": "loss"})) == {}


def test_trackers_are_those_that_are_there(monkeypatch, kept, capsys, tmp_path):
    monkeypatch.setattr(trackers, "_available_trackers", ["wandb"])
    assert known_trackers("wandb, kept,wandb") == ["wandb", "kept"]
    assert known_trackers("all") == ["wandb", "kept"]
    with pytest.raises(UserError, match=r"comet_ml is not installed \(--track\). Run `pip install comet-ml`"):
        known_trackers("kept,comet_ml")
    monkeypatch.delitem(trackers.LOGGER_TYPE_TO_CLASS, "kept")
    monkeypatch.setattr(trackers, "_available_trackers", [])
    with pytest.raises(UserError, match="No tracker is installed"):
        known_trackers("all")
    told = refused(capsys, "measure", *small(out=tmp_path / "run", track="wand"))
    assert "There is no tracker 'wand' (--track). Choose of " in told
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_is_given_up_and_the_run_goes_on(capsys, tmp_path, monkeypatch, kept):
    monkeypatch.setitem(plan.BUDGETS, "ci", FEW)

    def fail(self, values, step=None, **kwargs):
        raise ConnectionError("the server is away")

    monkeypatch.setattr(Kept, "log", fail)
    code, _, said = call(capsys, "measure", *small(out=tmp_path / "run", track="kept"))
    assert code == 0
    assert said.count("Tracking has stopped, and the run goes on: the server is away") == 1
    assert Result.load(tmp_path / "run").spec["finished"]
