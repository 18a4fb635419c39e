"""CELL through measure(): a box of the prior's quantiles as a file, on the wired transformer whose distance and whose
share of any box are known, decoded and drawn in again by another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import leadline
from leadline.cell_stage import box_in
from leadline.decoded import decoded
from leadline.estimators.code import draw
from leadline.information import clopper_pearson_lower, surprisal
from leadline.result import Result
from leadline.selftest.wired import cosine_at, flip, wired_model
from leadline.spec import UserError

DIMENSIONS, DISTANCE = 8, 5.0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    model = wired_model(DIMENSIONS, DISTANCE, context_tokens=4)
    model.network.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    leadline.measure(
        str(folder / "model"), flip(DIMENSIONS, 80), folder / "run", sizes=(1,), items=16, controls=1, draws=256,
        prior_draws=64, scale="ci",
    )  # fmt: skip
    return folder / "run"


def test_the_bound_is_the_cells_mass_and_the_share_of_it_that_works(run: Path) -> None:
    row = Result.load(run).points.filter(estimator="CELL").row(0, named=True)
    box = box_in((run / "codes" / "cell-soft_prompt-1.bin").read_bytes())
    assert row["upper_bits"] == pytest.approx(box.bits + surprisal(clopper_pearson_lower(row["p_hits"], 256)))
    assert DISTANCE <= row["upper_bits"] < DISTANCE + 4.0
    # the closed form of K11 on a hundred thousand other draws within the cell
    z = draw(box, np.random.default_rng(0).random((100_000, DIMENSIONS)))
    share = float((z[:, 0] >= cosine_at(DISTANCE, DIMENSIONS) * np.linalg.norm(z, axis=1)).mean())
    assert abs(row["p_hits"] / 256 - share) <= 4.0 * (share * (1.0 - share) / 256) ** 0.5
    assert box.bits - np.log2(share) >= DISTANCE - 1e-9


def test_it_is_counted_under_the_priors_own_measure_and_beside_the_distance(run: Path) -> None:
    result = Result.load(run)
    row = result.points.filter(estimator="CELL").row(0, named=True)
    assert (row["kind"], row["prior"]) == ("certified upper", "N(mu, sigma^2) of the vocabulary, per dimension")
    assert result.distance().upper.estimator != "CELL"
    assert result.points.filter(estimator="CELL")["control"].to_list() == [""], "of the behaviour alone"


def test_another_process_decodes_the_same_cell_and_finds_the_same_hits(run: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", "from leadline.cli import main; main()", "decode", str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "cell-soft_prompt-1.bin" in line)
    row = Result.load(run).points.filter(estimator="CELL").row(0, named=True)
    assert line.split()[-4:] == ["cell", f"{row['p_hits'] / 256:.3f}", "the", "same"]


def test_a_file_that_was_changed_is_refused(run: Path) -> None:
    path = run / "codes" / "cell-soft_prompt-1.bin"
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(UserError, match="not the one that the run wrote"):
            decoded(run)
    finally:
        path.write_bytes(before)
