"""`leadline decode`: the messages of a run, decoded from their bytes and scored again, as any process can.

Of what the run found only the bytes are used: neither its trained parameters nor its cells. The run's records say which
family a file is of, on which items it was scored and what was found, which is held against what is found here. It does
not train, nor trust: other bits, or another score, are told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch

from leadline import cell_stage, code_stage
from leadline.cell_stage import box_in, drawn
from leadline.code_stage import point_in, score_point
from leadline.coder import CHECK_BYTES
from leadline.engine import Context, Engine, shared_prefix
from leadline.evaluation import in_s, score_draws
from leadline.interventions.base import Intervention
from leadline.items import SPLITS, from_json
from leadline.objective import Objective, objective_for
from leadline.places import made
from leadline.priors import Priors
from leadline.records import damaged, read_code, read_record, stored_tasks
from leadline.result import Result
from leadline.scoring import hits
from leadline.solution import subject
from leadline.spec import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Decoded:
    """One file. who: the control's name, "" for the behaviour;  num_bytes: of the message, without the file's check;
    step: in standard deviations of the prior, 0 of a cell;  score, recorded: share of test items that are replied
    exactly, of a cell the share of its draws that are solutions, here and in the run;  same_bits: whether the
    coordinates are the run's, bit for bit"""

    who: str
    family: str
    size: int
    file: str
    num_bytes: int
    coordinates: int
    step: float
    score: float
    recorded: float
    same_bits: bool

    @property
    def holds(self) -> bool:
        """Whether this process finds what the run did."""
        return self.same_bits and self.score == self.recorded

    @property
    def verdict(self) -> str:
        """The same in words."""
        differs = f"DIFFERS: {self.recorded:.3f} then" if self.same_bits else "OTHER BITS"
        return "the same" if self.holds else differs


def decoded(run: Path) -> list[Decoded]:
    """Every message of a run, decoded and scored on the run's test items, on as many threads as this process has.

    Raises UserError where the run has none, a file or record is damaged, or the model is another one now.
    """
    result = Result.load(run)
    if result.spec.get("behaviour_spec", {}).get("reward") is not None:
        how = "Run `leadline measure` again: it scores what it decodes from these files."
        raise UserError("The replies of this run are judged by a scorer, which decoding does not know", str(run), how)
    found = result.points.filter(
        ((pl.col("estimator") == "CODE") & pl.col("score").is_not_null()) | (pl.col("estimator") == "CELL")
    ).to_dicts()
    if not found:
        done = "No solution in numbers reached the threshold." if result.spec.get("finished") else ""
        how = done or "Let `leadline measure` finish."
        raise UserError("This run has no messages", str(run), how)
    model, behaviour = subject(run, result, torch.get_num_threads())
    tasks = {task.name: task for task in from_json(stored_tasks(run))}
    shared = shared_prefix([context for task in tasks.values() for split in SPLITS for context in task.contexts(split)])
    objective, priors = objective_for(Engine(model, shared)), Priors(model)
    lines = []
    for row in found:
        told = _told(run, row["key"])
        file = read_code(run, row["key"], told)
        try:
            intervention = made(row["family"], row["size"], priors, behaviour)
            contexts = tasks[row["control"]].contexts("test")
            if row["estimator"] == "CODE":
                lines.append(_point(row, told, file, objective, contexts, intervention))
            else:
                lines.append(_cell(row, told, file, objective, contexts, intervention, result.threshold))
        except (ValueError, KeyError) as error:
            raise UserError(f"This message cannot be used: {error}", told["file"], "Measure again.") from error
    return lines


def _point(
    row: Row, told: Row, file: bytes, objective: Objective, contexts: Sequence[Context], intervention: Intervention
) -> Decoded:  # fmt: skip
    """The point of the file on the same items."""
    point = point_in(file)
    _, margins = score_point(objective, contexts, intervention, point)
    score, same = float(hits(margins).double().mean()), code_stage.digest_of(point) == told["z_sha256"]
    return Decoded(
        row["control"], row["family"], row["size"], told["file"], len(file) - CHECK_BYTES, point.integers.size,
        2.0**-point.exponent, score, row["score"], same,
    )  # fmt: skip


def _cell(
    row: Row, told: Row, file: bytes, objective: Objective, contexts: Sequence[Context], intervention: Intervention,
    threshold: float,
) -> Decoded:  # fmt: skip
    """The run's own draws again, within the cell of the file."""
    box = box_in(file)
    if box.depth.size != intervention.dimensions:
        raise ValueError(f"{box.depth.size} coordinates in the cell, {intervention.dimensions} in the family")
    inside = drawn(box, row["p_draws"], intervention, "test", told["drawn_for"]).to(objective.engine.model.device)
    member = in_s(score_draws(objective, contexts, intervention, inside, threshold), threshold)
    score, recorded = float(member.double().mean()), row["p_hits"] / row["p_draws"]
    return Decoded(
        row["control"], row["family"], row["size"], told["file"], len(file) - CHECK_BYTES, box.depth.size, 0.0, score,
        recorded, cell_stage.digest_of(box) == told["z_sha256"],
    )  # fmt: skip


def _told(run: Path, key: str) -> Row:
    """What the record of a message tells of its file."""
    told = read_record(run, f"cells/{key}/record.json").get("code")
    if not isinstance(told, dict):
        raise damaged(run / "cells" / key / "record.json")
    return told
