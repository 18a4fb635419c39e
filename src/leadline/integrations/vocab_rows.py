"""Experimental: a copy of the model in which the soft tokens are tokens of the vocabulary, so that any tool that takes
text can paste them at the slot.

Their embeddings are appended as rows (or take rows that no token has). The head is untied from them: tied, it would
write soft tokens itself. The logits of all other tokens are those of the model (where embeddings are scaled, the rows
are rounded once more, in bfloat16 at times too much: the copy is loaded again and compared, and refused if it differs).
The new tokens' logits are -inf where the head has a bias; no head without one can do that for every hidden state, so
there
- `suppress_tokens` of the copy's generation config makes them -inf in transformers' `generate`;
- their rows of the head are those of the token least likely in the run's own replies: in a bare forward pass, or with a
  tool that does not read that config, each has that token's probability. The note says how large it was at most.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from leadline.behaviour import questions
from leadline.engine import Context, Engine
from leadline.integrations.prompt_embeds import TEXT, embeddings
from leadline.model import FrozenModel, load
from leadline.solution import Solution
from leadline.spec import UserError

ROWS = 32  # contexts that say which token is least likely
CHECKED = 4  # prompts whose logits are compared with the loaded copy
TOLERANCE = 1e-2  # of the largest logit: an embedding at the wrong place is off by far more, bfloat16 by less


def write(solution: Solution, folder: Path) -> dict[str, Any]:
    """The model's folder, as save_pretrained writes it; returns the note's fields. Raises UserError for a solution that
    is no embeddings, and for a model whose copy does not give the same logits when it is loaded again."""
    values = embeddings(solution, "vocab-rows")
    model = solution.model
    tokenizer = copy.deepcopy(model.tokenizer)
    names = [f"<|leadline {solution.key[:8]} {number}|>" for number in range(len(values))]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    ids = [int(token) for token in tokenizer.convert_tokens_to_ids(names)]
    network = copy.deepcopy(model.network)
    like, chance = _least_likely(solution)
    with torch.no_grad():
        _add_inputs(network, model, ids, values)
        _add_outputs(network, model, ids, like)
    for config in {id(c): c for c in (network.config, network.config.get_text_config())}.values():
        config.tie_word_embeddings = False
        config.vocab_size = len(network.get_input_embeddings().weight)
    generation = network.generation_config
    generation.suppress_tokens = sorted({*(generation.suppress_tokens or []), *ids})
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    before, after = solution.renderer.written(TEXT, solution.behaviour.format)
    whole = f"{before}{''.join(names)}{after}"
    _check(solution, folder, whole, ids)
    use = (
        f"Experimental. Put what the user says in the place of {TEXT} in `prompt` and tokenise it without adding "
        "special tokens. A tool that does not read suppress_tokens of generation_config.json has to forbid token_ids."
    )
    return {
        "tokens": names, "token_ids": ids, "prompt": whole, "text": TEXT, "use": use,
        "head_rows_of": like, "largest_probability": chance,
    }  # fmt: skip


def _least_likely(solution: Solution) -> tuple[int, float]:
    """The token whose largest probability in the run's replies, under the solution, is smallest; and that probability:
    seen on these, and no bound."""
    contexts = solution.contexts[:ROWS]
    with torch.no_grad():
        found = Engine(solution.model).target_logits(contexts, solution.edit.select([0] * len(contexts)))
    largest = found.logits.float().softmax(-1).amax(0)
    token = int(largest.argmin())
    return token, float(largest[token])


def _add_inputs(network: Any, model: FrozenModel, ids: list[int], values: Tensor) -> None:
    """Rows of the input embeddings that come out of their module as `values`: some models scale in it."""
    module = network.get_input_embeddings()
    old = module.weight.data
    module.weight = nn.Parameter(_longer(old, max(ids) + 1, old[:1]), requires_grad=False)
    module.num_embeddings = len(module.weight)
    places, wanted = torch.tensor(ids, device=old.device), values.to(old)
    module.weight[places] = 1.0
    scale = module(places)
    module.weight[places] = wanted / scale
    if not torch.allclose(module(places), wanted, rtol=TOLERANCE, atol=0):
        raise _cannot(model, "its embedding module does more than to look rows up and to scale them")


def _add_outputs(network: Any, model: FrozenModel, ids: list[int], like: int) -> None:
    """A head of its own with rows for the new tokens."""
    head = network.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise _cannot(model, f"its head is no linear map but a {type(head).__name__}")
    old = head.weight.data
    rows = len(network.get_input_embeddings().weight)
    head.weight = nn.Parameter(_longer(old, rows, old[like : like + 1]), requires_grad=False)
    head.weight[ids] = old[like]
    head.out_features = rows
    if head.bias is not None:
        never = torch.full_like(head.bias[:1], float("-inf"))
        head.bias = nn.Parameter(_longer(head.bias.data, rows, never), requires_grad=False)
        head.bias[ids] = never


def _longer(old: Tensor, rows: int, fill: Tensor) -> Tensor:
    """A copy of `old` with at least so many rows."""
    return torch.cat([old, fill.expand(max(0, rows - len(old)), *fill.shape[1:])])


@torch.no_grad()
def _check(solution: Solution, folder: Path, whole: str, ids: list[int]) -> None:
    """Loads the copy and compares the tokens of all the pool's questions, and the logits of some."""
    loaded = load(str(folder), solution.model.compute)
    engine, old = solution.engine(), len(solution.model.network.get_input_embeddings().weight)
    for number, question in enumerate(questions()):
        context = solution.context(question)
        tokens = loaded.tokenizer(whole.replace(TEXT, question), add_special_tokens=False)["input_ids"]
        if tuple(tokens) != (*context.before, *ids, *context.after):
            raise _cannot(solution.model, "its tokenizer joins the text around the slot")
        if number < CHECKED:
            last = Context(context.before, context.after, (solution.model.start_token,))
            wanted = engine.target_logits([last], solution.edit).logits[0].float()
            found = loaded.network(input_ids=torch.tensor([tokens], device=loaded.device)).logits[0, -1, :old].float()
            others = [token for token in range(old) if token not in ids]
            largest = float(wanted[others].abs().max())
            if not torch.allclose(found[others], wanted[others], rtol=0, atol=TOLERANCE * largest):
                raise _cannot(solution.model, "its logits are others once it has been saved and loaded")


def _cannot(model: FrozenModel, why: str) -> UserError:
    what = f"This model cannot hold soft tokens in its vocabulary: {why}"
    return UserError(what, f"--format vocab-rows, model {model.name}", "Use --format prompt-embeds.")
