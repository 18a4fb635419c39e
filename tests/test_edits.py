"""Every kind of edit through the one forward path, against a slow twin of one row by itself, and against PEFT."""

from __future__ import annotations

import peft
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType
from torch import Tensor
from transformers import DynamicCache

from leadline.edits import EmbeddingEdit, KeyValueEdit, ResidualEdit, WeightEdit, join
from leadline.engine import Context, Engine, shared_prefix
from leadline.model import FrozenModel
from models import random_model

# PEFT asks transformers a question whose name has changed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ARCHITECTURES = ("llama", "gpt2", "neox", "gemma", "mistral", "mpt")
CONTEXTS = [
    Context((7, 8, 9), (10, 11, 12, 13), (14, 15, 2)),
    Context((7, 8, 9, 20), (21,), (22, 2)),
    Context((7, 8, 9, 20, 23), (), (24,)),
    Context((7, 8, 9), (30, 31), (32, 33, 34, 35)),
]


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nats(logits: Tensor, context: Context) -> Tensor:
    """Cost of the target from the logits of one whole row."""
    target = torch.tensor(context.target)
    lines = logits[-len(target) - 1 : -1]
    return torch.nn.functional.cross_entropy(lines.float(), target, reduction="sum")


def whole(context: Context) -> Tensor:
    return torch.tensor([[*context.before, *context.after, *context.target]])


def steered_nats(model: FrozenModel, context: Context, values: Tensor, sites: tuple[int, ...]) -> Tensor:
    """One row by itself, the vectors written into a block's output by a wrapper of its forward method."""
    first = min(len(context.before), len(context.before) + len(context.after) - 1)
    plain = {site: model.layers[site].forward for site in sites}
    for place, site in enumerate(sites):

        def changed(*args, forward=plain[site], value=values[place], **kwargs):
            found = forward(*args, **kwargs)
            hidden = found if isinstance(found, Tensor) else found[0]
            hidden = torch.cat([hidden[:, :first], hidden[:, first:] + value], dim=1)
            return hidden if isinstance(found, Tensor) else (hidden, *found[1:])

        model.layers[site].forward = changed
    try:
        return nats(model.network(input_ids=whole(context), use_cache=False).logits[0], context)
    finally:
        for site in sites:
            del model.layers[site].forward


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steering_equals_its_slow_twin(architecture, shared):
    model = random_model(architecture)
    fast, slow = (numbers(4, 2, model.hidden_size).requires_grad_() for _ in range(2))
    found = Engine(model, shared_prefix(CONTEXTS) if shared else ()).target_logits(CONTEXTS, ResidualEdit(fast, (0, 1)))
    wanted = torch.stack([steered_nats(model, context, slow[row], (0, 1)) for row, context in enumerate(CONTEXTS)])
    torch.testing.assert_close(found.nats(), wanted, rtol=1e-5, atol=1e-5)
    found.nats().sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=0, atol=1e-5 * float(slow.grad.abs().max()))
    assert not any(layer._forward_hooks for layer in model.layers)  # undone


def test_rows_that_are_steered_at_other_sites_share_a_batch():
    model = random_model("llama")
    one, two = ResidualEdit(numbers(1, 1, 32), (1,)), ResidualEdit(numbers(1, 2, 32, seed=2), (0, 1))
    together = Engine(model).target_logits(CONTEXTS[:2], join([one, two])).nats()
    alone = [Engine(model).target_logits([c], e).nats() for c, e in zip(CONTEXTS[:2], (one, two))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prefix_equals_peft(architecture):
    model = random_model(architecture)
    tuned = peft.get_peft_model(
        random_model(architecture).network,
        PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3, prefix_projection=False),
    )
    blocks, heads = len(model.layers), 4 // (2 if architecture == "llama" else 1)
    parts = numbers(3, blocks, 2, heads, 8).requires_grad_()
    weight = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(parts.reshape(3, -1))
    keys, values = parts.permute(2, 1, 3, 0, 4)
    edit = KeyValueEdit(keys.expand(4, *keys.shape), values.expand(4, *values.shape))
    found = Engine(model).target_logits(CONTEXTS, edit).nats()
    wanted = torch.stack([nats(tuned(input_ids=whole(context)).logits[0], context) for context in CONTEXTS])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    wanted.sum().backward()
    largest = float(weight.grad.abs().max())
    torch.testing.assert_close(parts.grad.reshape(3, -1), weight.grad, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prefix_behind_shared_tokens_equals_one_whole_row_with_the_same_cache(architecture):
    """Keys and values that a real token leaves are the token: inserting them equals having read it there."""
    model = random_model(architecture)
    ids = torch.tensor([[7, 8, 9, 40, 41]])
    past = model.network(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
    keys, values = (torch.stack([getattr(layer, n)[0, :, 3:] for layer in past.layers]) for n in ("keys", "values"))
    edit = KeyValueEdit(keys.expand(4, *keys.shape), values.expand(4, *values.shape))
    found = Engine(model, (7, 8, 9)).target_logits(CONTEXTS, edit).nats()
    read = [Context((7, 8, 9, 40, 41, *c.before[3:]), c.after, c.target) for c in CONTEXTS]
    wanted = torch.stack([nats(model.network(input_ids=whole(c), use_cache=False).logits[0], c) for c in read])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
def test_lora_equals_peft(architecture):
    model = random_model(architecture)
    network = random_model(architecture).network
    tuned = peft.get_peft_model(
        network,
        LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, lora_alpha=2, target_modules="all-linear",
                   fan_in_fan_out=architecture == "gpt2"),
    )  # fmt: skip
    down, up, leaves = {}, {}, []
    for number, (name, module) in enumerate(tuned.base_model.model.named_modules()):
        if not hasattr(module, "lora_A"):
            continue
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        with torch.no_grad():
            a.copy_(0.3 * numbers(*a.shape, seed=number))
            b.copy_(0.3 * numbers(*b.shape, seed=1000 + number))
        down[name], up[name] = (w.detach().clone().requires_grad_() for w in (a, b))
        leaves += [(down[name], a), (up[name], b)]
    edit = WeightEdit(
        {n: f.expand(4, *f.shape) for n, f in down.items()}, {n: f.expand(4, *f.shape) for n, f in up.items()}
    )
    wanted = torch.stack([nats(tuned(input_ids=whole(context)).logits[0], context) for context in CONTEXTS])
    found = Engine(model, shared_prefix(CONTEXTS)).target_logits(CONTEXTS, edit).nats()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    wanted.sum().backward()
    largest = max(float(theirs.grad.abs().max()) for _, theirs in leaves)
    for ours, theirs in leaves:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5 * largest)


def edits(model: FrozenModel) -> list:
    """One edit of each kind that is not of embeddings, for four rows."""
    name = next(n for n, m in model.network.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n)
    outputs, inputs = model.network.get_submodule(name).weight.shape
    return [
        ResidualEdit(numbers(4, 1, 32), (0,)),
        KeyValueEdit(numbers(4, 2, 2, 3, 8), numbers(4, 2, 2, 3, 8, seed=2)),
        WeightEdit({name: numbers(4, 1, inputs)}, {name: numbers(4, outputs, 1)}),
    ]


@pytest.mark.parametrize("kind", range(3))
def test_a_row_does_not_depend_on_its_neighbours(kind):
    model = random_model("llama")
    edit = edits(model)[kind]
    together = Engine(model, (7, 8, 9)).target_logits(CONTEXTS, edit).nats()
    alone = [Engine(model, (7, 8, 9)).target_logits([c], edit.select([row])).nats() for row, c in enumerate(CONTEXTS)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", range(3))
def test_a_greedy_reply_is_the_target_with_the_highest_margin_at_every_token(kind):
    """Generation and teacher forcing are two uses of one edit: what is generated has positive margins."""
    model = random_model("llama")
    edit, engine = edits(model)[kind], Engine(random_model("llama"), (7, 8, 9))
    replies = engine.generate(CONTEXTS, edit, 5)
    nothing = engine.generate(CONTEXTS, EmbeddingEdit(torch.zeros(4, 0, 32), (0,) * 4), 5)
    assert replies != nothing  # the edit does something
    forced = [Context(c.before, c.after, reply) for c, reply in zip(CONTEXTS, replies)]
    assert (engine.target_logits(forced, edit).margins() > 0).all()


def test_one_batch_has_edits_of_one_kind_and_shape():
    model = random_model("llama")
    one, two, three = edits(model)
    with pytest.raises(ValueError, match="one kind"):
        join([one, two])
    with pytest.raises(ValueError, match="as many tokens"):
        join([two, KeyValueEdit(two.keys[:, :, :, :1], two.values[:, :, :, :1])])
    with pytest.raises(ValueError, match="same rank"):
        join([three, WeightEdit({"other": torch.zeros(1, 1, 2)}, {"other": torch.zeros(1, 2, 1)})])
    for edit in (one, two, three):
        assert join([edit.select([0, 1]), edit.select([2, 3])]).lengths == (0, 0, 0, 0)
    for wrong in (
        lambda: ResidualEdit(torch.zeros(1, 2, 3), (0,)),
        lambda: KeyValueEdit(torch.zeros(1, 2, 2, 3, 8), torch.zeros(1, 2, 2, 2, 8)),
        lambda: WeightEdit({}, {}),
    ):
        with pytest.raises(ValueError):
            wrong()
