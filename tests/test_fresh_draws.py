"""A bound stands on test items and on draws that nothing has seen before, and the mistakes that would break this are
seen (K16: p on the draws of the choice, p on validation items, the mean of q for its draws).

The run is a real one, on the wired transformer; what it scored is listened to, and its record is held against that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import leadline
from leadline import bound_stage, plan, work
from leadline.behaviour import Behaviour, Reply
from leadline.engine import Context
from leadline.items import from_json
from leadline.records import read_arrays
from leadline.solvers.variational import Variational
from models import wired_model

ITEMS, DRAWS = 12, 64


@dataclass(frozen=True)
class Scored:
    """One call of `score_draws`."""

    contexts: list[Context]
    latents: torch.Tensor
    margins: torch.Tensor


def check(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Measures, and asserts that the recorded bound was drawn freshly on test items."""
    heard: list[Scored] = []
    inner = work.score_draws

    def listen(objective: Any, contexts: Any, intervention: Any, latents: Any, *rest: Any) -> torch.Tensor:
        margins = inner(objective, contexts, intervention, latents, *rest)
        heard.append(Scored(list(contexts), latents.clone(), margins.clone()))
        return margins

    patch.setattr(work, "score_draws", listen)
    patch.setitem(plan.BUDGETS, "ci", plan.Budget(60, 60, 10, 1, 8, 1, 64, 512))
    contexts = tuple(f"{a}{i} p{j} p3 m1" for a in "pm" for i in range(4, 10) for j in range(4, 10))[: 3 * ITEMS + 20]
    flip = Behaviour(name="flip", contexts=contexts, format="raw", slot="start", reply=Reply(text="p1"), ends=False)
    model = wired_model(16, 3.0, context_tokens=4)
    leadline.measure(model, flip, folder, sizes=(1,), controls=0, items=ITEMS, draws=DRAWS, prior_draws=0, scale="ci")

    (record,) = [arrays for path in folder.glob("cells/*/*.safetensors")
                 if "margins" in (arrays := read_arrays(path)[0])]  # fmt: skip
    margins = record["margins"]
    matching = [call for call in heard if np.array_equal(call.margins.numpy(), margins, equal_nan=True)]
    assert len(matching) == 1, "the bound's margins come from one scoring"
    (bound,) = matching
    (task,) = from_json(leadline.records.Run(folder, None).read_json("items.json")["tasks"])
    assert bound.contexts == task.contexts("test"), "on test items"
    assert len(bound.latents) == len(torch.unique(bound.latents, dim=0)) == DRAWS, "draws, and not the mean"
    before = torch.cat([call.latents for call in heard[: heard.index(bound)]])
    assert not (bound.latents[:, None] == before[None]).flatten(2).all(2).any(), "that nothing has seen before"
    q = bound.latents.flatten(1).double()
    # the log ratios on record are those of these very draws: log2 q / pi = (|z|^2 - |e|^2) / 2 - sum log s, in bits
    solution = [arrays for path in folder.glob("cells/*/*.safetensors")
                if "log_scale" in (arrays := read_arrays(path)[0])]  # fmt: skip
    ratios = []
    for arrays in solution:
        mean, scale = (torch.from_numpy(arrays[name]).flatten().double() for name in ("mean", "log_scale"))
        noise = (q - mean) / scale.exp()
        basis = torch.linalg.qr(torch.from_numpy(arrays["directions"]).double().T).Q
        squeeze = torch.from_numpy(arrays["log_squeeze"]).double()
        noise = noise + ((noise @ basis) * ((-squeeze).exp() - 1)) @ basis.T
        ratio = (q.square().sum(1) - noise.square().sum(1)) / 2 - scale.sum() - squeeze.sum()
        ratios.append(ratio / np.log(2))
    assert any(np.allclose(record["log_ratio_bits"], found.numpy(), atol=1e-3) for found in ratios)


def on_validation_items(patch: pytest.MonkeyPatch) -> None:
    drawn = bound_stage._drawn
    patch.setattr(
        bound_stage, "_drawn", lambda work, key, cell, split, draws: drawn(work, key, cell, "validation", draws)
    )


def on_the_draws_of_the_choice(patch: pytest.MonkeyPatch) -> None:
    normal = bound_stage.normal

    def same(shape: tuple[int, ...], kind: str, *labels: object) -> torch.Tensor:
        return normal(shape, kind, labels[0]) if kind == "draws" else normal(shape, kind, *labels)

    patch.setattr(bound_stage, "normal", same)


def at_the_mean(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Variational, "draw", lambda self, parameters, noise: parameters["mean"].expand_as(noise))
    patch.setattr(bound_stage, "refitted", lambda work, cell: [])  # it would trip over such draws before COND does


def test_a_bound_is_drawn_freshly_on_test_items(tmp_path, monkeypatch):
    check(tmp_path / "run", monkeypatch)


@pytest.mark.parametrize(
    ("mutate", "said"),
    [
        (on_validation_items, "come from one scoring"),
        (on_the_draws_of_the_choice, "come from one scoring"),
        (at_the_mean, "log ratios"),  # COND itself sees that these are no draws of q
    ],
)
def test_k16_a_bound_that_is_not_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None], said: str
) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, ValueError), match=said):
        check(tmp_path / "run", monkeypatch)
