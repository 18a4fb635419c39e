"""Which dtype, attention and number of threads are fastest here: a short measured probe, cached and printed.

Never by assumption: bfloat16 is several times faster than float32 on processors with matrix units for it and slower on
others, and torch's fused attention has a slow backward pass on processors.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch

from leadline import attention
from leadline.cache import cache_folder, whole_file
from leadline.spec import compute_parts

# Below this many parameters no product is worth being shared out among threads, and float32 is fastest and most exact.
TINY_PARAMETERS = 10_000_000
KINDS = ("eager", "sdpa", attention.NAME)  # of attention: the first is the slow twin of the others
TINY_THREADS = 4  # of such a model's parts: half of a pass is Python, which runs one thread at a time


@dataclass(frozen=True)
class Compute:
    """How a model is run.

    dtype:     "float32" or "bfloat16"
    attention: "eager", "blockwise" or "sdpa"
    threads:   that run parts of a batch side by side (`parts`)
    why:       one line for the user
    """

    dtype: str
    attention: str
    threads: int
    why: str


def choose(network: Any, identity: str) -> Compute:
    """The fastest way to train a prompt on this network on this machine.

    identity: what the probe is remembered by, beside the machine and torch's version
    """
    if next(network.parameters()).is_cuda:
        way = "sdpa" if has_fused_attention(network) else "eager"
        return Compute("bfloat16", way, torch.get_num_threads(), f"on a GPU: bfloat16 and {way} attention")
    if is_tiny(network):
        return Compute("float32", "eager", lanes(network), "a tiny model: float32, one thread a part")
    machine = f"{identity} {torch.__version__} {platform.node()} {torch.get_num_threads()} {_processor()} {KINDS}"
    path = cache_folder() / "probe" / f"{hashlib.sha256(machine.encode()).hexdigest()[:16]}.json"
    if path.is_file():
        with suppress(ValueError, TypeError):  # damaged, or of another version: measured again
            return Compute(**json.loads(path.read_bytes()))
    ways = attentions(network)
    found = _measure(network, ways[1:] if attention.NAME in ways else ways)  # that is as fast as eager or faster
    with suppress(OSError):  # where nothing can be kept it is measured again
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_file(path, json.dumps(asdict(found)).encode())
    return found


def has_fused_attention(network: Any) -> bool:
    """Whether transformers has torch's fused attention (sdpa) for this architecture."""
    return bool(getattr(network, "_supports_sdpa", False))


def attentions(network: Any) -> tuple[str, ...]:
    """Those of KINDS that this network can be run with."""
    has = (True, has_fused_attention(network), attention.fits(network))
    return tuple(kind for kind, there in zip(KINDS, has, strict=True) if there)


def lanes(network: Any) -> int:
    """Threads that run parts of a batch side by side, of as many as torch has now."""
    return min(TINY_THREADS, torch.get_num_threads()) if is_tiny(network) else torch.get_num_threads()


def is_tiny(network: Any) -> bool:
    return bool(sum(p.numel() for p in network.parameters()) < TINY_PARAMETERS)


def overridden(found: Compute, asked: str) -> Compute:
    """What the probe found, with what was asked for in its place (the form of spec.RunSpec.compute)."""
    parts = compute_parts(asked)
    if not parts:
        return found
    return Compute(
        parts.get("dtype", found.dtype), parts.get("attention", found.attention),
        int(parts.get("threads", found.threads)), f"{asked} was asked for; the rest: {found.why}",
    )  # fmt: skip


def recorded(provenance: Mapping[str, Any]) -> Compute | None:
    """How a run was begun, from its provenance: it goes on in the same way, whatever a probe would say now."""
    try:
        dtype, attention = str(provenance["dtype"]), str(provenance["attention"])
        return Compute(dtype, attention, int(provenance["threads"]), str(provenance["compute"]))
    except (KeyError, TypeError, ValueError):
        return None


def _measure(network: Any, ways: Sequence[str]) -> Compute:
    """Two dtypes and some kinds of attention, the best of two steps each, on one thread, as `parts` runs them.
    Leaves the weights rounded to bfloat16: load them again."""
    threads, had, dtype = torch.get_num_threads(), network.config._attn_implementation, network.dtype
    seconds: dict[tuple[str, str], float] = {}
    torch.set_num_threads(1)
    try:
        for kind in ("float32", "bfloat16"):
            network.to(getattr(torch, kind))
            for way in ways:
                network.set_attn_implementation(way)
                seconds[kind, way] = min(_step_seconds(network) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
        network.to(dtype)
        network.set_attn_implementation(had)
    best = min(seconds, key=lambda pair: seconds[pair])
    listing = ", ".join(f"{kind} {way} {value:.2f}" for (kind, way), value in seconds.items())
    return Compute(best[0], best[1], threads, f"fastest of {len(seconds)} measured (seconds for 4 rows: {listing})")


def _step_seconds(network: Any) -> float:
    """Seconds for one forward and backward pass of 4 rows of 48 embeddings."""
    hidden = network.get_input_embeddings().weight.shape[1]
    embeds = torch.zeros(4, 48, hidden, dtype=network.dtype).normal_(generator=torch.Generator().manual_seed(0))
    embeds.requires_grad_()
    begin = time.perf_counter()
    network(inputs_embeds=embeds, logits_to_keep=1, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    return time.perf_counter() - begin


def _processor() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
