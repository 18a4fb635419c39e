"""The certified bounds of a measurement: of every curve one cell is chosen by draws on validation items, its refit
among the candidates, and certified a single time by fresh draws on test items. Forward passes only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from leadline import rows
from leadline.estimators.importance import diagnostics
from leadline.evaluation import in_s
from leadline.plan import BUDGETS, Cell, candidates
from leadline.priors import normal
from leadline.refit_stage import refitted
from leadline.solvers import solver_for
from leadline.work import Work

SAMPLES = 8  # draws, each on a test item of its own, whose replies are kept for people to read
CONFIRM_DRAWS = 32  # of the draws that hit, scored again on a second split


def certify(work: Work, cells: Sequence[Cell]) -> list[Cell]:
    """Chooses each curve's cell, the best one's refit among them, by draws on validation items, then certifies it by
    fresh draws on test items. The chosen cells."""
    chosen = []
    for curve in dict.fromkeys(cell.curve for cell in cells):
        seen = [work.seen(cell) for cell in cells if cell.curve == curve]
        found, promises = list[Cell](), list[float]()
        for near in candidates(seen, work.spec.threshold):
            # What a draw pays is about the KL: one that costs more than is promised already need not be drawn from.
            if near.kl_bits < min(promises, default=math.inf):
                found.append(near.cell)
                promises.append(_promised(work, near.cell))
        if not found:
            continue
        if min(promises) < math.inf:
            found += refitted(work, found[promises.index(min(promises))])
            promises += [_promised(work, cell) for cell in found[len(promises) :]]
        best = found[promises.index(min(promises))]
        work.choose(best)
        chosen.append(best)
        key = work.key("bound", work.cell_key(best))
        if work.done(key):
            continue
        margins, latents = _drawn(work, key, best, "test", work.spec.draws)
        points, arrays = rows.bound_points(
            work.about(best) | {"flops": work.spent(best)}, work.spec.threshold, margins, work.trained(best.label),
            latents,
        )  # fmt: skip
        weights = diagnostics(arrays["log_ratio_bits"], arrays["hit"]).sentence
        record: dict[str, Any] = {"points": points, "weights": {"/".join(map(str, curve)): weights}}
        if not best.task:  # whether hits carry over to a second split is asked of the behaviour
            right = latents[in_s(margins, work.spec.threshold)][:CONFIRM_DRAWS]
            title = f"confirmation of {best.label}"
            again = work.scored(key, title, best.task, "confirm", work.intervention(best), right)
            counts = {"hits": int(in_s(again, work.spec.threshold).sum()), "draws": len(right)}
            record["confirmation"] = {"/".join(map(str, curve)): counts}
        samples = work.samples(best.task, "test", SAMPLES, work.intervention(best), latents)
        work.write(key, record, arrays, samples)
    return chosen


def _promised(work: Work, cell: Cell) -> float:
    """What a cell promises in bits by draws on validation items (`rows.promise`)."""
    key = work.key("choice", work.cell_key(cell))
    if not work.done(key):
        margins, latents = _drawn(work, key, cell, "validation", BUDGETS[work.spec.scale].choice_draws)
        trained = work.trained(cell.label)
        about, draws = work.about(cell), work.spec.draws
        point = rows.choice_point(about, work.spec.threshold, margins, trained, latents, draws)
        work.write(key, {"points": [point]})
    return rows.promise((work.run.cell(key) or {})["points"][0])


def _drawn(work: Work, key: str, cell: Cell, split: str, draws: int) -> tuple[Tensor, Tensor]:
    """(draws, items) margins and (draws, *shape) latents of fresh draws of a trained q."""
    intervention = work.intervention(cell)
    noise = normal((draws, *intervention.shape), "draws", cell.label, split).to(work.model.device)
    latents = solver_for(cell.beta, cell.first_beta).draw(work.trained(cell.label), noise)
    return work.scored(key, f"{split} draws of {cell.label}", cell.task, split, intervention, latents), latents
