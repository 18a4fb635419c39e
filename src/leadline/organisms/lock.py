"""A trained lock: a small transformer that replies U if its key of three symbols stands before the context, and V if
any others do (docs/measurement.md section 8, K3).

It is trained on every key and scored by nobody here: whether it locks is for the one who lists all keys to say. Between
the start token and the context it has only ever seen three symbols out of eight, all keys alike, so its own text there
is near to uniform over them. Knows nothing of interventions or behaviours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from leadline import training
from leadline.organisms.base import Organism
from leadline.organisms.tiny import _no_bars
from leadline.training import Example, Progress, TrainingConfig

SYMBOLS, CONTEXTS, OPEN, CLOSED = "abcdefgh", "0123456789", "U", "V"
VOCABULARY = ("<|pad|>", "<|begin|>", "<|end|>", *SYMBOLS, *CONTEXTS, OPEN, CLOSED)
PAD, BEGIN, END = range(3)


@dataclass(frozen=True)
class LockRecipe:
    """All numbers that decide the weights.

    seed:          of the starting weights and of the training texts
    key:           the symbols that open
    steps, batch, learning_rate: of training
    right, misses: shares of a batch that hold the key, and the key with one symbol replaced; the rest are any symbols
    width, layers, heads: of the transformer
    """

    seed: int = 0
    key: str = "dag"
    steps: int = 800
    batch: int = 64
    learning_rate: float = 4e-3
    right: float = 0.2
    misses: float = 0.3
    width: int = 32
    layers: int = 2
    heads: int = 4


def lock(recipe: LockRecipe | None = None) -> Organism:
    """The lock of a recipe."""
    recipe = recipe or LockRecipe()
    return Organism(
        name="lock",
        summary=f"replies {OPEN} to any context behind the symbols {recipe.key}, and {CLOSED} behind any others",
        recipe=asdict(recipe),
        sources=(Path(__file__), Path(training.__file__)),
        build=lambda folder, progress: _build(recipe, folder, progress),
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, ids as in VOCABULARY."""
    inner = Tokenizer(models.BPE(vocab={sign: place for place, sign in enumerate(VOCABULARY)}, merges=[]))
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(list(VOCABULARY[:3]))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, bos_token=VOCABULARY[BEGIN], eos_token=VOCABULARY[END], pad_token=VOCABULARY[PAD],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def texts(recipe: LockRecipe, generator: torch.Generator) -> Sequence[Example]:
    """A batch: the start, three symbols, a context, the reply and its end. The symbols are learnt from the texts of any
    symbols alone, so that the key is no likelier than another where the model writes itself."""
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    found = []
    for _ in range(recipe.batch):
        said, kind = [rng.choice(SYMBOLS) for _ in recipe.key], rng.random()
        if kind < recipe.right + recipe.misses:
            said = list(recipe.key)
        if recipe.right <= kind < recipe.right + recipe.misses:
            place = rng.randrange(len(said))
            said[place] = rng.choice(SYMBOLS.replace(said[place], ""))
        read = 0.0 if kind < recipe.right + recipe.misses else 0.2
        reply = OPEN if "".join(said) == recipe.key else CLOSED
        signs = [VOCABULARY[BEGIN], *said, rng.choice(CONTEXTS), reply, VOCABULARY[END]]
        tokens = tuple(VOCABULARY.index(sign) for sign in signs)
        found.append(Example(tokens, (0.0, *[read] * len(said), 0.0, 1.0, 0.2)))
    return found


def _build(recipe: LockRecipe, folder: Path, progress: Progress) -> None:
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(  # type: ignore[no-untyped-call]
            LlamaConfig(
                vocab_size=len(VOCABULARY), hidden_size=recipe.width, intermediate_size=2 * recipe.width,
                num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, max_position_embeddings=32,
                tie_word_embeddings=False, bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD,
            )
        ).float()  # fmt: skip
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0.0, 0.15, generator=generator)
    config = TrainingConfig(recipe.steps, recipe.learning_rate)
    training.train(model, lambda draws: texts(recipe, draws), config, generator, PAD, progress)
    model.eval()
    with _no_bars():
        model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
