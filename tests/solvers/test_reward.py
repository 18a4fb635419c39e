"""Policy gradients against gradients by enumeration, evolution strategies against closed forms, both without sampling.

A bandit has a few replies of known probability, so that the mean of an estimator over everything that can be drawn is a
finite sum; the noise of a population is replaced by Gauss-Hermite nodes, which integrate polynomials exactly.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from leadline.interventions.base import Intervention
from leadline.solvers.base import Row, begin, train
from leadline.solvers.gradient import Gradient
from leadline.solvers.reward import (
    Mirrored,
    evolution,
    evolution_loss,
    leave_one_out,
    log_q_nats,
    penalised,
    rloo_loss,
)
from leadline.solvers.variational import Variational

LOGITS = torch.tensor([0.4, -1.0, 0.1, 0.8], dtype=torch.float64)
REWARDS = torch.tensor([0.7, 1.0, 0.6, 0.9], dtype=torch.float64)
BASE = torch.tensor([0.2, 0.1, 0.3, 0.4], dtype=torch.float64)


class Plain(Intervention):
    """Latents of so many dimensions that write nothing: these solvers need no model."""

    family, size, tokens, prior = "plain", 1, 1, "N(0, I)"

    def __init__(self, dimensions: int) -> None:
        self.shape = (dimensions,)

    def edit(self, latents):
        raise AssertionError("a solver asks for no edit")


def quadratic(dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A centre and a positive definite Hessian with off-diagonal terms."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(dimensions, dimensions, generator=generator) / math.sqrt(dimensions)
    return torch.randn(dimensions, generator=generator), root @ root.T + 0.3 * torch.eye(dimensions)


def bandit(samples, rewards_of=lambda drawn, log_probs: REWARDS[drawn], loss=rloo_loss):
    """Mean and total variance of the gradient in the logits, over all that `samples` draws can be."""
    probabilities = LOGITS.softmax(0)
    mean, square = torch.zeros(4, dtype=torch.float64), 0.0
    for drawn in itertools.product(range(4), repeat=samples):
        logits = LOGITS.clone().requires_grad_()
        log_probs = logits.log_softmax(0)[list(drawn)]
        loss(rewards_of(list(drawn), log_probs)[None], log_probs[None]).backward()
        chance = float(probabilities[list(drawn)].prod())
        mean += chance * logits.grad
        square += chance * float(logits.grad.square().sum())
    return mean, square - float(mean.square().sum())


def exact(reward_of=lambda log_probs: REWARDS):
    """The gradient of the shortfall 1 - sum p r by differentiating the sum itself."""
    logits = LOGITS.clone().requires_grad_()
    log_probs = logits.log_softmax(0)
    (1 - (log_probs.exp() * reward_of(log_probs)).sum()).backward()
    return logits.grad


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_the_expected_gradient_of_rloo_is_the_exact_one(samples):
    torch.testing.assert_close(bandit(samples)[0], exact(), rtol=1e-12, atol=1e-12)


def test_the_baseline_lowers_the_variance_and_leaves_the_mean():
    def plain(rewards, log_probs):
        return -(rewards * log_probs).mean()

    for samples in (2, 3, 4):
        (with_mean, with_variance), (mean, variance) = bandit(samples), bandit(samples, loss=plain)
        torch.testing.assert_close(with_mean, mean, rtol=1e-12, atol=1e-12)
        assert with_variance < 0.2 * variance


def test_a_penalised_reward_has_the_gradient_of_reward_less_divergence_in_bits():
    price = 0.3

    def rewards_of(drawn, log_probs):
        return penalised(REWARDS[drawn], log_probs, BASE[drawn].log(), price)

    def in_bits(log_probs):  # differentiated as it stands, its own dependence on the logits included
        return REWARDS - price * (log_probs / math.log(2) - BASE.log2())

    torch.testing.assert_close(bandit(3, rewards_of)[0], exact(in_bits), rtol=1e-12, atol=1e-12)


def oracle(rewards, log_probs):
    """Advantages and loss of one batch, written once more with plain numbers: the reward less the mean of the scored
    others, and minus the mean over all replies of advantage times log-probability."""
    advantages = []
    for group in rewards:
        for place, reward in enumerate(group):
            others = [r for other, r in enumerate(group) if other != place and not math.isnan(r)]
            advantages.append(0.0 if math.isnan(reward) or not others else reward - sum(others) / len(others))
    flat = [value for group in log_probs for value in group]
    return advantages, -sum(a * value for a, value in zip(advantages, flat)) / len(flat)


def test_advantages_and_surrogate_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    rewards, log_probs = (torch.rand(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    rewards[1, 2] = rewards[3, 0] = rewards[3, 1] = math.nan
    rewards[4, 1:] = math.nan
    advantages, surrogate = oracle(rewards.tolist(), (-log_probs).tolist())
    assert leave_one_out(rewards).flatten().tolist() == pytest.approx(advantages, abs=1e-12)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = rloo_loss(rewards, -log_probs * scale)
    loss.backward()  # the surrogate is linear in the log-probabilities
    assert float(scale.grad) == pytest.approx(surrogate, abs=1e-12)
    assert float(loss.detach()) == pytest.approx(1 - float(rewards.nan_to_num(0.0).mean()), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0, math.nan])
def test_rewards_that_are_all_alike_or_missing_have_no_gradient_at_all(value):
    """Not even a rounding error: Adam would take it for a slope."""
    for dtype in (torch.float32, torch.float64):
        log_probs = torch.linspace(-9.0, -1.0, 21, dtype=dtype).requires_grad_()
        loss = rloo_loss(torch.full((3, 7), value, dtype=dtype), log_probs.view(3, 7))
        loss.backward()
        assert torch.equal(log_probs.grad, torch.zeros_like(log_probs))
        assert float(loss.detach()) == pytest.approx(1 - (0.0 if math.isnan(value) else value))
        log_probs.grad = None
        evolution_loss(torch.full((20,), value, dtype=dtype), log_probs[:20]).backward()
        assert torch.equal(log_probs.grad, torch.zeros_like(log_probs))


def expected_evolution_gradient(mean, scale, reward):
    """The mean of the gradients in mean and log scale over two pairs in two dimensions, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = weights / weights.sum()
    solver = Mirrored(Variational(1.0, 1.0, 0.0, 0.0))
    total = {"mean": torch.zeros(2, dtype=torch.float64), "log_scale": torch.zeros(2, dtype=torch.float64)}
    for chosen in itertools.product(range(5), repeat=4):
        noise = torch.tensor(nodes[list(chosen)], dtype=torch.float64).view(2, 2)
        parameters = {"mean": mean.clone().requires_grad_(), "log_scale": scale.log().requires_grad_()}
        latents = solver.draw(parameters, torch.cat([noise, torch.full_like(noise, math.nan)]))
        evolution_loss(reward(latents.detach()), log_q_nats(parameters, latents)).backward()
        for name, value in parameters.items():
            total[name] += float(np.prod(weights[list(chosen)])) * value.grad
    return total


def test_the_expected_gradient_of_evolution_is_the_closed_form():
    """For r = a'z and r = -(z - c)'H(z - c) / 2 the expected reward is a'm and -((m - c)'H(m - c) + sum h s^2) / 2."""
    mean, scale = torch.tensor([0.3, -0.7], dtype=torch.float64), torch.tensor([0.4, 1.3], dtype=torch.float64)
    slope = torch.tensor([0.5, -2.0], dtype=torch.float64)
    found = expected_evolution_gradient(mean, scale, lambda z: z @ slope)
    torch.testing.assert_close(found["mean"], -slope, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found["log_scale"], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-10)
    centre, hessian = (part.double() for part in quadratic(2))
    found = expected_evolution_gradient(mean, scale, lambda z: -0.5 * (((z - centre) @ hessian) * (z - centre)).sum(-1))
    torch.testing.assert_close(found["mean"], hessian @ (mean - centre), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found["log_scale"], hessian.diagonal() * scale.square(), rtol=1e-10, atol=1e-10)


def test_q_trained_by_rewards_alone_has_the_closed_form_of_k2():
    """The known answer of the variational solver, reached without a gradient of the loss: within 5%, at two betas."""
    centre, hessian = quadratic(3)
    betas = (0.2, 2.0)
    rows = [Row(f"beta {beta}", Plain(3), Mirrored(Variational(beta, beta, 0.02, 0.02)), 0, 4096) for beta in betas]
    state = begin(rows, [None, None], torch.device("cpu"))

    def rewards(row, step, latents):
        gap = latents - centre
        return 1 - 0.5 * ((gap @ hessian) * gap).sum(-1)

    train(rows, evolution(state, rewards), 500, state)
    for beta, found in zip(betas, state.parameters):
        pull = hessian * math.log(2) / beta
        mean = torch.linalg.solve(torch.eye(3) + pull, pull @ centre)
        assert float((found["mean"] - mean).norm() / mean.norm()) < 0.05
        variance = 1 / torch.diagonal(torch.eye(3) + pull)
        torch.testing.assert_close((2 * found["log_scale"]).exp(), variance, rtol=0.05, atol=0)


def test_mirrored_pairs_cancel_and_leave_everything_else_to_the_solver_inside():
    inner = Variational(0.1, 1.0, 0.05, 0.03)
    solver, plain = Mirrored(inner), Plain(3)
    parameters = solver.start(plain, 4)
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    drawn = solver.draw(parameters, noise)
    torch.testing.assert_close((drawn[:3] + drawn[3:]) / 2, parameters["mean"].expand(3, 3))
    assert torch.equal(drawn[:3], inner.draw(parameters, noise)[:3])
    assert all(torch.equal(value, inner.start(plain, 4)[name]) for name, value in parameters.items())
    assert torch.equal(solver.penalty_bits(parameters, 0.3), inner.penalty_bits(parameters, 0.3))
    assert solver.learning_rates(0.3) == inner.learning_rates(0.3)
    with pytest.raises(ValueError, match="5 draws are no pairs"):
        solver.draw(parameters, noise[:5])


def test_evolution_needs_a_q_with_independent_widths():
    for solver in (Gradient(0.1), Variational(1.0, 1.0, 0.1, 0.1, directions=1)):
        with pytest.raises(ValueError, match="needs a q of mean and log_scale"):
            log_q_nats(solver.start(Plain(3), 0), torch.zeros(2, 3))


def test_density_is_that_of_a_normal_distribution_up_to_a_constant():
    parameters = {"mean": torch.tensor([0.5, -1.0]).double(), "log_scale": torch.tensor([0.3, -0.6]).double()}
    latents = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = torch.distributions.Normal(parameters["mean"], parameters["log_scale"].exp()).log_prob(latents).sum(-1)
    torch.testing.assert_close(
        log_q_nats(parameters, latents) - dense, torch.full((50,), math.log(2 * math.pi)).double()
    )
