"""A behaviour and its controls made concrete for one model: tokens of every context and target, split once.

Everything random here hashes its own labels, so the same behaviour on the same model gives the same items.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from leadline.behaviour import Behaviour, questions
from leadline.edits import no_edit
from leadline.engine import Context, Engine
from leadline.estimators.prefill import prefill_bits
from leadline.model import FrozenModel
from leadline.objective import CHUNK_ROWS, objective_for
from leadline.priors import generator, seed_of
from leadline.slot import Renderer
from leadline.spec import RunSpec, UserError

SPLITS = ("test", "validation", "confirm", "train")
LEAST_TRAIN = 8
MOST_TRAIN = 200
# With n controls the first n kinds are taken, then the list starts again with another seed.
CONTROL_KINDS = ("matched", "uniform", "phrase", "shuffled")
MATCH_TOLERANCE = 0.1
ROUGH_CONTEXTS = 8
SHUFFLES = 200  # orders tried before a reply is said to have no other one

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Item:
    """One context with its target: as text for people, as tokens for the engine."""

    prompt: str
    target: str
    context: Context


@dataclass(frozen=True)
class Task:
    """The behaviour, or one of its controls.

    name:   "" for the behaviour, else the control's name
    kind:   "" or the kind of control
    target: the reply in words where it is the same for every context, else None
    items:  by split: train, validation, test, confirm
    """

    name: str
    kind: str
    target: str | None
    items: dict[str, tuple[Item, ...]]

    @property
    def role(self) -> str:
        return "control" if self.name else "behaviour"

    def contexts(self, split: str) -> list[Context]:
        """The tokens of one split."""
        return [item.context for item in self.items[split]]


def prepare(
    model: FrozenModel, behaviour: Behaviour, spec: RunSpec, progress: Progress = lambda what, share: None
) -> list[Task]:
    """The behaviour and `spec.controls` controls, as items of this model. Raises UserError for too few contexts, a
    context longer than the model's window, a target without tokens, a slot that is not there."""
    renderer = Renderer(model, behaviour.slot)
    texts, befores = _contexts(behaviour, spec, renderer)
    replies, rendered = _replies(model, behaviour, renderer, befores, progress)
    end = (model.end_of_reply,) if behaviour.ends else ()
    splits = _split(len(texts), spec)
    lengths = [len(before) + len(after) + len(reply) for (before, after), reply in zip(rendered, replies, strict=True)]
    _require_room(model, behaviour, spec, max(lengths) + len(end))

    def task(name: str, kind: str, replies: Sequence[tuple[int, ...]]) -> Task:
        targets = [model.tokenizer.decode(reply) for reply in replies]
        items = {
            split: tuple(Item(texts[i], targets[i], Context(*rendered[i], (*replies[i], *end))) for i in indices)
            for split, indices in splits.items()
        }
        return Task(name, kind, targets[0] if len(set(replies)) == 1 else None, items)

    main = task("", "", replies)
    if not behaviour.constant:
        return [main, *(task(f"permuted-{n}", "permuted", _permuted(replies, splits, n)) for n in range(spec.controls))]
    controls: list[Task] = []
    taken = [_unit(renderer, behaviour)]
    for number in range(spec.controls):
        kind, seed = CONTROL_KINDS[number % len(CONTROL_KINDS)], number // len(CONTROL_KINDS)
        progress(f"control {kind}-{seed}", number / spec.controls)
        found, made = _control(kind, seed, taken, main, model, renderer, behaviour)
        taken.append(made)
        alike = sum(control.kind == found for control in controls)
        controls.append(task(f"{found}-{alike}", found, [made] * len(texts)))
    return [main, *controls]


def sample_contexts(model: FrozenModel, behaviour: Behaviour, spec: RunSpec, count: int) -> list[Context]:
    """So many contexts of the behaviour with targets of its length, without asking the model for any: to time a plan.
    Raises the UserErrors of `prepare` that need no model."""
    renderer = Renderer(model, behaviour.slot)
    end = (model.end_of_reply,) if behaviour.ends else ()
    _, rendered = _contexts(behaviour, spec, renderer)
    reply = behaviour.reply
    if reply.texts is not None:
        targets = [renderer.reply(text) for text in reply.texts]
    elif behaviour.constant:  # a control is about as long as what it is a control of
        targets = [_unit(renderer, behaviour)]
    else:
        targets = [(model.start_token,) * (1 if reply.own == "next" else reply.tokens)]
    _require_room(model, behaviour, spec, max(len(b) + len(a) for b, a in rendered) + len(targets[0]) + len(end))
    return [
        Context(*rendered[number % len(rendered)], (*targets[number % len(targets)], *end)) for number in range(count)
    ]


def _require_room(model: FrozenModel, behaviour: Behaviour, spec: RunSpec, tokens: int) -> None:
    if tokens + max(spec.sizes) > model.window:
        raise UserError(
            f"A context of {tokens} tokens with {max(spec.sizes)} of the intervention does not fit into the model's "
            f"window of {model.window}", f"behaviour {behaviour.name}", "Shorten the contexts or lower --sizes.",
        )  # fmt: skip


def to_json(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Plain data for items.json."""
    return [asdict(task) for task in tasks]


def from_json(data: list[dict[str, Any]]) -> list[Task]:
    """The tasks that `to_json` wrote."""

    def item(row: dict[str, Any]) -> Item:
        return Item(row["prompt"], row["target"], Context(**{k: tuple(v) for k, v in row["context"].items()}))

    return [
        Task(row["name"], row["kind"], row["target"], {s: tuple(map(item, rows)) for s, rows in row["items"].items()})
        for row in data
    ]


def _contexts(
    behaviour: Behaviour, spec: RunSpec, renderer: Renderer
) -> tuple[list[str], list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """What people read of each context, and its tokens around the slot."""
    source = behaviour.contexts
    if source == "empty":
        contexts: Sequence[Any] = [""] * (3 * spec.items + MOST_TRAIN)
    else:
        contexts = questions() if source == "pool" else source
    least = 3 * spec.items + LEAST_TRAIN
    if len(contexts) < least:
        raise UserError(
            f"Too few items: {len(contexts)}, and {spec.items} each for test, validation and confirmation with "
            f"{LEAST_TRAIN} for training make {least}", f"behaviour {behaviour.name}",
            f"Give at least {3 + LEAST_TRAIN} items." if len(contexts) < 3 + LEAST_TRAIN
            else f"Give more items or lower --items to {(len(contexts) - LEAST_TRAIN) // 3}.",
        )  # fmt: skip
    texts, rendered = [], []
    for context in contexts:
        if isinstance(context, str):
            texts.append(context)
            chat = [{"role": "user", "content": context}]
            rendered.append(renderer.chat(chat) if behaviour.format == "chat" else renderer.raw(context))
        else:
            turns = [message.model_dump() for message in context]
            texts.append("\n".join(f"{turn['role']}: {turn['content']}" for turn in turns))
            rendered.append(renderer.chat(turns))
    return texts, rendered


def _split(count: int, spec: RunSpec) -> dict[str, list[int]]:
    """Indices of each split: one fixed shuffle, so that a sorted file does not make a biased split."""
    order = list(range(count))
    random.Random(0).shuffle(order)
    bounds = [0, spec.items, 2 * spec.items, 3 * spec.items, min(count, 3 * spec.items + MOST_TRAIN)]
    return {split: order[a:b] for split, a, b in zip(SPLITS, bounds[:-1], bounds[1:], strict=True)}


def _replies(
    model: FrozenModel,
    behaviour: Behaviour,
    renderer: Renderer,
    rendered: list[tuple[tuple[int, ...], tuple[int, ...]]],
    progress: Progress,
) -> tuple[list[tuple[int, ...]], list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Target tokens of each context without the end token, and the contexts (which `own: next` replaces)."""
    reply, count = behaviour.reply, len(rendered)
    if reply.texts is not None:
        return [renderer.reply(text) for text in reply.texts], rendered
    if reply.source == "python":
        return _python_windows(renderer, count, reply.tokens), rendered
    if reply.own == "next":
        length = reply.tokens + reply.skip + 1
        samples = _own(model, rendered, length, progress, sample=True, whole=True)
        moved = [(before, (*after, *s[: reply.tokens])) for (before, after), s in zip(rendered, samples, strict=True)]
        return [(sample[-1],) for sample in samples], moved
    if reply.own == "sample":
        return _own(model, rendered, reply.tokens, progress, sample=True), rendered
    if reply.own == "capitals":
        own = _own(model, rendered, reply.tokens, progress, sample=False)
        ends = model.end_tokens
        words = [model.tokenizer.decode([token for token in tokens if token not in ends]) for tokens in own]
        return [renderer.reply(text.upper()) for text in words], rendered
    unit = _unit(renderer, behaviour)
    if reply.control is None:
        return [unit] * count, rendered
    of = behaviour.model_copy(update={"reply": reply.model_copy(update={"control": None, "text": reply.of})})
    spec = RunSpec(items=max(1, min(40, (count - LEAST_TRAIN) // 3)), controls=0)
    main = prepare(model, of, spec)[0]
    _, made = _control(reply.control, reply.seed, [renderer.reply(reply.of)], main, model, renderer, of)
    return [made] * count, rendered


def _unit(renderer: Renderer, behaviour: Behaviour) -> tuple[int, ...]:
    """The tokens of a constant reply; a repeated one is cut to its length."""
    reply = behaviour.reply
    if reply.repeat is not None:
        return _repeated(renderer.reply(reply.repeat), reply.tokens)
    return renderer.reply(reply.text if reply.text is not None else reply.of)


def _repeated(unit: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    return (unit * (tokens // len(unit) + 1))[:tokens]


def _own(
    model: FrozenModel,
    rendered: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    tokens: int,
    progress: Progress,
    sample: bool,
    whole: bool = False,
) -> list[tuple[int, ...]]:
    """The model's own replies, greedy or sampled; `whole` draws again until none is cut short by its end."""
    engine, replies = Engine(model), []
    for start in range(0, len(rendered), CHUNK_ROWS):
        progress("the model's own replies", start / len(rendered))
        part = [Context(before, after, ()) for before, after in rendered[start : start + CHUNK_ROWS]]
        edit = no_edit(len(part), model.hidden_size, model.network.dtype, model.device)
        draws = generator("own", start)
        found = engine.sample(part, edit, tokens, draws) if sample else engine.generate(part, edit, tokens)
        for _ in range(100 if whole else 0):
            if all(len(reply) == tokens for reply in found):
                break
            again = engine.sample(part, edit, tokens, draws)
            found = [old if len(old) == tokens else new for old, new in zip(found, again, strict=True)]
        replies += found
    return replies


def _permuted(replies: Sequence[tuple[int, ...]], splits: dict[str, list[int]], seed: int) -> list[tuple[int, ...]]:
    """The same replies given to other contexts, within each split: rotating a shuffled order keeps none in place."""
    moved = list(replies)
    for split, indices in splits.items():
        order = list(indices)
        random.Random(seed_of("permuted", split, seed)).shuffle(order)
        for here, there in zip(order, order[1:] + order[:1], strict=True):
            moved[here] = replies[there]
    return moved


def _control(
    kind: str,
    seed: int,
    taken: Sequence[tuple[int, ...]],
    main: Task,
    model: FrozenModel,
    renderer: Renderer,
    behaviour: Behaviour,
) -> tuple[str, tuple[int, ...]]:
    """One control of a constant reply (docs/measurement.md section 5): the kind it turned out to be, and its tokens.

    taken: the reply itself, and the controls made before. None of them is made again, nor, where the reply is repeated,
           the same words begun elsewhere. Where no order of the tokens and no phrase is left it becomes a uniform
           control, and a matched one is called nearest where no phrase is within 10% of the direct cost.
    """
    rng = random.Random(seed_of("control", kind, seed, taken[0]))
    repeat = behaviour.reply.repeat
    base = renderer.reply(repeat) if repeat is not None else taken[0]

    def full(tokens: tuple[int, ...]) -> tuple[int, ...]:
        return _repeated(tokens, behaviour.reply.tokens) if repeat is not None else tokens

    def fresh(tokens: tuple[int, ...]) -> bool:
        turned = [tokens[start:] + tokens[:start] for start in range(len(tokens) if repeat is not None else 1)]
        return not {full(turn) for turn in turned} & set(taken)

    phrases = [phrase for phrase in _phrases() if fresh(renderer.reply(phrase))]
    if kind in ("phrase", "matched") and phrases:
        rng.shuffle(phrases)
        if kind == "phrase":
            return kind, full(renderer.reply(phrases[0]))
        texts = [found for text in _candidates(phrases) if (found := full(renderer.reply(text))) not in taken]
        found, gap = _matched(texts, main, model, behaviour.ends)
        return kind if gap <= MATCH_TOLERANCE else "nearest", found
    order = list(base)
    for _ in range(SHUFFLES if kind == "shuffled" else 0):
        rng.shuffle(order)
        if fresh(tuple(order)):
            return kind, full(tuple(order))
    banned = {*model.tokenizer.all_special_ids, *model.end_tokens, *base}
    allowed = [token for token in range(len(model.tokenizer)) if token not in banned]
    while not fresh(tokens := tuple(rng.choice(allowed) for _ in base)):
        pass
    return "uniform", full(tokens)


def _matched(
    phrases: Sequence[tuple[int, ...]], main: Task, model: FrozenModel, ends: bool
) -> tuple[tuple[int, ...], float]:
    """The first phrase whose direct cost on the test items is within 10% of the behaviour's, if none fits the nearest
    one; and how far off its cost is, as a share. Looking at the test items selects nothing here: a control is defined
    by its cost on the items it stands on; no score enters."""
    objective = objective_for(Engine(model))
    end = (model.end_of_reply,) if ends else ()

    def gap(target: tuple[int, ...], contexts: list[Context]) -> float:
        costs = []
        for wanted in (target, contexts[0].target):
            moved = [Context(context.before, context.after, wanted) for context in contexts]
            nothing = no_edit(len(moved), model.hidden_size, model.network.dtype, model.device)
            costs.append(prefill_bits(objective.evaluate(moved, nothing)[0].double().cpu().numpy()))
        return abs(costs[0] - costs[1]) / max(costs[1], 1e-9)  # a reply that is certain costs nothing

    contexts = main.contexts("test")
    least: dict[tuple[int, ...], float] = {}
    rough: dict[tuple[int, ...], float] = {}
    for phrase in phrases:
        # A few contexts rule most phrases out; the mean of probabilities needs many to settle.
        rough[phrase] = gap((*phrase, *end), contexts[:ROUGH_CONTEXTS])
        if rough[phrase] > 3 * MATCH_TOLERANCE:
            continue
        least[phrase] = gap((*phrase, *end), contexts)
        if least[phrase] <= MATCH_TOLERANCE:
            return phrase, least[phrase]
    if not least:
        nearest = min(rough, key=lambda phrase: rough[phrase])
        least[nearest] = gap((*nearest, *end), contexts)
    return min(least.items(), key=lambda pair: pair[1])


def _candidates(phrases: list[str]) -> Iterator[str]:
    yield from phrases
    for first, second in pairwise(phrases):
        yield f"{first}. {second}"


def _phrases() -> list[str]:
    text = resources.files("leadline").joinpath("behaviours/phrases.txt").read_text("ascii")
    return [line for line in text.splitlines() if line]


def _python_windows(renderer: Renderer, count: int, tokens: int) -> list[tuple[int, ...]]:
    """Windows of the interpreter's own standard library: real text that is there without a network."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    rng = random.Random(seed_of("python windows"))
    windows: list[tuple[int, ...]] = []
    while len(windows) < count:
        lines = rng.choice(files).read_text("utf-8", errors="ignore").splitlines(keepends=True)
        start = rng.randrange(len(lines)) if lines else 0
        text = "".join(lines[start : start + tokens])
        if text.strip() and len(found := renderer.reply(text)) >= tokens:
            windows.append(found[:tokens])
    return windows
