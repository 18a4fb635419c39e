"""CODE under a family's own prior, in a run: a box of the prior's quantiles as a file, whose draws are counted.

Of a small latent the certified q is made a cell at each of PRICES, from the moments of its draws that hit. The one that
validation draws promise most of is written to `codes/`; what is counted, once, on test items, are draws within the cell
that is decoded from that file. Its length is -log2 of its mass, so that L - log2 p bounds D under pi itself
(docs/measurement.md section 2). It stands beside COND as IW does, and is no second try at it.

Boxes of many weak coordinates cost far more than a Gaussian does, so that larger latents have none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from leadline import rows
from leadline.coder import seal, unseal
from leadline.estimators.code import PRICES, cell_of, draw
from leadline.estimators.code import Cell as Box
from leadline.estimators.message import decode, encode
from leadline.evaluation import in_s
from leadline.information import Floats, clopper_pearson_lower, surprisal
from leadline.interventions.base import Intervention
from leadline.plan import BUDGETS, Cell
from leadline.priors import generator, normal
from leadline.records import read_code
from leadline.refit import MOST_DIMENSIONS
from leadline.solvers import solver_for
from leadline.work import Work

FEWEST = 8
"""Hits whose own moments a cell is made of; with fewer it is made of all draws."""


def write_cells(work: Work, chosen: Sequence[Cell]) -> None:
    """A cell for the behaviour at each size of a small latent. chosen: the cells that `certify` drew from"""
    for cell in chosen:
        intervention = work.intervention(cell)
        if cell.task or intervention.component_bits or intervention.dimensions > MOST_DIMENSIONS:
            continue
        key = work.key("cell", work.cell_key(cell))
        if not work.done(key):
            _write(work, key, cell, intervention)
    work.save_points()


def _write(work: Work, key: str, cell: Cell, intervention: Intervention) -> None:
    what, threshold = f"as a cell: {cell.family} {cell.size}", work.spec.threshold
    noise = normal((work.spec.draws, *intervention.shape), "cell", cell.label).to(work.model.device)
    latents = solver_for(cell.beta, cell.first_beta).draw(work.trained(cell.label), noise)
    margins = work.scored(work.key("moments", key), what, cell.task, "validation", intervention, latents)
    flat, hit = latents.flatten(1).double().cpu().numpy(), in_s(margins, threshold).cpu().numpy()
    mean, scale = _moments(flat[hit] if hit.sum() >= FEWEST else flat)
    draws = BUDGETS[work.spec.scale].choice_draws
    boxes, promised = [cell_of(mean, scale, price) for price in PRICES], []
    for price, box in zip(PRICES, boxes, strict=True):
        inside = drawn(box, draws, intervention, "choice", cell.label, price).to(work.model.device)
        name = f"{what}, price {price:g}"
        margins = work.scored(work.key(name, key), name, cell.task, "validation", intervention, inside)
        promised.append(box.bits + surprisal(clopper_pearson_lower(int(in_s(margins, threshold).sum()), draws)))
    name, file = f"cell-{cell.family}-{cell.size}.bin", seal(encode(boxes[promised.index(min(promised))]))
    told = work.run.write_code(name, file)
    box = box_in(read_code(work.run.folder, key, told))
    inside = drawn(box, work.spec.draws, intervention, "test", cell.label).to(work.model.device)
    margins = work.scored(key, what, cell.task, "test", intervention, inside)
    found = rows.cell_point(work.about(cell, key), threshold, margins, box)
    work.write(key, {"points": [found], "code": {**told, "z_sha256": digest_of(box), "drawn_for": cell.label}})


def _moments(z: Floats) -> tuple[Floats, Floats]:
    """(d,) mean and standard deviation, the latter no less than a hundredth."""
    return z.mean(axis=0), np.maximum(z.std(axis=0), 0.01)


def drawn(box: Box, count: int, intervention: Intervention, *labels: object) -> Tensor:
    """(count, *shape) float32 draws of the prior within a box, a function of the labels."""
    uniforms = torch.rand(count, box.depth.size, dtype=torch.float64, generator=generator("within", *labels))
    return torch.from_numpy(draw(box, uniforms.numpy())).float().view(count, *intervention.shape)


def digest_of(box: Box) -> str:
    """SHA-256 of depths, sides and indices, which says whether two processes decoded the same cell."""
    parts = (box.depth.astype("<i8"), box.upper.astype("u1"), box.index.astype("<i8"))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def box_in(file: bytes) -> Box:
    """The cell of a file. ValueError where it is damaged or holds none."""
    found = decode(unseal(file))
    if not isinstance(found, Box):
        raise ValueError("this message holds a point and no cell")
    return found
