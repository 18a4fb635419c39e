"""leadline's RLOO against TRL's: the advantages of one step of its trainer, and the gradient of its loss.

TRL trains weights and leadline an edit, so what both have in common is the formula. TRL's own `RLOOTrainer` runs one
step on a random model of two blocks: it draws the replies, asks the reward function, computes advantages and loss, and
goes backward. All of that is written down as it happens, and `solvers.reward` is given the same rewards and the same
log-probabilities, in float64. Slopes are those of the loss in each reply's log-probability; the loss itself is 0 at a
first step, whatever the advantages are. Some rewards are None, as of a judge that cannot be read.

TRL is no dependency of leadline. In an environment that has leadline and `pip install trl==1.16.0`:

    python benchmarks/against_trl.py --out benchmarks/results/against_trl.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from datasets.table import InMemoryTable
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from leadline.organisms.tiny import make_tokenizer
from leadline.solvers.reward import leave_one_out, penalised, rloo_loss

TOKENS = 6
QUESTIONS = ("What is red?", "Say: a", "Why?", "How many legs has a dog?")


class Watched(trl.RLOOTrainer):
    """TRL's trainer, which also keeps what it passes between its own parts."""

    kept: dict[str, Any]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = super()._calculate_rewards(*args, **kwargs)
        self.kept["rewards"] = found[:, 0].detach().clone()
        return found

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if found[0].requires_grad:
            found[0].retain_grad()
        self.kept["reference" if model is self.ref_model else "policy"] = found[0]
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = super()._generate_and_score_completions(inputs)
        # Copies: the rows are shuffled before the loss sees them.
        self.kept |= {"advantages": found["advantages"].clone(), "log_probs": found["old_logps"].clone()}
        if "reference" in self.kept:
            self.kept["reference"] = (self.kept["reference"] * found["completion_mask"]).sum(1)
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        self.kept["shuffled"] = inputs["old_logps"].clone()
        return loss


def reward(completions: list[str], **_: Any) -> list[float | None]:
    """A score in [0, 1] from a hash of the reply, and for about one reply in six none."""
    bytes_of = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in completions]
    return [None if found[0] < 43 else found[1] / 255 for found in bytes_of]


def one_step(beta: float, samples: int, seed: int) -> dict[str, Any]:
    """What TRL's trainer passed between its parts in its first step.  beta: its price of divergence, per nat."""
    tokenizer = make_tokenizer(64)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=257, eos_token_id=258, pad_token_id=256,
    )  # fmt: skip
    model, other = LlamaForCausalLM(config), LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as folder:
        # The reference is loaded from where the model says it comes from. Other weights: the penalty must not be zero.
        other.save_pretrained(folder)
        model.config._name_or_path = folder
        arguments = trl.RLOOConfig(
            output_dir=folder, max_steps=1, per_device_train_batch_size=len(QUESTIONS) * samples,
            num_generations=samples, max_completion_length=TOKENS, beta=beta, normalize_advantages=False,
            report_to=[], save_strategy="no", bf16=False, use_cpu=True, seed=seed, disable_tqdm=True,
            gradient_checkpointing=False, logging_strategy="no", learning_rate=0.0,
        )  # fmt: skip
        data = Dataset(InMemoryTable.from_pydict({"prompt": QUESTIONS}), fingerprint="questions")
        trainer = Watched(
            model=model, args=arguments, reward_funcs=reward, train_dataset=data, processing_class=tokenizer
        )
        trainer.kept = {}
        trainer.train()
    return trainer.kept


def compare(beta: float, samples: int, seed: int) -> dict[str, Any]:
    """The largest differences between the two, on one step of TRL's."""
    kept = one_step(beta, samples, seed)
    log_probs, rewards = kept["log_probs"].double(), kept["rewards"].double()
    unscored = int(rewards.isnan().sum())
    if beta:  # TRL's price is per nat, ours per bit
        rewards = penalised(rewards, log_probs, kept["reference"].double(), beta * math.log(2))
    groups, lines = rewards.view(-1, samples), log_probs.view(-1, samples).clone().requires_grad_()
    advantages = leave_one_out(groups).flatten()
    (slopes,) = torch.autograd.grad(rloo_loss(groups, lines), lines)
    # What TRL's loss passed back to the first token of each reply, in the order of the rewards: a reply's
    # log-probability tells which it is.
    place = kept["shuffled"].argsort()[kept["log_probs"].argsort().argsort()]
    theirs = kept["policy"].grad[place, 0].double()
    return {
        "beta": beta, "samples": samples, "contexts": len(QUESTIONS), "seed": seed, "unscored": unscored,
        "largest_advantage": float(kept["advantages"].abs().max()),
        "largest_difference_of_advantages": float((advantages - kept["advantages"]).abs().max()),
        "largest_slope": float(theirs.abs().max()),
        "largest_difference_of_slopes": float((slopes.flatten() - theirs).abs().max()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    cells = [compare(beta, samples, seed) for beta in (0.0, 0.05) for samples in (2, 4, 8) for seed in (0, 1)]
    for cell in cells:
        print(" ".join(f"{name}={value:.3g}" for name, value in cell.items()))
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    if args.out:
        args.out.write_text(json.dumps({"versions": versions, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
