"""The one training loop: rows of one batch, each with its own solver, size, seed, beta and learning rate.

A row's randomness is a pure function of its seed and the step, so a batch that continues from a checkpoint ends in the
same numbers as one that was never stopped. Knows no model: losses come from a closure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leadline.interventions.base import Intervention
from leadline.priors import normal

SETTLED_STEPS = 5  # in succession, before a row has settled: its loss is a mean over the few contexts of one step

Parameters = dict[str, Tensor]
# (step, one tensor of latents (draws, *shape) a row) -> (rows,) mean loss in bits a reply, differentiable. A row that
# has settled has no draws, and what stands in its place is not looked at.
Loss = Callable[[int, list[Tensor]], Tensor]


class Solver(ABC):
    """How one row is trained: its parameters, the latents it draws from them, and the price of its parameters.

    settled_bits: the loss at which nothing is left to gain. A row that has it for SETTLED_STEPS takes no more steps.
                  None: rows are trained to the end
    """

    settled_bits: float | None = None

    @abstractmethod
    def start(self, intervention: Intervention, seed: int) -> Parameters:
        """Parameters before the first step."""

    def prepared(self, parameters: Parameters) -> Parameters:
        """The parameters and, under names of its own, what `draw` and `penalty_bits` of one step both need."""
        return parameters

    @abstractmethod
    def draw(self, parameters: Parameters, noise: Tensor) -> Tensor:
        """(draws, *shape) latents from (draws, *shape) standard normal noise."""

    @abstractmethod
    def penalty_bits(self, parameters: Parameters, progress: float) -> Tensor:
        """() what is added to the loss, in bits; `progress` runs from 0 to 1 over the batch."""

    @abstractmethod
    def learning_rates(self, progress: float) -> dict[str, float]:
        """Adam's step size for each parameter, in whitened coordinates."""


@dataclass(frozen=True)
class Row:
    """One row of a training batch.

    name:         stable label; randomness hashes it, so it must say all that tells rows apart
    intervention: what is trained
    solver:       how
    seed:         restart
    draws:        contexts (each with its own draw of q) a step
    """

    name: str
    intervention: Intervention
    solver: Solver
    seed: int
    draws: int


@dataclass
class State:
    """All that a training batch needs to go on after it was stopped.

    step:       steps done;  parameters: name -> tensor for each row;  first, second: Adam's moments, likewise
    lost:       step at which a row's loss was no longer finite, -1 while it is
    losses:     last loss of each row, bits a reply
    calm:       steps in succession whose loss was low enough to settle, of each row
    settled:    steps after which a row had settled, -1 where it has not
    """

    step: int
    parameters: list[Parameters]
    first: list[Parameters]
    second: list[Parameters]
    lost: list[int]
    losses: list[float]
    calm: list[int]
    settled: list[int]

    def steps_of(self, row: int) -> int:
        """The steps that a row has taken."""
        return next((end for end in (self.lost[row], self.settled[row]) if end >= 0), self.step)


def begin(rows: Sequence[Row], warm: Sequence[Parameters | None], device: torch.device) -> State:
    """The state before the first step; `warm` gives rows the parameters of another cell to go on from, of another
    solver too: what that one did not have starts as usual."""
    parameters = []
    for row, given in zip(rows, warm, strict=True):
        start = {**row.solver.start(row.intervention, row.seed), **(given or {})}
        parameters.append({name: value.to(device, copy=True) for name, value in start.items()})
    zeros = [{name: torch.zeros_like(value) for name, value in row.items()} for row in parameters]
    again = [{name: torch.zeros_like(value) for name, value in row.items()} for row in parameters]
    count = len(rows)
    return State(0, parameters, zeros, again, [-1] * count, [float("nan")] * count, [0] * count, [-1] * count)


def train(
    rows: Sequence[Row], loss: Loss, steps: int, state: State, after_step: Callable[[State], None] = lambda state: None
) -> State:
    """Runs a batch of rows to `steps`, changing `state` in place; calls `after_step` after each, to save and to report.

    A row whose loss is not finite stops where it is: that is an outcome, and the others go on. So they do without one
    that has settled, and the batch ends with its last row.
    """
    leaves = [{name: value.requires_grad_() for name, value in row.items()} for row in state.parameters]
    while state.step < steps and (running := [row for row in range(len(rows)) if state.settled[row] < 0]):
        progress = state.step / max(1, steps - 1)
        ready = [row.solver.prepared(leaf) for row, leaf in zip(rows, leaves, strict=True)]
        latents = [_draws(row, leaf, state, index) for index, (row, leaf) in enumerate(zip(rows, ready, strict=True))]
        losses = loss(state.step, latents)
        total = losses[running] + torch.stack(
            [rows[index].solver.penalty_bits(ready[index], progress) for index in running]
        )
        alive = torch.isfinite(total)
        torch.where(alive, total, torch.zeros_like(total)).sum().backward()  # type: ignore[no-untyped-call]
        for index, well in zip(running, alive.tolist(), strict=True):
            row, leaf = rows[index], leaves[index]
            rates = row.solver.learning_rates(progress)
            finite = well and all(v.grad is None or bool(torch.isfinite(v.grad).all()) for v in leaf.values())
            if state.lost[index] < 0 and not finite:
                state.lost[index] = state.step
            if state.lost[index] < 0:
                state.losses[index] = float(losses[index].detach())
                _adam(leaf, rates, state.first[index], state.second[index], state.step + 1)
                low = row.solver.settled_bits is not None and state.losses[index] <= row.solver.settled_bits
                state.calm[index] = state.calm[index] + 1 if low else 0
                if state.calm[index] >= SETTLED_STEPS:
                    state.settled[index] = state.step + 1
            for value in leaf.values():
                value.grad = None
        state.step += 1
        after_step(state)
    for leaf in leaves:
        for value in leaf.values():
            value.requires_grad_(False)
    return state


def _draws(row: Row, leaf: Parameters, state: State, index: int) -> Tensor:
    """(draws, *shape) latents of a row's next step; none where it has settled."""
    if state.settled[index] >= 0:
        return leaf["mean"].new_zeros(0, *row.intervention.shape)
    noise = normal((row.draws, *row.intervention.shape), row.name, state.step)
    return row.solver.draw(leaf, noise.to(leaf["mean"].device))


@torch.no_grad()
def _adam(leaf: Parameters, rates: dict[str, float], first: Parameters, second: Parameters, step: int) -> None:
    """One step of Adam (Kingma & Ba, 1412.6980; betas 0.9 and 0.99) for one row. torch.optim keeps one step count and
    one state for all its parameters; here rows stop, checkpoint and change their rate one by one."""
    for name, value in leaf.items():
        gradient = value.grad
        if gradient is None:
            continue
        first[name].lerp_(gradient, 0.1)
        second[name].lerp_(gradient.square(), 0.01)
        scale = (second[name] / (1 - 0.99**step)).sqrt_().add_(1e-8)
        value.sub_(rates[name] * (first[name] / (1 - 0.9**step)) / scale)
