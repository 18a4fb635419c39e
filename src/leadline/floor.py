"""The floor: how long a training step would take if the machine did nothing but the products that it cannot do without.

Four floating point operations for each parameter and token, two forward and two backward, since frozen weights take
no gradient, at the rate at which this machine multiplies matrices of the model's dtype, as just measured. The shared
prefix is run once and not counted, and only target positions go through the head. Attention, norms, the softmax of the
loss and all copies are left out, so no program reaches it: it says how far there is to go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from leadline.edits import Edit
from leadline.engine import Context, Engine
from leadline.model import FrozenModel
from leadline.parts import tokens_run

SIDE, ON_GPU = 1024, 8192  # of the square matrices that are multiplied: they fit a core's cache, or fill a GPU
REPEATS = 5
COPIED = 1 << 26  # bytes of each copy: no cache holds them


def product_rate(model: FrozenModel) -> float:
    """Floating point operations a second of matrix products in the model's dtype, all of its threads at it, each with
    products of its own; the best of a few."""
    device, dtype = model.device, model.network.dtype
    side = SIDE if device.type == "cpu" else ON_GPU
    times = max(1, REPEATS * ON_GPU // side // 8)

    def drawn() -> torch.Tensor:
        return torch.randn(side, side, device=device).to(dtype)

    return 2.0 * side**3 * times * _most_a_second(model, drawn, torch.matmul, times)


def copy_rate(model: FrozenModel) -> float:
    """Bytes a second that are read and written where all of the model's threads copy; the best of a few."""

    def blank() -> torch.Tensor:
        return torch.zeros(COPIED, dtype=torch.uint8, device=model.device)

    return 2.0 * COPIED * REPEATS * _most_a_second(model, blank, torch.Tensor.copy_, REPEATS)


def _most_a_second(
    model: FrozenModel, made: Callable[[], torch.Tensor], work: Callable[..., object], times: int
) -> float:
    """How often a second all threads together do `work`, so many times in succession, each on a pair of tensors of its
    own: the best of REPEATS, after one that warms up."""
    lanes = model.compute.threads if model.device.type == "cpu" else 1
    pairs, before, seconds = [(made(), made()) for _ in range(lanes)], torch.get_num_threads(), []

    def one(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        torch.set_num_threads(1)
        for _ in range(times):
            work(*pair)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    with ThreadPoolExecutor(lanes) as pool:
        for _ in range(REPEATS + 1):
            begin = time.perf_counter()
            list(pool.map(one, pairs))
            seconds.append(time.perf_counter() - begin)
    torch.set_num_threads(before)
    return lanes / min(seconds[1:])


def step_flops(engine: Engine, contexts: Sequence[Context], edit: Edit) -> float:
    """Floating point operations of the products of one forward and backward pass."""
    model = engine.model
    head: torch.Tensor = model.network.get_output_embeddings().weight
    table = model.network.get_input_embeddings().weight  # looked up, not multiplied, unless it is the head's too
    matrices = [p for p in model.network.parameters() if p.ndim > 1 and p is not head and p is not table]
    blocks = sum(matrix.numel() for matrix in matrices)
    targets = sum(len(context.target) for context in contexts)
    tokens = sum(tokens_run(engine, contexts, edit)) - len(contexts)  # the last of each row is never an input
    found: float = 4.0 * (blocks * tokens + head.numel() * targets)
    return found
