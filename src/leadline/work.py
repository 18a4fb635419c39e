"""Work: one open measurement - its run directory, model, items, and what is finished so far.

The stages in `measure` read and write through it. It knows where things are kept and what they are keyed by, not what
is measured.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from leadline import rows
from leadline.behaviour import Behaviour
from leadline.carried import carried, left_out_lines
from leadline.checkpoint import Checkpoint
from leadline.distances import told
from leadline.edits import Edit, EmbeddingEdit, no_edit
from leadline.engine import Context, Engine, shared_prefix
from leadline.evaluation import score_draws
from leadline.information import luck_ceiling
from leadline.interventions.base import Intervention, Writes, edit
from leadline.items import SPLITS, Item, Task, from_json, prepare, to_json
from leadline.model import FrozenModel
from leadline.objective import Objective, objective_for
from leadline.pathfinding import tally
from leadline.places import made
from leadline.plan import Cell, Seen
from leadline.priors import Priors
from leadline.progress import Reporter
from leadline.provenance import WITH, made_with, provenance
from leadline.records import DISTANCES, Arrays, Run, differing, digest, open_run
from leadline.result import Result
from leadline.rewarded import SAMPLES, Judged, margins
from leadline.solvers.base import Parameters
from leadline.spec import ANCHORED, RunSpec, UserError

REPLY_TOKENS = 48  # of a sample reply, at least


class Work:
    """One open measurement. Use `open_work`."""

    def __init__(self, run: Run, spec: RunSpec, behaviour: Behaviour, model: FrozenModel, reporter: Reporter) -> None:
        self.run, self.behaviour, self.model, self.reporter = run, behaviour, model, reporter
        asked = [spec.model_dump(mode="json"), behaviour.model_dump(mode="json")]
        compute = [model.compute.dtype, model.compute.attention, model.compute.threads]
        self.hash = digest([*asked, compute, made_with(spec, model)])
        self._interventions: dict[tuple[Any, ...], Intervention] = {}
        self.priors = Priors(model)
        reporter.stage("families and their priors")
        # What was asked for is hashed and stored; what of it can be measured is what the stages see.
        self.spec, self._left_out = carried(model, behaviour, spec, self.priors)
        for line in left_out_lines(self._left_out):
            reporter.note(line)
        self.tasks = self._prepare()
        contexts = [c for task in self.tasks for split in SPLITS for c in task.contexts(split)]
        self.engine = Engine(model, shared_prefix(contexts))
        self.objective = objective_for(self.engine)
        self.judged: dict[str, Judged] = {}  # by task, of a reward: `reward_stage` fills it
        self.batch_of: dict[str, str] = {}
        self.priced: Any = None  # the model's own text at the slot (`text_stage.text_prior`)
        self.extra: dict[str, Any] = {}
        self._cells: dict[str, Cell] = {}
        self._chosen: set[str] = set()
        self._keys: dict[str, None] = {}

    def _prepare(self) -> list[Task]:
        stored = self.run.read_json("items.json")
        if stored is not None and stored["hash"] == self.hash:  # else of a spec that was never begun
            return from_json(stored["tasks"])
        self.reporter.stage("items and controls")
        tasks = prepare(
            self.model, self.behaviour, self.spec, lambda what, share: self.reporter.progress(share, 1, what)
        )
        self.run.write_json("items.json", {"hash": self.hash, "tasks": to_json(tasks)})
        return tasks

    def key(self, *labels: str) -> str:
        """The key of a record that is no trained cell."""
        return digest([self.hash, *labels])

    def cell_key(self, cell: Cell) -> str:
        """A trained cell's key: it hashes the run and the cell's batch, whose other rows change its last digits."""
        return digest([self.hash, self.batch_of.get(cell.label, ""), cell.label])

    def done(self, key: str) -> bool:
        """Whether this record is finished; from here on it is part of the run's points."""
        found = self.run.cell(key) is not None
        if found:
            self._keys[key] = None
        return found

    def write(self, key: str, record: dict[str, Any], arrays: Arrays | None = None, samples: Any = None) -> None:
        """Stores a finished record."""
        if self.judged:
            record = {**record, "points": rows.without_costs(record["points"]), "costs": {}}
        self.run.write_cell(key, record, arrays, samples)
        self.run.event("cell", key=key)
        self._keys[key] = None
        self.reporter.recorded(record["points"], len(self._keys))

    def enter(self, batch: str, cells: Sequence[Cell]) -> None:
        """Says which batch these cells belong to."""
        for cell in cells:
            self.batch_of[cell.label] = batch
            self._cells[cell.label] = cell

    def about(self, cell: Cell, key: str = "") -> dict[str, Any]:
        """The columns that all points of a cell share."""
        return {
            "family": cell.family, "size": cell.size, "seed": cell.seed, "control": cell.task, "beta": cell.beta,
            "role": "control" if cell.task else "behaviour", "prior": self.intervention(cell).prior,
            "component_bits": self.intervention(cell).component_bits or None,
            "batch": self.batch_of.get(cell.label, ""), "key": key or self.cell_key(cell),
        }  # fmt: skip

    def task(self, name: str) -> Task:
        """The behaviour ("") or a control."""
        return next(task for task in self.tasks if task.name == name)

    def intervention(self, cell: Cell) -> Intervention:
        """What a cell trains, or for seed -1 what draws of the prior are."""
        if cell.part not in self._interventions:
            if cell.family in ANCHORED and cell.seed >= 0:
                raise RuntimeError(f"nobody said where {cell.label} stands")
            self._interventions[cell.part] = made(cell.family, cell.size, self.priors, self.behaviour)
        return self._interventions[cell.part]

    def place(self, cell: Cell, intervention: Intervention) -> None:
        """Says what a cell trains, where its restart has an intervention of its own."""
        self._interventions[cell.part] = intervention

    def trained(self, label: str) -> Parameters:
        """The parameters of a finished cell, by its label."""
        key = self.cell_key(self._cells[label])
        found = self.run.read_arrays(f"cells/{key}/intervention.safetensors")
        if found is None:
            raise UserError(
                "A finished cell has lost its parameters", f"cells/{key}", "Delete this folder and run again."
            )
        return {name: torch.from_numpy(value.copy()).to(self.model.device) for name, value in found[0].items()}

    def validation(self, cell: Cell) -> dict[str, Any]:
        """A trained cell's point on validation items."""
        record = self.run.cell(self.cell_key(cell)) or {"points": []}
        row: dict[str, Any] = next(row for row in record["points"] if row["split"] == "validation")
        return row

    def seen(self, cell: Cell) -> Seen:
        """What bisection looks at. Non-finite cells count as far from reaching."""
        row = self.validation(cell)
        lost = row["outcome"] == "non-finite" or row["kl_bits"] is None or row["kl_bits"] != row["kl_bits"]
        kl_bits = float("inf") if lost else row["kl_bits"]
        return Seen(cell, 0.0 if lost else row["score"] or 0.0, kl_bits, row["component_bits"] or 0.0)

    def choose(self, cell: Cell) -> None:
        """This cell's test rows are the reported ones."""
        self._chosen.add(self.cell_key(cell))

    def choose_key(self, key: str) -> None:
        """As `choose`, for a record that is no trained cell."""
        self._chosen.add(key)

    @property
    def tau(self) -> float | None:
        """The threshold of exact matches or hits; None for a behaviour that has a loss alone."""
        return self.spec.threshold if self.behaviour.scored != "loss" else None

    def objective_of(self, task: str) -> Objective:
        """What a task is scored by: targets are all scored by one objective, rewards each by their own."""
        judged = self.judged.get(task)
        if judged is None:
            return self.objective
        items = {(i.context.before, i.context.after): i for part in self.task(task).items.values() for i in part}

        def rewarded(contexts: Sequence[Context], change: Edit) -> Tensor:
            asked = [items[context.before, context.after] for context in contexts]
            return margins(self.engine, asked, change, judged)

        return Objective(self.engine, rewarded=rewarded)

    def size_0_key(self, task: str, family: str) -> str:
        """The key of the size 0 that a family has of its own, if it is one of those that begin at a deployed prompt."""
        return self.key("size 0", task, family)

    def size_0_costs(self, task: str, family: str, split: str) -> list[float]:
        """What each item costs at a family's size 0, in bits: with nothing in the slot, unless the family has a size 0
        of its own. Empty for a split that was not looked at."""
        own = self.run.cell(self.size_0_key(task, family))
        record = own or self.run.cell(self.key("null", task)) or {"costs": {}}
        return [float(bits) for bits in record["costs"].get(split, [])]

    def no_edit(self, rows: int) -> EmbeddingEdit:
        """The null intervention."""
        return no_edit(rows, self.model.hidden_size, self.model.network.dtype, self.model.device)

    def scored(self, key: str, title: str, task: str, split: str, writes: Writes, latents: Tensor) -> Tensor:
        """(draws, items) margins of latents, or of texts as tokens, on one split of a task; a killed process continues
        where it stopped. key: of the record that they are for"""
        checkpoint = Checkpoint(self.run, digest([self.hash, key, split]), self.reporter)
        self.reporter.stage(title)
        contexts, start = self.task(task).contexts(split), checkpoint.restore_margins()
        objective, threshold = self.objective_of(task), self.spec.threshold
        found = score_draws(objective, contexts, writes, latents, threshold, start, checkpoint.margins)
        checkpoint.margins(found, now=True)
        return found

    def samples(
        self, task: str, split: str, count: int, writes: Writes | None = None, latents: Tensor | None = None
    ) -> list[dict[str, Any]]:
        """Greedy free-running replies on some items, for people to read: item i under the i-th of the latents, if
        any."""
        items = self.task(task).items[split][:count]
        decode = self.model.tokenizer.decode
        return [
            {"item": number, "split": split, "draw": 0, "prompt": item.prompt, "reply": decode(list(reply)),
             "target": item.target, "hit": self._hit(task, item, reply)}
            for number, (item, reply) in enumerate(zip(items, self._greedy(items, writes, latents), strict=True))
        ]  # fmt: skip

    def _hit(self, task: str, item: Item, reply: tuple[int, ...]) -> bool:
        if task not in self.judged:
            return reply[: len(item.context.target)] == item.context.target
        said = self.model.tokenizer.decode(list(reply), skip_special_tokens=True)
        return self.judged[task].margin(self.judged[task].scorer(item.prompt, said)) > 0

    def boards(
        self, task: str, name: str, writes: Writes | None = None, latents: Tensor | None = None
    ) -> dict[str, Any]:
        """What a record tells of the boards of the test items that greedy replies solve, under a name; nothing of
        controls, nor where the behaviour does not ask for it."""
        if self.behaviour.counted != "boards" or task:
            return {}
        items = self.task(task).items["test"]
        decode = self.model.tokenizer.decode
        replies = [decode(list(reply), skip_special_tokens=True) for reply in self._greedy(items, writes, latents)]
        return {"boards": {name: tally([item.prompt for item in items], [item.target for item in items], replies)}}

    def _greedy(self, items: Sequence[Item], writes: Writes | None, latents: Tensor | None) -> list[tuple[int, ...]]:
        """The tokens of greedy free-running replies, item i under the i-th of the latents, if any."""
        contexts = [item.context for item in items]
        written: Edit = self.no_edit(len(items))
        if latents is not None and writes is not None:
            with torch.no_grad():
                written = edit([writes], [latents[: len(items)]], [context.conditions for context in contexts])
        longest = max(REPLY_TOKENS, *(len(context.target) for context in contexts))
        reward = self.behaviour.reward
        return self.engine.generate(contexts, written, reward.tokens if reward is not None else longest)

    def flops(self, task: Task, trained: int, scored: int = 0, change: Edit | None = None) -> float:
        """Floating point operations of so many sequences with a backward pass and without: 2 forward and 2 backward for
        each parameter and token, since the weights take no gradient. change: one row's edit, whose own tokens are run
        as well; none by default"""
        change = change if change is not None else self.no_edit(1)
        lengths = [len(c.before) + len(c.after) + len(c.target) for c in task.contexts("train")]
        if reward := self.behaviour.reward:  # replies are written, which is forward alone, and then trained on
            trained, lengths = trained * SAMPLES * 3 // 2, [length + reward.tokens for length in lengths]
        tokens = sum(lengths) / len(lengths) + change.lengths[0] - self.engine.skipped(change)
        return self.model.num_parameters * tokens * (4.0 * trained + 2.0 * scored)

    def spent(self, cell: Cell) -> float:
        """Floating point operations of all the training that a cell stands on: its own, that of the cells it goes on
        from, and the search for the text that it stands around."""
        points = (self.run.cell(self.cell_key(cell)) or {"points": []})["points"]
        own = float(points[0]["flops"]) if points else 0.0
        if cell.parent:
            return own + self.spent(self._cells[cell.parent])
        return own + float((self.run.cell(self.anchor_key(cell)) or {"flops": 0.0})["flops"])

    def anchor_key(self, cell: Cell) -> str:
        """The key of the record that says which text a cell's restart stands around."""
        return self.key("anchor", Cell(cell.task, cell.family, cell.size, cell.seed, None).label)

    def save_points(self) -> pl.DataFrame:
        """points.parquet from all records so far."""
        frame = self.run.write_points(self._keys, self._chosen)
        if frame.is_empty():
            raise RuntimeError("a run without points")
        return frame

    def _luck(self) -> dict[str, Any]:
        """What guards against luck: how often chosen draws pass a second split, and how far luck alone would carry."""
        records = [record for key in self._keys if (record := self.run.cell(key)) is not None]
        confirmed: dict[str, Any] = {}
        for record in records:
            confirmed |= record.get("confirmation", {})
        # Of the family that is reported: what a draw of another does by chance says nothing of it. A size at a time.
        reported = self.spec.family[0]
        trials = [
            record["prior_items"] for record in records
            if "prior_items" in record and record["points"][0]["family"] == reported
        ]  # fmt: skip
        found: dict[str, Any] = {"confirmation": confirmed}
        if trials:
            rate = max((right / tried for right, tried in trials if tried), default=0.0)
            ceiling = luck_ceiling(self.spec.items, self.spec.threshold, rate).value
            found |= {"prior_item_rate": rate, "luck_ceiling_bits": ceiling if math.isfinite(ceiling) else None}
        return found

    def _gathered(self) -> dict[str, Any]:
        """What single records tell of the run: how many boards greedy replies solve, by family and size, and whether
        the importance weights of a certified cell may be averaged, by curve."""
        found: dict[str, Any] = {}
        for record in filter(None, map(self.run.cell, self._keys)):
            for name in ("boards", "weights"):
                if name in record:
                    found[name] = found.get(name, {}) | record[name]
        return found

    def left_out(self) -> dict[str, Any]:
        """What of the families that were asked for cannot be measured, and why."""
        return {"not_measured": self._left_out} if self._left_out else {}

    def finish(self) -> Result:
        """Writes what belongs to the whole run, drops the checkpoints, and returns the result."""
        stored: dict[str, Any] = self.run.read_json("spec.json") or {}
        for control in stored["controls"]:
            rows = (self.run.cell(self.key("null", control["name"])) or {"points": []})["points"]
            control["direct_bits"] = next((row["upper_bits"] for row in rows if row["family"] == "prefill"), None)
        stored["extra"] = {**self.extra, **self._luck(), **self._gathered(), **self.left_out()}
        # Numbers as they are said today stay beside the points that a later version may read otherwise.
        self.run.write_json(DISTANCES, told(Result(self.save_points(), stored)))
        stored["finished"] = stored.get("finished") or datetime.now(UTC).isoformat(timespec="seconds")
        # Before the run says that it is finished: nothing would clear them away afterwards.
        shutil.rmtree(self.run.folder / "batches", ignore_errors=True)
        self.run.write_json("spec.json", stored)
        self.run.event("finished")
        return Result.load(self.run.folder)


@contextmanager
def open_work(
    spec: RunSpec, behaviour: Behaviour, model: FrozenModel, folder: Path, passed: dict[str, Any], reporter: Reporter
) -> Iterator[Work]:
    """Opens the run directory of a spec, or continues it. Raises UserError where it belongs to another spec."""
    run, threads = open_run(folder), torch.get_num_threads()
    torch.set_num_threads(model.threads_of_one_pass)
    try:
        wanted = {"spec": spec.model_dump(mode="json"), "behaviour_spec": behaviour.model_dump(mode="json")}
        stored = run.read_json("spec.json")
        if stored is not None and (other := differing(stored, wanted)):
            what = f"This run directory belongs to another measurement: it has another {other}"
            raise UserError(what, str(folder), "Give another --out DIR.")
        began = stored["provenance"] if stored is not None else {}
        for name, value in made_with(spec, model).items():
            if began and began.get(name) != value:
                what = f"This run began with another {WITH[name]}, and its numbers would not be of one kind"
                raise UserError(what, str(folder), "Give another --out DIR, or go back to what it began with.")
        try:
            work = Work(run, spec, behaviour, model, reporter)
        except UserError:
            run.abandon()
            raise
        if stored is None:
            run.write_json(
                "spec.json", {**wanted, "passed": passed, **_about(work), "extra": work.left_out(), "hash": work.hash}
            )
        run.event("opened", threads=torch.get_num_threads())
        yield work
    finally:
        torch.set_num_threads(threads)
        run.close()


def _about(work: Work) -> dict[str, Any]:
    """Provenance, and what was measured in words."""
    main = work.tasks[0]
    return {
        "provenance": {
            **provenance(work.spec, work.model), "slot": work.behaviour.slot,
            "shared_prefix_tokens": len(work.engine.shared),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "behaviour": {
            "name": work.behaviour.name, "description": work.behaviour.description, "target": main.target,
            "slot": work.behaviour.slot, "kind": work.behaviour.scored,
            "splits": {split: len(main.items[split]) for split in SPLITS},
            "target_tokens": len(main.items["test"][0].context.target),
        },
        # what a size costs depends on which others were asked for: the run's own, and not a later version's defaults
        "sizes": {family: work.spec.sizes_of(family) for family in work.spec.family},
        "controls": [
            {"name": task.name, "kind": task.kind, "target": task.target, "direct_bits": None}
            for task in work.tasks[1:]
        ],
    }  # fmt: skip
