"""What a checkpoint folder says about its model: `config.json` and `generation_config.json`.

No torch here: the gateway reads it too. Not for weights (`checkpoint`) or tokenizers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fourlane.errors import CheckpointError, UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ARCHITECTURES", "ModelConfig", "read_config", "resolve_model_path"]

ARCHITECTURES = ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
_QWEN2_MOE = ARCHITECTURES[0]
_DTYPES = ("float32", "bfloat16", "float16")
_BUNDLED = "bundled"


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a model of one of the `ARCHITECTURES`.

    `expert_dim`, `shared_expert_dim` and `dense_dim` are the inner sizes of an expert, of the shared expert beside the
    routed ones (0: there is none) and of a dense MLP. `head_norms`: query and key heads are normed. `dtype` is what
    the weights are stored in, as far as config.json says. `eos_token_ids` come from
    generation_config.json, else config.json; any of them ends a text.
    """

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    expert_dim: int
    shared_expert_dim: int
    dense_dim: int
    mlp_only_layers: tuple[int, ...]
    decoder_sparse_step: int
    norm_topk_prob: bool
    rope_theta: float
    rms_eps: float
    tie_embeddings: bool
    head_norms: bool
    qkv_bias: bool
    output_bias: bool
    max_positions: int
    dtype: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Return the layers that have experts, ascending; layer i of a placement is the i-th of them."""
        return tuple(layer for layer in range(self.layers) if self.is_moe(layer))

    @property
    def experts_to_attention(self) -> float:
        """Return how many multiplications a token's routed experts take for each of its attention's projections."""
        heads = 2 * self.heads + 2 * self.kv_heads  # query, key, value, and back
        return 3 * self.top_k * self.expert_dim / (heads * self.head_dim)

    def is_moe(self, layer: int) -> bool:
        """Tell whether a layer has experts rather than a dense MLP."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


def resolve_model_path(path: str | Path) -> Path:
    """Return the folder of a checkpoint; "bundled" is the model that comes with the package.

    Raises:
        CheckpointError: there is no such folder, or it holds no config.json.
    """
    folder = Path(__file__).parent / _BUNDLED if str(path) == _BUNDLED else Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise CheckpointError(
            f'model.path: {folder} is not a folder; give a checkpoint folder in the Hugging Face layout, or "bundled"'
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: no config.json; expected a checkpoint folder in the Hugging Face layout "
            f"(config.json, *.safetensors, tokenizer.json), found {_listing(folder)}"
        )
    return folder


def read_config(path: str | Path) -> ModelConfig:
    """Read the model's shape from a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or malformed, a field missing or out of range.
        UnsupportedModel: the architecture or an option of it is not implemented. Either message
            lists every fault found.
    """
    folder = resolve_model_path(path)
    place = folder / "config.json"
    raw = _read_object(place)
    generation_file = folder / "generation_config.json"
    generation = _read_object(generation_file) if generation_file.is_file() else {}
    unsupported = _unsupported(raw)
    fields = _Fields(raw)
    config = _config(fields, generation)
    faults = [*unsupported, *fields.faults, *([] if fields.faults else _inconsistencies(config))]
    if faults:
        kind = UnsupportedModel if unsupported else CheckpointError
        raise kind("\n".join(f"{place}: {fault}" for fault in faults))
    return config


class _Fields:
    """Typed look-ups in config.json that note faults and go on."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self._raw = raw
        self.faults: list[str] = []

    def integer(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """Return the first of `names` that is there."""
        value = self._first(names, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            return self._fault(names, f"an integer of at least {least}", value, 0)
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """Return a positive number."""
        value = self._first(names, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            return self._fault(names, "a positive number", value, 0.0)
        return float(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self._first((name,), default)
        if not isinstance(value, bool):
            return self._fault((name,), "true or false", value, default)
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of integers, or one; nothing there is an empty list."""
        value = self._first((name,), [])
        values = [value] if isinstance(value, int) else value
        if not isinstance(values, list) or not all(isinstance(one, int) and one >= 0 for one in values):
            return self._fault((name,), "an integer or a list of integers, none negative", value, ())
        return tuple(values)

    def optional(self, *names: str) -> object:
        """Return whatever is there, or None."""
        return self._first(names, None)

    def _first(self, names: tuple[str, ...], default: object) -> object:
        return next((self._raw[name] for name in names if self._raw.get(name) is not None), default)

    def _fault(self, names: tuple[str, ...], allowed: str, found: object, instead: Any) -> Any:
        what = "nothing" if found is None else repr(found)
        self.faults.append(f"{' or '.join(names)}: expected {allowed}, got {what}")
        return instead


def _config(fields: _Fields, generation: dict[str, Any]) -> ModelConfig:
    qwen2 = fields.optional("architectures") == [_QWEN2_MOE]
    attention_bias = not qwen2 and fields.boolean("attention_bias", default=False)
    heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    dtype = fields.optional("dtype", "torch_dtype")
    eos = fields.integers("eos_token_id")
    if generation.get("eos_token_id") is not None:
        later = _Fields(generation)
        eos = later.integers("eos_token_id")
        fields.faults += [f"generation_config.json beside it: {fault}" for fault in later.faults]
    bos = fields.integers("bos_token_id")
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", default=heads or 1),
        head_dim=fields.integer("head_dim", default=max(1, hidden_size // max(1, heads))),
        experts=fields.integer("num_experts", "num_local_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        expert_dim=fields.integer("moe_intermediate_size"),
        shared_expert_dim=fields.integer("shared_expert_intermediate_size") if qwen2 else 0,
        dense_dim=fields.integer("intermediate_size", default=1),
        mlp_only_layers=fields.integers("mlp_only_layers"),
        decoder_sparse_step=fields.integer("decoder_sparse_step", default=1),
        norm_topk_prob=fields.boolean("norm_topk_prob", default=False),
        rope_theta=_rope_theta(fields),
        rms_eps=fields.number("rms_norm_eps", default=1e-6),
        tie_embeddings=fields.boolean("tie_word_embeddings", default=False),
        head_norms=not qwen2,
        qkv_bias=fields.boolean("qkv_bias", default=True) if qwen2 else attention_bias,
        output_bias=attention_bias,
        max_positions=fields.integer("max_position_embeddings", default=32768),
        dtype=str(dtype).removeprefix("torch.") if dtype is not None else None,
        eos_token_ids=eos,
        bos_token_id=bos[0] if bos else None,
    )


def _rope_theta(fields: _Fields) -> float:
    """Return the rotary base: transformers 5 writes it in `rope_parameters`, 4 at the top."""
    parameters = fields.optional("rope_parameters")
    if isinstance(parameters, dict) and parameters.get("rope_theta") is not None:
        inner = _Fields(parameters)
        theta = inner.number("rope_theta")
        fields.faults += [f"rope_parameters.{fault}" for fault in inner.faults]
        return theta
    return fields.number("rope_theta", default=10000.0)


def _unsupported(raw: dict[str, Any]) -> list[str]:
    """Name every option that would change the computation in a way that is not implemented."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    kinds = sorted({str(kind) for kind in raw.get("layer_types") or []} - {"full_attention"})
    architectures = raw.get("architectures")
    served = architectures in [[name] for name in ARCHITECTURES]
    checks: list[tuple[str, object, bool, str]] = [
        ("architectures", architectures, served, " or ".join(f'["{name}"]' for name in ARCHITECTURES)),
        ("rope_parameters.rope_type", rope_type, rope_type == "default", '"default" (no rope scaling)'),
        ("sliding_window", window, window is None, "none in use (use_sliding_window false)"),
        ("layer_types", kinds, not kinds, '"full_attention" only'),
        ("quantization_config", raw.get("quantization_config"), not raw.get("quantization_config"), "none"),
        ("hidden_act", raw.get("hidden_act"), raw.get("hidden_act", "silu") == "silu", '"silu"'),
    ]
    return [
        f"{name}: {_short(found)} is not implemented; only {allowed} is"
        for name, found, fine, allowed in checks
        if not fine
    ]


def _inconsistencies(config: ModelConfig) -> list[str]:
    """Name every relation between fields that does not hold."""
    beyond = [layer for layer in config.mlp_only_layers if layer >= config.layers]
    tokens = [*config.eos_token_ids, *([] if config.bos_token_id is None else [config.bos_token_id])]
    checks: list[tuple[bool, Callable[[], str]]] = [
        (
            config.heads % config.kv_heads == 0,
            lambda: (
                f"num_attention_heads: expected a multiple of num_key_value_heads = {config.kv_heads}, "
                f"got {config.heads}"
            ),
        ),
        (config.head_dim % 2 == 0, lambda: f"head_dim: expected an even number, got {config.head_dim}"),
        (
            config.top_k <= config.experts,
            lambda: f"num_experts_per_tok: expected at most num_experts = {config.experts}, got {config.top_k}",
        ),
        (not beyond, lambda: f"mlp_only_layers: expected layers in 0..{config.layers - 1}, got {beyond}"),
        (bool(config.moe_layers), lambda: "no layer has experts; fourlane serves mixture-of-experts models only"),
        (
            all(token < config.vocab_size for token in tokens),
            lambda: f"eos_token_id, bos_token_id: expected ids below vocab_size = {config.vocab_size}, got {tokens}",
        ),
        (
            config.dtype is None or config.dtype in _DTYPES,
            lambda: f"dtype: expected one of {', '.join(_DTYPES)}, got {config.dtype}",
        ),
    ]
    return [message() for fine, message in checks if not fine]


def _read_object(place: Path) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(place.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{place}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{place}: expected a JSON object, got {type(value).__name__}")
    return value


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
