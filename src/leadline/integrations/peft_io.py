"""PEFT directories: `adapter_config.json` and `adapter_model.safetensors`, as PeftModel.from_pretrained reads them.

PEFT puts its prompt or prefix before everything, the beginning-of-text token included; one that was trained behind
other tokens is refused. Written without PEFT, which is needed only to use the result.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leadline.edits import EmbeddingEdit, KeyValueEdit, WeightEdit
from leadline.solution import Solution
from leadline.spec import UserError

Files = tuple[dict[str, Any], dict[str, Tensor]]  # the config's own fields, and the weights

HOW = (
    "peft.PeftModel.from_pretrained(model, folder), then prompts as the model's chat template gives them, tokenised "
    "without adding special tokens. In bfloat16 pass autocast_adapter_dtype=False as well, or PEFT computes a LoRA in "
    "float32."
)


def write(solution: Solution, folder: Path) -> dict[str, Any]:
    """The two files; returns the fields of the note. Raises UserError for what PEFT cannot hold."""
    own, weights = _files(solution)
    model = solution.model
    local = Path(model.source).is_dir()
    config = {
        "task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": model.source,
        "revision": None if local else model.revision or None, **own,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    whole = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    save_file(whole, folder / "adapter_model.safetensors", {"format": "pt"})
    return {"use": HOW}


def _files(solution: Solution) -> Files:
    edit = solution.edit
    if isinstance(edit, EmbeddingEdit):
        if standing := max((context.before for context in solution.contexts), key=len):
            raise _refused(solution, standing, "use --format prompt-embeds")
        return _prompt(edit)
    if isinstance(edit, KeyValueEdit):
        if solution.shared:
            raise _refused(solution, solution.shared, "export another --family of the run")
        return _prefix(edit)
    if isinstance(edit, WeightEdit):
        return _lora(solution, edit)
    how = "Export a soft prompt, a prefix, or a lora or tinylora run."
    raise UserError(f"PEFT has no format for {solution.family}", "--format peft", how)


def _refused(solution: Solution, standing: tuple[int, ...], otherwise: str) -> UserError:
    """PEFT would put it elsewhere."""
    text = solution.model.tokenizer.decode(list(standing[:8])) + (" ..." if len(standing) > 8 else "")
    return UserError(
        f"PEFT puts a prompt before everything, and {solution.name} stands behind {len(standing)} tokens: {text!r}",
        f"--format peft, slot {solution.behaviour.slot}",
        f"Measure a behaviour with `slot: start`, or {otherwise}.",
    )


def _prompt(edit: EmbeddingEdit) -> Files:
    """Prompt tuning (Lester and others, 2104.08691): the embeddings as they enter the first block."""
    tokens, hidden = edit.values.shape[1:]
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": tokens, "token_dim": hidden}
    return {**config, "num_transformer_submodules": 1}, {"prompt_embeddings": edit.values[0]}


def _prefix(edit: KeyValueEdit) -> Files:
    """Prefix tuning without a projection: a line a token, blocks, then keys before values, then heads in it."""
    blocks, heads, tokens, size = edit.keys.shape[1:]
    parts = torch.stack([edit.keys[0], edit.values[0]], dim=1)  # (blocks, 2, heads, tokens, size)
    config = {
        "peft_type": "PREFIX_TUNING", "num_virtual_tokens": tokens, "token_dim": heads * size, "num_layers": blocks,
        "num_attention_heads": heads, "num_transformer_submodules": 1, "prefix_projection": False,
    }  # fmt: skip
    return config, {"prompt_embeddings": parts.permute(3, 0, 1, 2, 4).reshape(tokens, -1)}


def _lora(solution: Solution, edit: WeightEdit) -> Files:
    """LoRA (Hu and others, 2106.09685) with alpha = r, so that nothing is scaled. One rank for all modules: those of a
    smaller one are filled up with zeros."""
    rank = max(factor.shape[1] for factor in edit.down.values())
    weights = {}
    for name, down in edit.down.items():
        short = rank - down.shape[1]
        weights[f"base_model.model.{name}.lora_A.weight"] = nn.functional.pad(down[0], (0, 0, 0, short))
        weights[f"base_model.model.{name}.lora_B.weight"] = nn.functional.pad(edit.up[name][0], (0, short))
    modules = [solution.model.network.get_submodule(name) for name in edit.down]
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(edit.down), "fan_in_fan_out": not all(isinstance(m, nn.Linear) for m in modules),
    }  # fmt: skip
    return config, weights
