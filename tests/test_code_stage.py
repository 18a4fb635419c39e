"""CODE through measure(): K10 as a user meets it, the wired transformer's closed form on what was decoded, and the bits
of every other message that could have been written."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import leadline
from leadline import cli, plan
from leadline.behaviour import Behaviour
from leadline.code_stage import digest_of, point_in
from leadline.coder import CHECK_BYTES
from leadline.decoded import decoded
from leadline.estimators import encode, point_of
from leadline.estimators.message import CODE_PRIOR, TRIED
from leadline.information import size_weights
from leadline.model import FrozenModel
from leadline.records import read_arrays
from leadline.report.rows import bound_rows
from leadline.report.ways import message_lines
from leadline.result import Result
from leadline.selftest.wired import cosine_at, flip, wired_model
from leadline.sentences import difference_words
from leadline.spec import UserError
from rows_by_hand import cond, control, result, row

DIMENSIONS, DISTANCE = 48, 16.0
READ = [0, 2, *range(4, 36)]  # coordinates that the reply is read from; no context holds a token of them
DIRECTION = np.random.default_rng(0).standard_normal(len(READ))
DIRECTION /= np.linalg.norm(DIRECTION)
FILE = "behaviour-soft_prompt-1.bin"
ELSEWHERE = """
import sys
from pathlib import Path
import torch
from leadline.cli import main
from leadline.code_stage import point_in

print("threads", torch.get_num_threads())
print(*(float(value).hex() for value in point_in(Path(sys.argv[2]).read_bytes()).z))
main(["decode", sys.argv[1]])
"""


def wired(distance: float) -> FrozenModel:
    """K11 along a direction that is no axis: a coarse step rounds its many small coordinates away."""
    model = wired_model(DIMENSIONS, distance, context_tokens=4)
    values = model.network.model.layers[0].self_attn.v_proj.weight.data
    values[0] = 0.0
    values[0, READ] = torch.from_numpy(DIRECTION).float()
    return model


def turned() -> Behaviour:
    """`flip`, with contexts of other tokens."""
    fillers = [f"{sign}{index}" for sign in "pm" for index in range(36, DIMENSIONS)]
    contexts = tuple(f"{a} {b} p3 m1" for a in fillers for b in fillers)[:150]
    return flip(DIMENSIONS, 1).model_copy(update={"contexts": contexts})


def measured(folder: Path) -> Result:
    """A behaviour whose distance is known, in a family that reaches it and in one that cannot: on a random line no
    point is near enough to its direction."""
    return leadline.measure(
        str(folder.parent / "model"), turned(), folder, family="soft_prompt,soft_subspace", sizes=(1,),
        items=10, controls=0, prior_draws=64, draws=64, scale="ci",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    model = wired(DISTANCE)
    model.network.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    measured(folder / "run")
    return folder / "run"


def code_row(run: Path, family: str = "soft_prompt") -> dict:
    return Result.load(run).points.filter(estimator="CODE", family=family).row(0, named=True)


def flips(z: np.ndarray) -> bool:
    """The closed form of K11."""
    cosine = z[READ] @ DIRECTION / max(np.linalg.norm(z), 1e-9)
    return bool(cosine >= cosine_at(DISTANCE, DIMENSIONS))


def test_the_bound_is_the_length_of_the_file_without_its_check(run):
    found, file = code_row(run), run / "codes" / FILE
    assert found["upper_bits"] == 8 * (file.stat().st_size - CHECK_BYTES)
    assert (found["kind"], found["outcome"], found["score"]) == ("certified upper", "reached", 1.0)
    assert found["prior"].startswith(CODE_PRIOR)
    assert "N(mu, sigma^2)" in found["prior"]
    told = Result.load(run).message("soft_prompt")
    assert sum(bits for _, bits in told.upper.ledger) == told.upper.value == found["upper_bits"]
    assert (told.upper.low, told.upper.high) == (told.upper.value, told.upper.value)


def test_the_file_flips_the_reply_and_nothing_shorter_on_the_grid_does(run):
    """Enumeration of what could have been written: both solutions at every step, judged by the closed form."""
    z = point_in((run / "codes" / FILE).read_bytes()).z
    assert flips(z)
    means, points = [], Result.load(run).points
    bound = points.filter(estimator="COND", family="soft_prompt").row(0, named=True)
    chosen = points.filter(pl.col("beta").is_null(), family="soft_prompt", estimator="", split="test", chosen=True)
    for key in (bound["key"], chosen["key"].item()):
        arrays, _ = read_arrays(run / "cells" / key / "intervention.safetensors")
        means.append(arrays["mean"].ravel())
    every = [point_of(mean, exponent) for mean in means for exponent in TRIED]
    works = [8 * len(encode(point)) for point in every if flips(point.z)]
    assert len(works) < len(every), "a grid on which all works is no test of the choice"
    assert code_row(run)["upper_bits"] == min(works)


def test_k10_a_fresh_process_decodes_the_same_bits_and_the_same_score(run):
    file, ours = run / "codes" / FILE, torch.get_num_threads()
    theirs = str(ours % 2 + 1)
    environment = {**os.environ, "OMP_NUM_THREADS": theirs, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", ELSEWHERE, str(run), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, coordinates, *table = done.stdout.splitlines()
    assert first == f"threads {theirs}"
    assert "the same" in "".join(table)
    assert coordinates.split() == [float(value).hex() for value in point_in(file.read_bytes()).z]


def test_decode_uses_the_bytes_and_nothing_that_was_trained(run, monkeypatch):
    """Every trained parameter of the run is out of reach; the score still comes out, and it is the recorded one."""
    monkeypatch.setattr("leadline.records.read_arrays", lambda path: pytest.fail(f"{path} was read"))
    (line,) = decoded(run)
    assert (line.family, line.size, line.coordinates, line.who) == ("soft_prompt", 1, DIMENSIONS, "")
    assert 8 * line.num_bytes == code_row(run)["upper_bits"]
    assert line.holds
    assert line.score == line.recorded == 1.0


def test_where_no_message_reaches_the_threshold_there_is_an_outcome_and_no_bound(run):
    found = code_row(run, "soft_subspace")
    assert (found["outcome"], found["upper_bits"], found["score"]) == ("out of steps", None, None)
    assert Result.load(run).message("soft_subspace") is None
    assert [path.name for path in (run / "codes").iterdir()] == [FILE]


def test_the_prior_of_the_code_is_not_taken_for_that_of_the_family(run):
    """Without the rows of CODE every distance is what it was, and the report shows both numbers with their priors."""
    whole = Result.load(run)
    without = Result(whole.points.filter(pl.col("estimator") != "CODE"), whole.spec)
    assert whole.distance() == without.distance()
    assert whole.cheapest() == without.cheapest()
    assert bound_rows(whole) == bound_rows(without)
    (line,) = message_lines(whole)
    bits = whole.message("soft_prompt").upper.value
    assert line.endswith(f"so not the distance), bits: soft prompt {bits:.0f}.")
    assert message_lines(without) == []


def test_a_lost_record_is_made_again_to_the_same_bytes(run):
    """What a process leaves that was killed between file and record."""
    before, points = (run / "codes" / FILE).read_bytes(), Result.load(run).points
    (run / "cells" / code_row(run)["key"] / "record.json").unlink()
    (run / "codes" / FILE).write_bytes(b"half")
    again = measured(run)
    assert (run / "codes" / FILE).read_bytes() == before
    assert again.points.equals(points)


def test_a_file_that_was_changed_is_refused_and_a_score_that_differs_is_exit_code_1(run, capsys):
    file, record = run / "codes" / FILE, run / "cells" / code_row(run)["key"] / "record.json"
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match="not the one that the run wrote"):
        decoded(run)
    file.write_bytes(whole)
    assert json.loads(record.read_text())["code"]["z_sha256"] == digest_of(point_in(whole))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("leadline.code_stage.digest_of", lambda point: "others")
        with pytest.raises(SystemExit) as ended:
            cli.main(["decode", str(run)])
    assert ended.value.code == 1
    assert "OTHER BITS" in capsys.readouterr().out


def test_a_search_that_finds_nothing_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(1, 1, 1, 1, 8, 1, 8, 512))
    found = leadline.measure(
        wired(20.0), turned(), tmp_path / "run", sizes=(1,), items=10, controls=0, prior_draws=0, draws=64,
        scale="ci",
    )  # fmt: skip
    assert found.points.filter(estimator="CODE")["outcome"].to_list() == ["out of steps"]
    assert not (tmp_path / "run" / "codes").exists()


def test_delta_of_messages_is_a_difference_of_lengths():
    """By hand: 400 bits for the behaviour at size 1, and 480 and 520 for two matched controls there; the message at
    size 4 is shorter and pays nothing for its size, which it says itself. Two controls tell nothing of a search's luck.
    """
    code = {"estimator": "CODE", "kind": "certified upper", "prior": CODE_PRIOR}
    rows = [
        *cond(1, 60.0, 58.0), row(size=1, upper_bits=400.0, **code), row(size=4, upper_bits=392.0, **code),
        *(row(size=1, upper_bits=bits, **code, **control(name)) for name, bits in (("a", 480.0), ("b", 520.0))),
        row(size=1, **code, **control("c")),
    ]  # fmt: skip
    told = result(rows, controls=[{"name": name, "kind": "matched"} for name in "abc"]).message("soft_prompt")
    assert (told.upper.value, told.size, told.upper.prior) == (392.0, 4, CODE_PRIOR)
    assert (told.excess.value, told.excess.low, told.excess.high) == (100.0, -math.inf, math.inf)
    assert (told.rank, told.unreached_controls) == ((1, 4), 1)
    assert difference_words(told) == "100 bits less than phrases as unlikely at size 1, which may be luck"


def test_a_size_that_no_message_tells_is_paid_beside_it():
    """Latents of soft_edits have one shape at every size, so that one message decodes to two solutions."""
    code = {"family": "soft_edits", "estimator": "CODE", "kind": "certified upper", "prior": CODE_PRIOR}
    rows = [row(size=size, upper_bits=300.0, **code) for size in (1, 4)]
    told = result(rows, spec={"family": ["soft_edits"], "sizes": [1, 4]}).message("soft_edits")
    weight = size_weights([1, 4])[1]
    assert told.upper.value == pytest.approx(300.0 - math.log2(weight))
    assert told.upper.ledger[-1] == ("size choice", pytest.approx(-math.log2(weight)))
