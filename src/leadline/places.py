"""The contexts of a behaviour as places where a text can be typed, and whether what two families of texts type there
survives: a deployed prompt, and demonstrations.

Knows no items: which context is trained or tested on, and what should be replied, is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leadline.behaviour import Behaviour, questions
from leadline.interventions import make
from leadline.interventions.base import Intervention
from leadline.interventions.text_prompt import Place, TextPrompt, place
from leadline.model import FrozenModel
from leadline.priors import Priors
from leadline.slot import Renderer
from leadline.spec import PROMPTED, UserError
from leadline.texts import in_place

DEMONSTRATION = "Q: {}\nA: {}\n\n"  # a training item as text at the slot, for few_shot
AROUND_TOKENS = 12  # of a demonstration beside its question and reply, at most


def sources(behaviour: Behaviour) -> Sequence[Any]:
    """The distinct contexts of a behaviour as they are given: texts, or tuples of messages."""
    if behaviour.contexts == "empty":
        return [""]
    return questions() if behaviour.contexts == "pool" else behaviour.contexts


def places(renderer: Renderer, behaviour: Behaviour) -> list[Place]:
    """Every context of a behaviour as a place where a text can be typed, in the order of `sources`."""
    found = []
    for context in sources(behaviour):
        if not isinstance(context, str):
            found.append(place(renderer, [message.model_dump() for message in context]))
        elif behaviour.format == "chat":
            found.append(place(renderer, [{"role": "user", "content": context}]))
        else:
            found.append(place(renderer, context))
    return found


def deployed_prompt(model: FrozenModel, behaviour: Behaviour, everywhere: Sequence[Place], edits: int = 0) -> list[int]:
    """The tokens of the behaviour's prompt at the slot, the same in every context. Raises UserError where there is no
    such prompt, or where it is shorter than so many edits."""
    if behaviour.prompt is None:
        raise UserError(
            f"The families {' and '.join(PROMPTED)} begin at a deployed prompt, and this behaviour names none",
            "--family", "Add a line `prompt: ...` to the behaviour, or leave the family out.",
        )  # fmt: skip
    where = f"behaviour {behaviour.name}, field prompt"
    tokens = in_place(everywhere[0], behaviour.prompt)
    if not tokens or TextPrompt(model, everywhere).text(tokens) != behaviour.prompt:
        raise UserError(
            "This prompt cannot be typed at the slot as the same printable tokens in every context", where,
            "Take out characters that are no token of their own, and blanks at its ends.",
        )  # fmt: skip
    if edits > len(tokens):
        what = f"The prompt has {len(tokens)} tokens, and {edits} of them cannot be edited"
        raise UserError(what, where, "Lower --sizes.")
    return list(tokens)


def made(family: str, size: int, priors: Priors, behaviour: Behaviour) -> Intervention:
    """The intervention of that family and size for a behaviour, with what the family takes from it."""
    model, prompt = priors.model, list[int]()
    if family in PROMPTED:
        prompt = deployed_prompt(model, behaviour, places(Renderer(model, behaviour.slot), behaviour))
    return make(family, size, priors, behaviour.num_conditions, prompt)


def check_demonstrations(model: FrozenModel, behaviour: Behaviour, everywhere: Sequence[Place]) -> None:
    """Raises UserError where the form of a demonstration does not survive at the slot."""
    text = DEMONSTRATION.format("a", "a")
    tokens = in_place(everywhere[0], text)
    if not tokens or TextPrompt(model, everywhere).text(tokens) != text:
        raise UserError(
            "Demonstrations end with a blank line, which this slot does not keep in every context",
            f"--family few_shot, slot {behaviour.slot}", "Choose another slot or leave the family out.",
        )  # fmt: skip
