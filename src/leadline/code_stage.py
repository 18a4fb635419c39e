"""CODE in a run: solutions as files of bytes, and the bound that such a file is (docs/measurement.md section 2).

Of each curve the best gradient restart and the mean of the q that was certified are rounded at every step that is
TRIED. The shortest message whose point reaches the threshold on validation items is written to `codes/`; what
is scored on test items, once, is decoded from that file. Nothing is drawn, so the bound has no error probability.

It does not know how a solution was found, nor look for one that is cheap to say. The bits are those of the code's own
prior: another number than D under the family's prior, and never taken for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from leadline import rows
from leadline.coder import seal, unseal
from leadline.engine import Context
from leadline.estimators.message import MAX_COORDINATES, REACH, TRIED, Point, decode, encode, point_of
from leadline.evaluation import in_s, score_latents
from leadline.interventions.base import Intervention
from leadline.objective import Objective
from leadline.plan import Cell, gradient_cells
from leadline.records import read_code
from leadline.spec import ANCHORED
from leadline.work import Work


def write_codes(work: Work, cells: Sequence[Cell]) -> None:
    """A message for the behaviour at each size and for controls at theirs. cells: those with a beta, of `certify`"""
    trained = [*gradient_cells(work.spec, [task.name for task in work.tasks]), *cells]
    for curve in dict.fromkeys(cell.curve for cell in trained):
        if curve[1] in ANCHORED:  # coordinates around a text do not say which text
            continue
        key = work.key("code", *map(str, curve))
        if not work.done(key):
            work.reporter.stage(f"as a message: {curve[0] or 'the behaviour'}, {curve[1]} {curve[2]}")
            _write(work, key, [cell for cell in trained if cell.curve == curve and _is_reported(work, cell)])
    work.save_points()


def _is_reported(work: Work, cell: Cell) -> bool:
    """Whether validation items chose this cell of its curve: what it does on test items is on record."""
    return work.run.cell(work.key("test" if cell.beta is None else "bound", work.cell_key(cell))) is not None


def _write(work: Work, key: str, cells: Sequence[Cell]) -> None:
    """The record of one curve. cells: one by gradient, and one with a beta where a q was certified"""
    threshold, first = work.spec.threshold, cells[0]
    task, intervention = work.task(first.task), work.intervention(first)
    holding = (pair for pair in _messages(work, cells) if _holds(work, first, pair[0]))
    message, cell = next(holding, (None, first))
    if message is None:
        work.write(key, {"points": [rows.code_point(work.about(cell, key), threshold)]})
        return
    name, file = f"{first.task or 'behaviour'}-{first.family}-{first.size}.bin", seal(message)
    told = work.run.write_code(name, file)
    point = point_in(read_code(work.run.folder, key, told))
    bits, margins = score_point(work.objective_of(first.task), task.contexts("test"), intervention, point)
    found = rows.code_point(work.about(cell, key), threshold, message, bits, margins)
    work.write(key, {"points": [found], "code": {**told, "z_sha256": digest_of(point)}})


def _holds(work: Work, cell: Cell, message: bytes) -> bool:
    """Whether a message's point reaches the threshold on validation items of the cell's task."""
    contexts, intervention = work.task(cell.task).contexts("validation"), work.intervention(cell)
    _, margins = score_point(work.objective_of(cell.task), contexts, intervention, point_in(seal(message)))
    return bool(in_s(margins[None], work.spec.threshold).item())


def _messages(work: Work, cells: Sequence[Cell]) -> Iterator[tuple[bytes, Cell]]:
    """The messages of these cells' means at every step, the shortest first."""
    found = []
    for cell in cells:
        mean = work.trained(cell.label)["mean"].flatten().double().cpu().numpy()
        if np.isfinite(mean).all() and mean.size <= MAX_COORDINATES:
            # farther out no message reaches; whether the rest does it is seen when it is scored
            points = (point_of(mean.clip(-REACH, REACH), exponent) for exponent in TRIED)
            found += [(encode(point), cell) for point in points]
    yield from sorted(found, key=lambda pair: len(pair[0]))


def point_in(file: bytes) -> Point:
    """The point of a file. ValueError where it is damaged or holds none."""
    found = decode(unseal(file))
    if not isinstance(found, Point):
        raise ValueError("this message holds a cell and no point")
    return found


def score_point(
    objective: Objective, contexts: Sequence[Context], intervention: Intervention, point: Point
) -> tuple[Tensor, Tensor]:
    """(items,) bits and (items,) margins of one point in every context. ValueError for another number of coordinates
    than the intervention has."""
    if point.integers.size != intervention.dimensions:
        raise ValueError(f"{point.integers.size} coordinates in the message, {intervention.dimensions} in the family")
    # float32 holds every point exactly: at most 32 and a multiple of 1/256
    latents = torch.from_numpy(point.z).float().view(1, *intervention.shape).to(objective.engine.model.device)
    return score_latents(objective, contexts, intervention, latents.expand(len(contexts), *intervention.shape))


def digest_of(point: Point) -> str:
    """SHA-256 of the coordinates as little-endian float64, which says whether two processes decoded the same bits."""
    return hashlib.sha256(point.z.astype("<f8").tobytes()).hexdigest()
