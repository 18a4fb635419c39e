"""What `leadline list` lists: names with a sentence each."""

from __future__ import annotations

from collections.abc import Callable

Rows = list[tuple[str, str]]


def behaviours() -> Rows:
    """Built-in behaviours."""
    from leadline.behaviour import builtin_names, load

    return [(name, load(name).description) for name in builtin_names()]


def models() -> Rows:
    """Ways to name a model."""
    return [
        ("smollm2", "SmolLM2-135M-Instruct, hash-pinned; fetch it once with `python -m leadline.smollm2`"),
        ("organism:tiny", "a byte-level model trained here from a seed in about a minute"),
        ("organism:random", "its twin with random weights: nothing can be elicited from it"),
        ("FOLDER", "a local folder with config, tokenizer and safetensors weights"),
        ("gguf:FILE", "a GGUF file, dequantised once into the cache"),
        ("OWNER/NAME", "a model of the hub"),
        ("hf:ID@REVISION", "the same at one commit, branch or tag"),
    ]


def families() -> Rows:
    """Kinds of intervention that can be measured."""
    return [
        ("soft_prompt", "K free input embeddings at the slot; prior N(mu, sigma^2) of the vocabulary, per dimension"),
        ("soft_subspace", "r seeded dimensions of one soft token, at the norm of a whole one"),
        ("vocab_mixture", "n soft tokens near a text; prior: a text of the model's own, each embedding moved by noise"),
        ("steering", "a vector added behind each of so many blocks, from the slot on"),
        ("prefix", "keys and values of K tokens in every block, behind what all contexts start with"),
        ("lora", "a change of rank r to every linear map of the blocks"),
        ("tinylora", "so many numbers that all changes of rank 2 share"),
        ("text_prompt", "n tokens of plain text typed at the slot; prior: the model's own text there"),
        ("few_shot", "k training items with the reply wanted, as text at the slot; prior: the model's own text there"),
        ("prompt_edits", "k tokens of the behaviour's deployed prompt replaced; prior: uniform places and tokens"),
        ("soft_edits", "noise on the embeddings of the behaviour's deployed prompt, in eighths of sigma"),
        ("conditional_soft_prompt", "K input embeddings, linear in the numbers that each context comes with"),
        ("prefill", "spelling the reply out: measured with every constant behaviour"),
        ("best_of_n", "sampling replies until one is right: bits a reply, where the others pay once"),
        ("null", "nothing at all: measured with every behaviour"),
    ]


def scorers() -> Rows:
    """Built-in scorers of replies, for a behaviour's `reward`."""
    return [
        ("sentiment/positive", "English that VADER's word list counts as positive; takes leadline[scorers]"),
        ("language/french", "what py3langid takes for French; takes leadline[scorers]"),
        ("style/capitals", "every letter a capital, and at least one of them"),
    ]


def organisms() -> Rows:
    """Models with planted truth."""
    return [row for row in models() if row[0].startswith("organism:")]


LISTS: dict[str, Callable[[], Rows]] = {
    "behaviours": behaviours,
    "models": models,
    "families": families,
    "organisms": organisms,
    "scorers": scorers,
}
