"""Write the weights in the Hugging Face layout of `Qwen3MoeForCausalLM`, and read them back."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from tools.train_bundled_model import chat
from tools.train_bundled_model.model import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

SHARDS = 2
_PLAIN_NAMES = {
    "attention_out": "self_attn.o_proj",
    "router": "mlp.gate",
    "input_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


def export(checkpoint: Path, tokenizer: Path, extras: list[Path], out: Path) -> None:
    """Write config, tokenizer, bfloat16 shards and `extras` into `out`, file by file, each whole or not at all."""
    config = ModelConfig()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    tensors = to_hugging_face(config, config.views(state["optimizer"]["master"].bfloat16()))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".bundled-") as name:
        folder = Path(name)
        _write_shards(config, tensors, folder)
        _write_json(folder / "config.json", hugging_face_config(config))
        generation = {"eos_token_id": 0, "pad_token_id": 1, "do_sample": True, "temperature": 0.4, "top_p": 0.95}
        _write_json(folder / "generation_config.json", generation)
        for path in [*sorted(tokenizer.iterdir()), *extras]:
            shutil.copyfile(path, folder / path.name)
        for path in folder.iterdir():
            path.chmod(0o644)
            path.replace(out / path.name)


def hugging_face_config(config: ModelConfig) -> dict[str, object]:
    """Return the contents of config.json.

    The number of experts stands under the names of transformers 4 and 5, and so does the rotary base.
    """
    c = config
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": c.vocabulary,
        "hidden_size": c.dim,
        "intermediate_size": 512,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "num_experts": c.experts,
        "num_local_experts": c.experts,
        "num_experts_per_tok": c.top_k,
        "moe_intermediate_size": c.expert_dim,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.005,
        "output_router_logits": False,
        "hidden_act": "silu",
        "max_position_embeddings": c.context,
        "rope_theta": c.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "rms_norm_eps": c.norm_epsilon,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": chat.SPECIAL_TOKENS.index(chat.END),
        "pad_token_id": chat.SPECIAL_TOKENS.index(chat.PAD),
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
    }


def to_hugging_face(config: ModelConfig, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters, one tensor a projection and expert; the tied output head is left out, as is usual."""
    c = config
    tensors = {"model.embed_tokens.weight": parameters["embedding"]}
    rows = [c.heads * c.head_dim] + 2 * [c.kv_heads * c.head_dim]
    for i in range(c.layers):
        prefix = f"model.layers.{i}."
        for projection, weight in zip("qkv", parameters[f"{i}.qkv"].split(rows), strict=True):
            tensors[f"{prefix}self_attn.{projection}_proj.weight"] = weight
        for ours, theirs in _PLAIN_NAMES.items():
            tensors[f"{prefix}{theirs}.weight"] = parameters[f"{i}.{ours}"]
        for e in range(c.experts):
            gate, up = parameters[f"{i}.gate_up"][e].chunk(2)
            down = parameters[f"{i}.down"][e]
            for projection, weight in (("gate", gate), ("up", up), ("down", down)):
                tensors[f"{prefix}mlp.experts.{e}.{projection}_proj.weight"] = weight
    tensors["model.norm.weight"] = parameters["final_norm"]
    return tensors


def load(folder: Path, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Read an exported folder into parameters under the names of `model.py`, sharing one flat buffer."""
    config = ModelConfig()
    flat = torch.empty(config.parameter_count(), dtype=dtype)
    parameters = config.views(flat)
    stored: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        stored.update(load_file(shard))
    for name, view in to_hugging_face(config, parameters).items():
        view.copy_(stored.pop(name))
    if stored:
        message = f"{folder}: unexpected tensors {sorted(stored)[:3]}"
        raise ValueError(message)
    return parameters


def _write_shards(config: ModelConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    shards: list[dict[str, Tensor]] = [{} for _ in range(SHARDS)]
    for name, tensor in tensors.items():
        parts = name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" else (0 if parts[1] == "embed_tokens" else config.layers - 1)
        shards[layer * SHARDS // config.layers][name] = tensor.contiguous().clone()
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file_name = f"model-{i:05}-of-{SHARDS:05}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file_name))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {
        "metadata": {"total_size": total, "total_parameters": sum(t.numel() for t in tensors.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
