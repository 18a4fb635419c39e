"""ITGIS and MHIS: how likely is a given next token, when the text at the slot is drawn token by token?

The two importance samplers of Wu and Hilton, "Estimating the probabilities of rare outputs in language models" (arXiv
2410.13211, written from their formulas. A text x of n tokens has the prior p(x) = prod_i p_i(x_i); M(x)
is the target token's logit after it; the event is that the target is the argmax. Both lean on the slope s_i(v), the
derivative of M by the one-hot row of position i, and on a temperature T in logits:

- ITGIS draws tokens independently, q_i(v) proportional to p_i(v) exp(s_i(v) / T), with s averaged over texts of q
  itself as it adapts. q is a closed form, so its draws are weighed exactly (`estimators.importance`).
- MHIS walks by Metropolis-Hastings through q(x) proportional to p(x) exp(M(x) / T): one token at a time is proposed
  from the slope at the present text. q is known up to a factor, so its draws are weighed against each other
  (`estimators.mhis`), which is an estimate and never a bound.

What differs from a measurement here: a behaviour asks for a whole greedy reply, on most of many items, and its text
prior is the model's own text; this asks for one token to win, after one context, under independent tokens. Differences
from the paper: ITGIS counts no text of its adaptive phase, so that the q that is counted is frozen; a proposal may draw
the token that stands there already, which wastes the step and changes no distribution.

The samplers know closures over tokens and neither model nor slot; `argmax_output` is where these come in. Nothing here
judges whether a text can be typed. Everything is float64 but the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from leadline.edits import EmbeddingEdit
from leadline.engine import Context, Engine, TargetLogits


@dataclass(frozen=True)
class RareOutput:
    """An event and the logit behind it, as functions of (texts, n) tokens, int64 on the CPU.

    value: (texts,) float64 logit M, and (texts,) bool whether the event happens; a forward pass a text
    slope: (texts, n, vocabulary) float64 derivative of M by the one-hot rows beside the same two; a forward and a
           backward pass a text
    """

    value: Callable[[Tensor], tuple[Tensor, Tensor]]
    slope: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class IndependentTokens:
    """A distribution over texts of n tokens, each drawn by itself.

    log_p_nats: (n, vocabulary) float64 log probabilities, -inf for tokens that are never drawn
    """

    log_p_nats: Tensor

    def sample(self, count: int, draws: torch.Generator) -> Tensor:
        """(count, n) tokens."""
        return torch.multinomial(self.log_p_nats.exp(), count, replacement=True, generator=draws).T

    def nats(self, tokens: Tensor) -> Tensor:
        """(texts, n) tokens to (texts,) log probability, in nats."""
        return self.log_p_nats[torch.arange(tokens.shape[1]), tokens].sum(1)

    def tilted(self, slope: Tensor, temperature: float) -> IndependentTokens:
        """Each token v at position i made exp(slope[i, v] / temperature) times as likely, and normalised."""
        return IndependentTokens((self.log_p_nats + slope / temperature).log_softmax(-1))

    def kl_bits(self, prior: IndependentTokens) -> float:
        """Its divergence from a prior, in bits; inf where it draws what the prior never does."""
        share = self.log_p_nats.exp()
        terms = torch.where(share > 0.0, share * (self.log_p_nats - prior.log_p_nats), 0.0)
        return float(terms.sum()) / math.log(2.0)


@dataclass(frozen=True)
class Draws:
    """Draws of q. tokens: (draws, n);  hit: (draws,) bool;  log_ratio_bits: (draws,) log2 q / p, for `importance`"""

    tokens: Tensor
    hit: Tensor
    log_ratio_bits: Tensor


@dataclass(frozen=True)
class State:
    """Where the chains of MHIS stand. tokens: (chains, n);  logit, hit: (chains,);  slope: (chains, n, vocabulary)"""

    tokens: Tensor
    logit: Tensor
    hit: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Walk:
    """What the chains met after their burn-in, rejections counted as another visit.

    tokens: (steps, chains, n);  logit, hit: (steps, chains);  accepted: share of proposals, burn-in left out
    """

    tokens: Tensor
    logit: Tensor
    hit: Tensor
    accepted: float


def argmax_output(engine: Engine, context: Context) -> RareOutput:
    """The event that greedy decoding writes the context's target, which is one token, with a text in its slot.

    The logit is the model's own, not normalised over the vocabulary, as in the paper. ValueError: another target.
    """
    if len(context.target) != 1:
        raise ValueError(f"the target is one token here, not {len(context.target)}")
    model, target = engine.model, context.target[0]
    with torch.no_grad():
        rows = model.network.get_input_embeddings().weight.shape[0]
        table = model.embed(torch.arange(rows, device=model.device)).float()

    def run(values: Tensor) -> TargetLogits:
        texts, length, _ = values.shape
        return engine.target_logits([context] * texts, EmbeddingEdit(values, (length,) * texts))

    def told(logits: TargetLogits) -> tuple[Tensor, Tensor]:
        return logits.logits[:, target].detach().double().cpu(), logits.margins().detach().cpu() > 0.0

    @torch.no_grad()
    def value(tokens: Tensor) -> tuple[Tensor, Tensor]:
        return told(run(table[tokens.to(table.device)]))

    def slope(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = table[tokens.to(table.device)].requires_grad_()
        logits = run(values)
        # rows do not see each other: the gradient of the sum is each row's own
        (by_embedding,) = torch.autograd.grad(logits.logits[:, target].float().sum(), values)
        return (*told(logits), (by_embedding @ table.T).double().cpu())

    return RareOutput(value, slope)


def itgis(
    prior: IndependentTokens, output: RareOutput, temperature: float, batch: int, steps: int, draws: torch.Generator,
    decay: float = 0.9,
) -> IndependentTokens:  # fmt: skip
    """The adapted q, frozen: batch * steps forward and backward passes.

    The slope is an exponentially weighted mean over batches, each drawn from the q of the batches before it. It is
    divided by the weights given so far, so that the first batches are not taken for flat.
    """
    q, mean = prior, torch.zeros_like(prior.log_p_nats)
    for step in range(steps):
        _, _, slope = output.slope(q.sample(batch, draws))
        mean = decay * mean + (1.0 - decay) * slope.mean(0)
        q = prior.tilted(mean / (1.0 - decay ** (step + 1)), temperature)
    return q


def weighed(
    q: IndependentTokens, prior: IndependentTokens, output: RareOutput, count: int, draws: torch.Generator
) -> Draws:
    """Fresh draws of q, a forward pass each, with their weights back to the prior."""
    tokens = q.sample(count, draws)
    _, hit = output.value(tokens)
    return Draws(tokens, hit, (q.nats(tokens) - prior.nats(tokens)) / math.log(2.0))


def walk(
    prior: IndependentTokens, output: RareOutput, temperature: float, chains: int, burn_in: int, steps: int,
    draws: torch.Generator,
) -> Walk:  # fmt: skip
    """MHIS's chains from prior draws: chains * (1 + burn_in + steps) forward and backward passes."""
    tokens = prior.sample(chains, draws)
    here, row = State(tokens, *output.slope(tokens)), torch.arange(chains)
    met: list[State] = []
    accepted = 0
    for step in range(burn_in + steps):
        position = torch.randint(tokens.shape[1], (chains,), generator=draws)
        proposal = proposal_nats(prior, here.slope, temperature)[row, position]
        changed = here.tokens.clone()
        changed[row, position] = torch.multinomial(proposal.exp(), 1, generator=draws)[:, 0]
        there = State(changed, *output.slope(changed))
        chance = acceptance_nats(prior, here, there, position, temperature).exp()
        moves = torch.rand(chains, generator=draws, dtype=torch.float64) < chance
        here = _moved(here, there, moves)
        if step >= burn_in:
            met.append(here)
            accepted += int(moves.sum())
    visited = [torch.stack(found) for found in zip(*((at.tokens, at.logit, at.hit) for at in met), strict=True)]
    return Walk(visited[0], visited[1], visited[2], accepted / (steps * chains))


def proposal_nats(prior: IndependentTokens, slope: Tensor, temperature: float) -> Tensor:
    """(texts, n, vocabulary) log of p_i(v) exp(slope_i(v) / T), normalised: which token is proposed, given where."""
    return (prior.log_p_nats + slope / temperature).log_softmax(-1)


def acceptance_nats(
    prior: IndependentTokens, here: State, there: State, position: Tensor, temperature: float
) -> Tensor:
    """(texts,) log of the Metropolis-Hastings chance to go from `here` to `there`, which differ at `position` alone:
    min(0, log q(x') phi(x given x') - log q(x) phi(x' given x)), with q proportional to p exp(M / T)."""
    row = torch.arange(len(position))

    def target_nats(state: State) -> Tensor:
        return prior.nats(state.tokens) + state.logit / temperature

    def move_nats(start: State, end: State) -> Tensor:
        return proposal_nats(prior, start.slope, temperature)[row, position, end.tokens[row, position]]

    forward, back = move_nats(here, there), move_nats(there, here)
    return (target_nats(there) + back - target_nats(here) - forward).clamp_max(0.0)


def _moved(here: State, there: State, moves: Tensor) -> State:
    """Each chain at its proposal, where it was accepted."""
    return State(
        torch.where(moves[:, None], there.tokens, here.tokens),
        torch.where(moves, there.logit, here.logit),
        torch.where(moves, there.hit, here.hit),
        torch.where(moves[:, None, None], there.slope, here.slope),
    )
