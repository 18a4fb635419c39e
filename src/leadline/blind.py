"""What the prior itself does: blind draws counted (MC), blind draws on one item each (LOWER), and particles that climb
from blind draws (SPLIT). Forward passes only, and nothing here has seen what a solver found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from leadline import rows
from leadline.checkpoint import Checkpoint
from leadline.estimators.lower import PAIRS
from leadline.estimators.pilot import pilot
from leadline.estimators.splitting import Phi, Schedule, advance, start
from leadline.evaluation import first_item_hits, score_draws, score_latents
from leadline.information import Floats
from leadline.interventions.base import Intervention
from leadline.interventions.vocab_mixture import FAMILY
from leadline.mixture_stage import mixture_draws
from leadline.objective import CHUNK_ROWS
from leadline.plan import BUDGETS, Cell, latent_families
from leadline.priors import generator, normal, seed_of
from leadline.records import digest
from leadline.scoring import level
from leadline.work import Work


def blind_draws(work: Work) -> None:
    """MC and LOWER for every family of latents at every size; SPLIT for subspaces, where the scale has a budget."""
    for family in latent_families(work.spec):
        for size in work.spec.sizes_of(family):
            cell = Cell("", family, size, -1, None)
            if work.spec.prior_draws:
                _counted(work, cell)
                _paired(work, cell)
            if family == "soft_subspace" and BUDGETS[work.spec.scale].particles:
                _split(work, cell)


def _counted(work: Work, cell: Cell) -> None:
    """The exact answer where any of the draws hits, the certified lower bound where none does."""
    key = work.key("prior", cell.family, str(cell.size))
    if work.done(key):
        return
    intervention = work.intervention(cell)
    latents = _draws(work, cell, work.spec.prior_draws, "prior", cell.family, cell.size)
    title = f"draws of the prior, {cell.family} {cell.size}"
    margins = work.scored(key, title, cell.task, "test", intervention, latents)
    point = rows.prior_point(work.about(cell, key), work.spec.threshold, margins)
    work.write(key, {"points": [point], "prior_items": first_item_hits(margins, work.spec.threshold)})


def _paired(work: Work, cell: Cell) -> None:
    """One item, drawn uniformly, for every draw: the same forward passes certify more draws (docs/measurement.md
    section 2, LOWER)."""
    key = work.key("pairs", cell.family, str(cell.size))
    if work.done(key):
        return
    intervention, contexts = work.intervention(cell), work.task("").contexts("test")
    count = PAIRS * work.spec.prior_draws
    work.reporter.stage(f"draws of the prior on one item each, {cell.family} {cell.size}")
    checkpoint = Checkpoint(work.run, digest([work.hash, key]), work.reporter)
    margins = checkpoint.restore_margins()
    margins = torch.full((1, count), torch.nan) if margins is None else margins
    for begin in range(0, count, CHUNK_ROWS):
        stop = min(begin + CHUNK_ROWS, count)
        if not margins[0, begin:stop].isnan().any():
            continue
        labels = ("pairs", cell.family, cell.size, begin)
        latents = _draws(work, cell, stop - begin, *labels)
        items = torch.randint(len(contexts), (stop - begin,), generator=generator("items", *labels)).tolist()
        _, found = score_latents(work.objective, [contexts[item] for item in items], intervention, latents)
        margins[0, begin:stop] = found.nan_to_num(nan=-torch.inf).cpu()
        checkpoint.margins(margins)
    point = rows.pairs_point(work.about(cell, key), work.spec.threshold, int((margins > 0).sum()), count)
    work.write(key, {"points": [point]})


def _draws(work: Work, cell: Cell, count: int, *labels: object) -> Tensor:
    """(count, *shape) latents drawn from the prior."""
    if cell.family == FAMILY:
        return mixture_draws(work, cell.size, count, *labels)
    return normal((count, *work.intervention(cell).shape), *labels).to(work.model.device)


def _split(work: Work, cell: Cell) -> None:
    """A pilot that chooses levels and steps, and production runs that are held to them, each a record of its own."""
    budget, intervention = BUDGETS[work.spec.scale], work.intervention(cell)
    phi, seed = _level_function(work, intervention), seed_of("splitting", cell.family, cell.size)
    what = f"splitting, {cell.family} {cell.size}"
    key = work.key("pilot", cell.family, str(cell.size))
    if not work.done(key):
        work.reporter.stage(f"{what}: the pilot")
        found = pilot(phi, intervention.dimensions, seed, 0.0, budget.particles, budget.moves, budget.most_levels)
        told = found.schedule.to_json() if found.schedule else None
        work.write(key, {"points": [], "schedule": told, "outcome": found.outcome, "said": found.sentence})
    stored = (work.run.cell(key) or {}).get("schedule")
    masses: list[float] = []
    for number in range(1, budget.runs + 1) if stored else ():
        run_key = work.key("split", cell.family, str(cell.size), str(number))
        if not work.done(run_key):
            work.reporter.stage(f"{what}: run {number} of {budget.runs}")
            schedule = Schedule.from_json(str(stored))
            state = start(schedule, phi, seed, number)
            while not state.done(schedule):
                state = advance(state, schedule, phi)
                work.reporter.progress(state.level, len(schedule.levels), f"{state.evaluations} particles scored")
            work.write(run_key, {"points": [], "log2_mass": repr(state.log2_mass)})
        masses.append(float((work.run.cell(run_key) or {})["log2_mass"]))
    done = work.key("split", cell.family, str(cell.size))
    if not work.done(done):
        work.write(done, {"points": [rows.split_point(work.about(cell, done), masses)]})


def _level_function(work: Work, intervention: Intervention) -> Phi:
    """phi of the test items, exact above its floor: a particle is dropped once it cannot exceed that."""
    contexts, threshold = work.task("").contexts("test"), work.spec.threshold

    def phi(z: Floats, floor: float) -> Floats:
        latents: Tensor = torch.from_numpy(z).float().view(-1, *intervention.shape).to(work.model.device)
        margins = score_draws(work.objective, contexts, intervention, latents, threshold, floor=floor)
        found: Any = level(margins, threshold).double().numpy()
        return np.asarray(found, np.float64)

    return phi
