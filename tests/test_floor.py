"""The floor counts the products of a step: nothing else, and none of them twice."""

from __future__ import annotations

import pytest
import torch

from leadline.edits import EmbeddingEdit
from leadline.engine import Context, Engine
from leadline.floor import copy_rate, product_rate, step_flops
from leadline.model import load


@pytest.mark.parametrize("shared", [(), (1, 2, 3)])
def test_flops_are_those_that_torch_counts_in_the_linear_maps(shared):
    """torch.utils.flop_counter sees every product of a pass; attention's own products are left out of the floor."""
    from torch.utils.flop_counter import FlopCounterMode

    model = load("organism:random")
    contexts = [Context((1, 2, 3, 4), (5, 6), (7, 8, 9)), Context((1, 2, 3, 5), (6,), (9, 8, 7, 6))]
    edit = EmbeddingEdit(torch.zeros(2, 1, model.hidden_size, requires_grad=True), (1, 1))
    engine = Engine(model, shared)
    with FlopCounterMode(display=False) as counter:
        engine.target_logits(contexts, edit).nats().sum().backward()
    found = counter.get_flop_counts()["Global"]
    linear = sum(count for name, count in found.items() if str(name) in ("aten.mm", "aten.addmm"))
    assert step_flops(engine, contexts, edit) == linear


def test_the_rates_are_those_of_some_machine():
    model = load("organism:random")
    assert 1e7 < product_rate(model) < 1e17
    assert 1e7 < copy_rate(model) < 1e15
