"""The floor: how long a training step would take if the machine did nothing but the products that it cannot do without.

Four floating point operations for each parameter and token, two forward and two backward, since frozen weights take
no gradient, at the rate at which this machine multiplies matrices of the model's dtype, as just measured. The shared
prefix is run once and not counted, and only target positions go through the head. Attention, norms, the softmax of the
loss and all copies are left out, so no program reaches it: it says how far there is to go.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
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
    return max(_rate(model) for _ in range(REPEATS))


def _rate(model: FrozenModel) -> float:
    device, dtype = model.device, model.network.dtype
    side, lanes = (ON_GPU, 1) if device.type != "cpu" else (SIDE, model.compute.threads)
    times = max(1, REPEATS * ON_GPU // side // 8)
    pairs = [[torch.randn(side, side, device=device).to(dtype) for _ in range(2)] for _ in range(lanes)]
    before = torch.get_num_threads()

    def multiply(pair: list[torch.Tensor]) -> None:
        torch.set_num_threads(1)
        for _ in range(times):
            pair[0] @ pair[1]
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(multiply, pairs))  # warms up
        begin = time.perf_counter()
        list(pool.map(multiply, pairs))
        seconds = time.perf_counter() - begin
    torch.set_num_threads(before)
    return 2.0 * side**3 * times * lanes / seconds


def copy_rate(model: FrozenModel) -> float:
    """Bytes a second that all of the model's threads read and write when they copy; the best of a few."""
    device = model.device
    lanes = model.compute.threads if device.type == "cpu" else 1
    pairs = [[torch.zeros(COPIED, dtype=torch.uint8, device=device) for _ in range(2)] for _ in range(lanes)]
    before, found = torch.get_num_threads(), []

    def move(pair: list[torch.Tensor]) -> None:
        torch.set_num_threads(1)
        for _ in range(REPEATS):
            pair[0].copy_(pair[1])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with ThreadPoolExecutor(lanes) as pool:
        for _ in range(REPEATS + 1):
            begin = time.perf_counter()
            list(pool.map(move, pairs))
            found.append(time.perf_counter() - begin)
    torch.set_num_threads(before)
    return 2.0 * COPIED * REPEATS * lanes / min(found)


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
