"""reward: what stands in for a differentiable loss where replies only have a reward. Two estimators of one gradient.

Either gives a loss that the training loop takes as it takes any other: its value is the shortfall, 1 - mean reward, and
its gradient is an unbiased estimate of the gradient of the expected shortfall. Both are in units of reward, so a beta
beside them is in reward per bit of KL, and not in bits of loss per bit.

rloo:      differentiates the probability of the replies that were drawn. Needs a backward pass.
evolution: differentiates the density of the latents that were drawn. Needs rewards alone, of any kind of reply.

Knows neither models nor replies: rewards, log-probabilities and latents come in. It does not know whether a reward is
worth having, and no reward that never varies teaches it anything: where no reply is rewarded, nothing is learned.

A reward that is not finite is one that no scorer gave. It has no gradient and is in no baseline; in the shortfall it
counts as no reward, as it does in `scorers.Scored.share`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from leadline.interventions.base import Intervention
from leadline.solvers.base import Loss, Parameters, Solver, State

# (row, step, (draws, *shape) latents) -> (draws,) rewards. Draws i and i + draws / 2 should be given the same context.
Rewards = Callable[[int, int, Tensor], Tensor]


def leave_one_out(rewards: Tensor) -> Tensor:
    """(groups, k) rewards to (groups, k) advantages: each reward less the mean of the others in its group (Kool and
    others 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian and others, 2402.14740).

    The baseline does not depend on the sample it is taken from, so the gradient stays unbiased. 0 where the reward is
    not finite, or no other of the group is.
    """
    scored = torch.isfinite(rewards)
    # Advantages do not change where all rewards move together. Measured from the least of them, rewards that are all
    # alike have advantages of exactly 0, and no rounding error that Adam would take for a slope.
    least = rewards.where(scored, math.inf).amin(1, keepdim=True)
    above = (rewards - least).where(scored, 0.0)
    others = scored.sum(1, keepdim=True) - 1
    baseline = (above.sum(1, keepdim=True) - above) / others.clamp_min(1)
    return (above - baseline).where(scored & (others > 0), 0.0)


def penalised(rewards: Tensor, log_probs_nats: Tensor, base_log_probs_nats: Tensor, price: float) -> Tensor:
    """Rewards less `price` times log2 p(reply) / p0(reply), p0 being the untouched model: its mean over replies is the
    divergence of the two in bits. All of one shape; without gradient. price: reward per bit."""
    return rewards - price * (log_probs_nats.detach() - base_log_probs_nats) / math.log(2)


def rloo_loss(rewards: Tensor, log_probs_nats: Tensor) -> Tensor:
    """() the shortfall of k replies drawn for each context, whose gradient is that of -mean(advantage * ln p): the
    policy gradient with each reply's siblings as its baseline.

    rewards: (contexts, k);  log_probs_nats: (contexts, k) ln p(reply | context, edit) of whole replies, differentiable
    """
    return _shortfall(rewards, leave_one_out(rewards), log_probs_nats)


def evolution_loss(rewards: Tensor, log_q_nats: Tensor) -> Tensor:
    """() the shortfall of a population drawn from q in antithetic pairs, whose gradient is that of
    -mean(advantage * ln q(z)): evolution strategies with mirrored sampling (Salimans and others, 1703.03864), for the
    widths of q as well as for its mean.

    rewards: (draws,), draw i + draws / 2 the mirror image of draw i;  log_q_nats: (draws,) as `log_q_nats` gives it

    The baseline is the mean reward of the other pairs, and rewards are not turned into ranks: they lie between 0 and 1
    already, Adam takes out their scale, and ranks would be the gradient of something else than what beta is paid in. A
    pair of which one is not scored has no gradient.
    """
    pairs = rewards.view(2, -1)
    middle = pairs.mean(0)  # not finite where either is not
    advantages = (pairs - middle + leave_one_out(middle[None])).where(torch.isfinite(middle), 0.0)
    return _shortfall(rewards, advantages.flatten(), log_q_nats)


def log_q_nats(parameters: Parameters, latents: Tensor) -> Tensor:
    """(draws,) ln q(z) up to a constant, for q = N(mean, diag scale^2), differentiable in q's parameters alone; latents
    is (draws, *shape). Raises ValueError for parameters that are not those of such a q."""
    if parameters.keys() != {"mean", "log_scale"}:
        raise ValueError(f"evolution needs a q of mean and log_scale, not of {', '.join(sorted(parameters))}")
    noise = (latents.detach() - parameters["mean"]) * (-parameters["log_scale"]).exp()
    return -(noise.square() / 2 + parameters["log_scale"]).flatten(1).sum(1)


def evolution(state: State, rewards: Rewards) -> Loss:
    """The loss that trains the q of every row of `state` from rewards alone, each row's solver a `Mirrored` one.

    The density of q is that of the parameters in `state`, which the training loop changes in place.
    """

    def loss(step: int, latents: list[Tensor]) -> Tensor:
        losses = []
        for row, (parameters, drawn) in enumerate(zip(state.parameters, latents, strict=True)):
            found = rewards(row, step, drawn.detach())
            losses.append(evolution_loss(found, log_q_nats(parameters, drawn)))
        return torch.stack(losses)

    return loss


@final
@dataclass(frozen=True)
class Mirrored(Solver):
    """Another solver whose draws come in antithetic pairs: those of the second half have the noise of the first half
    with its sign turned. For training alone, since the draws of a bound have to be independent.

    inner: the solver that is wrapped
    """

    inner: Solver

    def start(self, intervention: Intervention, seed: int) -> Parameters:
        return self.inner.start(intervention, seed)

    def draw(self, parameters: Parameters, noise: Tensor) -> Tensor:
        if len(noise) % 2:
            raise ValueError(f"{len(noise)} draws are no pairs")
        half = noise[: len(noise) // 2]
        return self.inner.draw(parameters, torch.cat([half, -half]))

    def penalty_bits(self, parameters: Parameters, progress: float) -> Tensor:
        return self.inner.penalty_bits(parameters, progress)

    def learning_rates(self, progress: float) -> dict[str, float]:
        return self.inner.learning_rates(progress)


def _shortfall(rewards: Tensor, advantages: Tensor, log_nats: Tensor) -> Tensor:
    """1 - mean reward as the value, -mean(advantage * log) as the gradient."""
    missing = 1.0 - rewards.where(torch.isfinite(rewards), 0.0).mean()
    surrogate = -(advantages.detach() * log_nats).mean()
    return missing + (surrogate - surrogate.detach())
