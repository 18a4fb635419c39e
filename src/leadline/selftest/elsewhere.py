"""K10's other process: `python -m leadline.selftest.elsewhere FILE...` decodes messages and scores what they hold.

One line a file on standard output: whether it works on the wired transformer, and its coordinates to the last bit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from leadline.coder import unseal
from leadline.engine import Engine
from leadline.estimators import Point, decode
from leadline.evaluation import in_s, score_draws
from leadline.interventions import make
from leadline.model import FrozenModel
from leadline.objective import Objective
from leadline.priors import Priors
from leadline.selftest.wired import flip_context, wired_model


def scored_model() -> FrozenModel:
    """The model that messages are scored on, in every process the same: 2 bits away in 16 dimensions."""
    return wired_model(16, 2.0, context_tokens=4)


def hits(model: FrozenModel, latents: torch.Tensor) -> list[bool]:
    """Which of (draws, hidden) latents of one soft token flip the reply of a wired model."""
    prompt, objective = make("soft_prompt", 1, Priors(model)), Objective(Engine(model))
    found: list[bool] = in_s(score_draws(objective, [flip_context(model)], prompt, latents[:, None], 1.0), 1.0).tolist()
    return found


def main(files: Sequence[str]) -> None:
    """Prints a line a file."""
    model = scored_model()
    for file in files:
        found = decode(unseal(Path(file).read_bytes()))
        if not isinstance(found, Point):
            raise ValueError(f"{file} holds no point")
        (hit,) = hits(model, torch.from_numpy(found.z)[None].float())
        print(hit, *(float(value).hex() for value in found.z))


if __name__ == "__main__":
    main(sys.argv[1:])
