"""The text prompts of a measurement: searched for on training items, chosen on validation items, certified on test
items by the prior mass of those that work, and drawn blindly for the lower bound.

What a text is, is in `interventions.text_prompt`; what it costs, in `texts`; how it is searched for, in
`solvers.token_search`. Here they meet a run's items and records. The other families of texts (`few_shot`,
`prompt_edits`) find theirs elsewhere and under priors of their own, and are judged, tested and drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from leadline import rows
from leadline.checkpoint import Checkpoint
from leadline.edits import EmbeddingEdit
from leadline.engine import Context
from leadline.evaluation import first_item_hits, in_s, score_latents
from leadline.interventions.text_prompt import Place, TextPrompt, allowed_tokens, uniform_bits
from leadline.items import SPLITS
from leadline.model import FrozenModel
from leadline.places import places
from leadline.plan import TEXT_BUDGETS, best_restart
from leadline.priors import generator
from leadline.records import digest
from leadline.slot import Renderer
from leadline.solvers.token_search import Problem, TokenSearch, begin, search
from leadline.texts import Ragged, TextPrior, item_free_prefix, padded, text_problem
from leadline.work import Work

FAMILY = "text_prompt"
BETA = 0.2  # bits of loss that a bit of text is worth to the search at first: cheap texts, then ones that work
PLACES = 12  # contexts in which every candidate is typed; all contexts in which a text has to be right before it counts
ASKED = (
    "{}", "Say: {}\n", "Repeat after me: {}\n", "Answer every question with the words {}.", "Repeat: {}\n{}\n",
    "Repeat the following text exactly: {}\n{}\n",
)  # fmt: skip
BEGUN = 2  # texts that begin as an asking does and go on as the model would
SAMPLES = 8  # test items whose replies are kept for people to read

Pose = Callable[[TextPrompt, Sequence[Context]], Problem]
Begun = Callable[[TextPrompt, Problem], list[list[int]]]


class Priced(Protocol):
    """A prior over texts of tokens: its name, and each text's -log2 probability."""

    @property
    def name(self) -> str: ...

    def surprisal_bits(self, tokens: Tensor) -> Tensor: ...


class Sampled(Priced, Protocol):
    """One that can be drawn from: `count` texts at one size of the family."""

    def sample(self, count: int, size: int, draws: torch.Generator) -> list[tuple[int, ...]]: ...


@dataclass(frozen=True)
class Curve:
    """One task at one size of one family: where its records are keyed, and the columns that its points share."""

    task: str
    size: int
    family: str = FAMILY

    @property
    def label(self) -> str:
        return f"{self.task or 'behaviour'} {self.family} {self.size}"

    @property
    def name(self) -> str:
        return f"{self.task}/{self.family}/{self.size}"

    def about(self, prior: str, seed: int, key: str) -> dict[str, Any]:
        role = "control" if self.task else "behaviour"
        return {
            "family": self.family, "size": self.size, "seed": seed, "control": self.task, "beta": None, "role": role,
            "prior": prior, "batch": "", "key": key,
        }  # fmt: skip


def text_prompts(work: Work) -> None:
    """The whole family, for the behaviour at every size and for controls at the smallest."""
    if FAMILY not in work.spec.family:
        return
    prior = text_prior(work)
    everywhere = places(Renderer(work.model, work.behaviour.slot), work.behaviour)
    for task in work.tasks:
        sizes = work.spec.sizes_of(FAMILY)
        for size in sizes[:1] if task.name else sizes:
            curve = Curve(task.name, size)
            seeds = [_asked(work, curve, seed, prior, everywhere) for seed in range(work.spec.seeds)]
            certify(work, curve, prior, seeds)
            work.save_points()
    if work.tau is not None and work.spec.prior_draws:
        for size in work.spec.sizes_of(FAMILY):
            draw(work, Curve("", size), prior, everywhere)


def text_prior(work: Work) -> TextPrior:
    """The model's own text at the slot, priced in float32; made once for a run."""
    if work.priced is not None:
        found: TextPrior = work.priced
        return found
    contexts = [context for split in SPLITS for context in work.tasks[0].contexts(split)]
    work.priced = TextPrior(work.model.exact("a certified bound prices texts in float32"), item_free_prefix(contexts))
    return text_prior(work)


def _asked(work: Work, curve: Curve, seed: int, prior: TextPrior, everywhere: Sequence[Place]) -> dict[str, Any]:
    """The record of one search among all texts of that many tokens."""
    return searched(work, curve, seed, prior, everywhere, *asked(work, curve, seed, prior), BETA)


def asked(work: Work, curve: Curve, seed: int, prior: TextPrior) -> tuple[Pose, Begun]:
    """What a search among all texts of that many tokens asks for: the problem, and where it begins."""

    # What is certified is priced in float32; what a search goes by, in the run's own precision, which takes less time.
    rough = TextPrior(work.model, prior.prefix)

    def pose(prompt: TextPrompt, contexts: Sequence[Context]) -> Problem:
        return text_problem(prompt, rough, work.objective, contexts, TEXT_BUDGETS[work.spec.scale].screening, work.tau)

    def begun(_prompt: TextPrompt, problem: Problem) -> list[list[int]]:
        return proposals(work, curve, prior, problem, seed)

    return pose, begun


def searched(
    work: Work, curve: Curve, seed: int, prior: Priced, everywhere: Sequence[Place],
    pose: Pose, begun: Begun, beta: float,
) -> dict[str, Any]:  # fmt: skip
    """The record of one token search. pose: what can be typed, and contexts, to the problem;  begun: what can be typed,
    and the problem, to proposals;  beta: of `TokenSearch`"""
    budget, label = TEXT_BUDGETS[work.spec.scale], f"{curve.label} seed {seed}"
    key = work.key("texts", label)
    if not work.done(key):
        found = climbed(work, curve, seed, everywhere, pose, begun, beta)
        if not found["best"]:
            work.write(key, {"points": [], "texts": [], "best": []})
            return recorded(work, key, seed)
        texts = _typed(work.model, everywhere, [found["best"], *found["kept"]])
        texts = [texts[i] for i in _cheapest(prior, texts)[: budget.judged]] if texts else []
        made = rows.Made(found["step"], False, float(found["seconds"]), found["flops"])
        judge(work, curve, seed, key, prior, texts, (texts or [found["best"]])[0], made)
    return recorded(work, key, seed)


def climbed(
    work: Work, curve: Curve, seed: int, everywhere: Sequence[Place],
    pose: Pose, begun: Begun, beta: float,
) -> dict[str, Any]:  # fmt: skip
    """Where one token search ended: the record of its `best` text, those it `kept`, its `step`, `flops` and `seconds`.
    No best where nothing that was proposed can be typed at this slot: an outcome. The flops leave out the prior's own.
    Arguments as `searched`"""
    budget, label = TEXT_BUDGETS[work.spec.scale], f"{curve.label} seed {seed} beta {beta:g}"
    key = work.key("climbed", label)
    if not work.done(key):
        prompt = TextPrompt(work.model, everywhere[:: max(1, len(everywhere) // PLACES)])
        contexts = work.task(curve.task).contexts("train")[: budget.contexts]
        problem = pose(prompt, contexts)
        how = TokenSearch(label, beta, budget.top_k, budget.candidates, budget.passed)
        work.reporter.stage(f"search for a text, {label}")
        checkpoint = Checkpoint(work.run, digest([work.hash, key]), work.reporter)
        state = checkpoint.restore_texts()
        try:
            state = state or begin(problem, how, begun(prompt, problem))
        except ValueError:
            work.write(key, {"points": [], "best": [], "flops": 0.0})
        else:
            search(problem, how, budget.steps, state, lambda now: checkpoint.texts(now, budget.steps))
            change = EmbeddingEdit(torch.zeros(1, curve.size, work.model.hidden_size), (curve.size,))
            items = len(contexts)
            trained, scored = items * state.step, items * len(state.texts) + budget.screening * state.screened
            flops = work.flops(work.task(curve.task), trained, scored, change)
            work.write(key, {
                "points": [], "best": state.texts[state.best], "kept": state.kept, "step": state.step, "flops": flops,
                "seconds": repr(checkpoint.seconds),
            })  # fmt: skip
    return work.run.cell(key) or {}


def recorded(work: Work, key: str, seed: int) -> dict[str, Any]:
    """What `judge` wrote under a key."""
    record: dict[str, Any] = work.run.cell(key) or {}
    return {**record, "key": key, "seed": seed}


def judge(
    work: Work, curve: Curve, seed: int, key: str, prior: Priced, texts: Sequence[list[int]], nearest: list[int],
    made: rows.Made,
) -> None:  # fmt: skip
    """Writes the record of what one seed found: the texts that hold on validation items, in the order given, and points
    of the first of them on training and validation items; of `nearest` where none holds."""
    writes, validation = Ragged(work.model), work.task(curve.task).contexts("validation")
    holding: list[list[int]] = []
    if texts and work.tau is not None:
        title = f"validation items, {curve.label} seed {seed}"
        margins = work.scored(key, title, curve.task, "validation", writes, padded(texts))
        holding = [text for text, holds in zip(texts, in_s(margins, work.tau).tolist(), strict=True) if holds]
    best, points = (holding or [nearest])[0], []
    about = curve.about(prior.name, seed, key)
    for split, items in (
        ("train", work.task(curve.task).contexts("train")[: work.spec.items]), ("validation", validation),
    ):  # fmt: skip
        scored = score_latents(work.objective, items, writes, torch.tensor([best] * len(items)))
        null = work.size_0_costs(curve.task, curve.family, split)
        points.append(rows.curve_point(about, work.tau, split, *scored, null, made=made))
    work.write(key, {"points": points, "texts": holding, "best": best}, {"tokens": np.asarray(best)})


def certify(work: Work, curve: Curve, prior: Priced, seeds: list[dict[str, Any]]) -> None:
    """The best seed on test items, and TEXT: the mass of all texts of all seeds that hold on validation and on test
    items. Nothing is paid for having looked at many: their masses add up, whichever they are."""
    seeds = [seed for seed in seeds if seed["points"]]
    if not seeds:
        return
    chosen = seeds[best_restart([seed["points"][-1] for seed in seeds])]
    work.choose_key(chosen["key"])
    key = work.key("text test", curve.label)
    if work.done(key):
        found = work.run.cell(key) or {}
        work.extra.setdefault("texts", {})[curve.name] = found["string"]
        return
    writes, task = Ragged(work.model), work.task(curve.task)
    best, items = torch.tensor(chosen["best"]), task.contexts("test")
    about = curve.about(prior.name, chosen["seed"], chosen["key"])
    scored = score_latents(work.objective, items, writes, best.expand(len(items), -1))
    point = rows.curve_point(about, work.tau, "test", *scored, work.size_0_costs(curve.task, curve.family, "test"))
    string = work.model.tokenizer.decode(best.tolist(), clean_up_tokenization_spaces=False)
    record: dict[str, Any] = {"points": [point], "string": string}
    record |= {"costs": {"test": scored[0].double().tolist()}, "right": {"test": (scored[1] > 0).int().tolist()}}
    texts = list(dict.fromkeys(tuple(text) for seed in seeds for text in seed["texts"]))
    about |= {"flops": sum(seed["points"][0]["flops"] for seed in seeds)}  # of all searches: their masses add up
    if texts and work.tau is not None:
        margins = work.scored(key, f"test items, {curve.label}", curve.task, "test", writes, padded(texts))
        hits = [text for text, holds in zip(texts, in_s(margins, work.tau).tolist(), strict=True) if holds]
        promised, found_bits = (_prices(prior, some) for some in (texts, hits))
        record["points"] += rows.text_points(about, promised, found_bits, len(texts))
        if hits and curve.family == FAMILY:
            price = uniform_bits(curve.size, allowed_tokens(work.model))
            record["points"].append(rows.uniform_point(about, len(hits), len(texts), price))
        if hits and not curve.task:
            again = work.scored(key, f"confirmation, {curve.label}", "", "confirm", writes, padded(hits))
            counts = {"hits": int(in_s(again, work.tau).sum()), "draws": len(hits)}
            record["confirmation"] = {curve.name: counts}
    latents = best.expand(SAMPLES, -1)
    work.write(key, record, samples=work.samples(curve.task, "test", SAMPLES, writes, latents))
    work.extra.setdefault("texts", {})[curve.name] = string


def draw(work: Work, curve: Curve, prior: Sampled, everywhere: Sequence[Place]) -> None:
    """MC: texts drawn from the prior. What nobody could type is a miss."""
    key = work.key("prior", curve.family, str(curve.size))
    if work.done(key) or work.tau is None:
        return
    prompt = TextPrompt(work.model, everywhere)
    texts = prior.sample(work.spec.prior_draws, curve.size, generator("prior", curve.family, curve.size))
    typed = [row for row, text in enumerate(texts) if prompt.text(text) is not None]
    margins = torch.full((len(texts), len(work.tasks[0].items["test"])), math.nan)
    if typed:
        tokens = torch.tensor([texts[row] for row in typed])
        title = f"draws of the prior, {curve.family} {curve.size}"
        margins[typed] = work.scored(key, title, "", "test", prompt, tokens)
    point = rows.prior_point(curve.about(prior.name, -1, key), work.tau, margins)
    work.write(key, {"points": [point], "prior_items": first_item_hits(margins, work.tau)})


def proposals(work: Work, curve: Curve, prior: TextPrior, problem: Problem, seed: int) -> list[list[int]]:
    """Texts of n tokens to begin with: plain ways of asking for the reply, where all contexts share one, or what the
    behaviour says of itself, each cut to n tokens, or said over again, or gone on with by the model; and texts drawn
    from it."""
    task, budget, size = work.task(curve.task), TEXT_BUDGETS[work.spec.scale], curve.size
    asked = [form.replace("{}", task.target) for form in ASKED] if task.target is not None else []
    if not curve.task and work.behaviour.description:
        asked.append(work.behaviour.description)
    tokenize = work.model.tokenizer
    found: list[list[int]] = []
    draws = generator("proposals", curve.label, seed)
    for text in asked:
        tokens = [int(token) for token in tokenize(text, add_special_tokens=False)["input_ids"]]
        found.append((tokens * math.ceil(size / len(tokens)))[:size])
        if len(tokens) < size:
            found += [list(text) for text in prior.sample(BEGUN, size, draws, tokens)]
    wanted = len(found) + budget.drawn
    for _ in range(64):  # most draws of a text cannot be typed in some models
        found += [list(text) for text in prior.sample(budget.drawn, size, draws)]
        if sum(problem.survives(text) for text in found) >= min(wanted, budget.drawn):
            break
    return found


def _typed(model: FrozenModel, everywhere: Sequence[Place], texts: Sequence[list[int]]) -> list[list[int]]:
    """Those of the texts that can be typed into every context of the behaviour, each once."""
    prompt = TextPrompt(model, everywhere)
    return [list(text) for text in dict.fromkeys(map(tuple, texts)) if prompt.text(text) is not None]


def _prices(prior: Priced, texts: Sequence[Sequence[int]]) -> list[float]:
    """Surprisal of each text, in bits."""
    prices = [0.0] * len(texts)
    for length in {len(text) for text in texts}:  # a batch has texts of one length
        alike = [place for place, text in enumerate(texts) if len(text) == length]
        found = prior.surprisal_bits(torch.tensor([texts[place] for place in alike])).tolist()
        for place, bits in zip(alike, found, strict=True):
            prices[place] = float(bits)
    return prices


def _cheapest(prior: Priced, texts: Sequence[Sequence[int]]) -> list[int]:
    """Places of the texts from the cheapest to the dearest."""
    prices = _prices(prior, texts)
    return sorted(range(len(texts)), key=lambda place: prices[place])
