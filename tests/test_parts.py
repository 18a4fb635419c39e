"""Rows in parts against the slow twin, the whole batch at once: values and gradients of every kind of edit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from leadline import parts
from leadline.edits import Edit, EmbeddingEdit, KeyValueEdit, ResidualEdit, WeightEdit, no_edit
from leadline.engine import Context, Engine, TargetLogits
from leadline.model import FrozenModel
from leadline.objective import Objective
from models import random_model

ARCHITECTURES = ("llama", "gpt2", "gemma", "mpt")
KINDS = ("embeddings", "residual", "keys and values", "weights")
ROWS, SHARED = 23, (7, 8, 9)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Parts so small that even this batch has many, for models that are tiny."""
    monkeypatch.setattr(parts, "OF_TINY", 20)


def on_threads(model: FrozenModel, threads: int) -> FrozenModel:
    return replace(model, compute=replace(model.compute, threads=threads))


def numbers(*shape: int, seed: int = 1, scale: float = 1.0) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def contexts() -> list[Context]:
    """Rows of many lengths, in no order."""
    return [
        Context((*SHARED, *range(10, 10 + row % 5)), tuple(range(20, 21 + row * 7 % 11)), (30 + row, 31, 2)[row % 3 :])
        for row in range(ROWS)
    ]


def an_edit(kind: str, model: FrozenModel) -> Edit:
    """For ROWS rows, each with other numbers."""
    if kind == "embeddings":
        return EmbeddingEdit(numbers(ROWS, 4, 32), tuple(row % 5 for row in range(ROWS)))
    if kind == "residual":
        return ResidualEdit(numbers(ROWS, 2, 32), (0, 1))
    if kind == "keys and values":
        shape = (ROWS, 2, model.network.config.to_dict().get("num_key_value_heads", 4), 3, 8)
        return KeyValueEdit(numbers(*shape), numbers(*shape, seed=2))
    down, up = {}, {}
    inside = {id(module) for layer in model.layers for module in layer.modules()}
    for number, (name, module) in enumerate(model.network.named_modules()):
        if id(module) in inside and hasattr(module, "weight") and module.weight.ndim == 2:
            shape = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.T.shape
            down[name] = numbers(ROWS, 2, shape[1], seed=number, scale=0.3)
            up[name] = numbers(ROWS, shape[0], 2, seed=100 + number, scale=0.3)
    return WeightEdit(down, up)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_equal_the_whole_batch_in_value_and_gradient(architecture, kind, threads):
    model = on_threads(random_model(architecture), threads)
    engine, rows, edit = Engine(model, SHARED), contexts(), an_edit(kind, model)
    worth = torch.linspace(-1.0, 2.0, ROWS)
    slow = engine.target_logits(rows, edit).nats()
    wanted = torch.autograd.grad((slow * worth).sum(), edit.tensors, materialize_grads=True)
    assert len(parts.cut(engine, rows, edit)) > threads
    fast = parts.nats(engine, rows, edit)
    found = torch.autograd.grad((fast * worth).sum(), edit.tensors)
    close(fast, slow)
    for mine, theirs in zip(found, wanted, strict=True):
        close(mine, theirs)
    with torch.no_grad():
        close(parts.nats(engine, rows, edit), slow)
        close(parts.each(engine, rows, edit, TargetLogits.margins), engine.target_logits(rows, edit).margins())
    assert not model.head._forward_pre_hooks
    assert not any(module._forward_hooks for module in model.network.modules())


def test_every_row_is_in_one_part_and_parts_are_alike(monkeypatch):
    monkeypatch.setattr(parts, "OF_TINY", 60)
    model = on_threads(random_model("llama"), 2)
    engine, rows = Engine(model, SHARED), contexts()
    found = parts.cut(engine, rows, no_edit(ROWS, 32, torch.float32, model.device))
    assert sorted(row for part in found for row in part) == list(range(ROWS))
    assert len(found) % 2 == 0
    lengths = [[len(c.before) + len(c.after) + len(c.target) - 3 for c in (rows[r] for r in part)] for part in found]
    assert [n for part in lengths for n in part] == sorted((n for part in lengths for n in part), reverse=True)
    assert max(map(sum, lengths)) <= 60 + max(map(max, lengths))
    assert max(map(sum, lengths)) - min(map(sum, lengths)) <= 2 * max(map(max, lengths))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_there_are_no_more_parts_than_rows(rows):
    engine = Engine(on_threads(random_model("llama"), 8), SHARED)
    nothing = no_edit(rows, 32, torch.float32, engine.model.device)
    assert sorted(map(len, parts.cut(engine, contexts()[:rows], nothing))) == [1] * rows


def test_long_rows_are_parts_of_their_own():
    engine = Engine(on_threads(random_model("llama"), 2), SHARED)
    rows = [Context(SHARED, tuple(range(n)), (2,)) for n in (1, 60, 1, 60, 60, 1)]
    found = parts.cut(engine, rows, no_edit(6, 32, torch.float32, engine.model.device))
    assert [sorted(part) for part in found[:3]] == [[1], [3], [4]]


def test_numbers_do_not_depend_on_the_order_of_the_rows_nor_on_who_runs_beside():
    model = on_threads(random_model("llama"), 2)
    engine, rows, edit = Engine(model, SHARED), contexts(), an_edit("embeddings", model)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        found = parts.nats(engine, [rows[row] for row in order], edit.select(order))
        close(found, parts.nats(engine, rows, edit)[order])
        assert torch.equal(parts.nats(engine, rows, edit), parts.nats(engine, rows, edit))


def test_the_gradient_of_a_gradient_is_refused_and_not_wrong():
    model = on_threads(random_model("llama"), 2)
    edit = an_edit("embeddings", model)
    costs = parts.nats(Engine(model, SHARED), contexts(), edit)
    (slope,) = torch.autograd.grad(costs.sum(), edit.tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        slope.sum().backward()


def test_an_error_in_one_part_is_everyones_and_leaves_nothing_behind():
    model, threads = on_threads(random_model("llama"), 2), torch.get_num_threads()
    rows = [*contexts()[:-1], Context((1, 2, 3), (4,), (5,))]
    with pytest.raises(ValueError, match="shared prefix"):
        parts.nats(Engine(model, SHARED), rows, an_edit("residual", model))
    assert not model.head._forward_pre_hooks
    assert not any(module._forward_hooks for module in model.network.modules())
    assert torch.get_num_threads() == threads


def test_evaluation_and_cost_are_those_of_whole_batches(monkeypatch):
    model = on_threads(random_model("llama"), 2)
    engine, rows, edit = Engine(model, SHARED), contexts(), an_edit("embeddings", model)
    bits, margins = Objective(engine).evaluate(rows, edit)
    trained = Objective(engine).bits(rows, edit)
    monkeypatch.setattr(parts, "_pays", lambda *_: False)
    wanted_bits, wanted_margins = Objective(engine).evaluate(rows, edit)
    close(bits, wanted_bits)
    close(margins, wanted_margins)
    close(trained, wanted_bits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_does_not_fit_runs_in_parts_one_after_the_other(monkeypatch, kind):
    """As on a GPU, whose memory is played here."""
    model = random_model("llama")
    engine, rows, edit = Engine(model, SHARED), contexts(), an_edit(kind, model)
    slow = engine.target_logits(rows, edit).nats()
    wanted = torch.autograd.grad(slow.sum(), edit.tensors, materialize_grads=True)
    monkeypatch.setattr(parts, "lanes_of", lambda model: 1)
    monkeypatch.setattr(parts, "most_tokens", lambda *_: 60)
    lengths = parts.tokens_run(engine, rows, edit)
    loads = [sum(lengths[row] for row in part) for part in parts.cut(engine, rows, edit)]
    assert len(loads) == -(-sum(lengths) // 60)
    assert max(loads) <= 60 + max(lengths)
    fast = parts.nats(engine, rows, edit)
    close(fast, slow)
    for mine, theirs in zip(torch.autograd.grad(fast.sum(), edit.tensors), wanted, strict=True):
        close(mine, theirs)


@pytest.mark.parametrize(("tokens", "targets"), [(64, 8), (64, 32), (128, 8), (256, 4)])
def test_what_a_token_keeps_is_what_a_batch_keeps_by_token(tokens, targets):
    model = random_model("llama")
    rows = [Context((), (5,) * (tokens - targets), (6,) * targets)] * 10
    edit = EmbeddingEdit(torch.zeros(10, 1, 32, requires_grad=True), (1,) * 10)
    kept = parts.bytes_kept(Engine(model), rows, edit)
    assert 0.9 < parts.bytes_of_a_token(model, tokens, targets) * 10 * tokens / kept < 1.2
    assert kept > 10 * tokens * 4 * 32 * 2  # at the least the input of each block, in float32


def test_a_token_keeps_more_in_a_longer_row_and_in_one_with_more_targets():
    """Attention keeps its weights by pairs of tokens, the head its logits by target."""
    model = random_model("llama")
    short, long = (parts.bytes_of_a_token(model, tokens, 8) for tokens in (64, 256))
    assert long > 1.5 * short
    vocabulary = model.network.config.vocab_size
    assert 64 * (parts.bytes_of_a_token(model, 64, 32) - short) >= 24 * vocabulary * 4  # 24 more lines of logits


def test_a_part_on_a_gpu_is_what_its_longest_row_leaves_room_for(monkeypatch):
    """The memory of a GPU is played here, and the device."""
    model = random_model("llama")
    monkeypatch.setattr(parts, "_free_bytes", lambda model: 1_000_000)
    monkeypatch.setattr(FrozenModel, "device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(parts, "bytes_of_a_token", lambda model, tokens, targets: 100.0 * tokens + targets)
    engine, edit = SimpleNamespace(model=model, skipped=lambda edit: 0), SimpleNamespace(lengths=(0, 0))
    rows = [Context((1,), (5,) * 20, (6,) * 3), Context((1,), (5,) * 50, (6,) * 2)]  # 53 tokens at most: 64; 3: 4
    assert parts.most_tokens(engine, rows, edit) == int(parts.SHARE * 1_000_000 / (6400 + 4))
    assert parts.lanes_of(model) == 1
