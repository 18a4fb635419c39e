"""A suite: every behaviour on every model, each an ordinary run in a folder of its own, so the same call continues.

A run that is refused or fails is a row with its reason and never stops or leaves the others out. Knows nothing of how
a row looks.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

from leadline.behaviour import Behaviour
from leadline.gate import judge
from leadline.measurement import measure
from leadline.model import FrozenModel, load
from leadline.probe import recorded
from leadline.progress import Reporter
from leadline.records import default_folder, stored_spec
from leadline.report.scorecard import Scored
from leadline.spec import RunSpec, UserError
from leadline.suite_spec import Suite

FAILED, REFUSED, GATE_FAILED, NOT_BROKEN = 1, 2, 3, 4
"""Exit codes. No second call mends a gate that fails, so it goes before runs that failed or were refused."""


def run_folder(suite: Suite, folder: Path, model: str, behaviour: Behaviour) -> Path:
    """Where one run of the suite lies: a function of what is asked, as for `leadline measure` without --out."""
    asked = RunSpec(model=model, behaviour=behaviour.name, **suite.fields).model_dump(mode="json")
    return folder / default_folder(asked, behaviour.model_dump(mode="json")).name


def run(suite: Suite, folder: Path, reporter: Reporter, gate_bits: float | None = None) -> list[Scored]:
    """Measures what is not measured yet; one row a model and behaviour, in the order of the suite.

    gate_bits: X of a gate `distance >= X`; None for none. Every behaviour must have a distance then.
    Raises UserError where the folder is that of a run.
    """
    if (folder / "spec.json").is_file():
        how = "Give --out a folder that is no run: the suite's runs lie in it, and a page of all of them."
        raise UserError("This is the folder of a run", str(folder), how)
    rows: list[Scored] = []
    count = len(suite.models) * len(suite.behaviours)
    for model in suite.models:
        frozen: FrozenModel | None = None
        for behaviour in suite.behaviours:
            place = run_folder(suite, folder, model, behaviour)
            reporter.note(f"Run {len(rows) + 1} of {count}: {behaviour.name} on {model}")
            try:
                if frozen is None:
                    frozen = _loaded(suite, folder, model, reporter)
                result = measure(frozen, behaviour, place, reporter, **suite.fields)
                verdict = None if gate_bits is None else judge(result, gate_bits)
                rows.append(Scored(model, behaviour.name, place, "measured", "", result, verdict))
            except UserError as error:
                rows.append(Scored(model, behaviour.name, place, "refused", str(error)))
            except Exception as error:  # whatever it was, the other runs are worth having
                reporter.note(traceback.format_exc())
                rows.append(Scored(model, behaviour.name, place, "failed", f"{type(error).__name__}: {error}"))
            if rows[-1].reason:
                reporter.note(f"  {rows[-1].state}: {rows[-1].reason}")
    return rows


def exit_code(rows: Sequence[Scored], accept: str | None = None) -> int:
    """0 where every run was measured and every gate passed; else the code of the worst row.

    accept: "not-broken" counts a gate that neither passed nor failed as passed
    """
    answers = {row.verdict.answer for row in rows if row.verdict is not None}
    states = {row.state for row in rows}
    found = {
        GATE_FAILED: "fails" in answers,
        FAILED: "failed" in states,
        REFUSED: "refused" in states,
        NOT_BROKEN: "not broken" in answers and accept is None,
    }
    return next((code for code, so in found.items() if so), 0)


def _loaded(suite: Suite, folder: Path, model: str, reporter: Reporter) -> FrozenModel:
    """The model, computed with as its first run of this suite began: a probe that falls out otherwise today must not
    change the rest of the numbers."""
    reporter.stage(f"loading {model}")
    places = (run_folder(suite, folder, model, behaviour) for behaviour in suite.behaviours)
    stored = (recorded((stored_spec(place) or {}).get("provenance", {})) for place in places)
    compute = next((found for found in stored if found), None) or str(suite.fields.get("compute", "auto"))
    return load(model, compute, progress=lambda doing, share: reporter.progress(share, 1, doing))
