"""Pathfinding: boards with walls, walks that waste an exact number of moves, and what a walk does on its board.

After the task of Nordby, "Soft Prompts for Evaluation" (arXiv 2505.14943): a board is shown, and two numbers that stand
nowhere in the text say how the goal is to be reached: with so many moves more than the shortest way takes, and so many
times into a wall. Boards, walks and their text are this project's own. Knows no model and no tokens.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

SIZE = 8  # rows and columns of a board
WALLS = 0.25  # chance that a cell is a wall
SHORTEST = range(4, 11)  # moves of the shortest way, so that replies stay short
EXTRA = (0, 2, 4)  # moves more than the shortest way; an odd number is never possible on such a board
HITS = (0, 1, 2)  # moves into a wall or over the edge, which leave one where one is
BOARDS = 320
LEGEND = "S start, G goal, # wall. Moves: D L R U."
MOVES = {"D": (1, 0), "L": (0, -1), "R": (0, 1), "U": (-1, 0)}  # in the order in which walks are compared

Cell = tuple[int, int]


@dataclass(frozen=True)
class Board:
    """Rows of equal length, of `.` free, `#` wall, one `S` start and one `G` goal. What lies outside is wall. Raises
    ValueError for anything else."""

    rows: tuple[str, ...]

    def __post_init__(self) -> None:
        signs = "".join(self.rows)
        if len(set(map(len, self.rows))) != 1 or set(signs) - set(".#SG") or signs.count("S") * signs.count("G") != 1:
            raise ValueError("a board is rows of equal length, of . and #, with one S and one G")

    def __str__(self) -> str:
        return "\n".join(self.rows)

    def find(self, sign: str) -> Cell:
        """Where the first `sign` stands."""
        row = next(number for number, line in enumerate(self.rows) if sign in line)
        return row, self.rows[row].index(sign)

    @cached_property
    def ways(self) -> dict[Cell, dict[str, Cell | None]]:
        """From each free cell the cell that each move leads to, None where it is a wall."""
        free = {(r, c) for r, line in enumerate(self.rows) for c, sign in enumerate(line) if sign != "#"}
        return {
            (r, c): {move: (r + down, c + right) if (r + down, c + right) in free else None
                     for move, (down, right) in MOVES.items()}
            for r, c in free
        }  # fmt: skip

    @cached_property
    def shortest(self) -> int | None:
        """Moves of the shortest way from start to goal, by breadth-first search; None where there is no way."""
        start, goal = self.find("S"), self.find("G")
        far, waiting = {start: 0}, deque([start])
        while waiting:
            cell = waiting.popleft()
            for after in self.ways[cell].values():
                if after is not None and after not in far:
                    far[after] = far[cell] + 1
                    waiting.append(after)
        return far.get(goal)


@dataclass(frozen=True)
class Outcome:
    """What a walk does on its board.

    reached: it is made of moves alone, and the last of them is the first that ends on the goal
    extra:   moves that led to another cell, less those of the shortest way; None where the goal is not reached
    hits:    moves into a wall, up to the goal or the end
    """

    reached: bool
    extra: int | None
    hits: int


def solved(board: Board, moves: str) -> Outcome:
    """The outcome of moves written as D, L, R and U, with or without space between them. Text that holds anything else
    is no walk: it reaches nothing, and no move of it counts."""
    letters, cell, goal = "".join(moves.split()), board.find("S"), board.find("G")
    if not set(letters) <= set(MOVES):
        return Outcome(False, None, 0)
    hits = 0
    for number, move in enumerate(letters, 1):
        after = board.ways[cell][move]
        hits += after is None
        cell = cell if after is None else after
        if cell == goal:
            reached = number == len(letters)  # who walks on has not stopped at the goal
            return Outcome(reached, number - hits - (board.shortest or 0) if reached else None, hits)
    return Outcome(False, None, hits)


def walk(board: Board, extra: int, hits: int) -> str | None:
    """Of all walks that reach the goal with so many moves more than the shortest way and so many into a wall, the first
    in alphabetical order: one reply and no other, so that an exact match means something. None where there is none."""
    if board.shortest is None:
        return None
    steps, goal, cell = board.shortest + extra, board.find("G"), board.find("S")
    # within[h][s]: the cells from which the goal can first be reached with s steps and h hits; at the goal a walk ends
    within: list[list[set[Cell]]] = []
    for h in range(hits + 1):
        row = [{goal} if h == 0 else set()]
        for s in range(1, steps + 1):
            bumped = within[h - 1][s] if h else set()
            row.append({
                cell for cell, ways in board.ways.items() if cell != goal and any(
                    cell in bumped if after is None else after in row[s - 1] for after in ways.values()
                )
            })  # fmt: skip
        within.append(row)
    if cell not in within[hits][steps]:
        return None
    letters = ""
    while steps:
        bumped = within[hits - 1][steps] if hits else set()
        move, after = next(
            (move, after) for move, after in board.ways[cell].items()
            if (cell in bumped if after is None else after in within[hits][steps - 1])
        )  # fmt: skip
        letters += move
        if after is None:
            hits -= 1
        else:
            cell, steps = after, steps - 1
    return letters


@dataclass(frozen=True)
class Problem:
    """A board with what is asked for, and the walk that does it, moves apart from each other."""

    board: Board
    extra: int
    hits: int
    moves: str

    @property
    def prompt(self) -> str:
        return f"{LEGEND}\n{self.board}"


def problems(rng: random.Random, count: int = BOARDS) -> Iterator[Problem]:
    """So many problems on as many boards, each pair of EXTRA and HITS in turn. A board on which no walk does what is
    asked is drawn again."""
    asked = list(product(EXTRA, HITS))
    seen: set[Board] = set()
    while len(seen) < count:
        board, (extra, hits) = _draw(rng), asked[len(seen) % len(asked)]
        if board in seen or board.shortest not in SHORTEST or (moves := walk(board, extra, hits)) is None:
            continue
        seen.add(board)
        yield Problem(board, extra, hits, " ".join(moves))


def _draw(rng: random.Random) -> Board:
    """A board with walls here and there, with or without a way."""
    cells = [["#" if rng.random() < WALLS else "." for _ in range(SIZE)] for _ in range(SIZE)]
    free = [(r, c) for r, line in enumerate(cells) for c, sign in enumerate(line) if sign == "."]
    for sign, (r, c) in zip("SG", rng.sample(free, 2), strict=True):
        cells[r][c] = sign
    return Board(tuple(map("".join, cells)))


def behaviour_fields() -> dict[str, Any]:
    """The built-in behaviour as plain data: contexts, replies and conditions of BOARDS problems."""
    found = list(problems(random.Random(0)))
    return {
        "name": "pathfinding",
        "description": "Writes the moves from S to G on an 8x8 board, with as many detours and knocks at walls as two "
        "numbers say that no text holds.",
        "contexts": [problem.prompt for problem in found],
        "reply": {"texts": [problem.moves for problem in found]},
        "conditions": [[problem.extra, problem.hits] for problem in found],
        "counted": "boards",
    }  # fmt: skip


def board_of(prompt: str) -> Board:
    """The board that a problem's prompt shows: all but its first line. Raises ValueError where that is none."""
    return Board(tuple(prompt.split("\n")[1:]))


def tally(prompts: Sequence[str], targets: Sequence[str], replies: Sequence[str]) -> dict[str, int]:
    """How many boards there are, on how many of them the reply reaches the goal, and on how many it does so with the
    target's extra moves and hits, whatever the way."""
    boards = [board_of(prompt) for prompt in prompts]
    pairs = [(solved(b, t), solved(b, r)) for b, t, r in zip(boards, targets, replies, strict=True)]
    return {
        "boards": len(pairs),
        "solved": sum(got.reached for _, got in pairs),
        "as_asked": sum(got.reached and got == wanted for wanted, got in pairs),
    }
