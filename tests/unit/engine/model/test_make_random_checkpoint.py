"""The tool that writes random checkpoints."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import make_random_checkpoint
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from fourlane.engine.model.config import read_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_same_options_give_the_same_bytes_and_another_seed_others(small_checkpoint: Write) -> None:
    first, again, other = (digest(small_checkpoint(name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]
    assert first["tokenizer.json"] == other["tokenizer.json"]


def test_shards_hold_the_same_tensors_as_one_file(small_checkpoint: Write) -> None:
    whole = load_file(small_checkpoint("whole") / "model.safetensors")
    folder = small_checkpoint("shards", shards=3)
    parts = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_bfloat16_weights_are_the_float32_ones_rounded_to_nearest(small_checkpoint: Write) -> None:
    exact = load_file(small_checkpoint("exact") / "model.safetensors")
    rounded = load_file(small_checkpoint("rounded", dtype="bfloat16") / "model.safetensors")
    assert all(torch.equal(rounded[name], tensor.to(torch.bfloat16)) for name, tensor in exact.items())


def test_the_tokenizer_has_the_models_vocabulary_and_loses_no_text(small_checkpoint: Write) -> None:
    folder = small_checkpoint(vocab=1500)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 1500
    assert sorted(tokenizer.get_vocab().values()) == list(range(1500))
    for text in ("the quick brown fox", "naïve 你好\n\t", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("the theory").ids) < len("the theory")
    assert tokenizer.token_to_id("<|endoftext|>") == read_config(folder).eos_token_ids[0]


def test_a_vocabulary_without_room_for_all_bytes_gets_no_tokenizer(small_checkpoint: Write) -> None:
    assert not (small_checkpoint(vocab=97) / "tokenizer.json").exists()


def test_the_command_line_writes_what_its_options_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--layers", "2", "--experts", "4", "--top-k", "2", "--hidden", "32", "--mlp-only-layers", "0"]
    make_random_checkpoint.main([str(tmp_path), *options, "--tie-embeddings", "--dtype", "float32"])
    config = read_config(tmp_path)
    assert (config.layers, config.experts, config.moe_layers, config.tie_embeddings) == (2, 4, (1,), True)
    assert "M parameters, float32" in capsys.readouterr().out
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 0


def test_a_shared_expert_makes_it_a_qwen2(tmp_path: Path) -> None:
    make_random_checkpoint.main([str(tmp_path), "--layers", "1", "--hidden", "32", "--shared-expert-dim", "40"])
    assert read_config(tmp_path).shared_expert_dim == 40
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["model.layers.0.mlp.shared_expert.up_proj.weight"].shape == (40, 32)
    assert not any("_norm" in name and "self_attn" in name for name in tensors)


def test_the_defaults_are_the_benchmark_model() -> None:
    shape = make_random_checkpoint.Shape()
    parameters = sum(torch.Size(dims).numel() for _, dims, _ in make_random_checkpoint._tensors(shape))
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (8, 256, 8, 2, 32)
    assert (shape.experts, shape.top_k, shape.expert_dim, shape.vocab) == (32, 4, 128, 4096)
    assert parameters == pytest.approx(28.6e6, rel=0.005)
