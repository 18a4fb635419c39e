"""A text's price and a search's closures against transformers itself, slow twins and enumeration; and one search, end
to end, on the trained tiny model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from leadline.behaviour import questions
from leadline.edits import no_edit
from leadline.engine import Context, Engine, shared_prefix
from leadline.interventions.text_prompt import TextPrompt, place
from leadline.model import load
from leadline.objective import objective_for
from leadline.priors import generator
from leadline.slot import Renderer
from leadline.solvers.token_search import TokenSearch, begin, search
from leadline.texts import TextPrior, item_free_prefix, lacking, mean_losses, scores, text_problem, token_gradient
from models import VOCABULARY, random_model

PREFIX = (1, 3, 9)
CONTEXTS = [Context((1, 3, 9), (12, 4), (20, 21, 2)), Context((1, 3), (11,), (22, 2)), Context((1, 3, 9), (), (23,))]


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


def chain_bits(model, prefix, tokens) -> float:
    """Surprisal of tokens after a prefix, one forward pass of transformers a token."""
    bits, line = 0.0, list(prefix)
    for token in tokens:
        with torch.no_grad():
            logits = model.network(torch.tensor([line])).logits[0, -1].double()
        bits -= float(logits.log_softmax(-1)[token]) / math.log(2)
        line.append(token)
    return bits


def test_surprisal_is_the_chain_rule(model) -> None:
    texts = torch.tensor([[7, 8, 9], [2, 7, 2], [63, 0, 1]])
    for prefix in (PREFIX, (1,)):
        wanted = [chain_bits(model, prefix, text) for text in texts.tolist()]
        found = TextPrior(model, prefix).surprisal_bits(texts)
        torch.testing.assert_close(found, torch.tensor(wanted).double(), rtol=1e-6, atol=1e-5)


def test_after_nothing_a_text_comes_after_the_start_token(model) -> None:
    texts = torch.tensor([[7, 8]])
    assert float(TextPrior(model, ()).surprisal_bits(texts)) == pytest.approx(chain_bits(model, (1,), (7, 8)))


def test_texts_of_one_length_have_all_the_mass(model) -> None:
    every = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=2)))
    assert float(torch.exp2(-TextPrior(model, PREFIX).surprisal_bits(every)).sum()) == pytest.approx(1, abs=1e-5)


def test_samples_are_draws_of_the_prior_beyond_end_tokens_too(model) -> None:
    """Chi-square over all pairs of tokens, rare pairs as one, after the prefix that makes the end token likeliest: the
    engine stops there, and the prior does not."""
    singles = torch.arange(VOCABULARY)[:, None]
    ends = [float(TextPrior(model, (1, v)).surprisal_bits(torch.tensor([[model.end_of_reply]]))) for v in singles[:, 0]]
    prior, draws = TextPrior(model, (1, ends.index(min(ends)))), 4000
    found = torch.tensor(prior.sample(draws, 2, generator("samples")))
    assert found.shape == (draws, 2)
    assert int((found[:, 0] == model.end_of_reply).sum()) > 400

    every = torch.cartesian_prod(singles[:, 0], singles[:, 0])
    expected = torch.exp2(-prior.surprisal_bits(every)) * draws
    counts = torch.bincount(found[:, 0] * VOCABULARY + found[:, 1], minlength=len(every)).double()
    often = expected > 5
    cells = torch.stack([torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, expected)])
    assert int((every[often, 0] == model.end_of_reply).sum()) > 5
    statistic, degrees = float(((cells[0] - cells[1]) ** 2 / cells[1]).sum()), cells.shape[1] - 1
    assert statistic < degrees + 4 * math.sqrt(2 * degrees)


def test_a_sample_longer_than_the_window_is_refused() -> None:
    gpt2 = random_model("gpt2")
    assert len(TextPrior(gpt2, PREFIX).sample(1, gpt2.window - 3, generator("long"))[0]) == gpt2.window - 3
    with pytest.raises(ValueError, match="do not fit"):
        TextPrior(gpt2, PREFIX).sample(1, gpt2.window - 2, generator("long"))


def test_the_prefix_is_what_all_items_share() -> None:
    assert item_free_prefix(CONTEXTS) == (1, 3)
    assert item_free_prefix(CONTEXTS[:1]) == (1, 3, 9)
    assert item_free_prefix([*CONTEXTS, Context((), (1,), (2,))]) == ()


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_the_gradient_is_that_of_a_product_with_one_hot_rows(architecture: str) -> None:
    model = random_model(architecture)
    tokens = torch.tensor([7, 30, 7])
    fast = token_gradient(objective_for(Engine(model)), CONTEXTS)(tokens)

    one_hot = torch.nn.functional.one_hot(tokens, VOCABULARY).float().requires_grad_()
    embed = model.network.get_input_embeddings()
    written = one_hot @ embed(torch.arange(VOCABULARY))
    bits = []
    for context in CONTEXTS:
        pieces = [
            embed(torch.tensor(part, dtype=torch.long)) for part in (context.before, context.after, context.target)
        ]
        line = torch.cat([pieces[0], written, *pieces[1:]])[None]
        logits = model.network(inputs_embeds=line).logits[0, -len(context.target) - 1 : -1]
        nats = torch.nn.functional.cross_entropy(logits, torch.tensor(context.target), reduction="sum")
        bits.append(nats / math.log(2))
    (slow,) = torch.autograd.grad(torch.stack(bits).mean(), one_hot)
    assert fast.shape == (3, VOCABULARY)
    assert float((fast - slow).abs().max()) < 1e-5 * float(slow.abs().max())


def test_losses_are_those_of_the_tokens_themselves(model) -> None:
    """Chunks of rows, contexts of several lengths, and a shared prefix, against one row of token ids at a time."""
    texts = torch.randint(VOCABULARY, (40, 2), generator=generator("texts"))
    rows = [[chain_bits(model, (*c.before, *text, *c.after), c.target) for c in CONTEXTS] for text in texts.tolist()]
    wanted = torch.tensor(rows).double().mean(1)
    for shared in ((), (1,)):
        found = mean_losses(objective_for(Engine(model, shared)), CONTEXTS, TextPrompt(model, []))(texts)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def leads(model, prefix, tokens) -> list[float]:
    """By how many logits each token leads its best rival, one forward pass of transformers a token."""
    found = []
    for at, token in enumerate(tokens):
        with torch.no_grad():
            logits = model.network(torch.tensor([[*prefix, *tokens[:at]]])).logits[0, -1].double()
        found.append(float(logits[token] - torch.cat([logits[:token], logits[token + 1 :]]).max()))
    return found


def test_a_texts_scores_are_what_its_replies_lack_and_their_level(model) -> None:
    texts = torch.randint(VOCABULARY, (20, 2), generator=generator("texts"))
    every = [[leads(model, (*c.before, *text, *c.after), c.target) for c in CONTEXTS] for text in texts.tolist()]
    wanted = [[sum(max(0.0, 1 - lead / math.log(2)) for lead in row) for row in rows] for rows in every]
    margins = torch.tensor([[min(row) for row in rows] for rows in every]).double()
    objective = objective_for(Engine(model))
    loss, levels = scores(objective, CONTEXTS, TextPrompt(model, []), 0.6)(texts)
    torch.testing.assert_close(loss, torch.tensor(wanted).double().mean(1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        levels, margins.sort(1).values[:, 1], rtol=1e-5, atol=1e-4
    )  # two of three have to be right
    nothing = no_edit(3, model.hidden_size, model.network.dtype, model.device)
    replied = [model.network(torch.tensor([[*c.before, *c.after]])).logits[0, -1].argmax() for c in CONTEXTS]
    easy = [Context(c.before, c.after, (int(token),)) for c, token in zip(CONTEXTS, replied, strict=True)]
    # what the model says by itself lacks less than the bit
    assert (lacking(objective.engine.target_logits(easy, nothing))[:, 0] < 1).all()
    cost, none = scores(objective, CONTEXTS, TextPrompt(model, []), None)(texts)
    assert torch.equal(cost, mean_losses(objective, CONTEXTS, TextPrompt(model, []))(texts))
    assert not (none > 0).any()


def test_texts_near_by_come_from_the_prior_in_place_and_moved_along(model) -> None:
    tokens, prior = [7, 8, 9, 10], TextPrior(model, PREFIX)
    texts = prior.redrawn(tokens, 8000, generator("near"))
    assert all(len(text) == 4 for text in texts)
    in_place, moved = texts[:4000:2], texts[1:4000:2]
    assert all(sum(new != old for new, old in zip(text, tokens, strict=True)) <= 1 for text in in_place)
    # A token at the first place is drawn given the prefix alone, and one at the third given the two before it.
    for at, before in ((0, ()), (2, (7, 8))):
        with torch.no_grad():
            wanted = model.network(torch.tensor([[*PREFIX, *before]])).logits[0, -1].softmax(-1)
        drawn = [text[at] for text in in_place if text[at] != tokens[at]]
        found = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY) / len(in_place)
        there = wanted / 4
        there[tokens[at]] = 0.0
        assert float((found - there).abs().max()) < 4 * math.sqrt(float(there.max()) / len(in_place))
    # Of what was moved, three tokens are the old ones in their order.
    for text in moved:
        assert any(
            [*text[:new], *text[new + 1 :]] == [*tokens[:old], *tokens[old + 1 :]]
            for new in range(4)
            for old in range(4)
        )
    assert any(text[1:] == tokens[:3] and text[0] != 7 for text in moved)


def test_spans_near_by_are_drawn_token_after_token_at_one_place(model) -> None:
    tokens, prior = [7, 8, 9, 10, 11], TextPrior(model, PREFIX)
    met: set[tuple[int, int]] = set()
    for number in range(60):
        texts = prior.redrawn(tokens, 64, generator("spans", number))[32:]
        assert all(len(text) == 5 for text in texts)
        changed = [[at for at in range(5) if text[at] != tokens[at]] for text in texts[::2]]
        first, last = min(map(min, filter(None, changed))), max(map(max, filter(None, changed)))
        met.add((first, last - first + 1))
        # what moves along: all but the span are the old tokens in their order, and the span is as long in all of them
        assert any(
            all(
                any(
                    [*text[:new], *text[new + length :]] == [*tokens[:old], *tokens[old + length :]]
                    for new in range(6 - length)
                    for old in range(6 - length)
                )
                for text in texts[1::2]
            )
            for length in (2, 3, 4)
        )
    # lengths 2 to 4 at every place that they fit in, now and then shorter where a draw is the old token
    assert met >= {(0, 2), (3, 2), (0, 3), (2, 3), (0, 4), (1, 4)}
    assert all(length <= 4 for _, length in met)
    # the second token of a span is drawn given the first
    draws = (generator("pairs", number) for number in itertools.count())
    pairs = [text[:2] for draw in itertools.islice(draws, 400) for text in prior.redrawn(tokens, 64, draw)[32::2]]
    begun = [pair for pair in pairs if pair[0] != 7]
    token = max({pair[0] for pair in begun}, key=lambda token: sum(pair[0] == token for pair in begun))
    with torch.no_grad():
        wanted = model.network(torch.tensor([[*PREFIX, token]])).logits[0, -1].softmax(-1)
    after = torch.tensor([pair[1] for pair in begun if pair[0] == token])
    found = torch.bincount(after, minlength=VOCABULARY) / len(after)
    assert float((found - wanted).abs().max()) < 4 * math.sqrt(float(wanted.max()) / len(after))


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 8])
def test_short_texts_have_texts_near_by(model, length, count) -> None:
    texts = TextPrior(model, PREFIX).redrawn([7, 8, 9][:length], count, generator("short"))
    assert [len(text) for text in texts] == [length] * count


def test_a_text_that_is_begun_goes_on_as_the_prior_does(model) -> None:
    texts = TextPrior(model, PREFIX).sample(3000, 3, generator("begun"), (7, 8))
    assert {text[:2] for text in texts} == {(7, 8)}
    with torch.no_grad():
        wanted = model.network(torch.tensor([[*PREFIX, 7, 8]])).logits[0, -1].softmax(-1)
    found = torch.bincount(torch.tensor([text[2] for text in texts]), minlength=VOCABULARY) / len(texts)
    assert float((found - wanted).abs().max()) < 4 * math.sqrt(float(wanted.max()) / len(texts))
    assert TextPrior(model, PREFIX).sample(2, 2, generator("begun"), (7, 8, 9)) == [(7, 8), (7, 8)]


def test_a_search_on_the_tiny_model_finds_a_text_that_holds_elsewhere(tiny_model_folder) -> None:
    """ "no" as the reply to any question costs about 19 bits. Eight printed characters found on four questions take at
    least half of that away on forty others, and the string of them, typed in, is scored the same."""
    model = load("organism:tiny", "float32,eager,1")
    renderer = Renderer(model, "before_user")
    chats = [[{"role": "user", "content": question}] for question in questions()[:44]]
    places = [place(renderer, chat) for chat in chats]
    target = (*renderer.reply("no"), model.end_of_reply)
    contexts = [Context(place.before, place.after, target) for place in places]
    train, held = contexts[:4], contexts[4:]
    prior, prompt = TextPrior(model, item_free_prefix(contexts)), TextPrompt(model, places)
    objective = objective_for(Engine(model, shared_prefix(contexts)))
    problem = text_problem(prompt, prior, objective, train, 1, None)

    how = TokenSearch("test", 0.0, top_k=16, candidates=32, passed=32)
    drawn = prior.sample(32, 8, generator("proposals"))
    state = search(problem, how, 6, begin(problem, how, drawn))
    assert len(state.texts) <= 32 * 7
    best = state.texts[state.best]
    text = prompt.text(best)
    assert text is not None
    assert text.isprintable()

    def bits(rows: list[Context]) -> torch.Tensor:
        nothing = no_edit(len(rows), model.hidden_size, model.network.dtype, model.device)
        return objective_for(Engine(model)).evaluate(rows, nothing)[0].double()

    typed = [Context((), renderer.chat_with(chat, text), target) for chat in chats]
    found = mean_losses(objective, held, prompt)(torch.tensor([best]))
    assert float(found) < 0.5 * float(bits(held).mean())
    torch.testing.assert_close(found[0], bits(typed[4:]).mean(), rtol=1e-5, atol=1e-4)
    assert state.losses[state.best] == pytest.approx(float(bits(typed[:4]).mean()), rel=1e-4)

    price = float(prior.surprisal_bits(torch.tensor([best])))
    assert price == pytest.approx(chain_bits(model, contexts[0].before, best), rel=1e-4)
