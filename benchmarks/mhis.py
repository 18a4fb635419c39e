"""Rare next tokens of organism:tiny, against the truth by enumeration: naive sampling, ITGIS, MHIS, and TEXT.

The whole user turn is the slot. Its text is n characters, each drawn by itself from how often the built-in questions
use it (counts plus one); the event is that one token is the likeliest first token of the reply. For two tokens all
printing characters may come, for three those of the questions alone, and every text is run once for the truth.

Each method gets the same number of model calls: a forward pass of one text is one, a backward pass another. The
temperatures are chosen as in Wu and Hilton (arXiv 2410.13211): on other target tokens than those reported, against
their truth, which is not on the budget. TEXT needs no truth: it is the mass of distinct texts that a token search met
and that work. The same sum over what MHIS's chains met is a bound too, and is kept beside its estimate.

    python benchmarks/mhis.py --tokens 2 --out benchmarks/results/mhis.json
    python benchmarks/mhis.py --tokens 3 --calls 4096 --targets 4 --seeds 2 --out benchmarks/results/mhis.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leadline.behaviour import questions
from leadline.edits import EmbeddingEdit
from leadline.engine import Context, Engine
from leadline.estimators import importance, mhis, monte_carlo, text_bound
from leadline.estimators.markov import log2_mean
from leadline.information import Bound
from leadline.interventions.text_prompt import allowed_tokens
from leadline.model import FrozenModel, load
from leadline.priors import generator
from leadline.rare_outputs import IndependentTokens, RareOutput, argmax_output, itgis, walk, weighed
from leadline.slot import Renderer
from leadline.solvers.token_search import Problem, TokenSearch, begin, search

CHUNK, BATCH, CHAINS, CANDIDATES = 512, 32, 32, 32
TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)
BURN_IN = 0.25  # of MHIS's steps
TIE = 1e-6  # a margin that is one; the search keeps what lies above it
NAMES = ("naive", "ITGIS", "MHIS", "TEXT")


def token_prior(model: FrozenModel, length: int) -> IndependentTokens:
    """How often the questions use each character, plus one; of more than two tokens, only characters that they use."""
    allowed = allowed_tokens(model)
    counts = Counter(
        token for asked in questions() for token in model.tokenizer(asked, add_special_tokens=False)["input_ids"]
    )
    weight = torch.tensor([float(counts[token]) for token in range(len(allowed))], dtype=torch.float64)
    weight = torch.where(allowed & ((weight > 0.0) | (length <= 2)), weight + 1.0, 0.0)
    return IndependentTokens((weight / weight.sum()).log().expand(length, -1))


@torch.no_grad()
def enumerated(engine: Engine, context: Context, prior: IndependentTokens) -> tuple[Tensor, int]:
    """(vocabulary,) float64 mass of the texts that make each token the likeliest next one, and how many texts."""
    characters = torch.isfinite(prior.log_p_nats[0]).nonzero()[:, 0]
    texts = torch.cartesian_prod(*[characters] * len(prior.log_p_nats))
    mass = torch.zeros(prior.log_p_nats.shape[1], dtype=torch.float64)
    for part in texts.split(CHUNK):
        edit = EmbeddingEdit(engine.model.embed(part), (part.shape[1],) * len(part))
        winner = engine.target_logits([context] * len(part), edit).logits.argmax(1)
        mass.index_add_(0, winner, prior.nats(part).exp())
    return mass, len(texts)


def told(bound: Bound, raw: float | None = None) -> dict[str, float | None]:
    """Estimate, certified upper and certified lower in bits; None where the method says nothing."""
    estimate, upper, lower = (part and part.value for part in (bound.estimate, bound.upper, bound.lower))
    return {"estimate": estimate if raw is None or math.isinf(raw) else raw, "upper": upper, "lower": lower}


def naive(prior: IndependentTokens, output: RareOutput, calls: int, label: str) -> dict[str, Any]:
    tokens = prior.sample(calls, generator("naive", label))
    hits = sum(int(output.value(part)[1].sum()) for part in tokens.split(CHUNK))
    return told(monte_carlo(hits, calls))


def itgis_run(
    prior: IndependentTokens, output: RareOutput, calls: int, temperature: float, label: str
) -> dict[str, Any]:
    """Half of the calls adapt q, half are fresh draws of it. The estimate is the plain mean of the weights, whether or
    not IW trusts them; "trusted" says so."""
    draws = generator("itgis", label)
    q = itgis(prior, output, temperature, BATCH, calls // (4 * BATCH), draws)
    found = weighed(q, prior, output, calls // 2, draws)
    ratio, hit = found.log_ratio_bits.numpy(), found.hit.numpy()
    bound = importance(ratio, hit, q.kl_bits(prior))
    raw = -log2_mean(np.where(hit, -ratio, -math.inf))
    return {**told(bound, raw), "trusted": bound.estimate is not None}


def mhis_run(
    prior: IndependentTokens, output: RareOutput, calls: int, temperature: float, label: str
) -> dict[str, Any]:
    """With the texts that the chains met and that work, as TEXT counts them."""
    proposals = calls // (2 * CHAINS) - 1
    burn_in = int(BURN_IN * proposals)
    met = walk(prior, output, temperature, CHAINS, burn_in, proposals - burn_in, generator("mhis", label))
    found = mhis(-met.logit.T.numpy() / temperature, met.hit.T.numpy())
    texts = text_mass(prior, met.tokens[met.hit])
    within = found.estimate and [found.estimate.low, found.estimate.high]
    return {**told(found), "interval": within, "accepted": met.accepted, "texts_met": texts["upper"]}


def text_mass(prior: IndependentTokens, texts: Tensor) -> dict[str, Any]:
    distinct = texts.unique(dim=0) if len(texts) else texts
    log2 = (prior.nats(distinct) / math.log(2.0)).numpy() if len(distinct) else []
    return {**told(text_bound(log2)), "texts": len(distinct)}


def text_run(
    model: FrozenModel, prior: IndependentTokens, engine: Engine, context: Context, calls: int, label: str
) -> dict[str, Any]:
    """A token search whose loss is the lost margin; while a text works, a likelier one is wanted."""
    output = argmax_output(engine, context)

    def scores(texts: Tensor) -> tuple[Tensor, Tensor]:
        edit = EmbeddingEdit(model.embed(texts), (texts.shape[1],) * len(texts))
        with torch.no_grad():
            margins = engine.target_logits([context] * len(texts), edit).margins().double()
        return -margins, margins - TIE

    def redrawn(tokens: Sequence[int], count: int, draws: torch.Generator) -> list[list[int]]:
        fresh, where = prior.sample(count, draws), torch.randint(len(tokens), (count,), generator=draws).tolist()
        return [[*tokens[:place], int(fresh[row, place]), *tokens[place + 1 :]] for row, place in enumerate(where)]

    allowed = torch.isfinite(prior.log_p_nats[0])
    problem = Problem(
        gradient=lambda tokens: -output.slope(tokens[None])[2][0],
        scores=scores,
        price_bits=lambda texts: -prior.nats(texts) / math.log(2.0),
        survives=lambda tokens: bool(allowed[list(tokens)].all()),
        allowed=allowed,
        redrawn=redrawn,
    )
    how = TokenSearch(label, beta=0.03, top_k=32, candidates=CANDIDATES, passed=CANDIDATES)
    state = begin(problem, how, prior.sample(calls // 4, generator("proposals", label)).tolist())
    while len(state.texts) + 2 * state.step + CANDIDATES + 2 <= calls:
        search(problem, how, state.step + 1, state)
    return text_mass(prior, torch.tensor(state.kept, dtype=torch.int64).view(-1, len(prior.log_p_nats)))


def off(found: dict[str, Any], truth: float, silent: float) -> float:
    """Bits between estimate and truth; a method without an estimate is as far off as `silent` is."""
    return abs((silent if found["estimate"] is None else found["estimate"]) - truth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2)
    parser.add_argument("--calls", type=int, default=2048)
    parser.add_argument("--targets", type=int, default=6, help="reported, and as many to choose temperatures on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = load("organism:tiny", "float32,eager,1")
    before, after = Renderer(model, "before_user").user("", "chat")
    engine, prior = Engine(model, before), token_prior(model, args.tokens)
    clock = time.perf_counter()
    mass, count = enumerated(engine, Context(before, after, (0,)), prior)
    print(f"{args.tokens} tokens: {count} texts in {time.perf_counter() - clock:.1f} s, {args.calls} calls a method")
    ordered = [int(token) for token in mass.argsort(descending=True) if mass[token] > 0.0]
    spread = np.linspace(0, len(ordered) - 1, 2 * args.targets).round().astype(int)
    chosen = [ordered[place] for place in spread]
    tuned_on, reported = chosen[0::2], chosen[1::2]

    def truth(target: int) -> float:
        return -math.log2(float(mass[target]))

    def output(target: int) -> RareOutput:
        return argmax_output(engine, Context(before, after, (target,)))

    temperatures = {}
    for name, method in (("ITGIS", itgis_run), ("MHIS", mhis_run)):
        errors = {
            temperature: statistics.mean(
                off(method(prior, output(t), args.calls, temperature, f"tuning {t}"), truth(t), math.log2(args.calls))
                for t in tuned_on
            )
            for temperature in TEMPERATURES
        }
        temperatures[name] = min(errors, key=lambda temperature: errors[temperature])
        print(f"{name}: mean error by temperature { ({t: round(e, 2) for t, e in errors.items()}) }", flush=True)

    rows = []
    for target in reported:
        context, runs = Context(before, after, (target,)), []
        for seed in range(args.seeds):
            label = f"{target} seed {seed}"
            runs.append({
                "naive": naive(prior, output(target), args.calls, label),
                "ITGIS": itgis_run(prior, output(target), args.calls, temperatures["ITGIS"], label),
                "MHIS": mhis_run(prior, output(target), args.calls, temperatures["MHIS"], label),
                "TEXT": text_run(model, prior, engine, context, args.calls, label),
            })  # fmt: skip
        name = model.tokenizer.decode([target])
        rows.append({"target": name, "truth_bits": truth(target), "runs": runs})
        shown = "; ".join(
            f"{kind} " + ", ".join(
                f"{'-' if run[kind]['estimate'] is None else format(run[kind]['estimate'], '.1f')}"
                f"<{'-' if run[kind]['upper'] is None else format(run[kind]['upper'], '.1f')}"
                for run in runs
            )
            for kind in NAMES
        )  # fmt: skip
        print(f"{name!r} {truth(target):.2f} bits: {shown}", flush=True)
    found = {"texts": count, "calls": args.calls, "seeds": args.seeds, "temperatures": temperatures, "rows": rows}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        kept = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps({**kept, f"{args.tokens} tokens": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
