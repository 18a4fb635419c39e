"""The mistakes one makes in such code, made on purpose and taken back (docs/measurement.md, K16).

COND refuses log ratios that do not average to their KL, and would stop most of these at once; `no_guard` switches that
off, so that the known answers themselves are seen to fail. It knows no known answer.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from leadline import information, rows
from leadline.engine import Engine
from leadline.information import Floats, Squeeze
from leadline.solvers.base import Parameters
from leadline.solvers.variational import Variational


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for as long as it lasts."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def no_guard() -> AbstractContextManager[None]:
    """COND takes any log ratios."""
    # the package's attribute `cond` is the function: the module of that name is fetched by hand
    return replaced(importlib.import_module("leadline.estimators.cond"), "DISAGREEMENT_STDERRS", math.inf)


def nats_for_bits() -> AbstractContextManager[None]:
    """Log ratios and divergences are in nats and called bits."""
    return replaced(information, "BITS_PER_NAT", 1.0)


def variance_for_scale() -> AbstractContextManager[None]:
    """Sigma for its square: the widths of q are squared before its density and divergence are taken."""
    ratio, divergence = information.log_ratio_bits, information.gaussian_kl_bits

    def wrong_ratio(z: ArrayLike, mean: ArrayLike, scale: ArrayLike, squeeze: Squeeze | None = None) -> Floats:
        return ratio(z, mean, np.square(scale), squeeze)

    def wrong_divergence(mean: ArrayLike, scale: ArrayLike) -> tuple[Floats, Floats]:
        return divergence(mean, np.square(scale))

    return _both(wrong_ratio, wrong_divergence)


def dropped_jacobian() -> AbstractContextManager[None]:
    """The widths are left out of the density's volume."""
    ratio, divergence = information.log_ratio_bits, information.gaussian_kl_bits

    def wrong_ratio(z: ArrayLike, mean: ArrayLike, scale: ArrayLike, squeeze: Squeeze | None = None) -> Floats:
        without: Floats = ratio(z, mean, scale, squeeze) + np.log2(scale).sum()
        return without

    def wrong_divergence(mean: ArrayLike, scale: ArrayLike) -> tuple[Floats, Floats]:
        location, width = divergence(mean, scale)
        return location, width + np.log2(scale)

    return _both(wrong_ratio, wrong_divergence)


def mean_for_draws() -> AbstractContextManager[None]:
    """The mean of q is scored over and over in place of its draws."""

    def repeated(self: Variational, parameters: Parameters, noise: Tensor) -> Tensor:
        return parameters["mean"].expand_as(noise)

    return replaced(Variational, "draw", repeated)


def target_off_by_one() -> AbstractContextManager[None]:
    """A target token is looked for where the one before it is predicted."""
    run = Engine._run

    def early(self: Engine, embeds: Tensor, picks: Tensor, *rest: Any, **more: Any) -> Any:
        return run(self, embeds, (picks - 1).clamp(min=0), *rest, **more)

    return replaced(Engine, "_run", early)


@contextmanager
def _both(ratio: Any, divergence: Any) -> Iterator[None]:
    """Where rows are made, as everywhere."""
    with ExitStack() as stack:
        for owner in (information, rows):
            stack.enter_context(replaced(owner, "log_ratio_bits", ratio))
            stack.enter_context(replaced(owner, "gaussian_kl_bits", divergence))
        yield
