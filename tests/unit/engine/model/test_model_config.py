"""Reading config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fourlane.engine.model.config import read_config, resolve_model_path
from fourlane.errors import CheckpointError, UnsupportedModel

if TYPE_CHECKING:
    from pathlib import Path

QWEN3_30B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}


QWEN15_A27B: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "max_window_layers": 21,
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 1408,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "shared_expert_intermediate_size": 5632,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""Source: huggingface.co/Qwen/Qwen1.5-MoE-A2.7B, config.json (what decides the computation)."""


def folder_with(tmp_path: Path, **changed: object) -> Path:
    raw = {name: value for name, value in {**QWEN3_30B, **changed}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return tmp_path


def test_the_config_of_qwen3_30b_is_read_in_full(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    config = read_config(folder_with(tmp_path))
    assert (config.layers, config.hidden_size, config.heads, config.kv_heads, config.head_dim) == (48, 2048, 32, 4, 128)
    assert (config.experts, config.top_k, config.expert_dim, config.norm_topk_prob) == (128, 8, 768, True)
    assert (config.rope_theta, config.max_positions, config.dtype) == (1e6, 40960, "bfloat16")
    assert config.eos_token_ids == (151645, 151643)
    assert config.bos_token_id == 151643
    assert config.moe_layers == tuple(range(48))


def test_the_config_of_a_model_with_shared_experts_is_read_in_full(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN15_A27B))
    config = read_config(tmp_path)
    assert (config.experts, config.top_k, config.expert_dim, config.shared_expert_dim) == (60, 4, 1408, 5632)
    assert (config.head_dim, config.head_norms, config.qkv_bias, config.output_bias) == (128, False, True, False)
    assert config.moe_layers == tuple(range(24))
    (tmp_path / "config.json").write_text(json.dumps({**QWEN15_A27B, "qkv_bias": False}))
    assert not read_config(tmp_path).qkv_bias


def test_a_model_with_shared_experts_must_say_how_large_they_are(tmp_path: Path) -> None:
    without = {name: value for name, value in QWEN15_A27B.items() if name != "shared_expert_intermediate_size"}
    (tmp_path / "config.json").write_text(json.dumps(without))
    with pytest.raises(CheckpointError, match="shared_expert_intermediate_size: expected an integer of at least 1"):
        read_config(tmp_path)


@pytest.mark.parametrize("bias", [False, True])
def test_a_bias_of_qwen3_is_one_of_all_projections_and_heads_are_normed(tmp_path: Path, *, bias: bool) -> None:
    config = read_config(folder_with(tmp_path, attention_bias=bias))
    assert (config.qkv_bias, config.output_bias) == (bias, bias)
    assert config.head_norms
    assert config.shared_expert_dim == 0


def test_names_of_transformers_5_are_understood(tmp_path: Path) -> None:
    config = read_config(
        folder_with(
            tmp_path,
            num_experts=...,
            num_local_experts=64,
            rope_theta=...,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
            torch_dtype=...,
            dtype="float32",
        )
    )
    assert (config.experts, config.rope_theta, config.dtype) == (64, 5e5, "float32")


def test_without_generation_config_the_end_token_is_that_of_config(tmp_path: Path) -> None:
    assert read_config(folder_with(tmp_path)).eos_token_ids == (151645,)


def test_a_missing_head_dim_is_hidden_size_over_heads(tmp_path: Path) -> None:
    assert read_config(folder_with(tmp_path, head_dim=...)).head_dim == 64


def test_layers_with_experts_follow_sparse_step_and_mlp_only_layers(tmp_path: Path) -> None:
    config = read_config(folder_with(tmp_path, num_hidden_layers=8, decoder_sparse_step=2, mlp_only_layers=[3]))
    assert config.moe_layers == (1, 5, 7)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
        ({"architectures": ...}, "architectures"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_parameters.rope_type"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters.rope_type"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "sliding_window"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_by_name(
    tmp_path: Path, changed: dict[str, object], named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=f"config.json: {named}: .* not implemented; only .* is"):
        read_config(folder_with(tmp_path, **changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": "many"}, "vocab_size: expected an integer of at least 1, got 'many'"),
        ({"num_hidden_layers": ...}, "num_hidden_layers: expected an integer of at least 1, got nothing"),
        ({"num_experts": 0}, "num_experts or num_local_experts: expected an integer of at least 1, got 0"),
        ({"num_attention_heads": True}, "num_attention_heads: expected an integer"),
        ({"rms_norm_eps": -1}, "rms_norm_eps: expected a positive number, got -1"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob: expected true or false, got 'yes'"),
        ({"eos_token_id": [1, -2]}, "eos_token_id: expected an integer or a list"),
        ({"num_key_value_heads": 5}, "num_attention_heads: expected a multiple of num_key_value_heads = 5, got 32"),
        ({"head_dim": 7}, "head_dim: expected an even number"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok: expected at most num_experts = 128, got 129"),
        ({"mlp_only_layers": [48]}, "mlp_only_layers: expected layers in 0..47"),
        ({"mlp_only_layers": list(range(48))}, "no layer has experts"),
        ({"eos_token_id": 151936}, "expected ids below vocab_size = 151936"),
        ({"torch_dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, got int8"),
    ],
)
def test_faulty_fields_are_named_with_what_is_allowed(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        read_config(folder_with(tmp_path, **changed))
    assert message in str(raised.value)


def test_all_faults_come_in_one_message(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, hidden_act="gelu", vocab_size=-3, rms_norm_eps="x")
    with pytest.raises(UnsupportedModel) as raised:
        read_config(folder)
    text = str(raised.value)
    assert all(name in text for name in ("hidden_act", "vocab_size", "rms_norm_eps"))
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_folder_that_is_not_there_or_holds_no_config_is_refused_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        resolve_model_path(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"no config.json.*found notes.txt"):
        resolve_model_path(tmp_path)


def test_reading_a_config_imports_no_torch() -> None:
    code = "import sys; import fourlane.engine.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
