"""The one forward path against a plain slow twin, with and without the shared prefix, and against PEFT (K9)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leadline.edits import EmbeddingEdit, no_edit
from leadline.engine import Context, Engine, _choose, shared_prefix
from leadline.model import FrozenModel
from models import FLOAT32, VOCABULARY, random_model

ARCHITECTURES = ("llama", "gpt2", "neox", "gemma", "mistral", "mpt")
CONTEXTS = [
    Context((7, 8, 9), (10, 11, 12, 13), (14, 15, 2)),
    Context((7, 8, 9, 20), (21,), (22, 2)),
    Context((7, 8, 9, 20, 23), (), (24,)),
    Context((7, 8, 9), (30, 31), (32, 33, 34, 35)),
]
LENGTHS = (1, 3, 0, 2)


def an_edit(model: FrozenModel) -> EmbeddingEdit:
    values = torch.randn(4, 3, model.hidden_size, generator=torch.Generator().manual_seed(1))
    return EmbeddingEdit(values.to(model.network.dtype).requires_grad_(), LENGTHS)


def slow_nats(model: FrozenModel, context: Context, values: Tensor) -> Tensor:
    """One row by itself: all logits, no padding, no cache, no hook."""
    head, tail = (model.embed(torch.tensor(part, dtype=torch.long)) for part in (context.before, context.after))
    target = torch.tensor(context.target)
    embeds = torch.cat([head, values, tail, model.embed(target)])[None]
    logits = model.network(inputs_embeds=embeds, use_cache=False).logits[0]
    start = len(context.before) + len(values) + len(context.after)
    return torch.nn.functional.cross_entropy(logits[start - 1 : -1].float(), target, reduction="sum")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_gradients_equal_the_slow_twin(architecture, shared):
    model = random_model(architecture)
    prefix = shared_prefix(CONTEXTS) if shared else ()
    assert prefix == ((7, 8, 9) if shared else ())
    fast, slow = an_edit(model), an_edit(model)
    found = Engine(model, prefix).target_logits(CONTEXTS, fast).nats()
    wanted = torch.stack([slow_nats(model, c, slow.values[i, :n]) for i, (c, n) in enumerate(zip(CONTEXTS, LENGTHS))])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    # of the largest: what sums to nearly nothing keeps the rounding of its parts
    largest = float(slow.values.grad.abs().max())
    torch.testing.assert_close(fast.values.grad, slow.values.grad, rtol=0, atol=1e-5 * largest)
    # positions beyond a row's own length take no part
    assert fast.values.grad[0, 1:].abs().sum() == 0
    assert fast.values.grad[2].abs().sum() == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_does_not_depend_on_its_neighbours(architecture):
    model = random_model(architecture, torch.float64)
    edit = an_edit(model)
    together = Engine(model).target_logits(CONTEXTS, edit).nats()
    for row in range(4):
        alone = Engine(model).target_logits(CONTEXTS[row : row + 1], edit.select([row])).nats()
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_generation_equals_decoding_one_row_from_scratch(architecture, shared):
    model = random_model(architecture)
    edit = an_edit(model)
    found = Engine(model, shared_prefix(CONTEXTS) if shared else ()).generate(CONTEXTS, edit, 6)
    for row, (context, length) in enumerate(zip(CONTEXTS, LENGTHS)):
        parts = [model.embed(torch.tensor(part, dtype=torch.long)) for part in (context.before, context.after)]
        embeds, wanted = torch.cat([parts[0], edit.values[row, :length], parts[1]]), []
        while len(wanted) < 6 and not (wanted and wanted[-1] in model.end_tokens):
            wanted.append(int(model.network(inputs_embeds=embeds[None], use_cache=False).logits[0, -1].argmax()))
            embeds = torch.cat([embeds, model.embed(torch.tensor(wanted[-1:]))])
        assert list(found[row]) == wanted


def test_a_reply_ends_where_the_window_does():
    model = random_model("gpt2")
    long = Context(tuple(range(4, 64)) * 2, (), ())
    nothing = no_edit(2, model.hidden_size, torch.float32, model.device)
    replies = Engine(model).generate([long, Context((7,), (), ())], nothing, 60)
    assert len(replies[0]) <= model.window - 120
    assert len(replies[1]) == 60 or replies[1][-1] in model.end_tokens


def test_margins_say_what_greedy_decoding_writes():
    model = random_model("llama")
    nothing = no_edit(4, model.hidden_size, torch.float32, model.device)
    written = Engine(model).generate(CONTEXTS, nothing, 3)
    right = [Context(c.before, c.after, reply) for c, reply in zip(CONTEXTS, written)]
    wrong = [
        Context(c.before, c.after, ((reply[0] + 1) % VOCABULARY, *reply[1:])) for c, reply in zip(CONTEXTS, written)
    ]
    assert bool((Engine(model).target_logits(right, nothing).margins() > 0).all())
    assert bool((Engine(model).target_logits(wrong, nothing).margins() < 0).all())


def test_k16_an_off_by_one_target_breaks_the_slow_twin(monkeypatch):
    assemble = Engine._assemble

    def shifted(self, *arguments):
        embeds, starts, slots = assemble(self, *arguments)
        return embeds, [start - 1 for start in starts], slots

    monkeypatch.setattr(Engine, "_assemble", shifted)
    with pytest.raises(AssertionError):
        test_losses_and_gradients_equal_the_slow_twin("llama", False)


def test_contexts_that_do_not_share_the_prefix_are_refused():
    engine = Engine(random_model("llama"), (7, 8, 9))
    edit = no_edit(1, 32, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="shared prefix of 3"):
        engine.target_logits([Context((7, 9, 9), (1,), (2,))], edit)


def test_weights_are_the_same_after_forward_and_backward():
    model = random_model("llama")
    before = model.weight_hash
    Engine(model).target_logits(CONTEXTS, an_edit(model)).nats().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.network.parameters())
    assert FrozenModel(model.name, "", "", model.network, model.tokenizer, FLOAT32).weight_hash == before


# PEFT 0.21 asks transformers for a property that transformers is about to rename.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_k9_peft_prompt_tuning_gives_the_same_logits_and_gradients(architecture, dtype, tolerance):
    from peft import PromptTuningConfig, get_peft_model

    model = random_model(architecture, dtype)
    values = torch.randn(1, 3, model.hidden_size, generator=torch.Generator().manual_seed(2)).to(dtype)
    context = Context((), (7, 8, 9, 10), (11, 12))
    edit = EmbeddingEdit(values.clone().requires_grad_(), (3,))
    found = Engine(model).target_logits([context], edit)
    (gradient,) = torch.autograd.grad(found.logits.logsumexp(-1).sum() - found.logits[:, 5].sum(), edit.values)

    tuned = get_peft_model(model.network, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    weight = tuned.prompt_encoder["default"].embedding.weight
    weight.data = values[0].clone()
    logits = tuned(input_ids=torch.tensor([[7, 8, 9, 10, 11]])).logits[0, 3 + 3 : 3 + 5]
    (wanted,) = torch.autograd.grad(logits.logsumexp(-1).sum() - logits[:, 5].sum(), weight)
    torch.testing.assert_close(found.logits, logits, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient[0], wanted, rtol=tolerance, atol=tolerance)


class Elsewhere(Tensor):
    """Says what CUDA says: a generator of the CPU does not draw here."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.multinomial and (kwargs or {}).get("generator") is not None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        found = super().__torch_function__(func, types, args, kwargs or {})
        return found.as_subclass(Tensor) if func is Tensor.to else found


def test_a_generator_of_the_cpu_draws_the_same_for_a_model_elsewhere():
    logits = torch.randn(64, 20, generator=torch.Generator().manual_seed(3))
    here, there = (
        _choose(values, torch.Generator().manual_seed(5)) for values in (logits, logits.as_subclass(Elsewhere))
    )
    assert here.tolist() == there.tolist()
    assert len(set(here.tolist())) > 10, "drawn, not the most likely"
