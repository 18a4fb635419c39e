"""K2: on a quadratic loss under a Gaussian prior the best q is known in closed form, at every beta."""

from __future__ import annotations

import math

import pytest
import torch

from leadline.information import gaussian_kl_bits
from leadline.interventions.base import Intervention
from leadline.solvers.base import Row, begin, train
from leadline.solvers.gradient import Gradient
from leadline.solvers.variational import Variational, kl_parts_bits

BETAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Plain(Intervention):
    """Latents of so many dimensions that write nothing: solvers need no model."""

    family, size, tokens, prior = "plain", 1, 1, "N(0, I)"

    def __init__(self, dimensions: int) -> None:
        self.shape = (dimensions,)

    def embeddings(self, latents):
        return latents


def quadratic(seed: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A centre and a positive definite Hessian with off-diagonal terms."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dimensions, dimensions, generator=generator) / math.sqrt(dimensions)
    return torch.randn(dimensions, generator=generator), root @ root.T + 0.3 * torch.eye(dimensions)


def trained(betas, centre, hessian, steps=700, draws=8192):
    """Rows of one batch, a beta each, on E_q[(z - a)' H (z - a) / 2] bits + beta KL bits."""
    plain = Plain(len(centre))
    solvers = [Variational(first_beta=beta, beta=beta, rate=0.02, scale_rate=0.02) for beta in betas]
    rows = [Row(f"beta {beta}", plain, solver, 0, draws) for beta, solver in zip(betas, solvers)]

    def loss(step, latents):
        gaps = [latent - centre for latent in latents]
        return torch.stack([0.5 * ((gap @ hessian) * gap).sum(-1).mean() for gap in gaps])

    return train(rows, loss, steps, begin(rows, [None] * len(rows), torch.device("cpu"))).parameters


def test_k2_q_is_within_two_percent_of_the_closed_form_at_every_beta():
    centre, hessian = quadratic(3, 6)
    for beta, found in zip(BETAS, trained(BETAS, centre, hessian)):
        # loss and KL are both in bits, so in nats the loss weighs ln 2 / beta as much as the divergence
        pull = hessian * math.log(2) / beta
        mean = torch.linalg.solve(torch.eye(6) + pull, pull @ centre)
        variance = 1 / torch.diagonal(torch.eye(6) + pull)
        assert float((found["mean"] - mean).norm() / mean.norm()) < 0.02
        torch.testing.assert_close((2 * found["log_scale"]).exp(), variance, rtol=0.02, atol=0)


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

    def stop(state):
        if state.step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(rows, loss, 30, part, stop)
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
