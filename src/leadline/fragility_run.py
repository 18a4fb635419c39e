"""`leadline fragility`: what the chosen solutions of a finished run bear, those of its controls beside them at the same
size, as RUN/fragility.json (docs/measurement.md section 7).

Solutions are the chosen restarts of the size curve: points, not distributions. What this does not know: whether another
solution of the same behaviour bears more. A restart, or a solver that looks for flat places, may find one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import leadline
from leadline.behaviour import Behaviour
from leadline.cache import file_sha256
from leadline.edits import Edit, EmbeddingEdit, KeyValueEdit, no_edit
from leadline.engine import Context, Engine, shared_prefix
from leadline.evaluation import score_draws, score_latents
from leadline.fragility import LANCZOS_STEPS, Fragility, Measured, fragility
from leadline.information import CONFIDENCE, Floats, student_interval, wilson_interval
from leadline.interventions import FAMILIES
from leadline.interventions.base import Intervention, edit
from leadline.items import SPLITS, Task, from_json
from leadline.model import FrozenModel
from leadline.nearest import NEAREST_TOKENS_WARNING, nearest_tokens, stream_changes
from leadline.objective import CHUNK_ROWS, Objective, objective_for
from leadline.paraphrases import OPTION, Paraphrases, read_paraphrases
from leadline.priors import Priors
from leadline.progress import Reporter
from leadline.records import FRAGILITY, RECIPE, Run, digest, open_run, read_arrays, stored_tasks
from leadline.result import Result
from leadline.solution import subject, trained_intervention
from leadline.spec import CONDITIONED, UserError
from leadline.streams import last_token_streams

LEAST_DRAWS = 40  # fewer could all pass and still not show, at the interval's level, that 90% do
LOSS_ITEMS = 16  # test items whose mean loss is differentiated: gradients of all would cost more than the run itself
NEAREST = 3  # tokens shown for each soft token
NO_THRESHOLD = "the behaviour has a loss alone and no threshold"


@dataclass(frozen=True)
class Point:
    """One chosen solution.

    row: its row of points.parquet;  task: the behaviour or a control;  z: whitened coordinates, (*shape)
    """

    row: dict[str, Any]
    task: Task
    intervention: Intervention
    z: Tensor

    @property
    def name(self) -> str:
        return f"{self.row['family']} of size {self.row['size']}, {self.task.name or 'the behaviour'}"

    def edit(self, contexts: Sequence[Context]) -> Edit:
        """This solution at every one of these contexts."""
        latents = self.z.expand(len(contexts), *self.z.shape)
        return edit([self.intervention], [latents], [context.conditions for context in contexts])


@dataclass(frozen=True)
class Setting:
    """What all solutions of a run are measured with.

    objective: as the run scored;  exact: in float32, for derivatives;  threshold: None for a loss alone
    priors:    of the run's model
    """

    model: FrozenModel
    behaviour: Behaviour
    objective: Objective
    exact: Objective
    threshold: float | None
    priors: Priors
    draws: int
    paraphrases: Paraphrases | None


def run_fragility(
    run: Path, reporter: Reporter, draws: int = 64, size: int | None = None, family: str | None = None,
    paraphrases: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measures the chosen solutions of a run's families of latents and writes fragility.json, whole or not at all.

    draws:        noise directions and Hutchinson's probes of each solution
    size, family: only these; by default all
    paraphrases:  JSONL with other wordings of test contexts
    Returns the record: plain data, null where a number or the end of an interval is not known. Raises UserError where
    the run is not finished or has no such solution, or the model is another one now.
    """
    if draws < LEAST_DRAWS:
        how = f"Give at least {LEAST_DRAWS}: fewer cannot show that 90% of noisy draws pass."
        raise UserError(f"{draws} draws are too few", "--draws", how)
    result = Result.load(run)
    if not result.spec.get("finished"):
        raise UserError("This run is not finished", str(run), "Let `leadline measure` finish first.")
    if result.spec.get("behaviour_spec", {}).get("reward") is not None:
        how = "Measure a behaviour with a target: its loss is what noise and derivatives are taken of."
        raise UserError("The replies of this run are judged by a scorer and have no loss", str(run), how)
    rows = _rows(run, result, size, family)
    tasks = {task.name: task for task in from_json(stored_tasks(run))}
    with closing(open_run(run)) as opened:
        reporter.stage(f"loading {result.spec['spec']['model']}")
        model, behaviour = subject(run, result)
        words = read_paraphrases(paraphrases, behaviour, tasks[""]) if paraphrases is not None else None
        setting = _setting(result, model, behaviour, list(tasks.values()), draws, words)
        asked = digest([leadline.__version__, RECIPE, result.spec["hash"], draws, words and file_sha256(words.file)])
        found = []
        for number, row in enumerate(rows, 1):
            point = _point(run, setting, row, tasks[row["control"]])
            reporter.stage(f"{number} of {len(rows)}: {point.name}")
            kept = _kept(opened, asked, row["key"])
            if kept is None:
                kept = measure_point(setting, point, reporter)
                opened.write_json(_place(row["key"]), {"asked": asked, "solution": kept})
            found.append(kept)
        record = {
            "hash": result.spec["hash"], "threshold": setting.threshold, "confidence": CONFIDENCE, "draws": draws,
            "probes": draws, "test_items": len(tasks[""].items["test"]),
            "loss_items": min(LOSS_ITEMS, len(tasks[""].items["test"])),
            "paraphrases": None if words is None else str(words.file), "warning": NEAREST_TOKENS_WARNING,
            "solutions": found,
        }  # fmt: skip
        opened.write_json(FRAGILITY, record)
        opened.event("fragility", solutions=len(found))
        for row in rows:  # another call measures again
            (run / _place(row["key"])).unlink(missing_ok=True)
    return record


def _place(key: str) -> str:
    """Where one solution's numbers wait for those of the others, so that a killed command continues."""
    return f"cells/{key}/{FRAGILITY}"


def _kept(run: Run, asked: str, key: str) -> dict[str, Any] | None:
    """What a call that was stopped, asked for the same, found of this solution; None where it has to be measured."""
    with suppress(UserError):  # damaged: measured again
        kept = run.read_json(_place(key)) or {}
        found: dict[str, Any] | None = kept["solution"] if kept.get("asked") == asked else None
        return found
    return None


def measure_point(setting: Setting, point: Point, reporter: Reporter) -> dict[str, Any]:
    """All numbers of one solution as plain data. Noise is the same for the behaviour and its controls."""
    draws, row, contexts = setting.draws, point.row, point.task.contexts("test")
    some = contexts[:LOSS_ITEMS]
    around = 5 * draws + 5 + draws  # latents that `loss` is given once all scores are known (`fragility`)
    most, done, scoring = LANCZOS_STEPS + 23 * draws + 23 + around, 0, False

    def told(count: int) -> None:
        nonlocal done
        done += count
        reporter.progress(min(done, most), most, "perturbed solutions, at most")

    def loss(latents: Tensor) -> Tensor:
        nonlocal done, scoring
        if scoring:  # how many scores bisection takes is known only now
            done, scoring = most - around, False
        told(len(latents))
        many = some * len(latents)
        conditions = [context.conditions for context in many]
        change = edit([point.intervention], [latents.repeat_interleave(len(some), 0)], conditions)
        nats = setting.exact.engine.target_logits(many, change).nats()  # of a Hessian, so differentiable twice
        return (nats / math.log(2)).view(len(latents), len(some)).mean(1)

    def score(latents: Tensor) -> Tensor:
        nonlocal scoring
        scoring = True
        told(len(latents))
        if setting.threshold is None:
            return torch.zeros(len(latents))
        margins = score_draws(setting.objective, contexts, point.intervention, latents, setting.threshold)
        return (margins > 0).double().mean(1)  # NaN of a draw that was dropped: it misses the threshold either way

    labels, threshold = (row["family"], row["size"]), setting.threshold or 1.0
    batch = max(1, CHUNK_ROWS // len(some))
    bears = fragility(point.z, loss, score, threshold, *labels, draws=draws, probes=draws, batch=batch)
    latents = point.z.expand(len(contexts), *point.z.shape)
    bits, margins = score_latents(setting.objective, contexts, point.intervention, latents)
    numbers = _numbers(bears, setting)
    if setting.threshold is not None:
        right = (margins > 0).double().cpu().numpy()
        # at temperature 1 a reply is drawn as the target with probability 2^-bits: no sampling is needed
        numbers = [
            _share("score, greedy", right),
            _share("score, sampled at temperature 1", np.exp2(-bits.double().cpu().numpy())),
            *_paraphrased(setting, point),
            *numbers,
        ]
    return {
        "family": row["family"], "size": row["size"], "role": row["role"], "control": row["control"],
        "kind": point.task.kind, "target": point.task.target, "key": row["key"], "outcome": row["outcome"],
        "prior": point.intervention.prior, "dimensions": bears.dimensions, "location_bits": bears.location_bits,
        "numbers": numbers, "stream": _stream(setting, point), "nearest": _nearest(setting, point),
    }  # fmt: skip


def _numbers(bears: Fragility, setting: Setting) -> list[dict[str, Any]]:
    """The numbers of section 7 as plain data; those that need a threshold say so where there is none."""
    directions, probes = f"{bears.draws} noise directions", f"{bears.probes} probes"
    unknown = {"value": None, "low": None, "high": None, "outcome": NO_THRESHOLD}
    needing = {} if setting.threshold is not None else unknown
    found = [
        _number("noise borne", bears.noise, bears.draws, directions) | needing,
        _number("precision needed", bears.precision, 1, "no draws") | needing,
    ]
    for one in bears.around:
        name = f"gradient norm at noise {one.scale:g}"
        found.append(_number(name, one.gradient_norm, bears.draws, directions))
    for one in bears.around:
        found.append(_number(f"rise of the loss at noise {one.scale:g}", one.rise, bears.draws, directions))
    start = f"{min(LANCZOS_STEPS, bears.dimensions)} steps of Lanczos"
    return [
        *found,
        _number("trace of the Hessian", bears.trace, bears.probes, probes),
        _number("largest eigenvalue", bears.largest, 1, start),
        _number("smallest eigenvalue", bears.smallest, 1, start),
    ]


def _number(name: str, found: Measured, draws: int, over: str) -> dict[str, Any]:
    """draws: how many the interval stands on;  over: what they are"""
    return {
        "name": name, "value": _finite(found.value), "low": _finite(found.low), "high": _finite(found.high),
        "kind": found.kind, "unit": found.unit, "outcome": found.outcome, "draws": draws, "over": over,
    }  # fmt: skip


def _share(name: str, right: Floats) -> dict[str, Any]:
    """A mean over items of shares in [0, 1], with Wilson's interval."""
    low, high = wilson_interval(float(right.sum()), len(right))
    found = Measured(float(right.mean()), low, high, "estimate", "share of items")
    return _number(name, found, len(right), f"{len(right)} test items")


def _paraphrased(setting: Setting, point: Point) -> list[dict[str, Any]]:
    """The greedy score on other wordings, an item's wordings averaged first; nothing where none were given."""
    if setting.paraphrases is None:
        return []
    given, like = setting.paraphrases, point.edit(point.task.contexts("test")[:1])
    taken = like.lengths[0] + like.taken
    items = point.task.items["test"]
    groups = [given.items(setting.model, setting.behaviour, [item], taken) for item in items]
    groups = [group for group in groups if group]
    contexts = [item.context for group in groups for item in group]
    shared = setting.objective.engine.shared if isinstance(like, KeyValueEdit) else ()
    if any(context.before[: len(shared)] != shared for context in contexts):
        start = setting.model.tokenizer.decode(list(shared))
        how = f"Begin each as the run's contexts do, {start!r} before the slot, or choose another --family."
        raise UserError("A prefix stands behind what the run's contexts begin with", f"{OPTION} {given.file}", how)
    # wordings need not begin with all that the run's own contexts share
    objective = objective_for(Engine(setting.model, shared))
    latents = point.z.expand(len(contexts), *point.z.shape)
    hits = (score_latents(objective, contexts, point.intervention, latents)[1] > 0).double().tolist()
    shares, start_at = [], 0
    for group in groups:
        shares.append(sum(hits[start_at : start_at + len(group)]) / len(group))
        start_at += len(group)
    number = _share("score, greedy, paraphrased", np.array(shares))
    return [{**number, "over": f"{len(contexts)} wordings of {len(groups)} test items"}]


def _stream(setting: Setting, point: Point) -> list[dict[str, Any]]:
    """What the solution changes in the residual stream behind each block at a prompt's last token, over test items."""
    contexts, model = point.task.contexts("test"), setting.model
    with torch.no_grad():
        change = point.edit(contexts)
    # an engine runs all that its rows share only once, and keys and values have to stand behind it
    shared = setting.objective.engine.shared if isinstance(change, KeyValueEdit) else ()
    engine = Engine(model, shared)
    nothing = no_edit(len(contexts), model.hidden_size, model.network.dtype, model.device)
    plain, changed = (last_token_streams(engine, contexts, one) for one in (nothing, change))
    found = []
    for block, (before, after) in enumerate(zip(plain, changed, strict=True), 1):
        # one item at a time, as the interval is over items
        moved = [stream_changes([a[None]], [b[None]])[0] for a, b in zip(before, after, strict=True)]
        norms = [float(norm) for norm in before.norm(dim=-1)]
        entry: dict[str, Any] = {"block": block, "draws": len(contexts), "over": f"{len(contexts)} test items"}
        for name, values in (
            ("relative_change", [one.relative_norm for one in moved]), ("norm", norms),
            ("cosine", [one.cosine for one in moved]),
        ):  # fmt: skip
            mean, low, high = student_interval(values)
            entry[name] = {"value": _finite(mean), "low": _finite(low), "high": _finite(high)}
        found.append(entry)
    return found


def _nearest(setting: Setting, point: Point) -> list[list[dict[str, Any]]]:
    """The vocabulary's nearest tokens to each soft token, in whitened coordinates; empty of all that is no embedding,
    and of what is another embedding at every context."""
    with torch.no_grad():
        change = point.edit(point.task.contexts("test")[:1])
        if not isinstance(change, EmbeddingEdit) or point.intervention.family in CONDITIONED:
            return []
        model, prior = setting.model, setting.priors.embedding
        vocabulary = torch.arange(model.network.get_input_embeddings().weight.shape[0], device=model.device)
        scale = prior.scale.clamp_min(torch.finfo(torch.float32).tiny)  # 0 where all tokens agree, and so do these
        embeddings, table = ((x.float() - prior.mean) / scale for x in (change.values[0], model.embed(vocabulary)))
        found = nearest_tokens(embeddings, table, NEAREST)
    return [
        [
            {"token": model.tokenizer.decode([token]), "cosine": cosine, "distance": distance}
            for token, cosine, distance in zip(*(part.tolist() for part in row), strict=True)
        ]
        for row in zip(*found, strict=True)
    ]


def _setting(
    result: Result, model: FrozenModel, behaviour: Behaviour, tasks: Sequence[Task], draws: int,
    words: Paraphrases | None,
) -> Setting:  # fmt: skip
    """Scores as the run took them, and a float32 twin for derivatives: bfloat16 swallows small rises."""
    contexts = [context for task in tasks for split in SPLITS for context in task.contexts(split)]
    objective = objective_for(Engine(model, shared_prefix(contexts)))
    twin = model.exact("derivatives are taken in float32")
    exact = objective if twin is model else Objective(Engine(twin, objective.engine.shared))
    threshold = result.threshold if behaviour.scored == "exact" else None
    return Setting(model, behaviour, objective, exact, threshold, Priors(model), draws, words)


def _rows(run: Path, result: Result, size: int | None, family: str | None) -> list[dict[str, Any]]:
    """Test rows of the chosen solutions in families of latents, by family and size, the behaviour before its controls;
    of a control only where the behaviour has that size."""
    wanted = {"chosen": True, "split": "test", "beta": None, "estimator": ""}
    rows = [
        row
        for row in result.points.to_dicts()
        if row["size"] > 0 and row["family"] in FAMILIES and wanted.items() <= row.items()
    ]
    if not rows:
        how = f"Measure one of the families that have them: {', '.join(FAMILIES)}."
        raise UserError("This run has no solution in numbers, which could be perturbed", str(run), how)
    families = list(dict.fromkeys(row["family"] for row in rows))
    if family is not None and family not in families:
        how = f"Choose one of {', '.join(families)}."
        raise UserError(f"There is no solution in numbers of the family {family}", "--family", how)
    rows = [row for row in rows if family in (None, row["family"])]
    sizes = sorted({row["size"] for row in rows if row["role"] == "behaviour"})
    if size is not None and size not in sizes:
        raise UserError(f"There is no solution of size {size}", "--size", f"Choose one of {sizes}.")
    own = {(row["family"], row["size"]) for row in rows if row["role"] == "behaviour" and size in (None, row["size"])}
    kept = [row for row in rows if (row["family"], row["size"]) in own]
    return sorted(kept, key=lambda row: (families.index(row["family"]), row["size"], row["role"], row["control"]))


def _point(run: Path, setting: Setting, row: dict[str, Any], task: Task) -> Point:
    arrays, _ = read_arrays(run / "cells" / row["key"] / "intervention.safetensors")
    intervention = trained_intervention(run, row, setting.priors, setting.behaviour)
    return Point(row, task, intervention, torch.from_numpy(arrays["mean"].copy()).to(setting.model.device))


def _finite(value: float | None) -> float | None:
    """The number, or None for one that is not finite: JSON has no other word for it."""
    return value if value is not None and math.isfinite(value) else None
