"""The refit of a measurement: the best trained cell of a small latent, made again as a Gaussian of any covariance from
draws on validation items. One more candidate, which the choice judges as it judges the others. Forward passes only.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import torch
from torch import Tensor

from leadline.evaluation import in_s
from leadline.plan import Cell
from leadline.priors import normal
from leadline.records import Arrays, digest
from leadline.refit import MOST_DIMENSIONS, ROUNDS, Gaussian, Round, loosened, refit
from leadline.solvers import solver_for
from leadline.solvers.base import Parameters
from leadline.work import Work


def refitted(work: Work, cell: Cell) -> list[Cell]:
    """The refit of a trained cell, finished; none where its latent has more than MOST_DIMENSIONS."""
    intervention = work.intervention(cell)
    if intervention.dimensions > MOST_DIMENSIONS:
        return []
    found = replace(cell, parent=cell.label, refit=True)
    work.enter(digest([work.hash, asdict(found)]), [found])
    key = work.cell_key(found)
    if work.done(key):
        return [found]
    solver, rounds = solver_for(cell.beta, cell.first_beta), list[Round]()
    parameters, flat = work.trained(cell.label), (-1, intervention.dimensions)
    mean = parameters["mean"]
    # a draw is linear in its noise, so one for each unit vector tells the covariance
    units = torch.eye(intervention.dimensions, device=mean.device).view(-1, *intervention.shape)
    spread = (solver.draw(parameters, units) - mean).view(flat).double().cpu().numpy()
    q = Gaussian(mean.flatten().double().cpu().numpy(), spread.T @ spread)
    for number in range(ROUNDS):
        noise = normal((work.spec.draws, *intervention.shape), "refit", found.label, number).to(mean.device)
        latents, name = solver.draw(parameters, noise), f"refit of {cell.label}, round {number + 1} of {ROUNDS}"
        margins = work.scored(work.key(name, key), name, cell.task, "validation", intervention, latents)
        hit = in_s(margins, work.spec.threshold).cpu().numpy()
        rounds.append(Round(q, latents.view(flat).double().cpu().numpy(), hit))
        q = refit(rounds)
        parameters = _parameters(q, mean)
    q = loosened(q, rounds, work.spec.draws)
    arrays: Arrays = {label: value.cpu().numpy() for label, value in _parameters(q, mean).items()}
    work.write(key, {"cell": asdict(found), "points": []}, arrays)
    return [found]


def _parameters(q: Gaussian, like: Tensor) -> Parameters:
    """q as the variational solver writes it: unit widths, and a squeeze along all the principal axes."""
    squeeze = q.squeeze
    told = {"mean": q.mean, "directions": squeeze.directions, "log_squeeze": np.log(squeeze.factors)}
    made = {name: torch.from_numpy(value.astype(np.float32)).to(like.device) for name, value in told.items()}
    return {**made, "mean": made["mean"].view_as(like), "log_scale": torch.zeros_like(like)}
