"""Curvature on matrices that are written down: products, traces and ends of spectra against dense linear algebra."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from leadline.curvature import extreme_eigenvalues, hessian_products, trace_samples
from leadline.edits import EmbeddingEdit
from leadline.engine import Context, Engine
from models import random_model

DIMS = 80


def matrix(kind: str, dims: int = DIMS, seed: int = 0) -> torch.Tensor:
    """A dense symmetric matrix in float64: positive definite, or with a spectrum that reaches farther below zero."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / math.sqrt(dims)
    if kind == "definite":
        return root @ root.T + 0.1 * torch.eye(dims, dtype=torch.float64)
    return (root + root.T) / 2 - 0.3 * torch.eye(dims, dtype=torch.float64)


def quadratic(hessian: torch.Tensor):
    def loss(latents):
        flat = latents.flatten(1)
        return 0.5 * ((flat @ hessian.to(flat)) * flat).sum(1)

    return loss


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def signs(count: int, *shape: int) -> torch.Tensor:
    return drawn(count, *shape, seed=2).sign()


def test_products_are_the_matrix_times_the_vectors_at_any_batch():
    hessian, vectors = matrix("indefinite"), drawn(7, 8, 10)
    for batch in (1, 3, 7):
        found = hessian_products(quadratic(hessian), drawn(8, 10, seed=3), vectors, batch)
        torch.testing.assert_close(found.flatten(1), vectors.flatten(1) @ hessian)


def test_a_loss_with_fused_attention_has_the_hessian_of_its_plain_formula():
    """torch's fused attention has no second derivative; the reference writes the formula out."""
    heads, value = (2, 6, 4), drawn(2, 6, 4)
    key, z, vectors = drawn(2, 6, 4, seed=4), drawn(*heads, seed=5), drawn(3, *heads, seed=6)

    def fused(latents):
        rows = len(latents)
        out = scaled_dot_product_attention(latents, key.expand(rows, *heads), value.expand(rows, *heads))
        return out.square().flatten(1).sum(1)

    def plain(latents):
        weights = (latents @ key.mT / math.sqrt(4)).softmax(-1)
        return (weights @ value).square().flatten(1).sum(1)

    dense = torch.autograd.functional.hessian(lambda flat: plain(flat.view(1, *heads))[0], z.flatten())
    found = hessian_products(fused, z, vectors, 3)
    torch.testing.assert_close(found.flatten(1), vectors.flatten(1) @ dense)


@pytest.mark.parametrize(("architecture", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("gemma", "eager")])
def test_products_through_a_transformer_are_differences_of_its_gradients(architecture, attention):
    """The engine's own path, cached prefix included; central differences of the gradient are the slow twin."""
    model = random_model(architecture, torch.float64)
    model.network.set_attn_implementation(attention)
    contexts = [Context((1, 3, 7, 9), (11, 4), (20, 21, 2)), Context((1, 3, 8), (12, 4), (22, 2))]
    engine = Engine(model, (1, 3))

    def loss(latents):
        rows = [context for context in contexts for _ in latents]
        nats = engine.target_logits(rows, EmbeddingEdit(latents.repeat(2, 1, 1), (1,) * len(rows))).nats()
        return nats.view(2, -1).mean(0)

    def gradient(points):
        leaf = points.requires_grad_()
        return torch.autograd.grad(loss(leaf).sum(), leaf)[0]

    z, vectors, step = drawn(1, 32), drawn(3, 1, 32, seed=3), 1e-3
    differences = (gradient(z + step * vectors) - gradient(z - step * vectors)) / (2 * step)
    found = hessian_products(loss, z, vectors, 2)
    # the costs are added up in float32
    assert float((found - differences).norm() / differences.norm()) < 1e-3


@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_the_trace_is_within_five_percent(kind):
    hessian = matrix(kind)
    samples = trace_samples(quadratic(hessian), drawn(DIMS), signs(512, DIMS), 64)
    assert float(samples.mean()) == pytest.approx(float(hessian.trace()), rel=0.05)
    # Hutchinson's variance in closed form: twice the squares off the diagonal
    variance = 2 * (hessian.square().sum() - hessian.diagonal().square().sum())
    assert float(samples.var()) == pytest.approx(float(variance), rel=0.25)


def test_each_probe_meets_the_trace_of_a_diagonal_hessian():
    diagonal = drawn(DIMS, seed=7)
    samples = trace_samples(quadratic(diagonal.diag()), drawn(DIMS), signs(5, DIMS), 2)
    torch.testing.assert_close(samples, diagonal.sum().expand(5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["definite", "indefinite"])
def test_both_ends_of_the_spectrum_are_within_one_percent(kind, dtype):
    hessian = matrix(kind)
    spectrum = torch.linalg.eigvalsh(hessian)
    found = extreme_eigenvalues(quadratic(hessian), drawn(DIMS).to(dtype), drawn(DIMS, seed=8).to(dtype), 40)
    assert found.largest == pytest.approx(float(spectrum[-1]), rel=0.01)
    # relative to the larger end: an eigenvalue near zero has no digits of its own
    assert found.smallest == pytest.approx(float(spectrum[0]), abs=0.01 * float(spectrum.abs().max()))
    if kind == "indefinite":
        # the largest is not the one that is largest in magnitude
        assert abs(found.smallest) > 1.2 * found.largest > 0


def test_ends_lie_inside_the_spectrum_and_their_errors_reach_an_eigenvalue():
    hessian = matrix("indefinite")
    spectrum = torch.linalg.eigvalsh(hessian)
    for steps in (1, 2, 4, 8, 16):
        found = extreme_eigenvalues(quadratic(hessian), drawn(DIMS), drawn(DIMS, seed=8), steps)
        assert float(spectrum[0]) <= found.smallest <= found.largest <= float(spectrum[-1])
        for value, error in ((found.smallest, found.smallest_error), (found.largest, found.largest_error)):
            assert float((spectrum - value).abs().min()) <= error


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_few_dimensions_are_exhausted(dims):
    hessian = matrix("indefinite", dims)
    spectrum = torch.linalg.eigvalsh(hessian)
    found = extreme_eigenvalues(quadratic(hessian), drawn(dims), drawn(dims, seed=8), 40)
    assert (found.smallest, found.largest) == pytest.approx((float(spectrum[0]), float(spectrum[-1])), rel=1e-9)
    assert (found.smallest_error, found.largest_error) == pytest.approx((0, 0), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hessian_of_low_rank_ends_early(dtype):
    direction = drawn(DIMS, seed=9)
    sloped = quadratic(torch.outer(direction, direction))
    found = extreme_eigenvalues(sloped, drawn(DIMS).to(dtype), drawn(DIMS, seed=8).to(dtype), 40)
    top = float(direction.square().sum())
    assert found.largest == pytest.approx(top, rel=1e-5)
    assert found.smallest == pytest.approx(0, abs=1e-5 * top)
    equal = extreme_eigenvalues(quadratic(3 * torch.eye(DIMS)), drawn(DIMS), drawn(DIMS, seed=8), 40)
    assert (equal.smallest, equal.largest) == pytest.approx((3, 3))


def test_a_linear_loss_has_no_curvature():
    slope = drawn(DIMS, seed=9)
    samples = trace_samples(lambda latents: latents @ slope, drawn(DIMS), signs(3, DIMS), 3)
    assert samples.tolist() == [0, 0, 0]
    found = extreme_eigenvalues(lambda latents: latents @ slope, drawn(DIMS), drawn(DIMS, seed=8), 40)
    assert (found.smallest, found.largest) == (0, 0)


def test_what_is_not_finite_is_said():
    found = extreme_eigenvalues(
        lambda latents: math.nan * latents.square().sum(1), drawn(DIMS), drawn(DIMS, seed=8), 40
    )
    assert math.isnan(found.smallest)
    assert math.isnan(found.largest)
