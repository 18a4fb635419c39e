"""`leadline doctor --self-test`: all sixteen rows hold, and the table and its exit code can fail."""

from __future__ import annotations

import re

import pytest

from commands import call
from leadline.progress import Reporter
from leadline.selftest import mistakes, mutations, table, with_models, without_models
from leadline.selftest.row import Row

QUICK = ("K1", "K3", "K6", "K7", "K15", "K16")  # rows without a model or a solver


def only(monkeypatch: pytest.MonkeyPatch, **rows) -> None:
    """The command with these rows, and nothing trained before them."""
    monkeypatch.setattr(table, "TABLE", rows)
    monkeypatch.setattr(table, "load", lambda name, progress: None)


def test_all_sixteen_known_answers_hold(capsys, tiny_model_folder):
    code, out, err = call(capsys, "doctor", "--self-test")
    assert code == 0, out
    *lines, last = out.splitlines()
    titles, found = lines[::2], lines[1::2]
    assert [line.split()[:2] for line in titles] == [["holds", f"K{number}"] for number in range(1, 17)]
    assert all(re.fullmatch(r" +found: .*[0-9n].*", line) for line in found)
    assert last == "16 of 16 known answers hold here, in their short form"
    # what goes on is told meanwhile, on the other stream
    assert [line.split()[0] for line in err.splitlines() if re.match(r"  K\d+ holds, ", line)] == list(table.TABLE)


def test_a_row_that_fails_gives_exit_code_1_and_its_name(capsys, monkeypatch):
    only(monkeypatch, **{name: table.TABLE[name] for name in ("K1", "K3")})
    with mutations.no_guard(), mutations.nats_for_bits():
        code, out, err = call(capsys, "doctor", "--self-test")
    assert code == 1
    assert out.splitlines()[0].startswith("FAILS    K1  ")
    assert out.splitlines()[-1] == "1 of 2 known answers hold here, in their short form; K1 FAILED"
    assert "  K1 FAILS, " in err
    assert call(capsys, "doctor", "--self-test")[0] == 0


def test_a_row_that_breaks_down_fails_and_the_next_one_follows(monkeypatch):
    def broken() -> Row:
        """Something."""
        raise ArithmeticError("no number")

    only(monkeypatch, K1=broken, K15=without_models.k15)
    first, second = table.rows(Reporter())
    assert (first.verdict, first.id, first.found) == ("FAILS", "K1", "ArithmeticError: no number")
    assert second.verdict == "holds"


def test_what_this_machine_lacks_is_no_failure(capsys, monkeypatch):
    only(monkeypatch, K9=with_models.k9)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, _ = call(capsys, "doctor", "--self-test")
    assert code == 0
    assert out.startswith("not here K9  ")
    assert "peft is not installed" in out
    assert out.splitlines()[-1] == "0 of 1 known answers hold here, in their short form; K9 not looked at"


@pytest.mark.parametrize("name", QUICK)
def test_a_row_is_the_same_each_time(name):
    assert table.TABLE[name]() == table.TABLE[name]()


def test_mistakes_are_taken_back():
    before = without_models.k1()
    for mistake, _ in mistakes.MISTAKES.values():
        with pytest.raises(KeyboardInterrupt), mistake():
            raise KeyboardInterrupt
        assert without_models.k1() == before
