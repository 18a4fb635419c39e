"""Suite files: many behaviours on one or several models, as the user asked for them, validated.

Knows neither models nor results; what is run of a suite is in `suite`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from leadline.behaviour import Behaviour, load, read_text, read_yaml
from leadline.spec import RunSpec, UserError, field_errors, json_schema, yaml_line

SHARED = tuple(name for name in RunSpec.model_fields if name not in ("model", "behaviour"))
"""Fields of a spec that hold for every run of a suite."""
Names = Annotated[list[str], Field(min_length=1)]


def _whole_file(schema: dict[str, Any]) -> None:
    """Adds the shared fields, which are validated as those of a RunSpec, to the JSON Schema of a suite file."""
    told = json_schema(RunSpec)["properties"]
    schema["properties"] |= {name: told[name] for name in SHARED}


class SuiteSpec(BaseModel):
    """What a suite file names itself; fields of a spec (sizes, seeds ...) stand beside it and hold for all runs.

    name:       what the suite is called; its runs lie in runs/NAME
    models:     names of models, as `leadline measure --model` takes them
    behaviours: built-in names, or .yaml or .jsonl files
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_whole_file)
    name: Annotated[str, Field(max_length=80, pattern=r"^\w[\w.-]*$")]
    models: Names
    behaviours: Names

    @field_validator("models", "behaviours")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) != len(names):
            raise ValueError("name each of them once")
        return names


@dataclass(frozen=True)
class Suite:
    """A suite that can be run. fields: of RunSpec, as given, for every run"""

    name: str
    models: tuple[str, ...]
    behaviours: tuple[Behaviour, ...]
    fields: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the runs lie unless another folder is named."""
        return Path("runs") / self.name


def read(path: Path, gated: bool = False) -> Suite:
    """The suite of a YAML file. Raises UserError with line and field, and before anything is run.

    gated: the suite is to answer a gate, so a behaviour that has a loss alone and no distance is refused: a gate that
    left it out would pass something that was never asked
    """
    text = read_text(path, "suite")
    given = read_yaml(text, str(path))
    shared = {name: value for name, value in given.items() if name in SHARED}
    try:
        spec = SuiteSpec.model_validate({name: value for name, value in given.items() if name not in SHARED})
        RunSpec.model_validate(shared)
    except ValidationError as error:
        raise field_errors(error, SuiteSpec, str(path), text) from error
    behaviours = []
    for number, name in enumerate(spec.behaviours):
        where = f"{path}, line {yaml_line(text, ('behaviours', number))}, field behaviours.{number}"
        try:
            behaviours.append(load(name))
        except UserError as error:
            inside = "" if name in error.where.split() else f": {error.where}"
            raise UserError(f"{error.what} {name}{inside}", where, error.how) from error
        if gated and behaviours[-1].scored == "loss":
            what = f"{name} has a loss and no distance, so a gate has no answer for it"
            raise UserError(what, where, "Leave it out of a suite with a gate, or run the suite without --gate.")
    return Suite(spec.name, tuple(spec.models), tuple(behaviours), shared)
