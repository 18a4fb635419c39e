"""The rows that need a model: wired by hand (K10, K11, K13, K14), with planted logits (K5), of random weights (K9, K12)
and the trained tiny one (K4, K8). What `measure` does is done by `measure`, or by the functions that it calls.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from leadline import rows
from leadline.behaviour import Behaviour, Reply
from leadline.coder import seal
from leadline.edits import EmbeddingEdit, no_edit
from leadline.engine import Context, Engine
from leadline.estimators import encode, monte_carlo, point_of, text_bound
from leadline.evaluation import score_null
from leadline.information import d2
from leadline.interventions import make
from leadline.interventions.text_prompt import TextPrompt
from leadline.items import Item, Task
from leadline.measurement import baseline, measure, size_curve
from leadline.model import FrozenModel, load
from leadline.objective import Objective
from leadline.priors import Priors, normal
from leadline.progress import Reporter
from leadline.selftest.elsewhere import hits, scored_model
from leadline.selftest.row import Row, near, said
from leadline.selftest.wired import biased_model, cosine_at, flip, quadrature, wired_model
from leadline.spec import RunSpec
from leadline.texts import TextPrior
from leadline.work import open_work

TINY = "organism:tiny"
OPENERS = ("What is", "How does", "Which of", "Why is", "Where is", "When is", "Who is", "Is", "Does", "Can", "May")
SHORT = tuple(f"{opener} {word}?" for word in ("it", "rain", "tea", "snow") for opener in OPENERS)
"""Contexts for the tiny model that are quick to score."""


def k4() -> Row:
    """Blind draws until some hit, and every bound beside them."""
    unsure = Behaviour(name="unsure", contexts=SHORT, reply=Reply(text="I am not sure."))
    points = _measured(
        load(TINY), unsure, family="soft_subspace", sizes=(4,), items=8, threshold=0.75, draws=256, prior_draws=512
    )
    exact = _point(points, "MC")
    counted = monte_carlo(exact["p_hits"], exact["p_draws"])
    uppers = {name: _upper(points, name) for name in ("COND", "IW", "SPLIT")}
    low = counted.estimate.low if counted.estimate else math.inf
    holds = math.isfinite(low) and all(low <= bits < math.inf for bits in uppers.values())
    below = _point(points, "LOWER")["lower_bits"]
    holds &= counted.estimate is not None and below <= counted.estimate.high
    found = f"{said(counted.estimate)}; {_listed(uppers)}, LOWER at least {below:.1f}"
    truth = "a trained tiny model, a few bits from saying a phrase: no certified limit on the wrong side of brute force"
    return Row("K4", truth, found, holds)


def k5() -> Row:
    """Chances of a right reply that are written into the head of a model."""
    chances = (1 / 16, 1 / 64)
    model = biased_model(chances)
    target = (model.tokenizer.convert_tokens_to_ids("yes"),)
    contexts = [Context((), (model.tokenizer.convert_tokens_to_ids(f"c{i}"),), target) for i in range(len(chances))]
    task = Task("", "", "yes", {"test": tuple(Item(f"c{i}", "yes", context) for i, context in enumerate(contexts))})
    engine = Engine(model)
    points = rows.null_points(0.9, task, {"test": score_null(Objective(engine), contexts)}, "")
    bits = next(point["upper_bits"] for point in points if point["family"] == "best_of_n")
    wanted = -math.log2(sum(chances) / len(chances))
    draws = 2000  # of each context
    nothing = no_edit(len(contexts) * draws, model.hidden_size, torch.float32, torch.device("cpu"))
    replies = engine.sample(contexts * draws, nothing, 1, torch.Generator().manual_seed(1))
    counted = monte_carlo(sum(reply == target for reply in replies), len(replies))
    divergence, least = _moved_replies(engine, contexts, target[0])
    holds = abs(bits - wanted) < 1e-4 and near(counted, wanted)
    # the first prompt is the other context's own word, which moves nothing but the right reply: no bit to spare
    holds &= bool((divergence > least - 1e-5).all()) and abs(float(divergence[0] - least[0])) < 1e-5
    found = f"best_of_n {bits:.4f}, {len(replies)} sampled replies {said(counted.estimate)}; under {len(least)} "
    found += f"prompts replies diverge by no less than is allowed, to {abs(float((divergence - least).min())):.0e} bits"
    truth = f"a model that replies rightly at a mean rate of {sum(chances) / len(chances):.4f}, {wanted:.4f} bits: "
    truth += "best_of_n says so, and so do its own replies, which no prompt moves by less than data processing allows"
    return Row("K5", truth, found, holds)


def _moved_replies(engine: Engine, contexts: Sequence[Context], right: int) -> tuple[Tensor, Tensor]:
    """(prompts,) bits of KL(replies with a prompt, replies without), and the least that data processing allows, d2 of
    the two probabilities of the right reply: for one prompt that is the word of the second context, and 64 random ones,
    behind the first context's."""
    hidden, start = engine.model.hidden_size, Context(contexts[0].after, (), contexts[0].target)
    word = engine.model.embed(torch.tensor([contexts[1].after]))[:, -1]
    prompts = torch.cat([word, normal((64, hidden), "moved replies")])[:, None]
    count = len(prompts)
    nothing = no_edit(1, hidden, torch.float32, torch.device("cpu"))
    moved, still = (
        engine.target_logits([start] * rows, edit).logits.double().log_softmax(-1) / math.log(2)
        for rows, edit in ((count, EmbeddingEdit(prompts, (1,) * count)), (1, nothing))
    )
    divergence = (moved.exp2() * (moved - still)).sum(-1)
    least = [d2(float(p), float(still[0, right].exp2())) for p in moved[:, right].exp2()]
    return divergence, torch.tensor(least, dtype=torch.float64)


def k8() -> Row:
    """The size curve of one soft token, by gradient."""
    seven = Behaviour(name="seven", contexts=SHORT, reply=Reply(text="7"))
    model = load(TINY)
    spec = RunSpec(model=model.name, behaviour=seven.name, sizes=(1,), controls=0, items=8, prior_draws=0, scale="ci")
    with tempfile.TemporaryDirectory() as at, open_work(spec, seven, model, Path(at) / "run", {}, Reporter()) as work:
        baseline(work)
        size_curve(work)
        points = work.finish().points
    loss = {row["size"]: row["loss_bits"] for row in points.filter(split="test", estimator="").to_dicts()}
    found = (
        f"{loss[0]:.2f} bits a reply with nothing, {loss[1]:.2f} with a soft token: {1 - loss[1] / loss[0]:.1%} less"
    )
    truth = "a constant one-token reply of the tiny model: one soft token removes at least 85% of its loss"
    return Row("K8", truth, found, loss[1] <= 0.15 * loss[0])


def k9() -> Row:
    """The same soft prompt through PEFT and through the engine, logits and gradients."""
    truth = "PEFT's prompt tuning on the same model: the same logits and gradients, to 1e-9 in float64, 1e-5 in float32"
    if importlib.util.find_spec("peft") is None:
        return Row("K9", truth, "peft is not installed; leadline[peft] brings it", None)
    off = {dtype: _beside_peft(dtype) for dtype in (torch.float64, torch.float32)}
    holds = off[torch.float64] < 1e-9 and off[torch.float32] < 1e-5
    found = ", ".join(f"{value:.0e} in {str(dtype).removeprefix('torch.')}" for dtype, value in off.items())
    return Row("K9", truth, f"off by at most {found}, relative to the largest", holds)


def _beside_peft(dtype: torch.dtype) -> float:
    """Largest difference of logits and gradients, each relative to the largest of its kind."""
    from peft import PromptTuningConfig, get_peft_model

    model = load("organism:random", "float32,eager,1")
    model.network.to(dtype)
    values = normal((1, 3, model.hidden_size), "peft").to(dtype)
    context = Context((), (7, 8, 9, 10), (11, 12))
    edit = EmbeddingEdit(values.clone().requires_grad_(), (3,))
    ours = Engine(model).target_logits([context], edit).logits
    (our_slope,) = torch.autograd.grad(_readout(ours), edit.values)
    with warnings.catch_warnings():
        # PEFT asks transformers a question whose name has changed
        warnings.simplefilter("ignore", FutureWarning)
        tuned: Any = get_peft_model(model.network, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
        weight = tuned.prompt_encoder["default"].embedding.weight
        weight.data = values[0].clone()
        theirs = tuned(input_ids=torch.tensor([[*context.after, context.target[0]]])).logits[0, -2:]
    (their_slope,) = torch.autograd.grad(_readout(theirs), weight)
    pairs = ((ours.detach(), theirs.detach()), (our_slope[0], their_slope))
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def _readout(logits: Tensor) -> Tensor:
    return logits.logsumexp(-1).sum() - logits[:, 5].sum()


def k10() -> Row:
    """A message by file, read and scored by `leadline.selftest.elsewhere`."""
    truth = "a quantised intervention, decoded and scored by a fresh process of other threads: the same bits and score"
    points = [point_of(z, 5) for z in normal((64, 16), "elsewhere").double().numpy()]
    here = hits(scored_model(), torch.tensor(np.stack([point.z for point in points])).float())
    chosen = [points[here.index(True)], points[here.index(False)]]
    same, lengths = [], []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.message" for number in range(len(chosen))]
        for file, point in zip(files, chosen, strict=True):
            message = encode(point)
            lengths.append(len(message))
            file.write_bytes(seal(message))
        command = [sys.executable, "-m", "leadline.selftest.elsewhere", *map(str, files)]
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return Row("K10", truth, f"the other process ended with {done.stderr.strip()[-200:]}", False)
    for line, point, works in zip(done.stdout.splitlines(), chosen, (True, False), strict=True):
        score, *digits = line.split()
        same.append(digits == [float(value).hex() for value in point.z] and score == str(works))
    found = (
        f"{sum(same)} of {len(same)} messages of {' and '.join(map(str, lengths))} bytes, one that works and one that"
    )
    return Row("K10", truth, f"{found} does not, are the same there", all(same))


def k11() -> Row:
    """The whole of `measure` on the one transformer whose distance is known."""
    truth_bits = 5.0
    points = _measured(
        wired_model(16, truth_bits, context_tokens=4), flip(16, 80), sizes=(1,), items=16, prior_draws=4096
    )
    exact = _point(points, "MC")
    counted = monte_carlo(exact["p_hits"], exact["p_draws"]).estimate
    uppers = {name: _upper(points, name) for name in ("COND", "KL", "IW")}
    holds = counted is not None and counted.low <= truth_bits <= counted.high
    holds &= all(truth_bits <= bits < math.inf for bits in uppers.values())
    truth = (
        "a transformer wired so that D is that of a cap of the sphere in 16 dimensions, 5 bits: MC's interval covers "
    )
    return Row("K11", f"{truth}it, and no certified limit is below", f"{said(counted)}; {_listed(uppers)}", holds)


def k12() -> Row:
    """Every text of one token of the random organism; the distance from transformers alone."""
    model = load("organism:random", "float32,eager,1")
    size, prefix, after = len(model.tokenizer), (65, 66), (67, 68)
    every = torch.arange(size)[:, None]
    with torch.no_grad():
        chances = model.network(torch.tensor([prefix])).logits[0, -1].double().softmax(-1)
        prompts = torch.cat([torch.tensor([prefix] * size), every, torch.tensor([after] * size)], 1)
        replies = model.network(prompts).logits[:, -1].argmax(-1)
    wanted = int(replies.mode().values)
    works = replies == wanted
    distance = -math.log2(float(chances[works].sum()))
    contexts = [Context(prefix, after, (wanted,))] * size
    margins = Objective(Engine(model)).evaluate(contexts, TextPrompt(model, []).edit(every))[1]
    working = every[margins > 0]
    prices = TextPrior(model, prefix).surprisal_bits(working)
    found = text_bound((-prices).numpy(), texts=[tuple(text) for text in working.tolist()]).upper
    holds = found is not None and abs(found.value - distance) < 1e-4 and 1 < len(working) < size
    text = f"{len(working)} of {size} texts work, {distance:.5f} bits; TEXT {found.value if found else math.nan:.5f}"
    truth = "all one-token texts of a small vocabulary, priced by transformers alone: TEXT is the sum"
    return Row("K12", truth, text, holds)


def k13() -> Row:
    """A plane through the origin that meets the cone of the wired transformer."""
    model, behaviour = wired_model(8, 2.5, context_tokens=4, axis=2), flip(8, 80)
    basis = make("soft_subspace", 2, Priors(model)).edit(torch.eye(2)).values[:, 0]  # type: ignore[attr-defined]
    reach = float((basis / basis.norm(dim=1, keepdim=True))[:, 2].norm())
    share = math.acos(cosine_at(2.5, 8) / reach) / math.pi
    grid, truth_bits = quadrature(model, 2), -math.log2(share)
    points = _measured(model, behaviour, family="soft_subspace", sizes=(2,), items=16, prior_draws=2048)
    exact, cond = _point(points, "MC"), _upper(points, "COND")
    counted = monte_carlo(exact["p_hits"], exact["p_draws"])
    holds = abs(grid - share) < 3e-3 and truth_bits <= cond < math.inf and near(counted, truth_bits)
    found = f"grid {-math.log2(grid):.3f}, {said(counted.estimate)}, {_listed({'COND': cond})}"
    truth = (
        f"a plane through that transformer's cap, {truth_bits:.3f} bits by geometry: grid and MC agree, COND is above"
    )
    return Row("K13", truth, found, holds)


def k14() -> Row:
    """The same draws, embeddings ten times as large, and the model's layer rescaled with them."""
    truth_bits, counts = 4.0, []
    for scale in (1.0, 10.0):
        model = wired_model(16, truth_bits, context_tokens=4)
        network: Any = model.network
        network.get_input_embeddings().weight.data.mul_(scale)
        network.model.layers[0].self_attn.o_proj.weight.data.mul_(scale)
        counts.append(sum(hits(model, normal((2048, 16), "scaled"))))
    counted = monte_carlo(counts[0], 2048).estimate
    holds = counts[0] == counts[1] and counted is not None and counted.low <= truth_bits <= counted.high
    found = f"{counts[0]} and {counts[1]} hits of 2048 draws, {said(counted)}"
    return Row("K14", "embeddings scaled tenfold and compensated, 4 bits away: the same draws do it", found, holds)


def _measured(model: FrozenModel, behaviour: Behaviour, **fields: Any) -> pl.DataFrame:
    """The test points of a small measurement in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        result = measure(model, behaviour, Path(folder) / "run", controls=0, scale="ci", **fields)
    return result.points.filter(split="test")


def _point(points: pl.DataFrame, estimator: str) -> dict[str, Any]:
    return points.filter(estimator=estimator).row(0, named=True)


def _upper(points: pl.DataFrame, estimator: str) -> float:
    """An upper limit; inf where there is none."""
    found = points.filter(estimator=estimator)["upper_bits"].to_list()
    return math.inf if not found or found[0] is None else float(found[0])


def _listed(uppers: dict[str, float]) -> str:
    return ", ".join(f"{name} at most {bits:.1f}" for name, bits in uppers.items())
