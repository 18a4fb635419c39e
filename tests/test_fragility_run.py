"""`leadline fragility` on a run of the wired transformer, whose noise, stream and Hessian are known, what it prints,
writes and refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

import leadline
from commands import call, refused, save, small_run
from leadline import fragility_run
from leadline.engine import Engine
from leadline.fragility import NOISE_GRID, PASSING
from leadline.interventions import make
from leadline.items import from_json
from leadline.model import load
from leadline.priors import Priors
from leadline.progress import Reporter
from leadline.records import FRAGILITY, Run, read_arrays, read_record, stored_tasks
from leadline.report import write_page
from leadline.result import Result
from leadline.selftest.wired import cosine_at, flip, wired_model

DIMS, BITS = 8, 5.0


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the wired transformer, and its fragility from 200 draws."""
    folder = tmp_path_factory.mktemp("wired")
    model = wired_model(DIMS, BITS, context_tokens=4)
    save(folder / "model", model.network, model.tokenizer)
    leadline.measure(
        str(folder / "model"), flip(DIMS, 80), folder / "run", sizes=(1,), controls=0, items=4, draws=64, prior_draws=0,
        scale="ci",
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        leadline.cli.main(["fragility", str(folder / "run"), "--draws", "200"])
    assert not ended.value.code
    return folder / "run"


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps on random weights, with two controls."""
    return small_run(tmp_path_factory.mktemp("random") / "run", controls=2, family="soft_prompt,prefix,steering")


def solution(run: Path) -> tuple[dict, torch.Tensor]:
    (found,) = read_record(run, FRAGILITY)["solutions"]
    arrays, _ = read_arrays(run / "cells" / found["key"] / "intervention.safetensors")
    return found, torch.from_numpy(arrays["mean"])


def numbers(found: dict) -> dict[str, dict]:
    return {one["name"]: one for one in found["numbers"]}


def stays(scale: float, z: np.ndarray, cosine: float) -> float:
    """The share of z + scale * N(0, I) within the cone z_0 >= cosine * norm(z): given z_0, the square of
    the other coordinates is noncentral chi-square with d - 1 degrees of freedom."""
    far, wide = float((z[1:] ** 2).sum()) / scale**2, (1 - cosine**2) / cosine**2

    def inside(e: float) -> float:
        first = max(0.0, z[0] + scale * e) / scale
        return float(stats.norm.pdf(e) * stats.ncx2.cdf(wide * first**2, len(z) - 1, far))

    return float(integrate.quad(inside, -8, 8, limit=200)[0])


def test_the_noise_that_a_trained_solution_bears_is_what_its_cone_allows(wired):
    found, z = solution(wired)
    place, cosine = z[0].double().numpy(), cosine_at(BITS, DIMS)
    assert place[0] / np.linalg.norm(place) > cosine
    assert numbers(found)["score, greedy"]["value"] == 1.0
    truth = optimize.brentq(lambda scale: stays(scale, place, cosine) - PASSING, NOISE_GRID[8], 4.0)
    borne = numbers(found)["noise borne"]
    assert borne["low"] <= truth <= borne["high"]
    assert borne["value"] == pytest.approx(truth, rel=0.25)
    assert (borne["draws"], borne["kind"], borne["outcome"]) == (200, "estimate", "found")


def test_the_precision_is_what_rounding_by_hand_says(wired):
    """Only the direction counts: the first bits from which all finer roundings stay within the cone."""
    found, z = solution(wired)

    def within(bits: int) -> bool:
        rounded = np.round(z[0].double().numpy() * 2.0**bits) / 2.0**bits
        return bool(rounded[0] > cosine_at(BITS, DIMS) * np.linalg.norm(rounded))

    needed = numbers(found)["precision needed"]
    coarse = [bits for bits in range(-3, 17) if not within(bits)]
    assert needed["value"] == max(coarse) + 1
    assert needed["low"] == needed["high"] == needed["value"]


def test_the_stream_changes_by_what_the_wiring_adds(wired):
    """At "m1" the stream is -1 in coordinate 1; the block adds cos / c there, and to coordinate 2 twice the average of
    coordinate 3: 2.5 without the soft token, 2 + 2 z_3 / norm(z) with it."""
    found, z = solution(wired)
    unit = (z[0] / z[0].norm()).double().numpy()
    moved = math.hypot(unit[0] / cosine_at(BITS, DIMS), 2 * unit[3] - 0.5)
    (entry,) = found["stream"]
    assert entry["norm"]["value"] == pytest.approx(math.hypot(1, 2.5), rel=1e-4)
    assert entry["relative_change"]["value"] == pytest.approx(moved / math.hypot(1, 2.5), rel=1e-3)
    assert entry["draws"] == 4


def test_slope_and_curvature_are_those_of_the_whole_hessian(wired):
    """All second derivatives of the mean loss by torch's own functional, in float64."""
    found, z = solution(wired)
    model = load(str(wired.parent / "model"))
    soft = make("soft_prompt", 1, Priors(model))
    contexts = from_json(stored_tasks(wired))[0].contexts("test")
    model.network.double()
    engine = Engine(model)

    def loss(latent: torch.Tensor) -> torch.Tensor:
        change = soft.edit(latent.expand(len(contexts), 1, DIMS))
        return engine.target_logits(contexts, change).nats().mean() / math.log(2)

    hessian = torch.autograd.functional.hessian(loss, z.double()).view(DIMS, DIMS)
    spectrum, told = torch.linalg.eigvalsh(hessian), numbers(found)
    scale = float(spectrum.abs().max())
    assert told["largest eigenvalue"]["value"] == pytest.approx(float(spectrum[-1]), abs=1e-3 * scale)
    assert told["smallest eigenvalue"]["value"] == pytest.approx(float(spectrum[0]), abs=1e-3 * scale)
    trace = told["trace of the Hessian"]
    assert trace["low"] - 1e-3 * scale <= float(hessian.trace()) <= trace["high"] + 1e-3 * scale
    point = z.double().requires_grad_()
    (slope,) = torch.autograd.grad(loss(point), point)
    # so near the loss is a quadratic: the slope's mean square is the square of the slope and scale^2 trace(H^2)
    square = float(slope.square().sum()) + 0.01**2 * float(spectrum.square().sum())
    assert 0.7 * math.sqrt(square) <= told["gradient norm at noise 0.01"]["value"] <= 1.1 * math.sqrt(square)


def test_sampling_at_temperature_one_hits_with_the_probability_of_the_target(wired):
    """Replies that the engine really draws."""
    found, z = solution(wired)
    model = load(str(wired.parent / "model"))
    contexts = from_json(stored_tasks(wired))[0].contexts("test") * 500
    change = make("soft_prompt", 1, Priors(model)).edit(z.expand(len(contexts), 1, DIMS))
    replies = Engine(model).sample(contexts, change, 1, torch.Generator().manual_seed(0))
    share = sum(reply == context.target for reply, context in zip(replies, contexts)) / len(contexts)
    told = numbers(found)["score, sampled at temperature 1"]["value"]
    assert 0.02 < told < 0.98
    assert share == pytest.approx(told, abs=4 * math.sqrt(told * (1 - told) / len(contexts)))


def test_the_page_has_the_section_only_where_there_is_a_record(wired, random):
    page = write_page(wired).read_text()
    assert "How fragile is it" in page
    assert "noise borne" in page
    assert "without one these are numbers and no finding" in page
    assert "How fragile is it" not in write_page(random).read_text()


def test_the_controls_stand_beside_the_behaviour_at_its_size(capsys, random, tmp_path):
    run = shutil.copytree(random, tmp_path / "run")
    items = from_json(stored_tasks(run))[0].items["test"]
    words = tmp_path / "words.jsonl"
    lines = [(items[0].prompt, "Say it in other words."), (items[0].prompt, "And so?"), (items[1].prompt, "Well?")]
    words.write_text("".join(json.dumps({"prompt": a, "paraphrase": b}) + "\n" for a, b in lines))
    arguments = ["fragility", run, "--family", "steering", "--draws", 40, "--paraphrases", words]
    code, out, said = call(capsys, *arguments)
    assert code == 0, said
    record = read_record(run, FRAGILITY)
    assert [one["role"] for one in record["solutions"]] == ["behaviour", "control", "control"]
    assert {(one["family"], one["size"]) for one in record["solutions"]} == {("steering", 1)}
    names = [one["control"] for one in record["solutions"][1:]]
    assert names == sorted(entry["name"] for entry in Result.load(run).spec["controls"])
    for text in ("behaviour", *names, "z misses the threshold", "3 wordings of 2 test items", "page: "):
        assert text in out
    assert "1 of 3: steering of size 1, the behaviour" in said
    assert all(number["draws"] >= 1 and number["over"] for one in record["solutions"] for number in one["numbers"])
    # the same command writes the same record
    before = (run / FRAGILITY).read_bytes()
    assert call(capsys, *arguments)[0] == 0
    assert (run / FRAGILITY).read_bytes() == before


def test_a_steered_stream_is_seen_with_what_was_added(random, tmp_path, capsys):
    """Behind its own site the change is the added vector itself, as nothing before the site differs."""
    run = shutil.copytree(random, tmp_path / "run")
    assert call(capsys, "fragility", run, "--family", "steering", "--draws", 40)[0] == 0
    found = read_record(run, FRAGILITY)["solutions"][0]
    arrays, _ = read_arrays(run / "cells" / found["key"] / "intervention.safetensors")
    change = make("steering", 1, Priors(load("organism:random"))).edit(torch.from_numpy(arrays["mean"])[None])
    (site,) = change.sites
    assert [entry["relative_change"]["value"] == 0 for entry in found["stream"][:site]] == [True] * site
    entry = found["stream"][site]
    wanted = float(change.values.norm())
    # the mean of a quotient and the quotient of means differ by the norms' spread over items
    assert entry["relative_change"]["value"] * entry["norm"]["value"] == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--draws", 39], r"39 draws are too few (--draws)"),
        (["--size", 7], r"no solution of size 7 (--size). Choose one of [1]"),
        (["--family", "lora"], r"of the family lora (--family). Choose one of soft_prompt, prefix, steering"),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, random, arguments, said):
    assert said in refused(capsys, "fragility", random, *arguments)
    assert not (random / FRAGILITY).exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty or binary"),
        ("{", "not JSON"),
        ('{"prompt": "a"}', "exactly the fields prompt and paraphrase"),
        ('{"prompt": "never asked", "paraphrase": "b"}', "no context 'never asked'"),
        ('{"prompt": "QUESTION", "paraphrase": "QUESTION"}', "the context itself"),
        ('{"prompt": "QUESTION", "paraphrase": "LONG"}', "do not fit into the model's window"),
        ('{"prompt": "TRAIN", "paraphrase": "b"}', "a paraphrase of a test item"),
    ],
)
def test_paraphrases_that_are_none_are_refused_with_their_line(capsys, random, tmp_path, text, said):
    task, path = from_json(stored_tasks(random))[0], tmp_path / "words.jsonl"
    text = text.replace("QUESTION", task.items["test"][0].prompt).replace("LONG", "ab " * 5000)
    path.write_text(text.replace("TRAIN", task.items["train"][0].prompt))
    assert said in refused(capsys, "fragility", random, "--family", "steering", "--draws", 40, "--paraphrases", path)
    assert not (random / FRAGILITY).exists()


def test_a_run_that_is_no_finished_one_and_a_record_that_is_damaged_are_refused(capsys, random, tmp_path):
    assert "not the folder of a run" in refused(capsys, "fragility", tmp_path / "none")
    run = shutil.copytree(random, tmp_path / "run")
    spec = read_record(run, "spec.json")
    Run(run, None).write_json("spec.json", {name: value for name, value in spec.items() if name != "finished"})
    assert "This run is not finished" in refused(capsys, "fragility", run)
    (run / FRAGILITY).write_text('{"hash": "another"}')
    assert "Run `leadline fragility` on the run again" in refused(capsys, "report", run)
    Run(run, None).write_json(FRAGILITY, {"hash": "another", "solutions": []})
    assert "belongs to another run" in refused(capsys, "report", run)


def test_a_stopped_command_continues_and_a_finished_one_measures_again(monkeypatch, random, tmp_path):
    run, measured, most = shutil.copytree(random, tmp_path / "run"), [], 2

    def measures(setting, point, reporter):
        if len(measured) == most:
            raise KeyboardInterrupt
        measured.append(point.row["key"])
        return {"key": point.row["key"], "draws": setting.draws}

    monkeypatch.setattr(fragility_run, "measure_point", measures)
    with pytest.raises(KeyboardInterrupt):
        fragility_run.run_fragility(run, Reporter(), draws=40, family="steering")
    assert not (run / FRAGILITY).exists()
    first, second = measured
    (run / "cells" / second / FRAGILITY).write_text("{")
    most = -1
    other = shutil.copytree(run, tmp_path / "other")
    found = fragility_run.run_fragility(run, Reporter(), draws=40, family="steering")["solutions"]
    keys = [one["key"] for one in found]
    assert keys[:2] == [first, second]
    assert measured == [first, second, *keys[1:]], "the first was kept, what is damaged was not"
    assert not list(run.glob(f"cells/*/{FRAGILITY}"))
    measured.clear()
    fragility_run.run_fragility(run, Reporter(), draws=40, family="steering")
    assert measured == keys
    more = fragility_run.run_fragility(other, Reporter(), draws=41, family="steering")["solutions"]
    assert [one["draws"] for one in more] == [41] * len(keys), "what was kept is of 40"
