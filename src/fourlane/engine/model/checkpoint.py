"""Weights of a checkpoint folder, read from safetensors by memory map.

Everything is checked from the files' headers before a single weight is read: shards that are
missing or cut short, tensors that are missing or have another shape or type. After that,
`Checkpoint.tensor` hands out views of the map, so a rank touches only the bytes it asks for.
Not for what the weights become in memory (`qwen3_moe`) or whether they fit (`memory`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from fourlane.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from fourlane.engine.model.config import ModelConfig

__all__ = ["Checkpoint", "dense_tensors", "expert_tensors"]

_DTYPE_OF = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MOST_FAULTS = 12


def dense_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor that each rank holds: all but the routed experts'."""
    hidden, head_dim = config.hidden_size, config.head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    rows = {
        "q_proj": config.heads * head_dim,
        "k_proj": config.kv_heads * head_dim,
        "v_proj": config.kv_heads * head_dim,
    }
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
        for name, outputs in rows.items():
            yield f"{prefix}self_attn.{name}.weight", (outputs, hidden)
            if config.qkv_bias:
                yield f"{prefix}self_attn.{name}.bias", (outputs,)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, rows["q_proj"])
        if config.output_bias:
            yield f"{prefix}self_attn.o_proj.bias", (hidden,)
        if config.head_norms:
            yield f"{prefix}self_attn.q_norm.weight", (head_dim,)
            yield f"{prefix}self_attn.k_norm.weight", (head_dim,)
        if config.is_moe(layer):
            yield f"{prefix}mlp.gate.weight", (config.experts, hidden)
            yield from _shared_expert_tensors(config, f"{prefix}mlp.")
        else:
            yield from _mlp_tensors(f"{prefix}mlp.", hidden, config.dense_dim)
    yield "model.norm.weight", (hidden,)
    if not config.tie_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)


def _shared_expert_tensors(config: ModelConfig, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    if config.shared_expert_dim:
        yield from _mlp_tensors(f"{prefix}shared_expert.", config.hidden_size, config.shared_expert_dim)
        yield f"{prefix}shared_expert_gate.weight", (1, config.hidden_size)


def expert_tensors(config: ModelConfig, layer: int, expert: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of the tensors of one routed expert: gate, up, down."""
    yield from _mlp_tensors(f"model.layers.{layer}.mlp.experts.{expert}.", config.hidden_size, config.expert_dim)


class Checkpoint:
    """The tensors of a folder: one `model.safetensors`, or an index and its shards."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        """Map the files and check every tensor the model needs, from headers alone.

        Raises:
            CheckpointError: files or tensors are missing, cut short, or of another shape or type;
                the message lists what was found.
        """
        self.folder = folder
        self.bytes_read = 0
        self._file_of, faults = _locate(folder)
        self._files: dict[str, Any] = {}
        for name in sorted(set(self._file_of.values())):
            try:
                self._files[name] = safe_open(folder / name, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                faults.append(f"{name}: cannot be read: {error}; the file is missing or cut short: fetch it again")
        self._stored_in: Counter[torch.dtype] = Counter()
        if not faults:
            faults = self._check(config)
        if faults:
            raise CheckpointError(_join(folder, faults))

    @property
    def stored_dtype(self) -> torch.dtype:
        """Return the type in which most weights are stored."""
        return self._stored_in.most_common(1)[0][0]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor as a view of the map; its bytes are read from the disk when they are touched."""
        tensor: Tensor = self._files[self._file_of[name]].get_tensor(name)
        self.bytes_read += tensor.numel() * tensor.element_size()
        return tensor

    def _check(self, config: ModelConfig) -> list[str]:
        names_in = {name: set(file.keys()) for name, file in self._files.items()}
        faults: list[str] = []
        for name, shape in _all_tensors(config):
            file_name = self._file_of.get(name)
            if file_name is None:
                faults.append(f"{name}: missing; expected shape {list(shape)}")
            elif name not in names_in[file_name]:
                faults.append(f"{name}: the index says it is in {file_name}, but it is not")
            else:
                faults += self._check_tensor(name, shape, file_name)
        return faults

    def _check_tensor(self, name: str, shape: tuple[int, ...], file_name: str) -> list[str]:
        header = self._files[file_name].get_slice(name)
        found, dtype = tuple(header.get_shape()), _DTYPE_OF.get(header.get_dtype())
        if dtype is None:
            return [f"{name}: expected one of {', '.join(_DTYPE_OF)}, got {header.get_dtype()} ({file_name})"]
        self._stored_in[dtype] += torch.Size(shape).numel()
        if found != shape:
            return [f"{name}: expected shape {list(shape)} from config.json, got {list(found)} ({file_name})"]
        return []


def _mlp_tensors(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}gate_proj.weight", (inner, hidden)
    yield f"{prefix}up_proj.weight", (inner, hidden)
    yield f"{prefix}down_proj.weight", (hidden, inner)


def _all_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from dense_tensors(config)
    for layer in config.moe_layers:
        for expert in range(config.experts):
            yield from expert_tensors(config, layer, expert)


def _locate(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Return the file of each tensor, and faults."""
    if (folder / _INDEX).is_file():
        return _from_index(folder)
    if not (folder / _SINGLE).is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))[:8]) or "none"
        return {}, [f"neither {_SINGLE} nor {_INDEX} is there; safetensors files found: {found}"]
    try:
        with safe_open(folder / _SINGLE, framework="pt") as file:
            return dict.fromkeys(file.keys(), _SINGLE), []
    except (OSError, SafetensorError) as error:
        return {}, [f"{_SINGLE}: cannot be read: {error}; the file is cut short or no safetensors file: fetch it again"]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _from_index(folder: Path) -> tuple[dict[str, str], list[str]]:
    try:
        index = msgspec.json.decode((folder / _INDEX).read_bytes(), type=_Index)
    except (OSError, msgspec.MsgspecError) as error:
        return {}, [f'{_INDEX}: expected {{"weight_map": {{tensor: file}}}}: {error}']
    strange = sorted({name for name in index.weight_map.values() if "/" in name or "\\" in name})
    if strange:
        return {}, [f"{_INDEX}: expected file names beside it, got {strange[:3]}"]
    return index.weight_map, []


def _join(folder: Path, faults: list[str]) -> str:
    lines = [f"{folder}: {fault}" for fault in faults[:_MOST_FAULTS]]
    if len(faults) > _MOST_FAULTS:
        lines.append(f"{folder}: and {len(faults) - _MOST_FAULTS} more of the kind")
    return "\n".join(lines)
