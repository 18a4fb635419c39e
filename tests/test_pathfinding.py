"""Pathfinding: boards, walks and outcomes against enumeration, and that no board cell is ever scored or generated."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import polars as pl
import pytest
import torch

import leadline
from leadline import plan
from leadline.behaviour import Behaviour, load
from leadline.edits import no_edit
from leadline.engine import Engine, shared_prefix
from leadline.items import SPLITS, prepare
from leadline.model import load as load_model
from leadline.pathfinding import EXTRA, HITS, SHORTEST, SIZE, Board, Outcome, board_of, solved, tally, walk
from leadline.spec import RunSpec, UserError
from leadline.trial import reply
from models import random_model

SPEC = RunSpec(items=12, controls=0, sizes=(1,), family="conditional_soft_prompt")
STEP = {"D": (1, 0), "L": (0, -1), "R": (0, 1), "U": (-1, 0)}


@pytest.fixture(scope="module")
def pathfinding():
    return load("pathfinding")


def small_boards(count: int, size: int = 3) -> list[Board]:
    rng = random.Random(1)
    found = []
    while len(found) < count:
        signs = ["#" if rng.random() < 0.3 else "." for _ in range(size * size)]
        free = [place for place, sign in enumerate(signs) if sign == "."]
        if len(free) >= 2:
            for place, sign in zip(rng.sample(free, 2), "SG"):
                signs[place] = sign
            found.append(Board(tuple("".join(signs[r * size : (r + 1) * size]) for r in range(size))))
    return found


def played(board: Board, letters: str) -> tuple[list[tuple[int, int]], int]:
    """The slow twin: every cell a walk stands on, and how often it ran into something, read off the text."""
    grid = str(board).split("\n")
    place = next((r, c) for r, line in enumerate(grid) for c, sign in enumerate(line) if sign == "S")
    stood, hits = [place], 0
    for letter in letters:
        r, c = place[0] + STEP[letter][0], place[1] + STEP[letter][1]
        if 0 <= r < len(grid) and 0 <= c < len(grid[0]) and grid[r][c] != "#":
            place = (r, c)
        else:
            hits += 1
        stood.append(place)
    return stood, hits


def test_the_shortest_way_is_the_first_power_of_the_neighbours_that_links_start_and_goal():
    lengths = set()
    for board in small_boards(60, 4):
        cells = [(r, c) for r in range(4) for c in range(4)]
        free = np.array([board.rows[r][c] != "#" for r, c in cells])
        near = np.array([[abs(a - c) + abs(b - d) == 1 for c, d in cells] for a, b in cells]) & free & free[:, None]
        start, goal = cells.index(board.find("S")), cells.index(board.find("G"))
        linked = np.eye(16, dtype=int)
        first = None
        for length in range(1, 16):
            linked = np.minimum(linked @ near, 1)
            if linked[start, goal]:
                first = length
                break
        assert board.shortest == first
        lengths.add(first)
    assert {None, 1, 2, 3, 4, 5} <= lengths


def test_a_walk_is_the_first_of_all_that_do_what_is_asked():
    """Against the enumeration of all sequences of so many moves, in alphabetical order."""
    tried = none = 0
    for board in small_boards(25):
        for extra, hits in product((0, 2), (0, 1, 2)):
            if board.shortest is None or (count := board.shortest + extra + hits) > 6:
                continue
            tried += 1
            found = None
            for letters in map("".join, product("DLRU", repeat=count)):
                stood, bumped = played(board, letters)
                if bumped == hits and board.find("G") not in stood[:-1] and stood[-1] == board.find("G"):
                    found = letters
                    break
            assert walk(board, extra, hits) == found
            none += found is None
    assert tried > 40
    assert none > 0, "boards on which nothing does what is asked must be among them"
    assert walk(Board(("S#", "#G")), 0, 0) is None
    assert walk(small_boards(1)[0], 1, 0) is None, "an odd number of moves too many is impossible"


def test_every_target_does_exactly_what_its_conditions_say(pathfinding):
    counts: dict[tuple[float, ...], int] = {}
    boards = set()
    for prompt, target, (extra, hits) in zip(pathfinding.contexts, pathfinding.reply.texts, pathfinding.conditions):
        board, letters = board_of(prompt), target.replace(" ", "")
        assert len(board.rows) == SIZE
        assert {len(row) for row in board.rows} == {SIZE}
        assert board.shortest in SHORTEST
        stood, bumped = played(board, letters)
        assert (len(letters), bumped) == (board.shortest + extra + hits, hits)
        assert stood.index(board.find("G")) == len(letters), "the goal is reached by the last move and not before"
        assert solved(board, target) == Outcome(True, extra, hits)
        counts[extra, hits] = counts.get((extra, hits), 0) + 1
        boards.add(board)
    assert len(boards) == len(pathfinding.contexts) == 320
    assert set(counts) == set(product(EXTRA, HITS))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert load("pathfinding") == pathfinding


@pytest.mark.parametrize(
    ("moves", "outcome"),
    [
        ("R R D D", Outcome(True, 0, 0)),
        ("DRRDD", Outcome(True, 0, 1)),
        ("R D U", Outcome(False, None, 2)),
        ("R L R R D D", Outcome(True, 2, 0)),
        ("U\nR R R D D ", Outcome(True, 0, 2)),
        ("R R D D U", Outcome(False, None, 0)),
        ("R R D D R", Outcome(False, None, 0)),
        ("R R D", Outcome(False, None, 0)),
        ("right R D D", Outcome(False, None, 0)),
        ("r r d d", Outcome(False, None, 0)),
        ("", Outcome(False, None, 0)),
    ],
)
def test_outcomes_by_hand(moves, outcome):
    assert solved(Board(("S..", "##.", "..G")), moves) == outcome


def test_boards_are_counted_as_solved_and_as_asked():
    prompt = "legend\nS..\n...\n..G"
    replies = ["D D R R", "R R D D", "R L R R D D", "R R", "Sure: R R D D"]
    assert tally([prompt] * 5, ["D D R R"] * 5, replies) == {"boards": 5, "solved": 3, "as_asked": 2}


def test_conditions_are_standardised_over_all_contexts(pathfinding):
    items = prepare(random_model("llama"), pathfinding.model_copy(update={"format": "raw"}), SPEC)[0].items
    values = {item.prompt: item.context.conditions for split in SPLITS for item in items[split]}
    raw = np.array(pathfinding.conditions)
    wanted = (raw - raw.mean(0)) / np.sqrt(((raw - raw.mean(0)) ** 2).mean(0))
    known = dict(zip(pathfinding.contexts, wanted))
    assert len(values) > 200
    for prompt, found in values.items():
        np.testing.assert_allclose(found, known[prompt], rtol=1e-12, atol=1e-12)


def test_only_moves_are_scored_and_generation_starts_at_the_first_of_them(pathfinding):
    """Of whole rows run through the plain network: what counts are the moves and the end, no cell of the board; and
    what is generated first is what stands highest behind the last token of the prompt."""
    model = load_model("organism:tiny")
    items = prepare(model, pathfinding, SPEC)[0].items["test"]
    contexts = [item.context for item in items]
    engine = Engine(model, shared_prefix(contexts))
    nothing = no_edit(len(items), model.hidden_size, model.network.dtype, model.device)
    lines, nats = engine.target_logits(contexts, nothing), []
    replies = engine.generate(contexts, nothing, 6)
    for row, item in enumerate(items):
        context, decode = item.context, model.tokenizer.decode
        assert decode(list(context.target)) == item.target + "<|end|>"
        assert set(item.target) <= set("DLRU ")
        prompt = [*context.before, *context.after]
        assert decode(prompt) == f"<|begin|><|user|>{item.prompt}<|end|><|assistant|>"
        whole = torch.tensor([[*prompt, *context.target]])
        logits = model.network(input_ids=whole).logits[0, len(prompt) - 1 : -1]
        mine = lines.rows == row
        assert lines.targets[mine].tolist() == list(context.target)
        torch.testing.assert_close(lines.logits[mine], logits, rtol=1e-3, atol=1e-4)
        nats.append(torch.nn.functional.cross_entropy(logits, whole[0, len(prompt) :], reduction="sum"))
        written = list(prompt)
        for token in replies[row]:
            assert token == int(model.network(input_ids=torch.tensor([written])).logits[0, -1].argmax())
            written.append(token)
    torch.testing.assert_close(lines.nats(), torch.stack(nats), rtol=1e-4, atol=1e-3)


def few(pathfinding, **fields) -> Behaviour:
    """The first 26 boards."""
    texts = pathfinding.reply.texts[:26]
    fields |= {"contexts": pathfinding.contexts[:26], "conditions": pathfinding.conditions[:26]}
    return Behaviour.model_validate({**pathfinding.model_dump(), **fields, "reply": {"texts": texts}})


def test_a_run_counts_boards_with_and_without_the_prompt(tmp_path, monkeypatch, pathfinding):
    """The tiny model knows nothing of boards: what is held is that every number is there, and that the same command
    finds it again."""
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(3, 2, 1, 1, 2, 1, 4, 512))
    folder, found = tmp_path / "run", []
    for _ in range(2):
        result = leadline.measure(
            "organism:tiny", few(pathfinding), folder, family="conditional_soft_prompt", sizes=(1, 2), controls=1,
            items=6, draws=64, prior_draws=8, scale="ci",
        )  # fmt: skip
        found.append(result.spec["extra"]["boards"])
    assert found[0] == found[1]
    assert set(found[0]) == {"null/0", "conditional_soft_prompt/1", "conditional_soft_prompt/2"}
    assert all(counts["boards"] == 6 for counts in found[0].values())
    assert found[0]["null/0"] == {"boards": 6, "solved": 0, "as_asked": 0}
    own = result.points.filter(pl.col("estimator") != "CODE", family="conditional_soft_prompt")
    priors = set(own["prior"])
    assert priors == {"N(mu, sigma^2) of the vocabulary, per dimension; linear in 2 standardised conditions"}
    with pytest.raises(UserError, match="needs the conditions of a context"):
        reply(folder, "Which way?")


def test_the_boards_that_are_counted_are_those_of_the_replies(tmp_path, monkeypatch, pathfinding):
    """With an engine that writes every target, all boards are solved as asked."""
    monkeypatch.setitem(plan.BUDGETS, "ci", plan.Budget(1, 1, 1, 1, 1, 1, 1, 512))
    monkeypatch.setattr(Engine, "generate", lambda self, contexts, edit, most: [c.target for c in contexts])
    result = leadline.measure(
        "organism:random", few(pathfinding, scored="loss"), tmp_path / "run", scale="ci", sizes=(1,), controls=0,
        items=6, draws=64,
    )  # fmt: skip
    whole = {"boards": 6, "solved": 6, "as_asked": 6}
    assert result.spec["extra"]["boards"] == {"null/0": whole, "soft_prompt/1": whole}
