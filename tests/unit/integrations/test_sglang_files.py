"""SGLang's files: what is written it can load, and what it records is read back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fourlane.cli import main
from fourlane.errors import SpecError
from fourlane.integrations.sglang_files import (
    read_physical_to_logical,
    read_recorded_loads,
    write_init_expert_location,
)
from fourlane.policy.placement import Placement
from fourlane.spec.expert_files import read_loads, write_loads

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def six_slots() -> Placement:
    """Return two layers of four experts on three ranks, two slots each."""
    return Placement(np.array([[0, 1, 2, 0, 1, 3], [3, 2, 1, 0, 3, 0]]), experts=4, ranks=3)


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_an_initial_location_holds_the_map_and_nothing_else(tmp_path: Path, six_slots: Placement, suffix: str) -> None:
    path = tmp_path / f"init{suffix}"
    write_init_expert_location(path, six_slots)
    data = json.loads(path.read_text()) if suffix == ".json" else torch.load(path, weights_only=True)
    assert list(data) == ["physical_to_logical_map"]
    np.testing.assert_array_equal(np.asarray(data["physical_to_logical_map"]), six_slots.slot_of_LP)


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_an_initial_location_reads_back_as_the_placement(tmp_path: Path, six_slots: Placement, suffix: str) -> None:
    path = tmp_path / f"init{suffix}"
    write_init_expert_location(path, six_slots)
    read = read_physical_to_logical(path, ranks=3)
    np.testing.assert_array_equal(read.slot_of_LP, six_slots.slot_of_LP)
    assert (read.experts, read.ranks) == (4, 3)


def test_layers_without_experts_come_first_in_the_trivial_order(tmp_path: Path, six_slots: Placement) -> None:
    path = tmp_path / "init.json"
    write_init_expert_location(path, six_slots, dense_layers=2)
    table = json.loads(path.read_text())["physical_to_logical_map"]
    assert table[:2] == [[0, 1, 2, 3, 0, 1]] * 2
    assert table[2:] == six_slots.slot_of_LP.tolist()


def test_an_empty_slot_is_refused_because_sglang_would_take_it_for_the_last_expert(tmp_path: Path) -> None:
    placement = Placement(np.array([[0, 1, 2, -1]]), experts=3, ranks=2)
    with pytest.raises(SpecError, match=r"slot 3 of layer 0 is one"):
        write_init_expert_location(tmp_path / "init.json", placement)
    assert not (tmp_path / "init.json").exists()


def test_a_suffix_sglang_would_not_read_is_refused(tmp_path: Path, six_slots: Placement) -> None:
    with pytest.raises(SpecError, match=r"ends in \.json or \.pt, which SGLang reads, got '\.npz'"):
        write_init_expert_location(tmp_path / "init.npz", six_slots)


def test_second_copies_on_a_rank_are_read_as_empty_slots(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"physical_to_logical_map": [[0, 0, 1, 2]]}))
    assert read_physical_to_logical(path, ranks=2).slot_of_LP.tolist() == [[0, -1, 1, 2]]


def test_a_recording_in_mode_stat_is_read_without_the_empty_part_of_its_buffer(tmp_path: Path) -> None:
    count = torch.zeros((4, 3, 5), dtype=torch.int32)
    count[1, 1:] = torch.arange(10).reshape(2, 5)
    count[3, 1:] = 1
    torch.save(
        {"rank": 0, "logical_count": count, "average_utilization_rate_over_window": None}, tmp_path / "recorder.pt"
    )
    load_WLE = read_recorded_loads(tmp_path / "recorder.pt").load_WLE
    assert load_WLE.dtype == np.int64
    np.testing.assert_array_equal(load_WLE, count.numpy()[[1, 3]])


def recording_of_rank(rank: int, passes: dict[int, list[int]]) -> dict[str, object]:
    return {
        "records": [
            {
                "forward_pass_id": step,
                "rank": rank,
                "gatherer_key": "primary",
                "global_physical_count": torch.tensor([count]),
            }
            for step, count in passes.items()
        ],
        "last_physical_to_logical_map": torch.tensor([[0, 1, 2, 0]]),
    }


def test_a_recording_in_mode_per_pass_is_summed_over_ranks_and_replicas_and_can_be_kept(tmp_path: Path) -> None:
    torch.save(recording_of_rank(0, {7: [1, 2, 0, 0], 6: [9, 0, 0, 0]}), tmp_path / "0.pt")
    torch.save(recording_of_rank(1, {6: [0, 0, 4, 5], 7: [0, 0, 3, 4]}), tmp_path / "1.pt")
    loads = read_recorded_loads(tmp_path / "0.pt", tmp_path / "1.pt")
    assert loads.load_WLE.tolist() == [[[14, 0, 4]], [[5, 2, 3]]]
    write_loads(tmp_path / "loads.json", {"mixed": loads})
    kept = read_loads(tmp_path / "loads.json")["mixed"]
    assert (kept.load_WLE.tolist(), kept.window_steps) == (loads.load_WLE.tolist(), 1)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"logical_count": torch.zeros((2, 1, 3), dtype=torch.int32)}, "no expert got a token"),
        ({"logical_count": torch.zeros(3, dtype=torch.int32)}, r"expected \[layers, experts\] or"),
        ({"logical_count": torch.ones((1, 3))}, "expected whole numbers"),
        ({"loads": [1]}, "expected dumps of SGLang's expert distribution recorder"),
        (
            {"records": [], "last_physical_to_logical_map": torch.zeros((1, 2), dtype=torch.int32)},
            "no pass was recorded",
        ),
        (
            {
                "records": [{"topk_ids_of_layer": 1}],
                "last_physical_to_logical_map": torch.zeros((1, 2), dtype=torch.int32),
            },
            "expected records of mode per_pass, got topk_ids_of_layer",
        ),
        ([1, 2], "expected named entries, got list"),
    ],
)
def test_what_is_no_usable_recording_is_named(tmp_path: Path, data: object, says: str) -> None:
    torch.save(data, tmp_path / "recorder.pt")
    with pytest.raises(SpecError, match=rf"recorder\.pt: .*{says}"):
        read_recorded_loads(tmp_path / "recorder.pt")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "expected JSON"),
        ('{"logical_count": [[1]]}', "expected physical_to_logical_map, got logical_count"),
        ('{"physical_to_logical_map": [[0, 1], [0]]}', "expected rows of equal length"),
        ('{"physical_to_logical_map": [[0, 1, 2]]}', "expected rows of a multiple of 2 ranks' slots"),
        ('{"physical_to_logical_map": [[0, 2, 0, 2]]}', r"layer 0 has no slot for experts \[1\]"),
    ],
)
def test_what_is_no_usable_map_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(SpecError, match=rf"map\.json: .*{says}"):
        read_physical_to_logical(tmp_path / "map.json", ranks=2)


def test_a_file_that_could_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"logical_count": pytest.raises}, tmp_path / "recorder.pt")
    with pytest.raises(SpecError, match=r"recorder\.pt: expected JSON, or tensors"):
        read_recorded_loads(tmp_path / "recorder.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.pt: no such file"):
        read_recorded_loads(tmp_path / "nowhere.pt")


def test_the_command_line_reads_a_recording(tmp_path: Path) -> None:
    torch.save({"rank": 0, "logical_count": torch.arange(1, 21).reshape(1, 4, 5)}, tmp_path / "recorder.pt")
    run = CliRunner().invoke(main, ["experts", "show", str(tmp_path / "recorder.pt"), "--json"])
    assert run.exit_code == 0, run.output
    assert '"mixed"' in run.output
