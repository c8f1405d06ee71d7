"""Read what a model is made of: from the catalog, a TOML file of one's own, or a Hugging Face `config.json`.

Not for checkpoints that are to be served (`fourlane.engine.model.config` reads those, and refuses more).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fourlane.errors import SpecError
from fourlane.spec.architecture import Architecture, GroupedQueryAttention, LatentAttention
from fourlane.spec.load import load
from fourlane.spec.reading import Fault, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["architecture_faults", "catalog_architectures", "load_architecture"]

_CATALOG = Path(__file__).parent / "catalog" / "models"
_BUNDLED = Path(__file__).parents[1] / "engine" / "model" / "bundled"
_WEIGHTS = {"bfloat16": "bf16", "float16": "bf16", "float32": "fp32"}


def catalog_architectures() -> tuple[str, ...]:
    """Return the names of the models of the catalog."""
    return tuple(sorted([*(file.stem for file in _CATALOG.glob("*.toml")), _BUNDLED.name]))


def load_architecture(name: str | Path) -> Architecture:
    """Read a model's architecture.

    Args:
        name: a model of the catalog ("bundled": the one that comes with the package), a TOML file, a Hugging Face
            `config.json`, or a folder that holds one.

    Raises:
        SpecError: there is none of that name, or with every fault of the file.
    """
    file = Path(name).expanduser()
    if str(name) in catalog_architectures():
        return _of_catalog(str(name))
    if file.is_dir():
        file /= "config.json"
        if not file.is_file():
            raise SpecError(f"{name}: expected a folder with a config.json, found none in it")
    if file.suffix == ".toml":
        return load(file, Architecture, rules=architecture_faults)
    if file.suffix == ".json":
        return _of_config(file)
    known = catalog_architectures()
    raise SpecError(
        f"model: expected a model of the catalog ({', '.join(known)}), a Hugging Face folder or config.json, or an "
        f'architecture file (.toml), got "{name}"{did_you_mean(str(name), known)}'
    )


@cache
def _of_catalog(name: str) -> Architecture:
    if name == _BUNDLED.name:
        return msgspec.structs.replace(_of_config(_BUNDLED / "config.json"), name=name)
    return load(_CATALOG / f"{name}.toml", Architecture, rules=architecture_faults)


def architecture_faults(model: Architecture) -> Iterator[Fault]:
    """Yield what is wrong with an architecture whose fields are well-formed."""
    least_one = ("layers", "hidden", "vocabulary", "experts", "top_k", "groups", "top_groups", "expert_inner")
    for name in (*least_one, "shared_experts", "mtp_layers"):
        least, value = int(name in least_one), getattr(model, name)
        if value < least:
            yield Fault(name, f"expected at least {least}, got {value}")
    for field in msgspec.structs.fields(model.attention):
        value = getattr(model.attention, field.name)
        if value < int(field.name != "query_rank"):
            yield Fault(f"attention.{field.name}", f"expected at least 1, got {value}")
    yield from _relations(model)


def _relations(model: Architecture) -> Iterator[Fault]:
    some = model.layers - 1
    if not 0 <= model.dense_layers <= some:
        yield Fault("dense_layers", f"expected 0 to {some}, so that some have experts, got {model.dense_layers}")
    if model.dense_layers and model.dense_inner < 1:
        yield Fault("dense_inner", f"expected at least 1 with dense layers, got {model.dense_inner}")
    if model.top_k > model.experts:
        yield Fault("top_k", f"expected at most experts = {model.experts}, got {model.top_k}")
    if model.groups > 0 and model.experts % model.groups:
        yield Fault("groups", f"expected a divisor of experts = {model.experts}, got {model.groups}")
    if model.top_groups > model.groups:
        yield Fault("top_groups", f"expected at most groups = {model.groups}, got {model.top_groups}")


class _Config:
    """Look-ups in a config.json that note faults and go on."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self._raw = raw
        self.faults: list[Fault] = []

    def get(self, name: str) -> Any:
        """Return whatever is there, or None."""
        return self._raw.get(name)

    def count(self, *names: str, default: int | None = None) -> int:
        """Return the whole number under the first of `names` that is there."""
        value = next((self._raw[name] for name in names if self._raw.get(name) is not None), default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        found = "it is missing" if value is None else f"got {value!r}"
        self.faults.append(Fault(" or ".join(names), f"expected a whole number, {found}"))
        return 1


def _of_config(file: Path) -> Architecture:
    """Read a Hugging Face `config.json`.

    Raises:
        SpecError: with every fault of the file.
    """
    try:
        raw = msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise SpecError(f"{file}: expected a readable config.json: {error}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{file}: expected a JSON object, got {type(raw).__name__}")
    kind = raw.get("model_type")
    if kind not in _FAMILIES:
        raise SpecError(
            f"{file}: model_type: expected one of {', '.join(_FAMILIES)}, got {kind!r}{did_you_mean(kind, _FAMILIES)}; "
            "describe other models in an architecture file (.toml) of your own"
        )
    config = _Config(raw)
    fields = _common(config) | _FAMILIES[kind](config)
    name = str(raw.get("_name_or_path") or "") or file.absolute().parent.name
    model = Architecture(name=name, source=f"{file.name} of {name}", **fields)
    faults = config.faults or list(architecture_faults(model))
    if faults:
        raise SpecError(*(f"{file}: {fault.place}: {fault.message}" for fault in faults))
    return model


def _common(config: _Config) -> dict[str, Any]:
    quantization = config.get("quantization_config")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    weights = _WEIGHTS.get(dtype)
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
        weights = "fp8" if method == "fp8" else None
        dtype = f"quantization {method}"
    if weights is None:
        config.faults.append(Fault("dtype", f"expected {', '.join(_WEIGHTS)}, or fp8 quantization, got {dtype}"))
    return {
        "layers": config.count("num_hidden_layers"),
        "hidden": config.count("hidden_size"),
        "vocabulary": config.count("vocab_size"),
        "top_k": config.count("num_experts_per_tok"),
        "tied_embeddings": bool(config.get("tie_word_embeddings")),
        "weights": weights or "bf16",
    }


def _deepseek(config: _Config) -> dict[str, Any]:
    if config.get("moe_layer_freq") not in (None, 1):
        config.faults.append(Fault("moe_layer_freq", f"expected 1, got {config.get('moe_layer_freq')!r}"))
    return {
        "dense_layers": config.count("first_k_dense_replace", default=0),
        "attention": LatentAttention(
            heads=config.count("num_attention_heads"),
            query_rank=config.count("q_lora_rank", default=0),
            kv_rank=config.count("kv_lora_rank"),
            rope_width=config.count("qk_rope_head_dim"),
            nope_width=config.count("qk_nope_head_dim"),
            value_width=config.count("v_head_dim"),
        ),
        "experts": config.count("n_routed_experts"),
        "shared_experts": config.count("n_shared_experts", default=0),
        "groups": config.count("n_group", default=1),
        "top_groups": config.count("topk_group", default=1),
        "expert_inner": config.count("moe_intermediate_size"),
        "dense_inner": config.count("intermediate_size"),
        "mtp_layers": config.count("num_nextn_predict_layers", default=0),
    }


def _grouped_query(config: _Config) -> GroupedQueryAttention:
    heads = config.count("num_attention_heads")
    return GroupedQueryAttention(
        heads=heads,
        kv_heads=config.count("num_key_value_heads", default=heads),
        head_width=config.count("head_dim", default=config.count("hidden_size") // max(1, heads)),
    )


def _qwen(config: _Config) -> dict[str, Any]:
    """Qwen 2 and 3: every layer has experts; a shared expert is counted in experts of the routed ones' size."""
    for name in ("decoder_sparse_step", "mlp_only_layers"):
        if config.get(name) not in (None, [], 1):
            config.faults.append(Fault(name, f"expected experts in every layer, got {config.get(name)!r}"))
    inner = config.count("moe_intermediate_size")
    shared = config.count("shared_expert_intermediate_size", default=0)
    if shared % max(1, inner):
        message = f"expected a multiple of moe_intermediate_size = {inner}, got {shared}"
        config.faults.append(Fault("shared_expert_intermediate_size", message))
    return {
        "attention": _grouped_query(config),
        "experts": config.count("num_experts", "num_local_experts"),
        "shared_experts": shared // max(1, inner),
        "expert_inner": inner,
    }


def _mixtral(config: _Config) -> dict[str, Any]:
    return {
        "attention": _grouped_query(config),
        "experts": config.count("num_local_experts"),
        "expert_inner": config.count("intermediate_size"),
    }


_FAMILIES: dict[str, Callable[[_Config], dict[str, Any]]] = {
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "qwen2_moe": _qwen,
    "qwen3_moe": _qwen,
    "mixtral": _mixtral,
}
