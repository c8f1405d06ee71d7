"""The bundled model's folder is whole: configuration, shards, tokenizer, notices and card agree with each other."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

BUNDLED = Path(__file__).parents[4] / "src/fourlane/engine/model/bundled"
LARGEST_BYTES = 40_000_000
EXPECTED_CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_hidden_layers": 8,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 32,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
    "intermediate_size": 512,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "rope_theta": 10000,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


Stored = tuple[str, list[int], str]  # file, shape, dtype


def read_json(name: str) -> Any:
    return json.loads((BUNDLED / name).read_text(encoding="utf-8"))


def expected_shapes() -> dict[str, list[int]]:
    c = EXPECTED_CONFIG
    dim, heads, kv_heads, head_dim = (
        c[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    experts, expert_dim = c["num_experts"], c["moe_intermediate_size"]
    layer = {
        "input_layernorm": [dim],
        "post_attention_layernorm": [dim],
        "self_attn.q_proj": [heads * head_dim, dim],
        "self_attn.k_proj": [kv_heads * head_dim, dim],
        "self_attn.v_proj": [kv_heads * head_dim, dim],
        "self_attn.o_proj": [dim, heads * head_dim],
        "self_attn.q_norm": [head_dim],
        "self_attn.k_norm": [head_dim],
        "mlp.gate": [experts, dim],
    }
    for e in range(experts):
        layer[f"mlp.experts.{e}.gate_proj"] = [expert_dim, dim]
        layer[f"mlp.experts.{e}.up_proj"] = [expert_dim, dim]
        layer[f"mlp.experts.{e}.down_proj"] = [dim, expert_dim]
    shapes = {"model.embed_tokens.weight": [c["vocab_size"], dim], "model.norm.weight": [dim]}
    for i in range(c["num_hidden_layers"]):
        shapes.update({f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()})
    return shapes


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))


@pytest.fixture(scope="module")
def stored_tensors() -> dict[str, Stored]:
    stored = {}
    for path in BUNDLED.glob("*.safetensors"):
        with safe_open(path, framework="np") as shard:
            for name in shard.keys():  # noqa: SIM118 (safe_open is no dict)
                view = shard.get_slice(name)
                stored[name] = (path.name, view.get_shape(), view.get_dtype())
    return stored


def test_configuration_describes_the_architecture_under_the_names_of_old_and_new_transformers() -> None:
    config = read_json("config.json")
    assert {name: config[name] for name in EXPECTED_CONFIG} == EXPECTED_CONFIG
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"]


def test_every_tensor_of_the_architecture_is_stored_once_in_bfloat16(stored_tensors: dict[str, Stored]) -> None:
    assert {name: shape for name, (_, shape, _) in stored_tensors.items()} == expected_shapes()
    assert {dtype for _, _, dtype in stored_tensors.values()} == {"BF16"}


def test_the_index_names_the_shard_that_holds_each_tensor(stored_tensors: dict[str, Stored]) -> None:
    index = read_json("model.safetensors.index.json")
    assert index["weight_map"] == {name: file_name for name, (file_name, _, _) in stored_tensors.items()}
    assert len(set(index["weight_map"].values())) == 2
    elements = sum(math.prod(shape) for _, shape, _ in stored_tensors.values())
    assert index["metadata"]["total_size"] == 2 * elements


def test_the_folder_stays_within_its_share_of_the_package() -> None:
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= LARGEST_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "In the beginning God created the heaven and the earth.",
        "  spaces,\ttabs\r\nand\n\nlines ",
        "Zürich, naïve, ελληνικά, עברית, 漢字, क्षत्रिय, 🙂👩‍👩‍👧",
        "1234567890 + 3.14e-10",
        "",
    ],
)
def test_the_tokenizer_gives_back_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_are_single_tokens_with_the_configured_numbers(tokenizer: Tokenizer) -> None:
    config, names = read_json("config.json"), read_json("tokenizer_config.json")
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert tokenizer.token_to_id(names["eos_token"]) == config["eos_token_id"]
    assert tokenizer.token_to_id(names["pad_token"]) == config["pad_token_id"]
    assert read_json("generation_config.json")["eos_token_id"] == config["eos_token_id"]
    assert read_json("special_tokens_map.json")["eos_token"] == names["eos_token"]
    tokens = tokenizer.encode("<|user|>Hello there<|assistant|>").tokens
    assert (tokens[0], tokens[-1]) == ("<|user|>", "<|assistant|>")


def test_the_chat_template_ends_where_the_assistant_begins() -> None:
    template = jinja2.Environment(autoescape=False).from_string(read_json("tokenizer_config.json")["chat_template"])
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Define heron."},
        {"role": "assistant", "content": "A wading bird."},
        {"role": "user", "content": "Thanks"},
    ]
    expected = "<|system|>Be brief.<|user|>Define heron.<|assistant|>A wading bird.<|endoftext|><|user|>Thanks"
    assert template.render(messages=messages) == expected
    assert template.render(messages=messages, add_generation_prompt=True) == expected + "<|assistant|>"


def test_the_expert_use_counts_every_choice_of_every_layer() -> None:
    use, config = read_json("expert_use.json"), read_json("config.json")
    for part in ("prompts", "generated", "prompts_kjv", "prompts_wordnet", "prompts_chat"):
        load_LE = use[part]["load_LE"]
        assert len(load_LE) == config["num_hidden_layers"]
        for load_E, peak in zip(load_LE, use[part]["max_over_mean"], strict=True):
            assert len(load_E) == config["num_experts"]
            assert sum(load_E) == use[part]["tokens"] * config["num_experts_per_tok"]
            assert peak == pytest.approx(max(load_E) * len(load_E) / sum(load_E), abs=1e-3)


def test_no_expert_is_dead_on_held_out_text() -> None:
    assert min(min(load_E) for load_E in read_json("expert_use.json")["prompts"]["load_LE"]) > 0


def test_the_card_gives_the_perplexities_and_the_notices_of_the_data() -> None:
    card = (BUNDLED / "MODEL_CARD.md").read_text(encoding="utf-8")
    for domain in ("kjv", "wordnet", "chat", "chat answers"):
        row = re.search(rf"^\| {domain} \| \d+ \| \d+ \| ([\d.]+) \|", card, re.MULTILINE)
        assert row, f"MODEL_CARD.md: no perplexity for {domain}"
        assert 1 < float(row[1]) < 100
    assert "wordnet-base | 1:3.0" in card
    assert "bible-kjv-text | 4.38" in card
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in (BUNDLED / "WORDNET_LICENSE.txt").read_text(
        encoding="utf-8"
    )
