"""prompt_edits: its prior, blind draws, search and TEXT against all edits of a small vocabulary, scored by transformers
alone; and through measure() on the trained tiny model."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

import leadline
from leadline.behaviour import Behaviour, Reply, questions
from leadline.engine import Context, Engine
from leadline.estimators.monte_carlo import monte_carlo
from leadline.estimators.text import text_bound
from leadline.evaluation import in_s, score_draws
from leadline.interventions.text_prompt import TextPrompt, allowed_tokens
from leadline.model import load
from leadline.objective import objective_for
from leadline.plan import TEXT_BUDGETS
from leadline.priors import generator
from leadline.prompt_edits import EditPrior, edit_problem, proposals
from leadline.solvers.token_search import TokenSearch, begin, search
from leadline.spec import CONDITIONED, PROMPTED, Family, RunSpec, UserError
from models import VOCABULARY, random_model

PROMPT = (7, 30, 12)
CONTEXTS = [((1, 3, 9), (12, 4)), ((1, 3), (11,)), ((1, 3, 40), (20, 21, 4))]  # before and after the slot
TEA = Behaviour(name="tea", contexts=questions()[:40], reply=Reply(text="tea"), prompt="Say: toa\n")
SMALL = {"family": "prompt_edits", "sizes": (1, 2), "items": 10, "draws": 64, "prior_draws": 256, "scale": "ci"}


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


@pytest.fixture(scope="module")
def every(model):
    """All single edits of PROMPT: tokens, and whether the reply to two of three contexts at least begins with the
    target; the target is the reply that edits bring about in three or more in a hundred and most seldom beyond that."""
    allowed = torch.nonzero(allowed_tokens(model))[:, 0].tolist()
    edits = [
        (*PROMPT[:place], token, *PROMPT[place + 1 :])
        for place in range(3) for token in allowed if token != PROMPT[place]
    ]  # fmt: skip
    with torch.no_grad():
        lines = [[[*before, *edit, *after] for edit in edits] for before, after in CONTEXTS]
        replies = torch.stack([model.network(torch.tensor(alike)).logits[:, -1].argmax(-1) for alike in lines])
    shares = {target: ((replies == target).sum(0) >= 2).double().mean().item() for target in range(VOCABULARY)}
    target = min((share, target) for target, share in shares.items() if share >= 0.03)[1]
    return edits, ((replies == target).sum(0) >= 2).tolist(), [Context(*c, (target,)) for c in CONTEXTS]


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return load(str(tiny_model_folder))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits") / "run"
    return leadline.measure(tiny, TEA, folder, controls=0, **SMALL), folder


def says(model, message: str) -> str:
    """What the model answers to a message, by transformers alone."""
    chat = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([model.tokenizer(chat, add_special_tokens=False)["input_ids"]])
    found = model.network.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=model.end_of_reply,
        pad_token_id=0,
    )  # fmt: skip
    return model.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def test_edits_of_one_size_have_all_the_mass_and_nothing_else_has_any(model) -> None:
    """Over all texts of three tokens out of a vocabulary of seven, five of which are allowed."""
    allowed = torch.zeros(7, dtype=torch.bool)
    allowed[[1, 2, 4, 5, 6]] = True
    texts = torch.tensor(list(itertools.product(range(7), repeat=3)))
    for size in (1, 2, 3):
        prior = EditPrior((1, 4, 1), allowed, size)
        bits = prior.surprisal_bits(texts)
        assert float(torch.exp2(-bits).sum()) == pytest.approx(1.0, abs=1e-12)
        assert int(bits.isfinite().sum()) == math.comb(3, size) * 4**size
        assert prior.bits == pytest.approx(math.log2(math.comb(3, size)) + size * 2)
        assert not bits[(texts == 0).any(1) | (texts == 3).any(1)].isfinite().any()


def test_samples_are_draws_of_the_prior() -> None:
    """Chi-square over all 12 single edits and all 48 double ones of a vocabulary of five."""
    for size, count in ((1, 12), (2, 48)):
        prior, draws = EditPrior((1, 4, 1), torch.ones(5, dtype=torch.bool), size), 4800
        texts = prior.sample(draws, size, generator("edits", size))
        counts = torch.tensor([texts.count(text) for text in set(texts)]).double()
        assert len(counts) == count
        assert {prior.distance(text) for text in texts} == {size}
        statistic, degrees = float(((counts - draws / count) ** 2 / (draws / count)).sum()), count - 1
        assert statistic < degrees + 4 * math.sqrt(2 * degrees)


def test_blind_edits_give_the_share_of_all_edits_that_work(model, every) -> None:
    edits, works, contexts = every
    prior, objective = EditPrior(PROMPT, allowed_tokens(model), 1), objective_for(Engine(model))
    share, draws = sum(works) / len(works), 600
    drawn = torch.tensor(prior.sample(draws, 1, generator("blind")))
    hits = int(in_s(score_draws(objective, contexts, TextPrompt(model, []), drawn, 0.6), 0.6).sum())
    assert hits / draws == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / draws))
    found = monte_carlo(hits, draws)
    assert found.lower.value <= -math.log2(share) <= found.upper.value
    known = dict(zip(edits, works, strict=True))
    assert hits == sum(known[tuple(text)] for text in drawn.tolist())


def test_text_is_the_mass_of_all_edits_that_work_once_the_search_is_given_all(model, every) -> None:
    edits, works, contexts = every
    prior, objective = EditPrior(PROMPT, allowed_tokens(model), 1), objective_for(Engine(model))
    prompt = TextPrompt(model, [])
    problem = edit_problem(prompt, prior, objective, contexts, TEXT_BUDGETS["ci"], 0.6)
    state = begin(problem, TokenSearch("all", 0.0, 8, 8, 8), [*edits, PROMPT, (1, 2, 12)])
    assert set(map(tuple, state.kept)) == {edit for edit, holds in zip(edits, works, strict=True) if holds}
    kept = torch.tensor(state.kept)
    hits = kept[in_s(score_draws(objective, contexts, prompt, kept, 0.6), 0.6)]
    found = text_bound((-prior.surprisal_bits(hits)).tolist(), texts=[tuple(text) for text in hits.tolist()]).upper
    assert found.value == pytest.approx(-math.log2(sum(works) / len(edits)), abs=1e-9)


@pytest.mark.parametrize("size", [1, 2])
def test_a_search_stays_at_its_distance_and_finds_what_is_best(model, every, size: int) -> None:
    _, _, contexts = every
    prior, objective = EditPrior(PROMPT, allowed_tokens(model), size), objective_for(Engine(model))
    prompt = TextPrompt(model, [])
    problem = edit_problem(prompt, prior, objective, contexts, replace(TEXT_BUDGETS["ci"], top_k=VOCABULARY), None)
    tried: list[list[int]] = []

    def scores(texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tried.extend(texts.tolist())
        return problem.scores(texts)

    started = proposals(prompt, prior, 6, generator("begin", size))
    assert [prior.distance(text) for text in started] == [size] * 6
    noted, how = replace(problem, scores=scores), TokenSearch("edits", 0.0, VOCABULARY, 48, 48)
    state = search(noted, how, 40, begin(noted, how, started))
    assert {prior.distance(text) for text in tried} == {size}
    moved = {tuple(place for place in range(3) if text[place] != PROMPT[place]) for text in tried}
    assert len(moved) == 3  # every choice of places is tried
    if size == 1:
        best = problem.scores(torch.tensor([state.texts[state.best]]))[0]
        least = problem.scores(torch.tensor(every[0]))[0].min()
        assert float(best) == pytest.approx(float(least), abs=1e-5)


def test_an_edit_pasted_into_a_fresh_chat_scores_what_was_reported(tiny, run) -> None:
    result, folder = run
    items = json.loads((folder / "items.json").read_text())["tasks"][0]["items"]["test"]
    texts = {0: TEA.prompt, **{size: result.spec["extra"]["texts"][f"/prompt_edits/{size}"] for size in (1, 2)}}
    for size, text in texts.items():
        assert sum(a != b for a, b in zip(text, TEA.prompt, strict=True)) == size
        right = [says(tiny, text + item["prompt"]) == "tea" for item in items]
        rows = result.points.filter(family="prompt_edits", size=size, split="test", estimator="", control="")
        assert rows["score"].to_list() == [pytest.approx(sum(right) / len(right))]
        assert sum(right) >= 9 if size == 1 else True
    curve = result.curve("prompt_edits").size_curve()
    losses, gains = curve["loss_bits"].to_list(), curve["gain_bits"].to_list()
    assert gains == [None, *(pytest.approx(losses[0] - loss) for loss in losses[1:])]
    assert curve["size"].to_list() == [0, 1, 2]
    assert curve["family"].to_list() == ["prompt_edits"] * 3


@pytest.mark.parametrize("size", [1, 2])
def test_bounds_are_counts_of_edits(tiny, run, size: int) -> None:
    """TEXT: the share of all edits that are on record and work. MC: of its draws, drawn again."""
    result, folder = run
    records = [json.loads(path.read_text()) for path in (folder / "cells").glob("*/record.json")]
    records = [record for record in records if record["points"]]
    items = json.loads((folder / "items.json").read_text())["tasks"][0]["items"]["test"]
    mine = [r for r in records if (r["points"][0]["size"], r["points"][0]["control"]) == (size, "")]
    texts = [tiny.tokenizer.decode(text) for record in mine for text in record.get("texts", [])]
    assert len(texts) == len(set(texts))
    right = [text for text in texts if sum(says(tiny, text + item["prompt"]) == "tea" for item in items) >= 9]
    total = math.comb(len(TEA.prompt), size) * 95**size  # 96 bytes print, the line break among them
    found = result.points.filter(family="prompt_edits", estimator="TEXT", size=size, control="").to_dicts()
    assert [row["upper_bits"] for row in found] == ([pytest.approx(math.log2(total / len(right)))] if right else [])
    assert found or size == 2
    drawn = result.points.filter(family="prompt_edits", estimator="MC", size=size).row(0, named=True)
    if right and drawn["p_hits"]:
        assert drawn["lower_bits"] <= math.log2(total / len(right))


def test_what_is_not_reached_says_so_of_the_behaviour_and_of_its_controls(tmp_path) -> None:
    """Replies of random weights that differ from context to context: nothing holds, in either family of plain texts."""
    contexts = [f"Number {number}?" for number in range(24)]
    replies = [f"{number % 3}" for number in range(24)]
    other = Behaviour(name="numbers", contexts=contexts, reply=Reply(texts=replies), prompt="Say it")
    how = {**SMALL, "family": ("few_shot", "prompt_edits"), "sizes": (1,), "items": 5, "prior_draws": 64}
    result = leadline.measure("organism:random", other, tmp_path / "run", controls=1, **how)
    assert result.points["outcome"].is_in(["reached"]).sum() == result.points.filter(family="best_of_n").height
    assert result.families == ("few_shot", "prompt_edits", "best_of_n", "null")
    control = result.points.filter(role="control", split="test", estimator="")
    assert dict(zip(control["family"], control["size"])) == {"null": 0, "few_shot": 1, "prompt_edits": 1}
    assert sorted(control.filter(family="prompt_edits")["size"]) == [0, 1]
    assert result.distance(family="prompt_edits").lower.estimator == "MC"
    assert "not broken up to size 1 with 1 seed" in result.distance(family="few_shot").sentence
    before = (tmp_path / "run" / "points.parquet").read_bytes()
    leadline.measure("organism:random", other, tmp_path / "run", controls=1, **how)
    assert (tmp_path / "run" / "points.parquet").read_bytes() == before


def test_a_behaviour_without_a_prompt_is_refused_before_anything_is_begun(tiny, tmp_path) -> None:
    for other, what in (
        (TEA.model_copy(update={"prompt": None}), "this behaviour names none"),
        (TEA.model_copy(update={"prompt": "\u00e9"}), "cannot be typed at the slot"),
        (TEA.model_copy(update={"prompt": "a"}), "The prompt has 1 tokens, and 2 of them cannot be edited"),
    ):
        with pytest.raises(UserError, match=what):
            leadline.measure(tiny, other, tmp_path / "run", controls=0, **SMALL)
        assert not (tmp_path / "run").exists()


def test_all_families_are_those_that_need_no_prompt_and_no_conditions() -> None:
    named = RunSpec(family="all").family
    assert set(get_args(Family)) - set(named) == {*CONDITIONED, *PROMPTED}
    assert "few_shot" in named


def test_a_behaviour_without_a_prompt_is_written_as_before_there_were_any() -> None:
    assert "prompt" not in TEA.model_copy(update={"prompt": None}).model_dump(mode="json")
    assert Behaviour.model_validate(TEA.model_dump(mode="json")) == TEA
