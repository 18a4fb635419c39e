"""`leadline score`: what a solution is worth elsewhere - on another model, on sampled replies, on reworded questions.

The items are the run's own test items. Nothing is trained and no bound is computed: scores and losses with their
intervals, with and without the solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leadline.edits import Edit, EmbeddingEdit, KeyValueEdit, ResidualEdit, WeightEdit, no_edit
from leadline.engine import Engine, shared_prefix
from leadline.information import Floats, student_interval, wilson_interval
from leadline.interventions.text_prompt import TextPrompt
from leadline.items import SPLITS, Item, prepare
from leadline.model import FrozenModel, load
from leadline.objective import objective_for
from leadline.paraphrases import check_rewordable, put_otherwise
from leadline.result import Result
from leadline.slot import Renderer
from leadline.solution import Solution, find
from leadline.spec import RunSpec, UserError

REWORDED = (
    "Could you tell me: {}", "I was wondering about something. {}", "{} Thank you!", "Quick question: {}",
    "My friend asked me this: {}",
)  # fmt: skip
"""Ways to put the same question otherwise, fixed here and told from no behaviour."""


@dataclass(frozen=True)
class Scored:
    """One line of the table: the share of items replied exactly and the cost of the target in bits at temperature 1,
    with 95% intervals over items (Wilson; Student)."""

    what: str
    score: float
    score_interval: tuple[float, float]
    loss_bits: float
    loss_interval: tuple[float, float]
    items: int


def transfer(
    run: Path, model: str | None = None, temperature: float | None = None, reworded: bool = False,
    size: int | None = None, family: str | None = None,
) -> list[Scored]:  # fmt: skip
    """The solution of a run on its own model and test items, and then on what is asked for.

    model:       another model, by name; temperature: sampled replies at it; reworded: questions put otherwise
    Raises UserError where the run has no such solution, or the other model has no room for it.
    """
    if temperature is not None and not temperature > 0.0:
        raise UserError(f"There is no temperature of {temperature:g}", "--temperature", "Give a number above 0.")
    solution = find(run, size, family)
    spec = RunSpec.model_validate(Result.load(run).spec["spec"])
    if solution.behaviour.reward is not None:
        what, how = "A reward has no target to score again", "Measure it on the other model instead."
        raise UserError(what, f"behaviour {solution.behaviour.name}", how)
    own = prepare(solution.model, solution.behaviour, alone(spec))[0].items["test"]
    name = solution.name
    lines = _lines("as it was found", solution.model, own, name, solution.edit, solution.shared)
    if temperature is not None:
        what = f"sampled at temperature {temperature:g}"
        lines += _lines(what, solution.model, own, name, solution.edit, solution.shared, temperature)
    if reworded:
        asked = _reworded(solution, own)
        lines += _lines("questions reworded", solution.model, asked, name, solution.edit, solution.shared)
    if model is not None:
        other = load(model)
        task = prepare(other, solution.behaviour, alone(spec))[0]
        shared = shared_prefix([context for split in SPLITS for context in task.contexts(split)])
        lines += _lines(f"on {other.name}", other, task.items["test"], name, carried(solution, other), shared)
    return lines


def alone(spec: RunSpec) -> RunSpec:
    """The same spec without controls: they are not scored here."""
    return spec.model_copy(update={"controls": 0})


def carried(solution: Solution, other: FrozenModel) -> Edit:
    """The solution's edit on another model: a text is typed again, numbers are taken as they are. Raises UserError
    where their shapes do not fit."""
    where, how = f"--model {other.name}", "Name a model of the same shape, or a run whose solution is a text."
    edit, mine = solution.edit, solution.model
    if solution.text is not None:
        tokens = other.tokenizer(solution.text, add_special_tokens=False)["input_ids"]
        return TextPrompt(other, []).edit(torch.tensor([tokens]))
    if isinstance(edit, EmbeddingEdit | ResidualEdit) and mine.hidden_size != other.hidden_size:
        raise UserError(f"Its width is {other.hidden_size} and the solution's {mine.hidden_size}", where, how)
    if isinstance(edit, ResidualEdit) and max(edit.sites) >= len(other.layers):
        raise UserError(f"It has {len(other.layers)} blocks, too few for the solution's sites", where, how)
    if isinstance(edit, KeyValueEdit | WeightEdit) and str(mine.network.config) != str(other.network.config):
        raise UserError("Its architecture is another than the solution's", where, how)
    return edit


def _lines(
    what: str, model: FrozenModel, items: Sequence[Item], name: str, edit: Edit, shared: tuple[int, ...],
    temperature: float = 0.0,
) -> list[Scored]:  # fmt: skip
    """Without and with the solution of that name. At a temperature the score is the probability that a sampled reply is
    right, which teacher forcing gives without drawing one; at 0 replies are greedy."""
    contexts = [item.context for item in items]
    # a prefix stands behind what all contexts share; no other edit asks where that ends
    objective = objective_for(Engine(model, shared if isinstance(edit, KeyValueEdit) else ()))
    nothing = no_edit(len(contexts), model.hidden_size, model.network.dtype, model.device)
    found = []
    for who, change in (("nothing inserted", nothing), (name, edit.select([0] * len(contexts)))):
        with torch.no_grad():
            bits, margins = objective.evaluate(contexts, change)
            right = (margins > 0).double()
            if temperature:
                right = (-objective.engine.target_logits(contexts, change).nats(temperature).double()).exp()
        found.append(_scored(f"{what}, {who}", right.cpu().numpy(), bits.double().cpu().numpy()))
    return found


def _scored(what: str, right: Floats, bits: Floats) -> Scored:
    mean, low, high = student_interval(bits)
    score = wilson_interval(float(right.sum()), len(right))
    return Scored(what, float(right.mean()), score, mean, (low, high), len(right))


def _reworded(solution: Solution, items: Sequence[Item]) -> list[Item]:
    """Each test item's question in one of the forms of REWORDED, in turn."""
    check_rewordable(solution.behaviour, "--reworded")
    renderer = Renderer(solution.model, solution.behaviour.slot)
    return [
        put_otherwise(renderer, solution.behaviour, item, REWORDED[number % len(REWORDED)].format(item.prompt))
        for number, item in enumerate(items)
    ]
