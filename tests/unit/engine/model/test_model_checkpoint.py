"""Checking and reading safetensors, and what a rank holds in memory."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourlane.engine.model import memory
from fourlane.engine.model.checkpoint import Checkpoint, dense_tensors, expert_tensors
from fourlane.engine.model.config import read_config
from fourlane.engine.model.memory import MemoryBudget
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.errors import CheckpointError, MemoryShortage
from fourlane.policy.placement import Placement, linear_placement

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.engine.model.weights import Kernels

    Write = Callable[..., Path]


def placement_for(folder: Path, ranks: int = 1) -> Placement:
    config = read_config(folder)
    return linear_placement(layers=len(config.moe_layers), experts=config.experts, ranks=ranks)


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(folder, read_config(folder))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_comes_back_as_it_was_written(small_checkpoint: Write, shards: int) -> None:
    folder = small_checkpoint(shards=shards)
    config = read_config(folder)
    written = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    checkpoint = opened(folder)
    names = [name for name, _ in dense_tensors(config)]
    names += [
        n for layer in config.moe_layers for e in range(config.experts) for n, _ in expert_tensors(config, layer, e)
    ]
    assert sorted(names) == sorted(written)
    for name in names:
        assert torch.equal(checkpoint.tensor(name), written[name])
    assert checkpoint.bytes_read == sum(tensor.nbytes for tensor in written.values())


def test_missing_tensors_and_wrong_shapes_are_listed_together(small_checkpoint: Write) -> None:
    folder = small_checkpoint()

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.0.mlp.experts.4.up_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(47)
        tensors["model.layers.2.mlp.gate.weight"] = torch.ones(10, 48, dtype=torch.int32)

    rewrite(folder, spoil)
    with pytest.raises(CheckpointError) as raised:
        opened(folder)
    text = str(raised.value)
    assert "model.layers.0.mlp.experts.4.up_proj.weight: missing; expected shape [24, 48]" in text
    assert "model.norm.weight: expected shape [48] from config.json, got [47] (model.safetensors)" in text
    assert "model.layers.2.mlp.gate.weight: expected one of F32, BF16, F16, got I32" in text


def test_a_long_list_of_faults_is_cut_and_counted(small_checkpoint: Write) -> None:
    folder = small_checkpoint()
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".experts." in name])
    with pytest.raises(CheckpointError, match=r"and 48 more of the kind") as raised:
        opened(folder)
    assert len(str(raised.value).splitlines()) == 13


def test_missing_shards_are_all_named(small_checkpoint: Write) -> None:
    folder = small_checkpoint(shards=4)
    for shard in (2, 4):
        (folder / f"model-0000{shard}-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError) as raised:
        opened(folder)
    assert "model-00002-of-00004.safetensors: cannot be read" in str(raised.value)
    assert "model-00004-of-00004.safetensors: cannot be read" in str(raised.value)
    assert "model-00001" not in str(raised.value)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_file_cut_short_is_found_before_loading(small_checkpoint: Write, shards: int) -> None:
    folder = small_checkpoint(shards=shards)
    victim = max(folder.glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{victim.name}: cannot be read: .*cut short"):
        opened(folder)


def test_no_weights_at_all_is_said_with_what_is_there(small_checkpoint: Write) -> None:
    folder = small_checkpoint()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"neither .* is there; safetensors files found: other.safetensors"):
        opened(folder)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {"model.norm.weight": "../../etc/passwd"}}'],
)
def test_a_malformed_index_is_refused(small_checkpoint: Write, text: str) -> None:
    folder = small_checkpoint(shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json: expected"):
        opened(folder)


def test_an_index_that_points_to_the_wrong_shard_is_refused(small_checkpoint: Write) -> None:
    folder = small_checkpoint(shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.embed_tokens.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight: the index says it is in model-00002"):
        opened(folder)


def expert_of(name: str) -> int | None:
    found = re.search(r"\.experts\.(\d+)\.", name)
    return int(found[1]) if found else None


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_a_rank_asks_for_its_own_experts_only(
    small_checkpoint: Write, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_checkpoint()
    asked: set[str] = set()
    plain = Checkpoint.tensor

    def noting(self: Checkpoint, name: str) -> torch.Tensor:
        asked.add(name)
        return plain(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", noting)
    load_model(folder, device="cpu", placement=placement_for(folder, ranks=2), rank=1, kernels=kernels)
    assert {expert_of(name) for name in asked} == {None, 5, 6, 7, 8, 9}


def test_bytes_of_other_ranks_experts_never_come_into_memory(
    small_checkpoint: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_checkpoint(hidden=128, expert_dim=512)
    spread_over_shards(folder, lambda name: "theirs" if (expert_of(name) or 9) < 5 else "mine")
    files: list[Checkpoint] = []
    plain = Checkpoint.__init__

    def noting(self: Checkpoint, *args: Any) -> None:
        files.append(self)
        plain(self, *args)

    monkeypatch.setattr(Checkpoint, "__init__", noting)
    load_model(folder, device="cpu", placement=placement_for(folder, ranks=2), rank=1)
    assert files, "the maps are still open while they are measured"
    mine, theirs = (resident_in_map(folder / f"{name}.safetensors") for name in ("mine", "theirs"))
    assert mine > 7 << 20
    assert theirs < 1 << 19 < (folder / "theirs.safetensors").stat().st_size / 8


def spread_over_shards(folder: Path, shard_of: Callable[[str], str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"{shard_of(name)}.safetensors" for name in tensors}
    for file in set(weight_map.values()):
        save_file({name: tensor for name, tensor in tensors.items() if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def resident_in_map(path: Path) -> int:
    """Return the bytes of a file that this process has touched through its maps, from /proc."""
    resident, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


@pytest.mark.parametrize(
    ("stored", "wanted", "held"),
    [
        ("float32", "auto", torch.float32),
        ("bfloat16", "auto", torch.bfloat16),
        ("float32", "bfloat16", torch.bfloat16),
        ("bfloat16", "float32", torch.float32),
    ],
)
def test_weights_are_held_in_the_type_asked_for(
    small_checkpoint: Write, stored: str, wanted: Literal["auto", "float32", "bfloat16"], held: torch.dtype
) -> None:
    folder = small_checkpoint(dtype=stored)
    model = load_model(folder, device="cpu", weights=wanted, placement=placement_for(folder), rank=0, kernels="torch")
    config = model.config
    expert = sum(math.prod(shape) for _, shape in expert_tensors(config, 0, 0))
    matrices = len(config.moe_layers) * config.experts * expert
    small = config.layers * (config.heads + config.kv_heads) * config.head_dim  # norms of heads, one a head
    for name, shape in dense_tensors(config):
        if len(shape) == 2 and not name.endswith("mlp.gate.weight"):
            matrices += math.prod(shape)
        elif "_norm" not in name:
            small += math.prod(shape)
    assert model.weights_bytes == matrices * held.itemsize + small * 4
    assert model.kv_geometry(2, 16).dtype == "float32"


def test_the_budget_is_printed_and_a_shortage_refused_before_anything_is_read(
    small_checkpoint: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_checkpoint()

    def little(_device: torch.device) -> tuple[int, str]:
        return 3 << 20, "in this test"

    def reading(_self: Checkpoint, name: str) -> torch.Tensor:
        pytest.fail(f"{name} was read")

    monkeypatch.setattr(memory, "available_memory", little)
    monkeypatch.setattr(Checkpoint, "tensor", reading)
    with pytest.raises(MemoryShortage) as raised:
        load_model(folder, device="cpu", placement=placement_for(folder, ranks=2), rank=0, kv_memory=5 << 20)
    lines = str(raised.value).splitlines()
    assert "does not fit in memory" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "dense weights", "experts", "KV cache", "work space", "needed", "available",
    ]  # fmt: skip
    assert "10 of 20 (rank 0 of 2)" in lines[2]
    assert "5.0 MiB" in lines[3]
    assert "3.0 MiB  in this test" in lines[6]


@pytest.mark.parametrize("shared_expert_dim", [0, 512])
def test_the_budget_of_weights_is_what_loading_then_holds(
    small_checkpoint: Write, caplog: pytest.LogCaptureFixture, shared_expert_dim: int
) -> None:
    sizes = {"hidden": 128, "heads": 8, "kv_heads": 4, "head_dim": 32, "expert_dim": 64, "dense_dim": 96, "vocab": 512}
    folder = small_checkpoint(**sizes, shared_expert_dim=shared_expert_dim)
    with caplog.at_level("INFO"):
        model = load_model(folder, device="cpu", placement=placement_for(folder), rank=0)
    logged = dict(re.findall(r"memory: (dense weights|experts)\s+([\d.]+) MiB", caplog.text))
    assert sum(float(size) for size in logged.values()) == pytest.approx(model.weights_bytes / 2**20, rel=0.05)


def test_the_budget_counts_shared_experts_on_every_rank_and_what_they_work_with(small_checkpoint: Write) -> None:
    def budget(shared_expert_dim: int) -> MemoryBudget:
        folder = small_checkpoint(f"shared {shared_expert_dim}", shared_expert_dim=shared_expert_dim)
        options: Any = {"weights": torch.float32, "device": torch.device("cpu"), "kv_memory": 0, "chunk_tokens": 100}
        return memory.memory_budget(read_config(folder), placement_for(folder, ranks=2), 1, **options)

    small, large = budget(32), budget(64)
    two_layers = 2 * 3 * 32 * 48 * 4  # more rows of gate, up and down
    assert large.dense - small.dense == two_layers
    assert large.experts == small.experts
    assert large.work - small.work == 100 * 3 * 32 * 4


def test_what_is_available_is_positive_and_named() -> None:
    size, place = memory.available_memory(torch.device("cpu"))
    assert size > 1 << 20
    assert place


def test_a_budget_that_fits_passes() -> None:
    MemoryBudget(dense=1, experts=1, experts_note="", kv=1, work=1, available=4, place="").check("here")


def test_a_placement_for_another_model_is_refused(small_checkpoint: Write) -> None:
    folder = small_checkpoint()
    wrong = linear_placement(layers=3, experts=10, ranks=1)
    with pytest.raises(ValueError, match=r"expected \(layers with experts, experts\) = \(2, 10\), got \(3, 10\)"):
        load_model(folder, device="cpu", placement=wrong, rank=0)
    with pytest.raises(ValueError, match="rank: expected 0 to 1, got 2"):
        load_model(folder, device="cpu", placement=placement_for(folder, ranks=2), rank=2)
