"""Write a `Qwen3MoeForCausalLM` checkpoint with random weights, for benchmarks and tests.

With `--shared-expert-dim` it is a `Qwen2MoeForCausalLM`, whose tokens all go to a shared expert, too.

The defaults are the benchmark model: 8 layers, hidden 256, 8/2 heads of 32, 32 experts top-4 of inner
size 128, vocabulary 4096. The same options give the same bytes on every machine. Needs no torch.

    python tools/make_random_checkpoint.py FOLDER [--layers 3 ...]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import string
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Iterator

SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|endoftext|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What to write; every field is an option of the command line."""

    vocab: int = 4096
    hidden: int = 256
    layers: int = 8
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 32
    top_k: int = 4
    expert_dim: int = 128
    shared_expert_dim: int = 0
    dense_dim: int = 512
    mlp_only_layers: tuple[int, ...] = ()
    decoder_sparse_step: int = 1
    norm_topk_prob: bool = True
    attention_bias: bool = False
    tie_embeddings: bool = False
    rope_theta: float = 10000.0
    max_positions: int = 4096
    dtype: str = "bfloat16"
    shards: int = 1
    seed: int = 0

    @property
    def is_qwen2(self) -> bool:
        """Tell whether it is a `Qwen2MoeForCausalLM`."""
        return self.shared_expert_dim > 0

    def has_experts(self, layer: int) -> bool:
        """Tell whether a layer has experts rather than a dense MLP."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """Write config, weights and, where the vocabulary has room for all bytes, a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config(shape))
    _write_json(folder / "generation_config.json", {"eos_token_id": 0, "pad_token_id": 1, "do_sample": False})
    _write_weights(folder, shape)
    if shape.vocab >= 256 + len(SPECIAL_TOKENS):
        _write_tokenizer(folder, shape)


def _config(shape: Shape) -> dict[str, object]:
    if shape.is_qwen2:
        kind: dict[str, object] = {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "shared_expert_intermediate_size": shape.shared_expert_dim,
            "qkv_bias": shape.attention_bias,
        }
    else:
        kind = {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "attention_bias": shape.attention_bias,
        }
    return kind | {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.dense_dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "moe_intermediate_size": shape.expert_dim,
        "mlp_only_layers": list(shape.mlp_only_layers),
        "decoder_sparse_step": shape.decoder_sparse_step,
        "norm_topk_prob": shape.norm_topk_prob,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "tie_word_embeddings": shape.tie_embeddings,
        "eos_token_id": 0,
        "bos_token_id": None,
        "torch_dtype": shape.dtype,
    }


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Yield name, shape and standard deviation; 0 stands for a norm, which is drawn near 1.

    Projections keep the variance of their input; the embedding is small beside what the layers add,
    so that even a tied output head does not just repeat the last token.
    """
    hidden, dim = shape.hidden, shape.head_dim
    flat = 1 / math.sqrt(hidden)
    yield "model.embed_tokens.weight", (shape.vocab, hidden), 2 * flat
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (hidden,), 0.0
        for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
            yield f"{prefix}self_attn.{name}_proj.weight", (heads * dim, hidden), flat
            if shape.attention_bias:
                yield f"{prefix}self_attn.{name}_proj.bias", (heads * dim,), 0.1
        yield f"{prefix}self_attn.o_proj.weight", (hidden, shape.heads * dim), 1 / math.sqrt(shape.heads * dim)
        if shape.attention_bias and not shape.is_qwen2:
            yield f"{prefix}self_attn.o_proj.bias", (hidden,), 0.1
        if not shape.is_qwen2:
            yield f"{prefix}self_attn.q_norm.weight", (dim,), 0.0
            yield f"{prefix}self_attn.k_norm.weight", (dim,), 0.0
        yield f"{prefix}post_attention_layernorm.weight", (hidden,), 0.0
        if not shape.has_experts(layer):
            yield from _mlp(f"{prefix}mlp.", hidden, shape.dense_dim)
            continue
        yield f"{prefix}mlp.gate.weight", (shape.experts, hidden), flat
        for expert in range(shape.experts):
            yield from _mlp(f"{prefix}mlp.experts.{expert}.", hidden, shape.expert_dim)
        if shape.is_qwen2:
            yield from _mlp(f"{prefix}mlp.shared_expert.", hidden, shape.shared_expert_dim)
            yield f"{prefix}mlp.shared_expert_gate.weight", (1, hidden), flat
    yield "model.norm.weight", (hidden,), 0.0
    if not shape.tie_embeddings:
        yield "lm_head.weight", (shape.vocab, hidden), 2 * flat


def _mlp(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...], float]]:
    yield f"{prefix}gate_proj.weight", (inner, hidden), 1 / math.sqrt(hidden)
    yield f"{prefix}up_proj.weight", (inner, hidden), 1 / math.sqrt(hidden)
    yield f"{prefix}down_proj.weight", (hidden, inner), 2 / math.sqrt(inner)


def _write_weights(folder: Path, shape: Shape) -> None:
    wanted = list(_tensors(shape))
    size = -(-len(wanted) // shape.shards)
    weight_map: dict[str, str] = {}
    for shard in range(shape.shards):
        name = "model.safetensors" if shape.shards == 1 else f"model-{shard + 1:05}-of-{shape.shards:05}.safetensors"
        part = wanted[shard * size : (shard + 1) * size]
        _write_safetensors(folder / name, shape, part)
        weight_map.update(dict.fromkeys((tensor for tensor, _, _ in part), name))
    if shape.shards > 1:
        _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_safetensors(path: Path, shape: Shape, tensors: list[tuple[str, tuple[int, ...], float]]) -> None:
    """Write a safetensors file: the length of the header, the header in JSON, the tensors' bytes."""
    kind, width = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}[shape.dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims, _ in tensors:
        begin, end = end, end + math.prod(dims) * width
        header[name] = {"dtype": kind, "shape": list(dims), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dims, deviation in tensors:
            file.write(_values(shape, name, dims, deviation))


def _values(shape: Shape, tensor: str, dims: tuple[int, ...], deviation: float) -> bytes:
    """Draw a tensor from a generator of its own, so that it does not depend on the others."""
    generator = np.random.default_rng([shape.seed, *tensor.encode()])
    drawn = generator.standard_normal(dims, dtype=np.float32)
    values = drawn * np.float32(deviation) if deviation else 1 + np.float32(0.1) * drawn
    if shape.dtype == "float32":
        return values.tobytes()
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to the nearest bfloat16, halves to even
    return rounded.astype(np.uint16).tobytes()


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    """Write a byte-level BPE tokenizer of exactly the model's vocabulary, its merges made up, not learnt."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for left, right in itertools.islice(_merges(), shape.vocab - len(pieces)):
        merges.append((left, right))
    pieces += [left + right for left, right in merges]
    if len(pieces) != shape.vocab:
        raise SystemExit(f"--vocab: a tokenizer can be made for at most {len(pieces)} tokens, got {shape.vocab}")
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_positions,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
        "chat_template": CHAT_TEMPLATE,
        "bos_token": None,
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[1],
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", config)


def _merges() -> Iterator[tuple[str, str]]:
    """Yield merges whose parts exist: a blank and a letter, two letters, then three, then four."""
    letters = string.ascii_lowercase
    pairs = ["".join(pair) for pair in itertools.product(letters, letters)]
    yield from (("\u0120", letter) for letter in letters)
    yield from ((pair[0], pair[1]) for pair in pairs)
    yield from itertools.product(pairs, letters)
    yield from itertools.product(pairs, pairs)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write a Qwen3-MoE or Qwen2-MoE checkpoint with random weights.")
    parser.add_argument("folder", type=Path)
    for field in fields(Shape):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, tuple):
            parser.add_argument(flag, type=int, nargs="*", default=list(default), metavar="LAYER")
        elif field.name == "dtype":
            parser.add_argument(flag, choices=("float32", "bfloat16"), default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options: dict[str, Any] = vars(_parser().parse_args(arguments))
    folder: Path = options.pop("folder")
    options["mlp_only_layers"] = tuple(options["mlp_only_layers"])
    shape = Shape(**options)
    write_checkpoint(folder, shape)
    print(f"{folder}: {sum(math.prod(dims) for _, dims, _ in _tensors(shape)) / 1e6:.1f} M parameters, {shape.dtype}")


if __name__ == "__main__":
    main()
