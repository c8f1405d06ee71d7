"""Reading what models are made of: the catalog against published counts, and Hugging Face configurations."""

import json
from pathlib import Path

import msgspec
import pytest

from fourlane.errors import SpecError
from fourlane.spec.architecture import Architecture, LatentAttention
from fourlane.spec.architecture_file import catalog_architectures, load_architecture
from fourlane.spec.load import load, render

DEEPSEEK = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "vocab_size": 129280,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "moe_intermediate_size": 2048,
    "intermediate_size": 18432,
    "num_nextn_predict_layers": 1,
    "moe_layer_freq": 1,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8"},
}
QWEN2 = {
    "model_type": "qwen2_moe",
    "num_hidden_layers": 24,
    "hidden_size": 2048,
    "vocab_size": 151936,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "torch_dtype": "bfloat16",
}


def written(folder: Path, config: dict[str, object]) -> Path:
    """Write a config.json and return its folder."""
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "total", "active", "kv"),
    [
        ("deepseek-v3", 671, 37.6, 70_272),
        ("deepseek-r1", 671, 37.6, 70_272),
        ("kimi-k2", 1026, 32.9, 70_272),
        ("qwen3-235b-a22b", 235, 22.2, 192_512),
        ("qwen3-30b-a3b", 30.5, 3.35, 98_304),
        ("mixtral-8x22b", 141, 39.2, 229_376),
    ],
)
def test_catalog_models_have_the_published_parameters_and_kv_bytes(
    name: str, total: float, active: float, kv: int
) -> None:
    model = load_architecture(name)
    assert model.parameters / 1e9 == pytest.approx(total, rel=0.003)
    assert model.active_parameters / 1e9 == pytest.approx(active, rel=0.002)
    assert model.kv_bytes_per_token("bf16") == kv
    assert model.kv_bytes_per_token("fp8") == kv // 2


def test_every_model_of_the_catalog_reads_and_has_a_source() -> None:
    for name in catalog_architectures():
        model = load_architecture(name)
        assert model.name == name
        assert model.source


def test_the_bundled_model_is_read_from_its_own_checkpoint() -> None:
    model = load_architecture("bundled")
    assert (model.layers, model.experts, model.top_k, model.hidden) == (8, 32, 4, 256)
    assert model.tied_embeddings


def test_a_deepseek_config_is_the_model_of_the_catalog(tmp_path: Path) -> None:
    read = load_architecture(written(tmp_path, DEEPSEEK))
    known = load_architecture("deepseek-v3")
    assert msgspec.structs.replace(read, name=known.name, source=known.source) == known


def test_a_shared_expert_of_qwen2_counts_in_routed_ones(tmp_path: Path) -> None:
    model = load_architecture(written(tmp_path, QWEN2) / "config.json")
    assert model.shared_experts == 4
    assert model.parameters / 1e9 == pytest.approx(14.3, rel=0.01)


def test_all_faults_of_a_config_are_told_at_once(tmp_path: Path) -> None:
    config = QWEN2 | {"mlp_only_layers": [3], "shared_expert_intermediate_size": 5000, "vocab_size": None}
    with pytest.raises(SpecError) as caught:
        load_architecture(written(tmp_path, config))
    places = [fault.split(": ")[1] for fault in caught.value.faults]
    assert sorted(places) == ["mlp_only_layers", "shared_expert_intermediate_size", "vocab_size"]


def test_other_families_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model_type: expected one of deepseek_v3.*got 'qwen3_mo' \(did you mean"):
        load_architecture(written(tmp_path, QWEN2 | {"model_type": "qwen3_mo"}))


def test_an_unknown_model_names_the_likeliest() -> None:
    with pytest.raises(SpecError, match=r'got "deepseek-v4" \(did you mean "deepseek-v3"\?\)'):
        load_architecture("deepseek-v4")


def test_an_architecture_file_of_ones_own_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = (Path(__file__).parents[3] / "src/fourlane/spec/catalog/models/deepseek-v3.toml").read_text()
    file.write_text(text.replace('name = "deepseek-v3"', 'name = "mine"').replace("experts = 256", "experts = 128", 1))
    assert load_architecture(file).experts == 128
    file.write_text(text.replace("top_k = 8", "top_k = 300").replace("groups = 8", "groups = 7", 1))
    with pytest.raises(SpecError) as caught:
        load_architecture(file)
    assert len(caught.value.faults) == 2


def test_the_kind_of_attention_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = (Path(__file__).parents[3] / "src/fourlane/spec/catalog/models/deepseek-v3.toml").read_text()
    file.write_text(text.replace('kind = "mla"\n', ""))
    with pytest.raises(SpecError, match=r'attention.kind: expected ("gqa" or "mla"|"mla" or "gqa"), it is missing'):
        load(file, Architecture)
    file.write_text(text)
    model = load(file, Architecture)
    assert isinstance(model.attention, LatentAttention)
    file.write_text(render(model))
    assert load(file, Architecture) == model
