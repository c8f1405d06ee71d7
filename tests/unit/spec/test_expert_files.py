"""Loads, placements and counts survive their files; what is wrong in a file is told by its place, all at once."""

from __future__ import annotations

import builtins
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fourlane.errors import EnvironmentMissing, SpecError
from fourlane.spec.expert_files import (
    LoadArrays,
    load_document,
    read_counts,
    read_loads,
    read_placement,
    write_counts,
    write_loads,
    write_placement,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES = ("json", "npz", "safetensors")
shared_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
loads_drawn = st.one_of(
    arrays.arrays(np.int64, arrays.array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.integers(0, 2**53)),
    arrays.arrays(np.float64, (2, 2, 3), elements=st.floats(0, 1e30)),
)


def file_of(folder: Path, data: object, name: str = "file.json") -> Path:
    """Write an object as JSON, or an array as npy, or named arrays as npz."""
    path = folder / name
    if isinstance(data, np.ndarray):
        path = path.with_suffix(".npy")
        np.save(path, data)
    elif isinstance(data, dict) and any(isinstance(item, np.ndarray) for item in data.values()):
        path = path.with_suffix(".npz")
        np.savez(path, **data)
    else:
        path.write_text(json.dumps(data))
    return path


def faults_of(read: Any, path: Path) -> list[str]:
    """Return the faults of a file without its name."""
    with pytest.raises(SpecError) as caught:
        read(path)
    assert all(fault.startswith(f"{path}: ") for fault in caught.value.faults)
    return [fault.removeprefix(f"{path}: ") for fault in caught.value.faults]


@shared_folder
@given(
    st.sampled_from(SUFFIXES),
    st.dictionaries(st.sampled_from(["prefill", "decode", "mixed"]), st.none() | st.integers(1, 10**6), min_size=1),
    loads_drawn,
    st.text(st.characters(codec="utf-8", exclude_characters="\0")),
)
def test_loads_survive_every_container(
    tmp_path: Path, suffix: str, steps: dict[str, int | None], load_WLE: NDArray[Any], source: str
) -> None:
    path = tmp_path / f"loads.{suffix}"
    written = {phase: LoadArrays(load_WLE + index, steps[phase]) for index, phase in enumerate(steps)}
    write_loads(path, written, source=source)
    read = read_loads(path)
    assert set(read) == set(written)
    for phase, loads in read.items():
        assert (loads.load_WLE == written[phase].load_WLE).all()
        assert loads.window_steps == steps[phase]
        assert loads.source == source
        assert loads.load_WLE.dtype == load_WLE.dtype


@shared_folder
@given(st.sampled_from(SUFFIXES), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.randoms())
def test_placements_survive_every_container(
    tmp_path: Path, suffix: str, layers: int, ranks: int, each: int, draw: Any
) -> None:
    slot_of_LP = np.array([[draw.randrange(-1, 5) for _ in range(ranks * each)] for _ in range(layers)])
    path = tmp_path / f"placement.{suffix}"
    write_placement(path, slot_of_LP, experts=5, ranks=ranks)
    read = read_placement(path)
    assert (read.slot_of_LP == slot_of_LP).all()
    assert read.slot_of_LP.dtype == np.int32
    assert (read.experts, read.ranks) == (5, ranks)


@shared_folder
@given(
    st.sampled_from(SUFFIXES),
    arrays.arrays(np.int32, arrays.array_shapes(min_dims=2, max_dims=3, max_side=4), elements=st.integers(0, 9999)),
)
def test_counts_survive_every_container(tmp_path: Path, suffix: str, count: NDArray[Any]) -> None:
    path = tmp_path / f"counts.{suffix}"
    write_counts(path, count)
    assert (read_counts(path) == count).all()
    assert read_counts(path).shape == count.shape


def test_our_json_is_what_a_service_answers_with(tmp_path: Path) -> None:
    answer = {
        "format": "fourlane.expert_load",
        "version": 1,
        "source": "a service",
        "phases": {"decode": {"window_steps": 100, "load_WLE": [[[1, 2], [3, 4]]]}},
    }
    read = read_loads(file_of(tmp_path, answer))
    assert list(read) == ["decode"]
    assert read["decode"].load_WLE.tolist() == [[[1, 2], [3, 4]]]
    assert read["decode"].window_steps == 100
    again = load_document(read, source="a service")
    again["phases"]["decode"]["load_WLE"] = again["phases"]["decode"]["load_WLE"].tolist()
    assert again == answer


@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3)])
def test_plain_arrays_are_loads_of_no_known_phase(tmp_path: Path, shape: tuple[int, ...]) -> None:
    load = np.arange(np.prod(shape)).reshape(shape)
    for data in (load, load.tolist(), {"anything": load}, {"load_LE": load.tolist()}):
        read = read_loads(file_of(tmp_path, data))
        assert list(read) == ["mixed"]
        assert (read["mixed"].load_WLE == load.reshape(-1, 2, 3)).all()
        assert read["mixed"].window_steps is None


def test_formats_are_told_by_what_is_in_a_file_not_by_its_name(tmp_path: Path) -> None:
    written = {"decode": LoadArrays(np.ones((1, 2, 3), dtype=np.int64))}
    for suffix in SUFFIXES:
        write_loads(tmp_path / f"loads.{suffix}", written)
        renamed = tmp_path / f"{suffix}.dat"
        (tmp_path / f"loads.{suffix}").rename(renamed)
        assert read_loads(renamed)["decode"].load_WLE.tolist() == [[[1, 1, 1], [1, 1, 1]]]


@pytest.mark.parametrize("count", [[[1, 2], [3, 4]], [[[1, 2], [0, 1]], [[0, 0], [3, 3]]]])
def test_sglangs_logical_count_is_read(tmp_path: Path, count: list[Any]) -> None:
    read = read_loads(file_of(tmp_path, {"logical_count": count}))["mixed"]
    assert read.load_WLE.sum(axis=0).tolist() == [[1, 2], [3, 4]]
    assert read.source == "SGLang"


def test_what_is_written_for_vllm_reads_back_window_by_window(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    load_WLE = np.array([[[1, 2]], [[3, 4]]])
    write_loads(path, {"decode": LoadArrays(load_WLE)}, form="vllm")
    assert json.loads(path.read_text())["load_history"][1] == {"logical_expert_load": [[3, 4]]}
    assert read_loads(path)["mixed"].load_WLE.tolist() == load_WLE.tolist()
    with pytest.raises(SpecError, match='form: expected "fourlane", "sglang", "vllm", got "other"'):
        write_loads(path, {"decode": LoadArrays(load_WLE)}, form="other")


def test_what_is_written_for_sglang_holds_nothing_but_logical_count(tmp_path: Path) -> None:
    path = tmp_path / "init.json"
    write_loads(path, {"decode": LoadArrays(np.array([[[1, 2]], [[3, 4]]]))}, form="sglang")
    assert json.loads(path.read_text()) == {"logical_count": [[4, 6]]}
    two = {phase: LoadArrays(np.ones((1, 1, 1))) for phase in ("decode", "prefill")}
    with pytest.raises(SpecError, match=r"form sglang holds one phase, in JSON; got decode, prefill"):
        write_loads(path, two, form="sglang")


def test_vllms_load_history_is_read(tmp_path: Path) -> None:
    history = [{"logical_expert_load": [[1, 2], [3, 4]], "step": 7}, {"logical_expert_load": [[5, 6], [7, 8]]}]
    read = read_loads(file_of(tmp_path, {"load_history": history}))["mixed"]
    assert read.load_WLE.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert read.source == "vLLM"


def test_vllms_window_is_summed_over_replicas_oldest_step_first(tmp_path: Path) -> None:
    # 3 experts in 5 slots of 1 layer, the last not in use; a ring of 4 steps whose next place is 1, place 3 never used.
    window = np.zeros((4, 1, 5), dtype=np.int32)
    window[0], window[1], window[2] = [[5, 1, 1, 0, 9]], [[2, 2, 2, 2, 9]], [[1, 0, 0, 3, 9]]
    data = {
        "expert_load_window": window,
        "physical_to_logical_map": np.array([[0, 1, 0, 2, -1]]),
        "expert_load_window_step": np.int64(1),
    }
    read = read_loads(file_of(tmp_path, data))["mixed"]
    assert read.load_WLE.tolist() == [[[4, 2, 2]], [[1, 0, 3]], [[6, 1, 0]]]
    assert read.window_steps == 1


WRONG_LOADS: list[tuple[object, list[str]]] = [
    ([[1, 2], [3]], [r"numbers\[1\]: expected 2 items as in numbers\[0\], got 1"]),
    (
        {"logical_count": [[1, -2], [float("nan"), -4]]},
        [
            r"logical_count\[1\]\[0\]: expected a finite number, got nan",
            r"logical_count\[0\]\[1\]: expected 0 or more, got -2\.0 \(and in 1 more places\)",
        ],
    ),
    ([[1, "many"], [None, 2]], [r"numbers\[0\]\[1\]: expected a number, got 'many'", r"numbers\[1\]\[0\]:.* got None"]),
    ([[1, [2]], [3, 4]], [r"numbers\[0\]\[1\]: expected a number as in numbers\[0\]\[0\], got \[2\]"]),
    ([[2**70, 1]], [r"numbers\[0\]\[0\]: expected a number below 2\^63"]),
    (
        [1, 2, 3],
        [r"numbers: expected \[layers, experts\] or \[windows, layers, experts\], none of them 0.*shape \[3\]"],
    ),
    ([[]], [r"numbers: expected .*, none of them 0, got shape \[1, 0\]"]),
    ({}, [r'expected "format": "fourlane.expert_load".*got nothing']),
    ({"a": [[1]], "b": [[2]]}, [r'expected "format".*or one array of loads, got a, b']),
    ({"format": "fourlane.placement", "ranks": 1}, [r'format: expected "fourlane.expert_load", got']),
    ({"load_history": [{"logical_expert_load": [[1]]}, {}]}, [r"load_history\[1\].logical_expert_load: .* missing"]),
    ({"load_history": []}, [r"load_history: expected a list of tables"]),
    ({"expert_load_window": [[[1]]]}, [r"physical_to_logical_map: .* missing"]),
    (
        {"expert_load_window": [[[1, 2]]], "physical_to_logical_map": [[0, 1, 2]]},
        [r"physical_to_logical_map: expected shape \[1, 2\], got \[1, 3\]"],
    ),
    (
        {"expert_load_window": [[[0, 0]]], "physical_to_logical_map": [[0, 1]]},
        [r"expert_load_window: expected some tokens, got none"],
    ),
    (
        {
            "format": "fourlane.expert_load",
            "version": 2,
            "source": 3,
            "phases": {
                "decode": {"window_steps": 0, "load_WLE": [[1]]},
                "prefill": {},
                "warmup": {"load_WLE": [[[1]]]},
            },
        },
        [
            r"version: expected 1, got 2",
            r"source: expected text, got 3",
            r"phases.decode.window_steps: expected a whole number >= 1, got 0",
            r"phases.decode.load_WLE: expected \[windows, layers, experts\], none of them 0, got shape \[1, 1\]",
            r"phases.prefill.load_WLE: expected \[windows, layers, experts\], but it is missing",
            r"phases.warmup: unknown phase; known: prefill, decode, mixed",
        ],
    ),
    (
        {
            "format": "fourlane.expert_load",
            "version": 1,
            "phases": {"decode": {"load_WLE": [[[1, 2]]]}, "prefill": {"load_WLE": [[[1]]]}},
        },
        [r"phases: expected the same layers and experts in each, got decode \[1, 2\], prefill \[1, 1\]"],
    ),
    ({"format": "fourlane.expert_load", "version": 1, "phases": []}, [r"phases: expected a table with any of prefill"]),
]


@pytest.mark.parametrize(("data", "faults"), WRONG_LOADS)
def test_wrong_loads_are_refused_with_every_fault_and_its_place(
    tmp_path: Path, data: object, faults: list[str]
) -> None:
    found = faults_of(read_loads, file_of(tmp_path, data))
    assert len(found) == len(faults)
    for told, wanted in zip(found, faults, strict=True):
        assert re.search(wanted, told), told


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    assert faults_of(read_loads, file_of(tmp_path, np.array([["a"]]))) == [
        "numbers: expected numbers as [layers, experts] or [windows, layers, experts], got <U1"
    ]
    huge = np.full((1, 1), np.iinfo(np.uint64).max, dtype=np.uint64)
    assert "expected a number below 2^63" in faults_of(read_loads, file_of(tmp_path, huge))[0]
    assert "allow_pickle=False" in faults_of(read_loads, file_of(tmp_path, np.array([{}])))[0]


WRONG_PLACEMENTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"ranks": 3}, ["slot_of_LP: expected a multiple of 3 ranks' slots, got 4"]),
    ({"experts": 2}, ["slot_of_LP: expected experts -1 to 1, got 2"]),
    (
        {"ranks": 0, "experts": "3", "slot_of_LP": [[0, 1.5], [-2, 0]]},
        [
            "ranks: expected a whole number >= 1, got 0",
            "experts: expected a whole number >= 1, got '3'",
            "slot_of_LP[1][0]: expected -1 or more, got -2.0",
            "slot_of_LP[0][1]: expected a whole number below 2^53, got 1.5",
        ],
    ),
    ({"slot_of_LP": None}, ["slot_of_LP: expected numbers as [layers, slots], got None"]),
    ({"version": None}, ["version: expected 1, got None; a newer fourlane may read it"]),
]


@pytest.mark.parametrize(("changes", "faults"), WRONG_PLACEMENTS)
def test_wrong_placements_are_refused_with_every_fault(
    tmp_path: Path, changes: dict[str, Any], faults: list[str]
) -> None:
    good = {"format": "fourlane.placement", "version": 1, "ranks": 2, "experts": 3, "slot_of_LP": [[0, 1, 2, -1]]}
    assert read_placement(file_of(tmp_path, good)).slot_of_LP.tolist() == [[0, 1, 2, -1]]
    assert faults_of(read_placement, file_of(tmp_path, {**good, **changes})) == faults


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ([[1]], 'expected "format": "fourlane.placement", got none'),
        ({"format": "fourlane.expert_load"}, "got 'fourlane.expert_load'"),
        ({"physical_to_logical_map": [[0]]}, "which does not say how many ranks share the slots"),
    ],
)
def test_a_file_of_something_else_is_no_placement(tmp_path: Path, data: object, fault: str) -> None:
    assert fault in faults_of(read_placement, file_of(tmp_path, data))[0]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ([[1, 2.5]], r"counts\[0\]\[1\]: expected a whole number below 2\^53, got 2.5"),
        ([[1, -1]], r"counts\[0\]\[1\]: expected 0 or more, got -1"),
        ([1, 2], r"counts: expected \[ranks, experts\] or \[batches, ranks, experts\]"),
        ({"a": [[1]], "b": [[1]]}, r"expected one array, \[ranks, experts\].* got a, b"),
        (
            {"format": "fourlane.placement", "count_GE": [[1]]},
            r"expected one array, .* got format 'fourlane.placement'",
        ),
    ],
)
def test_wrong_counts_are_refused(tmp_path: Path, data: object, fault: str) -> None:
    [found] = faults_of(read_counts, file_of(tmp_path, data))
    assert re.search(fault, found), found


def test_counts_of_one_array_of_any_name_are_read(tmp_path: Path) -> None:
    for data in ([[1, 2]], {"counts": [[1, 2]]}, {"count_GE": [[1, 2]], "tokens": 3}, np.array([[1.0, 2.0]])):
        assert read_counts(file_of(tmp_path, data)).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "expected JSON, npz, npy or safetensors, got 0 bytes"),
        (b"\x00\x01\x02", "expected JSON, npz, npy or safetensors, got 3 bytes"),
        (b'{"logical_count": [[1, 2]', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"PK\x03\x04 and no more", "not a valid npz"),
        (b"\x93NUMPY\x01\x00", "expected arrays as NumPy writes them"),
        (b'\x05\x00\x00\x00\x00\x00\x00\x00{"a":}', "as safetensors it is broken"),
    ],
)
def test_a_file_cut_short_or_of_no_format_is_refused(tmp_path: Path, data: bytes, fault: str) -> None:
    path = tmp_path / "loads"
    path.write_bytes(data)
    assert fault in faults_of(read_loads, path)[0]


def test_a_file_of_torch_is_refused_with_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dump.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "read it with fourlane.integrations.sglang_files" in faults_of(read_loads, path)[0]


def test_a_missing_file_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent.json: expected a readable file: No such file"):
        read_loads(tmp_path / "absent.json")
    loads = {"decode": LoadArrays(np.ones((1, 1, 1)))}
    with pytest.raises(SpecError, match=r"ends in .json, .npz, .safetensors, got '.csv'"):
        write_loads(tmp_path / "loads.csv", loads)
    with pytest.raises(SpecError, match=r"cannot be written: No such file"):
        write_loads(tmp_path / "absent" / "loads.npz", loads)


def test_loads_that_could_not_be_read_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"phases.decode.load_WLE\[0\]\[0\]\[0\]: expected a finite number, got nan"):
        write_loads(tmp_path / "loads.npz", {"decode": LoadArrays(np.full((1, 1, 1), np.nan))})
    assert not (tmp_path / "loads.npz").exists()


def test_without_safetensors_the_way_to_get_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, loads = tmp_path / "loads.safetensors", {"decode": LoadArrays(np.ones((1, 1, 1)))}
    write_loads(path, loads)
    imported = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return imported(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    for use in (lambda: read_loads(path), lambda: write_loads(path, loads)):
        with pytest.raises(EnvironmentMissing, match=r'pip install "fourlane\[engine\]"'):
            use()
