"""A behaviour and its controls made concrete for one model: tokens of every context and target, split once.

Everything random here hashes its own labels, so the same behaviour on the same model gives the same items.
"""

from __future__ import annotations

import random
import statistics
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leadline.behaviour import Behaviour
from leadline.controls import CONTROL_KINDS, control, permuted, relabelled, repeated
from leadline.edits import no_edit
from leadline.engine import Context, Engine
from leadline.model import FrozenModel
from leadline.objective import CHUNK_ROWS
from leadline.places import AROUND_TOKENS, check_demonstrations, deployed_prompt, places, sources
from leadline.priors import generator, seed_of
from leadline.slot import Renderer
from leadline.spec import ANCHORED, PROMPTED, SIZED_IN_TOKENS, TEXTS, RunSpec, UserError
from leadline.styles import STYLES, as_json

SPLITS = ("test", "validation", "confirm", "train")
LEAST_TRAIN = 8
MOST_TRAIN = 200

Progress = Callable[[str, float], None]
Around = tuple[tuple[int, ...], tuple[int, ...]]  # a context's tokens before and after the slot


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
    end = (model.end_of_reply,) if behaviour.ends else ()
    room = _room(model, behaviour, spec, befores, _reply_tokens(renderer, behaviour, texts))
    replies, rendered = _replies(model, behaviour, renderer, texts, befores, progress)
    if behaviour.reward is not None:
        return _rewarded(behaviour, spec, texts, rendered)
    # A style has no target where the model's own reply was cut short before it could tell.
    kept = [place for place, reply in enumerate(replies) if reply]
    _need(len(kept), len(replies), behaviour, spec)
    texts, rendered = [texts[place] for place in kept], [rendered[place] for place in kept]
    replies, known = [replies[place] for place in kept], _standardised(behaviour, len(replies))
    known = [known[place] for place in kept]
    splits = _split(len(texts), spec)

    def task(name: str, kind: str, replies: Sequence[tuple[int, ...]]) -> Task:
        targets = [model.tokenizer.decode(reply) for reply in replies]
        # What the model wrote may take more tokens in capitals than there is room for.
        _room(model, behaviour, spec, rendered, max(map(len, replies)))
        items = {
            split: tuple(
                Item(texts[i], targets[i], Context(*rendered[i], (*replies[i], *end), known[i])) for i in indices
            )
            for split, indices in splits.items()
        }
        return Task(name, kind, targets[0] if len(set(replies)) == 1 else None, items)

    main = task("", "", replies)
    controls: list[Task] = []
    made = [replies]
    for number in range(spec.controls):
        kind, seed = CONTROL_KINDS[number % len(CONTROL_KINDS)], number // len(CONTROL_KINDS)
        progress(f"control {number + 1}", number / spec.controls)
        if behaviour.constant:
            taken = [whole[0] for whole in made]
            found, reply = control(kind, seed, taken, room, main.contexts("test"), model, renderer, behaviour)
            made.append([reply] * len(texts))
        elif moved := relabelled(made, number):
            found = "relabelled"
            made.append(moved)
        else:
            found = "permuted"
            made.append(permuted(replies, splits, number))
        alike = sum(one.kind == found for one in controls)
        controls.append(task(f"{found}-{alike}", found, made[-1]))
    return [main, *controls]


def _rewarded(behaviour: Behaviour, spec: RunSpec, texts: Sequence[str], rendered: Sequence[Around]) -> list[Task]:
    """Items without a target: what a control rewards is no part of its items."""
    _refuse_texts(behaviour, spec)
    _need(len(texts), len(texts), behaviour, spec)
    known = _standardised(behaviour, len(texts))
    items = {
        split: tuple(Item(texts[i], "", Context(*rendered[i], (), known[i])) for i in indices)
        for split, indices in _split(len(texts), spec).items()
    }
    names = ["", *(f"hashed-{number}" for number in range(spec.controls))]
    return [Task(name, "hashed" if name else "", None, items) for name in names]


def _refuse_texts(behaviour: Behaviour, spec: RunSpec) -> None:
    """Raises UserError where a rewarded behaviour is asked for in families whose search reads the target's loss."""
    refused = [family for family in spec.family if family in (*TEXTS, *ANCHORED)]
    if behaviour.reward is not None and refused:
        what = f"A search for texts needs the loss of a target, and a reward gives none (family {refused[0]})"
        raise UserError(what, f"behaviour {behaviour.name}", "Measure it in a family of latents, such as soft_prompt.")


def sample_contexts(model: FrozenModel, behaviour: Behaviour, spec: RunSpec, count: int) -> list[Context]:
    """So many contexts of the behaviour with targets of its length, without asking the model for any: to time a plan.
    Raises the UserErrors of `prepare` that need no model."""
    _refuse_texts(behaviour, spec)
    renderer = Renderer(model, behaviour.slot)
    end = (model.end_of_reply,) if behaviour.ends else ()
    texts, rendered = _contexts(behaviour, spec, renderer)
    length = _reply_tokens(renderer, behaviour, texts)
    if words := _words(behaviour, texts):
        targets = [renderer.reply(text) for text in words]
    elif behaviour.constant:  # a control is about as long as what it is a control of
        targets = [_unit(renderer, behaviour)]
    else:
        targets = [(model.start_token,) * (1 if behaviour.reply.own == "next" else length)]
    _room(model, behaviour, spec, rendered, length)
    return [
        Context(*rendered[number % len(rendered)], (*targets[number % len(targets)], *end)) for number in range(count)
    ]


def _room(model: FrozenModel, behaviour: Behaviour, spec: RunSpec, rendered: Sequence[Around], reply: int) -> int:
    """Tokens that the longest context, the intervention and the end leave for a reply. Raises UserError where `reply`
    is more."""
    taken = max(len(before) + len(after) for before, after in rendered) + behaviour.ends

    def tokens(family: str, size: int) -> int:
        if family == "few_shot":
            return size * (taken + reply + AROUND_TOKENS)
        if family in PROMPTED:
            return len(model.tokenizer(behaviour.prompt, add_special_tokens=False)["input_ids"])
        return size if family in SIZED_IN_TOKENS else 1

    written = max(tokens(family, size) for family in spec.family for size in spec.sizes_of(family))
    if taken + written + reply > model.window:
        raise UserError(
            f"A context and reply of {taken + reply} tokens with {written} of the intervention do not fit into the "
            f"model's window of {model.window}", f"behaviour {behaviour.name}",
            "Shorten the contexts or lower --sizes.",
        )  # fmt: skip
    return model.window - taken - written


def _reply_tokens(renderer: Renderer, behaviour: Behaviour, texts: Sequence[str]) -> int:
    """How long replies are, as far as the behaviour tells without asking the model, in tokens without the end."""
    reply = behaviour.reply
    if words := _words(behaviour, texts):
        return max(len(renderer.reply(text)) for text in words)
    if behaviour.constant:
        return len(_unit(renderer, behaviour))
    if reply.own == "json":
        return reply.tokens + len(renderer.reply(as_json("", True)))
    return reply.tokens + (reply.skip + 1 if reply.own == "next" else 0)


def _words(behaviour: Behaviour, texts: Sequence[str]) -> Sequence[str] | None:
    """The reply to each context in words where it can be told without asking the model; None where it cannot, or where
    it is the same for all."""
    if behaviour.reply.source != "context":
        return behaviour.reply.texts
    if isinstance(behaviour.contexts, str):
        return texts
    asked = [
        [context] if isinstance(context, str) else [turn.content for turn in context if turn.role == "user"]
        for context in behaviour.contexts
    ]
    if [] in asked:
        raise UserError(
            f"Context {asked.index([]) + 1} has no user turn whose words could be the reply",
            f"behaviour {behaviour.name}", "Give it one.",
        )  # fmt: skip
    return [turns[-1] for turns in asked]


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


def _contexts(behaviour: Behaviour, spec: RunSpec, renderer: Renderer) -> tuple[list[str], list[Around]]:
    """What people read of each context, and its tokens around the slot."""
    contexts, copies = sources(behaviour), 3 * spec.items + MOST_TRAIN if behaviour.contexts == "empty" else 1
    _need(copies * len(contexts), copies * len(contexts), behaviour, spec)
    found = places(renderer, behaviour)
    if set(PROMPTED) & set(spec.family):
        edits = max(spec.sizes_of("prompt_edits")) if "prompt_edits" in spec.family else 0
        deployed_prompt(renderer.model, behaviour, found, edits)
    if "few_shot" in spec.family:
        check_demonstrations(renderer.model, behaviour, found)
    texts = [
        context if isinstance(context, str) else "\n".join(f"{turn.role}: {turn.content}" for turn in context)
        for context in contexts
    ]
    return texts * copies, [(one.before, one.after) for one in found] * copies


def _standardised(behaviour: Behaviour, count: int) -> list[tuple[float, ...]]:
    """The conditions of each of `count` contexts, every one with mean 0 and mean square 1 over all of them."""
    if behaviour.conditions is None:
        return [()] * count
    columns = []
    for column in zip(*behaviour.conditions, strict=True):
        mean, scale = statistics.fmean(column), statistics.pstdev(column)
        columns.append([(value - mean) / scale for value in column])
    return list(zip(*columns, strict=True))


def _need(count: int, given: int, behaviour: Behaviour, spec: RunSpec) -> None:
    """Raises UserError where `count` items, those that have a target out of `given`, are too few for the splits."""
    least = 3 * spec.items + LEAST_TRAIN
    if count >= least:
        return
    said = str(count) if count == given else (
        f"{count}, since the model's own reply has no first sentence within {behaviour.reply.tokens} tokens in "
        f"{given - count} more"
    )  # fmt: skip
    raise UserError(
        f"Too few items: {said}, and {spec.items} each for test, validation and confirmation with "
        f"{LEAST_TRAIN} for training make {least}", f"behaviour {behaviour.name}",
        f"Give {least} items, or at least {3 + LEAST_TRAIN} with --items 1." if count < 3 + LEAST_TRAIN
        else f"Give more items or lower --items to {(count - LEAST_TRAIN) // 3}.",
    )  # fmt: skip


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
    texts: Sequence[str],
    rendered: list[Around],
    progress: Progress,
) -> tuple[list[tuple[int, ...]], list[Around]]:
    """Target tokens of each context without the end token, empty where a style has none; and the contexts (which
    `own: next` replaces)."""
    reply, count = behaviour.reply, len(rendered)
    if words := _words(behaviour, texts):
        return [renderer.reply(text) for text in words], rendered
    if reply.source == "python":
        return _python_windows(renderer, count, reply.tokens), rendered
    if reply.source == "free":
        return [()] * count, rendered
    if reply.own == "next":
        length = reply.tokens + reply.skip + 1
        samples = _own(model, rendered, length, progress, sample=True, whole=True)
        moved = [(before, (*after, *s[: reply.tokens])) for (before, after), s in zip(rendered, samples, strict=True)]
        return [(sample[-1],) for sample in samples], moved
    if reply.own == "sample":
        return _own(model, rendered, reply.tokens, progress, sample=True), rendered
    if reply.own is not None:
        styled, ends = [], model.end_tokens
        for tokens in _own(model, rendered, reply.tokens, progress, sample=False):
            said = model.tokenizer.decode([token for token in tokens if token not in ends])
            styled.append(STYLES[reply.own](said, not ends.isdisjoint(tokens)))
        return [() if text is None else renderer.reply(text) for text in styled], rendered
    unit = _unit(renderer, behaviour)
    if reply.control is None:
        return [unit] * count, rendered
    of = behaviour.model_copy(update={"reply": reply.model_copy(update={"control": None, "text": reply.of})})
    spec = RunSpec(items=max(1, min(40, (count - LEAST_TRAIN) // 3)), controls=0)
    main = prepare(model, of, spec)[0]
    room, taken = _room(model, of, spec, rendered, 0), [renderer.reply(reply.of)]
    _, made = control(reply.control, reply.seed, taken, room, main.contexts("test"), model, renderer, of)
    return [made] * count, rendered


def _unit(renderer: Renderer, behaviour: Behaviour) -> tuple[int, ...]:
    """The tokens of a constant reply; a repeated one is cut to its length."""
    reply = behaviour.reply
    if reply.repeat is not None:
        return repeated(renderer.reply(reply.repeat), reply.tokens)
    return renderer.reply(reply.text if reply.text is not None else reply.of)


def _own(
    model: FrozenModel,
    rendered: Sequence[Around],
    tokens: int,
    progress: Progress,
    sample: bool,
    whole: bool = False,
) -> list[tuple[int, ...]]:
    """The model's own replies, greedy or sampled; `whole` draws again until none is cut short by its end."""
    engine = Engine(model)
    replies: list[tuple[int, ...]] = [()] * len(rendered)
    # by length, since the engine decodes rows of one length together
    order = sorted(range(len(rendered)), key=lambda place: sum(map(len, rendered[place])))
    for start in range(0, len(rendered), CHUNK_ROWS):
        progress("the model's own replies", start / len(rendered))
        rows = order[start : start + CHUNK_ROWS]
        part = [Context(*rendered[row], ()) for row in rows]
        edit = no_edit(len(part), model.hidden_size, model.network.dtype, model.device)
        draws = generator("own", start)
        found = engine.sample(part, edit, tokens, draws) if sample else engine.generate(part, edit, tokens)
        for _ in range(100 if whole else 0):
            if all(len(reply) == tokens for reply in found):
                break
            again = engine.sample(part, edit, tokens, draws)
            found = [old if len(old) == tokens else new for old, new in zip(found, again, strict=True)]
        for row, reply in zip(rows, found, strict=True):
            replies[row] = reply
    return replies


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
