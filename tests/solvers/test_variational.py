"""K2: on a quadratic loss under a Gaussian prior the best q is known in closed form, at every beta."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from leadline.information import gaussian_kl_bits
from leadline.rows import _counts, log_ratios
from leadline.selftest.quadratic import BETAS, Plain, best, covariance, quadratic, trained
from leadline.solvers.base import SETTLED_STEPS, Row, State, begin, train
from leadline.solvers.gradient import Gradient
from leadline.solvers.variational import Variational, kl_parts_bits


def test_k2_q_is_within_two_percent_of_the_closed_form_at_every_beta():
    centre, hessian = quadratic(3, 6)
    for beta, found in zip(BETAS, trained(BETAS, centre, hessian)):
        mean, precision = best(centre, hessian, beta)
        variance = 1 / torch.diagonal(precision)
        assert float((found["mean"] - mean).norm() / mean.norm()) < 0.02
        torch.testing.assert_close((2 * found["log_scale"]).exp(), variance, rtol=0.02, atol=0)


def test_k2_squeezed_along_all_directions_q_has_the_closed_form_of_a_full_covariance():
    """N(a', S) with S the inverse of I + H ln 2 / beta: every direction of H at its own width."""
    centre, hessian = quadratic(3, 6)
    found_by_beta = dict(zip(BETAS, trained(BETAS[:-1], centre, hessian, steps=1200, directions=6)))
    # at the largest beta the mean is so short that the noise of as few draws a step would be 3% of it
    found_by_beta[BETAS[-1]] = trained(BETAS[-1:], centre, hessian, steps=1200, draws=32_768, directions=6)[0]
    assert len(found_by_beta) == len(BETAS)
    for beta, found in found_by_beta.items():
        mean, precision = best(centre, hessian, beta)
        assert float((found["mean"] - mean).norm() / mean.norm()) < 0.02
        wanted = torch.linalg.inv(precision)
        torch.testing.assert_close(covariance(found), wanted, rtol=0, atol=0.02 * float(wanted.diagonal().max()))


def squeezed(dimensions: int, count: int, spread: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"mean": (dimensions,), "log_scale": (dimensions,), "directions": (count, dimensions),
              "log_squeeze": (count,)}  # fmt: skip
    return {
        name: spread * torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


def test_divergence_and_density_of_a_squeezed_q_are_those_of_its_covariance():
    """Against the dense formulas of a multivariate normal, through the function that makes rows."""
    parameters = squeezed(12, 3, 0.7)
    dense = torch.distributions.MultivariateNormal(parameters["mean"], covariance(parameters))
    prior = torch.distributions.MultivariateNormal(torch.zeros(12).double(), torch.eye(12).double())
    divergence = float(torch.distributions.kl_divergence(dense, prior)) / math.log(2)
    assert float(sum(kl_parts_bits(parameters))) == pytest.approx(divergence, rel=1e-9)
    noise = torch.randn(500, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    draws = Variational(1.0, 1.0, 0.0, 0.0).draw(parameters, noise)
    ratio = (dense.log_prob(draws) - prior.log_prob(draws)) / math.log(2)
    torch.testing.assert_close(torch.from_numpy(log_ratios({}, draws, parameters)), ratio, rtol=1e-9, atol=1e-9)
    assert _counts({}, torch.ones(500, dtype=torch.bool), parameters)["kl_bits"] == pytest.approx(divergence, rel=1e-9)
    # and the draws have that covariance
    many = Variational(1.0, 1.0, 0.0, 0.0).draw(
        parameters, torch.randn(200_000, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    )
    torch.testing.assert_close(torch.cov(many.T), covariance(parameters), rtol=0.1, atol=0.05)


def test_a_step_that_shares_its_basis_has_the_gradient_of_one_that_does_not():
    solver, noise = Variational(0.1, 0.4, 0.0, 0.0), torch.randn(5, 12, dtype=torch.float64)
    found = []
    for share in (True, False):
        leaf = {name: value.requires_grad_() for name, value in squeezed(12, 3, 0.7).items()}
        ready = solver.prepared(leaf) if share else leaf
        (solver.draw(ready, noise).square().sum() + solver.penalty_bits(ready, 0.5)).backward()
        found.append({name: value.grad for name, value in leaf.items()})
        assert set(leaf) == {"mean", "log_scale", "directions", "log_squeeze"}  # what is stored and stepped
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_a_narrow_direction_that_is_no_axis_costs_one_coordinate_and_not_all():
    """A loss that minds one diagonal direction of 64: independent coordinates all become narrow, a squeeze one."""
    direction = torch.ones(64) / 8.0
    hessian = 200.0 * torch.outer(direction, direction)
    costs = []
    for directions in (0, 1):
        found = trained((1.0,), torch.zeros(64), hessian, steps=500, draws=256, directions=directions)[0]
        costs.append(float(sum(kl_parts_bits(found))))
    # closed forms: 64 ((s^2 - 1) / 2 - ln s) at s^2 = 1 / (1 + 200 ln 2 / 64), and one coordinate at 1 / (1 + 200 ln 2)
    independent = 64 * divergence_bits(1 / (1 + 200 * math.log(2) / 64))
    assert costs[0] == pytest.approx(independent, rel=0.05)
    assert costs[1] == pytest.approx(divergence_bits(1 / (1 + 200 * math.log(2))), abs=0.5)


def divergence_bits(variance: float) -> float:
    return ((variance - 1) / 2 - math.log(variance) / 2) / math.log(2)


def test_k16_nats_for_bits_in_the_divergence_would_miss_the_closed_form(monkeypatch):
    monkeypatch.setattr(Variational, "penalty_bits", nats)
    with pytest.raises(AssertionError):
        test_k2_q_is_within_two_percent_of_the_closed_form_at_every_beta()


def nats(self, parameters, progress):
    location, width = kl_parts_bits(parameters)
    return self.beta_at(progress) * (location + width) * math.log(2)


def test_k16_sigma_for_sigma_squared_would_miss_the_closed_form(monkeypatch):
    def wrong(self, parameters, progress):
        location, _ = kl_parts_bits(parameters)
        scale = parameters["log_scale"]
        return self.beta_at(progress) * (location + (scale.exp() - 1 - 2 * scale).sum() / (2 * math.log(2)))

    monkeypatch.setattr(Variational, "penalty_bits", wrong)
    with pytest.raises(AssertionError):
        test_k2_q_is_within_two_percent_of_the_closed_form_at_every_beta()


def test_a_row_that_is_lost_keeps_its_last_finite_parameters_and_the_others_go_on():
    plain = Plain(2)
    rows = [Row("good", plain, Gradient(0.1), 0, 1), Row("bad", plain, Gradient(0.1), 1, 1)]

    def loss(step, latents):
        good, bad = (latent.square().sum() for latent in latents)
        return torch.stack([good, bad * (float("nan") if step >= 5 else 1.0)])

    state = train(rows, loss, 60, begin(rows, [None, None], torch.device("cpu")))
    assert state.lost == [-1, 5]
    assert bool(torch.isfinite(state.parameters[1]["mean"]).all())
    assert float(state.parameters[0]["mean"].norm()) < 0.02
    assert math.isfinite(state.losses[1])


def settling(*settled: float | None) -> tuple[list[Row], list[list[int]], Any]:
    """Rows whose loss is their squared distance from 0, what each step's loss was asked for, and that loss."""
    rows = [Row(f"row {n}", Plain(2), Gradient(0.1, bits), n, 3) for n, bits in enumerate(settled)]
    asked: list[list[int]] = []

    def loss(step, latents):
        asked.append([len(drawn) for drawn in latents])
        return torch.stack([drawn.square().sum(1).mean() if len(drawn) else torch.tensor(7.0) for drawn in latents])

    return rows, asked, loss


def test_a_row_that_has_settled_takes_no_more_steps_and_the_others_do_not_notice():
    rows, asked, loss = settling(0.01, None)
    state = train(rows, loss, 80, begin(rows, [None, None], torch.device("cpu")))
    settled = state.settled[0]
    assert state.settled == [settled, -1]
    assert (state.steps_of(0), state.steps_of(1)) == (settled, 80)
    assert asked == [[3, 3]] * settled + [[0, 3]] * (80 - settled)
    # stopped there by hand, or trained alone
    by_hand, _, loss = settling(None)
    stopped = begin(by_hand, [None], torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt):
        train(by_hand, loss, 80, stopped, interrupted(settled))
    assert torch.equal(stopped.parameters[0]["mean"], state.parameters[0]["mean"])
    assert state.losses[0] <= 0.01
    _, _, loss = settling(None)
    alone = train(rows[1:], loss, 80, begin(rows[1:], [None], torch.device("cpu")))
    assert torch.equal(alone.parameters[0]["mean"], state.parameters[1]["mean"])


def test_a_row_settles_by_its_loss_of_some_steps_in_succession_and_the_batch_ends_with_its_last_row():
    rows, asked, loss = settling(1e9)
    state = train(rows, loss, 80, begin(rows, [None], torch.device("cpu")))
    assert (state.step, state.settled, asked) == (SETTLED_STEPS, [SETTLED_STEPS], [[3]] * SETTLED_STEPS)
    high = [False, False, True, False, False, False, False, False, False]
    rows = [Row("a row", Plain(2), Gradient(0.1, 1.0), 0, 3)]

    def leaping(step, latents):
        return latents[0].sum()[None] * 0 + (2.0 if high[step] else 0.5)

    assert train(rows, leaping, 9, begin(rows, [None], torch.device("cpu"))).settled == [8]


def interrupted(at: int) -> Callable[[State], None]:
    def stop(state: State) -> None:
        if state.step == at:
            raise KeyboardInterrupt

    return stop


def test_rows_of_one_batch_do_not_disturb_each_other():
    centre, hessian = quadratic(4, 3)
    together = trained((0.1, 1.0), centre, hessian, steps=40)
    alone = trained((1.0,), centre, hessian, steps=40)
    for name, value in alone[0].items():
        torch.testing.assert_close(together[1][name], value, rtol=1e-5, atol=1e-6)


def test_a_batch_that_is_stopped_and_goes_on_ends_in_the_same_numbers():
    plain = Plain(4)
    rows = [Row("a", plain, Variational(0.1, 1.0, 0.05, 0.05), 0, 4)]

    def loss(step, latents):
        return torch.stack([(latents[0] - 1).square().sum(-1).mean()])

    whole = train(rows, loss, 30, begin(rows, [None], torch.device("cpu")))
    part = begin(rows, [None], torch.device("cpu"))

    with pytest.raises(KeyboardInterrupt):
        train(rows, loss, 30, part, interrupted(11))
    for row in part.parameters:  # what a checkpoint stores: plain tensors
        row.update({name: value.detach().clone() for name, value in row.items()})
    again = train(rows, loss, 30, part)
    assert all(torch.equal(again.parameters[0][name], value) for name, value in whole.parameters[0].items())


def test_the_divergence_that_is_trained_on_is_the_one_that_is_reported():
    """In float64, to the last digits; both near the prior, where the terms cancel, and far from it."""
    generator = torch.Generator().manual_seed(0)
    for spread in (1e-6, 0.1, 3.0):
        mean, log_scale = (spread * torch.randn(576, generator=generator, dtype=torch.float64) for _ in range(2))
        location, width = kl_parts_bits({"mean": mean, "log_scale": log_scale})
        parts = gaussian_kl_bits(mean.numpy(), log_scale.exp().numpy())
        assert float(location) == pytest.approx(parts[0].sum(), rel=1e-12)
        assert float(width) == pytest.approx(parts[1].sum(), rel=1e-12, abs=1e-12)
