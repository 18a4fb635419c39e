"""The Hessian of a loss at a point, seen only through its products with vectors: samples of its trace, and its extreme
eigenvalues.

The matrix is never built, so the cost is a few gradients a product at any dimension. Where a loss has kinks it is the
curvature of the piece that the point lies on, which says nothing of the kinks. It does not know models, priors or
intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy import linalg  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# (draws, *shape) latents -> (draws,) loss in bits a reply, each of its own latent only; differentiable twice
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Extremes:
    """The two ends of a spectrum as Lanczos sees them; NaN where a product was not finite.

    smallest, largest:             Ritz values, algebraically least and greatest; both lie inside the true spectrum
    smallest_error, largest_error: norm of the residual: an eigenvalue of the matrix lies at most that far away
    """

    smallest: float
    largest: float
    smallest_error: float
    largest_error: float


def hessian_products(loss: Loss, z: Tensor, vectors: Tensor, batch: int) -> Tensor:
    """(count, *shape) products of the Hessian of `loss` at z (*shape) with vectors (count, *shape), `batch` at once.

    By differentiating gradient . v once more (Pearlmutter, Neural Computation 6, 1994). Attention runs by its plain
    formula meanwhile: torch's fused kernels have no second derivative.
    """
    products = []
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        for part in torch.split(vectors, batch):
            points = z.detach().expand_as(part).clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(points).sum(), points, create_graph=True)
            # 0 * points: a loss that is linear leaves a gradient without a graph, whose Hessian is 0 and no error
            slope = (gradient * part).sum() + (0 * points).sum()
            products.append(torch.autograd.grad(slope, points)[0])
    return torch.cat(products)


def trace_samples(loss: Loss, z: Tensor, probes: Tensor, batch: int) -> Tensor:
    """(count,) float64 samples v . H v, whose mean over random signs v is the trace of the Hessian.

    probes: (count, *shape) of independent +1 and -1 (Hutchinson, Communications in Statistics 19, 1990). A sample's
    variance is twice the sum of squares off the diagonal; a diagonal Hessian is met exactly by each.
    """
    products = hessian_products(loss, z, probes, batch)
    return (products.double() * probes.double()).flatten(1).sum(1)


def extreme_eigenvalues(loss: Loss, z: Tensor, start: Tensor, steps: int) -> Extremes:
    """Both ends of the Hessian's spectrum at z (*shape) by `steps` steps of Lanczos from start (*shape), not zero.

    Every vector is made orthogonal to all before it, so no eigenvalue is found twice. A matrix of d <= steps dimensions
    is exhausted, and the ends are exact to rounding. Source: Parlett, The Symmetric Eigenvalue Problem, chapter 13.
    """
    basis = [start.detach().double().flatten() / start.double().norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(steps, start.numel())):
        vector = basis[-1].view_as(start).to(z.dtype)
        product = hessian_products(loss, z, vector[None], 1).double().flatten()
        if not bool(torch.isfinite(product).all()):
            return Extremes(math.nan, math.nan, math.nan, math.nan)
        diagonal.append(float(product @ basis[-1]))
        # twice: once leaves what rounding brought back
        for _ in range(2):
            known = torch.stack(basis)
            product = product - known.T @ (known @ product)
        beside.append(float(product.norm()))
        if beside[-1] <= 1e-10 * max(map(abs, diagonal + beside)):
            # nothing is left that the start vector reaches
            beside[-1] = 0.0
            break
        basis.append(product / beside[-1])
    if len(diagonal) == start.numel():
        # what is left over is rounding, as there is no further direction
        beside[-1] = 0.0
    values, vectors = linalg.eigh_tridiagonal(diagonal, beside[:-1])
    errors = abs(beside[-1] * vectors[-1])
    return Extremes(float(values[0]), float(values[-1]), float(errors[0]), float(errors[-1]))
