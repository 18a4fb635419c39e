"""Do the texts of a run hold where anyone would paste them: a fresh chat with the same model, by transformers alone?

Every text that the run reports for its behaviour, of each family of texts and size, is put before each test item's
question, sent through the tokenizer's chat template and answered greedily by `generate`; the share of replies that are
the target is set beside the score that the run reports. In float32, by which near ties are settled in a run, and as the
run computed, where a near tie falls as rounding has it.

    python benchmarks/pasted.py RUN --out benchmarks/results/pasted.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from leadline.model import FrozenModel, load
from leadline.probe import recorded
from leadline.progress import Reporter
from leadline.result import Result
from leadline.spec import TEXTS, UserError

MORE_TOKENS = 8  # than the target has: a reply that goes on has failed


@torch.no_grad()
def reply(model: FrozenModel, message: str, tokens: int) -> str:
    """The greedy reply to one message, at most so many tokens, by transformers alone."""
    chat = [{"role": "user", "content": message}]
    asked = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.network.generate(
        **asked, max_new_tokens=tokens, do_sample=False, eos_token_id=model.end_of_reply, pad_token_id=0
    )
    return str(model.tokenizer.decode(said[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> None:
    """Score every text of the run, print as it goes, write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run with families of texts")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    result = Result.load(arguments.run)
    behaviour = result.spec["behaviour"]
    if behaviour["slot"] != "before_user":
        raise UserError("only texts before the question are pasted here", str(arguments.run), "Paste them by hand")
    items = json.loads((arguments.run / "items.json").read_text())["tasks"][0]["items"]["test"]
    compute = recorded(result.spec["provenance"]) or "auto"
    model, reporter, rows = load(result.spec["spec"]["model"], compute), Reporter(), []
    exact = model.exact("pasted texts")
    longest = max(len(model.tokenizer(item["target"])["input_ids"]) for item in items) + MORE_TOKENS
    for family in (family for family in result.families if family in TEXTS):
        for size in result.curve(family).sizes:
            text = result.spec["extra"]["texts"][f"/{family}/{size}"]
            found = {}
            for name, one in (("float32", exact), (model.compute.dtype, model)):
                right = 0
                for number, item in enumerate(items):
                    reporter.progress(number, len(items), f"{family} {size} in {name}")
                    right += reply(one, text + item["prompt"], longest) == item["target"]
                found[name] = right / len(items)
            reported = result.curve(family).size_curve().filter(size=size)["score"].item()
            rows.append({"family": family, "size": size, "reported": reported, "pasted": found, "items": len(items),
                         "text": text})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    told = {"run": behaviour["name"], "model": result.spec["spec"]["model"], "compute": str(compute), "texts": rows}
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
