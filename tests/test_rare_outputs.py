"""ITGIS and MHIS against enumeration: of a small table, its walk's transition matrix, and a random transformer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from leadline import rare_outputs
from leadline.edits import EmbeddingEdit
from leadline.engine import Context, Engine
from leadline.estimators import importance, mhis, text_bound
from leadline.model import FrozenModel
from leadline.priors import generator
from leadline.rare_outputs import (
    IndependentTokens,
    RareOutput,
    State,
    acceptance_nats,
    argmax_output,
    itgis,
    proposal_nats,
    walk,
    weighed,
)
from models import random_model

LENGTH, VOCABULARY, BANNED = 2, 5, 4
TEMPERATURE = 0.8
WARM = 1.0  # of the transformer, whose slopes spread by about one


def table_prior() -> IndependentTokens:
    """Two tokens out of four, the fifth never."""
    logits = torch.randn(LENGTH, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[:, BANNED] = -math.inf
    return IndependentTokens(logits.log_softmax(-1))


def all_texts(tokens: Tensor, length: int) -> Tensor:
    return torch.cartesian_prod(*[tokens] * length).view(-1, length)


def table_output() -> RareOutput:
    """A logit that is a table over texts, and slopes that differ from text to text and are no derivative of anything:
    the walk must be right whatever they say."""
    draws = torch.Generator().manual_seed(2)
    logits = torch.randn(VOCABULARY**LENGTH, dtype=torch.float64, generator=draws)
    slopes = torch.randn(VOCABULARY**LENGTH, LENGTH, VOCABULARY, dtype=torch.float64, generator=draws)

    def places(tokens: Tensor) -> Tensor:
        return tokens[:, 0] * VOCABULARY + tokens[:, 1]

    def value(tokens: Tensor) -> tuple[Tensor, Tensor]:
        return logits[places(tokens)], logits[places(tokens)] > 0.9

    return RareOutput(value, lambda tokens: (*value(tokens), slopes[places(tokens)]))


def tempered(prior: IndependentTokens, output: RareOutput, texts: Tensor) -> Tensor:
    return (prior.nats(texts) + output.value(texts)[0] / TEMPERATURE).softmax(0)


def transitions(prior: IndependentTokens, output: RareOutput, texts: Tensor) -> Tensor:
    """(texts, texts) chance of a step from one text to another, by adding up positions and proposals."""
    states = State(texts, *output.slope(texts))
    order = {tuple(text): place for place, text in enumerate(texts.tolist())}
    matrix = torch.zeros(len(texts), len(texts), dtype=torch.float64)
    proposal = proposal_nats(prior, states.slope, TEMPERATURE).exp()
    for start, position, token in itertools.product(range(len(texts)), range(LENGTH), range(BANNED)):
        there = list(texts[start].tolist())
        there[position] = token
        end = order[tuple(there)]
        pick = [State(s.tokens[i], s.logit[i], s.hit[i], s.slope[i]) for s, i in ((states, [start]), (states, [end]))]
        chance = acceptance_nats(prior, pick[0], pick[1], torch.tensor([position]), TEMPERATURE).exp()
        moved = float(proposal[start, position, token] * chance[0]) / LENGTH
        matrix[start, end] += moved
        matrix[start, start] += float(proposal[start, position, token]) / LENGTH - moved
    return matrix


def test_the_metropolis_step_is_in_detailed_balance() -> None:
    prior, output, texts = table_prior(), table_output(), all_texts(torch.arange(BANNED), LENGTH)
    q, matrix = tempered(prior, output, texts), transitions(table_prior(), table_output(), texts)
    torch.testing.assert_close(matrix.sum(1), torch.ones_like(q), rtol=0.0, atol=1e-12)
    flow = q[:, None] * matrix
    torch.testing.assert_close(flow, flow.T, rtol=0.0, atol=1e-14)
    assert float(torch.linalg.matrix_power(matrix, 400)[0].sub(q).abs().max()) < 1e-9  # and gets everywhere


def test_a_forgotten_way_back_breaks_the_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: the proposal taken for symmetric."""
    texts = all_texts(torch.arange(BANNED), LENGTH)
    forward = transitions(table_prior(), table_output(), texts)

    def symmetric(prior: IndependentTokens, slope: Tensor, temperature: float) -> Tensor:
        return torch.zeros_like(slope)

    q = tempered(table_prior(), table_output(), texts)
    assert float((q[:, None] * forward - (q[:, None] * forward).T).abs().max()) < 1e-14
    real = rare_outputs.proposal_nats
    monkeypatch.setattr(rare_outputs, "proposal_nats", symmetric)
    assert real is proposal_nats  # this file's own name still proposes rightly: only the acceptance is mutated
    flow = q[:, None] * transitions(table_prior(), table_output(), texts)
    assert float((flow - flow.T).abs().max()) > 1e-3


def test_the_walk_visits_what_it_should() -> None:
    prior, output, texts = table_prior(), table_output(), all_texts(torch.arange(BANNED), LENGTH)
    q = tempered(prior, output, texts)
    met = walk(prior, output, TEMPERATURE, 64, 30, 400, generator("walk"))
    assert met.tokens.shape == (400, 64, LENGTH)
    assert 0.2 < met.accepted < 1.0
    each = met.tokens[..., 0] * BANNED + met.tokens[..., 1]
    shares = torch.stack([(each == place).double().mean(0) for place in range(len(texts))])  # (texts, chains)
    stderr = shares.std(1) / math.sqrt(64)
    assert bool(((shares.mean(1) - q).abs() < 4.0 * stderr).all())
    logit, hit = output.value(met.tokens.view(-1, LENGTH))
    assert torch.equal(met.logit.view(-1), logit)
    assert torch.equal(met.hit.view(-1), hit)


def test_a_tilted_distribution() -> None:
    prior = table_prior()
    slope = torch.arange(LENGTH * VOCABULARY, dtype=torch.float64).view(LENGTH, VOCABULARY)
    q = prior.tilted(slope, 2.0)
    share = prior.log_p_nats.exp() * (slope / 2.0).exp()
    torch.testing.assert_close(q.log_p_nats.exp(), share / share.sum(1, keepdim=True))
    texts = all_texts(torch.arange(BANNED), LENGTH)
    mass, ratio = q.nats(texts).exp(), (q.nats(texts) - prior.nats(texts)) / math.log(2.0)
    assert float(mass.sum()) == pytest.approx(1.0)
    assert q.kl_bits(prior) == pytest.approx(float((mass * ratio).sum()))
    assert prior.kl_bits(q) > 0.0
    assert prior.kl_bits(prior) == 0.0


@pytest.fixture(scope="module")
def planted() -> tuple[RareOutput, IndependentTokens, Tensor, float]:
    """A random transformer, its rarest reply to any two of twelve tokens, those texts, and the reply's share."""
    model = random_model("llama")
    context, engine = context_of(model), Engine(model)
    draws = torch.Generator().manual_seed(5)
    allowed = torch.arange(6, 18)
    log_p = torch.full((LENGTH, 64), -math.inf, dtype=torch.float64)
    log_p[:, allowed] = (0.7 * torch.randn(LENGTH, 12, generator=draws)).double().log_softmax(-1)
    prior, texts = IndependentTokens(log_p), all_texts(allowed, LENGTH)
    replies = engine.target_logits([context] * len(texts), EmbeddingEdit(model.embed(texts), (2,) * len(texts)))
    share = torch.zeros(64, dtype=torch.float64).index_add(0, replies.logits.argmax(1), prior.nats(texts).exp())
    target = int(torch.where(share > 0.0, share, 1.0).argmin())
    return argmax_output(engine, context_of(model, target)), prior, texts, float(share[target])


def context_of(model: FrozenModel, target: int = 20) -> Context:
    return Context((1, 3), (30, 4), (target,))


def test_the_event_and_its_slope() -> None:
    """Against the plain network on the spliced tokens, and against finite differences of the embeddings."""
    model = random_model("llama", torch.float64)
    output, context = argmax_output(Engine(model), context_of(model, 20)), context_of(model, 20)
    texts = torch.tensor([[7, 9], [12, 6], [40, 41]])
    logit, hit, slope = output.slope(texts)
    whole = torch.tensor([[*context.before, *text, *context.after] for text in texts.tolist()])
    logits = model.network(input_ids=whole).logits[:, -1]
    torch.testing.assert_close(logit, logits[:, 20], rtol=1e-5, atol=1e-5)
    assert torch.equal(hit, logits.argmax(1) == 20)
    assert torch.equal(output.value(texts)[0], logit)
    values, step = model.embed(whole), 1e-2  # the norms of this network compute in float32 whatever its dtype
    for position, token in ((0, 8), (1, 33)):
        moved = []
        for sign in (1.0, -1.0):
            near = values.clone()
            near[:, len(context.before) + position] += sign * step * model.embed(torch.tensor(token))
            moved.append(model.network(inputs_embeds=near).logits[:, -1, 20])
        torch.testing.assert_close(slope[:, position, token], (moved[0] - moved[1]) / (2 * step), rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="one token"):
        argmax_output(Engine(model), Context((1,), (4,), (5, 6)))


def test_enumeration_is_what_text_says(planted: tuple[RareOutput, IndependentTokens, Tensor, float]) -> None:
    output, prior, texts, share = planted
    hit = output.value(texts)[1]
    assert 3 < -math.log2(share) < 9
    found = text_bound((prior.nats(texts[hit]) / math.log(2.0)).numpy()).upper
    assert found is not None
    assert found.value == pytest.approx(-math.log2(share), abs=1e-6)


def test_itgis_is_unbiased(planted: tuple[RareOutput, IndependentTokens, Tensor, float]) -> None:
    """Within 3 standard errors of enumeration, over runs that each adapt anew; and the slopes help."""
    output, prior, _, share = planted
    masses, divergences = [], []
    for seed in range(12):
        draws = generator("itgis", seed)
        q = itgis(prior, output, WARM, 16, 8, draws)
        found = weighed(q, prior, output, 256, draws)
        ratio = found.log_ratio_bits.numpy()
        masses.append(float(np.mean(np.where(found.hit.numpy(), np.exp2(-ratio), 0.0))))
        divergences.append(q.kl_bits(prior))
        upper = importance(ratio, found.hit.numpy(), q.kl_bits(prior)).upper  # and the ratios are those of this q
        assert upper is None or upper.value > -math.log2(share) - 0.5
    stderr = float(np.std(masses, ddof=1)) / math.sqrt(len(masses))
    assert abs(np.mean(masses) - share) < 3.0 * stderr
    assert stderr < 0.15 * share
    assert min(divergences) > 0.05


def test_a_dropped_importance_weight_is_noticed(
    planted: tuple[RareOutput, IndependentTokens, Tensor, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, prior, _, share = planted
    draws = generator("dropped")
    q = itgis(prior, output, WARM, 16, 8, draws)
    monkeypatch.setattr(IndependentTokens, "nats", lambda self, tokens: torch.zeros(len(tokens), dtype=torch.float64))
    found = weighed(q, prior, output, 4096, draws)
    monkeypatch.undo()
    mass = float(np.mean(np.where(found.hit.numpy(), np.exp2(-found.log_ratio_bits.numpy()), 0.0)))
    assert mass > 1.3 * share + 3.0 * math.sqrt(share / 4096)
    with pytest.raises(ValueError, match="average"):
        importance(found.log_ratio_bits.numpy(), found.hit.numpy(), q.kl_bits(prior))


def test_mhis_is_near_enumeration(planted: tuple[RareOutput, IndependentTokens, Tensor, float]) -> None:
    output, prior, _, share = planted
    met = walk(prior, output, WARM, 64, 20, 120, generator("mhis"))
    found = mhis(-met.logit.T.numpy() / WARM, met.hit.T.numpy())
    assert found.estimate is not None
    assert found.stderr_bits < 0.2
    assert abs(found.estimate.value + math.log2(share)) < 3.0 * found.stderr_bits
    unweighted = mhis(np.zeros_like(met.logit.T.numpy()), met.hit.T.numpy())
    assert unweighted.estimate is not None
    assert abs(unweighted.estimate.value + math.log2(share)) > 3.0 * unweighted.stderr_bits
