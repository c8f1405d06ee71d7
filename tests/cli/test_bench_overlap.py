"""`fourlane bench overlap` as a person runs it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from make_random_checkpoint import Shape, write_checkpoint
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = [sys.executable, "-m", "fourlane", "bench", "overlap"]
LAYERS = 3
SHORT = ("--seconds", "0.02", "--rounds", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shape = Shape(
        vocab=512, hidden=64, layers=LAYERS, heads=4, kv_heads=2, head_dim=16, experts=8, top_k=2, expert_dim=32
    )
    write_checkpoint(folder, shape)
    return folder


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_it_measures_one_stream_and_two_and_writes_json_a_plot_and_a_trace(
    phase: str, model: Path, tmp_path: Path
) -> None:
    files = ("--json", tmp_path / "found.json", "--plot", tmp_path / "found.png", "--trace", tmp_path / "out.pftrace")
    sizes = ("--phase", phase, "--tokens", "40,1", "--context", "24", "--link", "none", "--ranks", "3")
    out = run("--model", model, *sizes, *SHORT, *files)
    assert (out.returncode, out.stderr) == (0, "")
    assert out.stdout.startswith(f"A forward pass: {phase}, 3 ranks, model {model.name}\n")
    figures = json.loads((tmp_path / "found.json").read_text())
    assert [(case["link"], case["tokens"]) for case in figures["cases"]] == [("no link", 1), ("no link", 40)]
    times = ("gloo_s", "single_s", "dual_s", "alone_s")
    assert all(case[name] > 0 for case in figures["cases"] for name in times)
    assert (tmp_path / "found.png").stat().st_size > 10_000
    _check_trace(tmp_path / "out.pftrace", ranks=3)


def test_an_order_that_cuts_experts_in_two_shows_both_halves(model: Path, tmp_path: Path) -> None:
    sizes = ("--order", "experts", "--tokens", "9", "--context", "8", "--link", "none")
    out = run("--model", model, *sizes, *SHORT, "--trace", tmp_path / "out.pftrace")
    assert (out.returncode, out.stderr) == (0, "")
    assert "order experts" in out.stdout
    found = _slices(Trace.FromString((tmp_path / "out.pftrace").read_bytes()))
    for stream, half in itertools.product((0, 1), (0, 1)):
        assert found["two streams, rank 0", f"stream {stream}", f"experts {half}", 1] == 1


def _check_trace(path: Path, *, ranks: int) -> None:
    """See that a trace has every stage of every layer of both streams, and what travelled between them."""
    found = _slices(Trace.FromString(path.read_bytes()))
    for rank, (mode, streams) in itertools.product(range(ranks), (("one stream", 1), ("two streams", 2))):
        process = f"{mode}, rank {rank}"
        for stream, layer in itertools.product(range(streams), range(LAYERS)):
            first = "embedding, attention 0" if layer == 0 else "attention 0"
            for name in (first, "attention 1, router", "wait before experts", "experts"):
                assert found[process, f"stream {stream}", name, layer] == 1, (process, stream, name, layer)
        travelled = streams if streams == 2 else 0  # one stream waits itself
        for name, layer in itertools.product(("dispatch", "combine"), range(LAYERS)):
            assert found[process, "exchange", name, layer] == travelled


def _slices(trace: Trace) -> Counter[tuple[str, str, str, int]]:
    """Return how often there is a slice of a process, row, name and layer; those of a row follow each other."""
    processes: dict[int, str] = {}
    rows: dict[int, tuple[str, str]] = {}
    found: Counter[tuple[str, str, str, int]] = Counter()
    opened: dict[int, int] = {}
    for packet in trace.packet:
        track, event = packet.track_descriptor, packet.track_event
        if packet.HasField("track_descriptor"):
            processes[track.uuid] = track.process.process_name
            rows[track.uuid] = (processes.get(track.parent_uuid, ""), track.name)
        elif event.type == TrackEvent.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in opened
            opened[event.track_uuid] = packet.timestamp
            layer = next(note.int_value for note in event.debug_annotations if note.name == "layer")
            found[(*rows[event.track_uuid], event.name, layer)] += 1
        else:
            assert packet.timestamp >= opened.pop(event.track_uuid)
    assert not opened
    return found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tokens", "0"), '--tokens: expected numbers from 1 to 4096, got "0"'),
        (("--link", "500Mbps,fast"), "--link: "),
        (("--phase", "training"), "--phase"),
        (("--implementation", "torch_all_to_all"), "--implementation: expected one of tcp"),
        (("--ranks", "1"), "--ranks"),
        (("--model", "nowhere", "--link", "none"), "nowhere"),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], said: str) -> None:
    out = run(*arguments)
    assert out.returncode in (1, 2)
    assert said in out.stderr
    assert "Traceback" not in out.stderr


def test_a_context_longer_than_the_model_takes_is_refused() -> None:
    out = run("--link", "none", "--context", "5000", *SHORT)
    assert out.returncode == 1
    assert "--context: the model takes at most 1024 tokens, got 5001" in out.stderr
