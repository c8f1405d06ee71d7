"""Traces, read back as Perfetto reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from fourlane.errors import SpecError
from fourlane.report.perfetto import Slice, Track, write_trace

if TYPE_CHECKING:
    from pathlib import Path

TRACKS = [
    Track(
        process="rank 0",
        name="stream 0",
        slices=[
            Slice(name="router", category="compute", begin_s=5.0, end_s=5.25, notes={"layer": 3, "order": "decode"}),
            Slice(name="experts", category="compute", begin_s=5.5, end_s=6.0),
        ],
    ),
    Track(
        process="rank 0",
        name="travelling",
        slices=[Slice(name="dispatch", category="communicate", begin_s=5.25, end_s=5.5)],
    ),
    Track(process="rank 1", name="stream 0", slices=[]),
]


def test_a_trace_read_back_has_every_row_under_its_process_and_every_slice_with_its_times(tmp_path: Path) -> None:
    write_trace(tmp_path / "out.pftrace", TRACKS)
    trace = Trace.FromString((tmp_path / "out.pftrace").read_bytes())
    described = [packet.track_descriptor for packet in trace.packet if packet.HasField("track_descriptor")]
    processes = {each.uuid: each.process.process_name for each in described if each.HasField("process")}
    rows = {each.uuid: (processes[each.parent_uuid], each.name) for each in described if each.uuid not in processes}
    assert list(rows.values()) == [("rank 0", "stream 0"), ("rank 0", "travelling"), ("rank 1", "stream 0")]
    found = [(rows[e.track_uuid], e.type, e.name, t) for t, e in _events(trace)]
    begin, end = TrackEvent.TYPE_SLICE_BEGIN, TrackEvent.TYPE_SLICE_END
    assert found == [
        (("rank 0", "stream 0"), begin, "router", 0),
        (("rank 0", "stream 0"), end, "", 250_000_000),
        (("rank 0", "stream 0"), begin, "experts", 500_000_000),
        (("rank 0", "stream 0"), end, "", 1_000_000_000),
        (("rank 0", "travelling"), begin, "dispatch", 250_000_000),
        (("rank 0", "travelling"), end, "", 500_000_000),
    ]
    first = next(event for _, event in _events(trace))
    assert list(first.categories) == ["compute"]
    assert [(note.name, note.int_value or note.string_value) for note in first.debug_annotations] == [
        ("layer", 3),
        ("order", "decode"),
    ]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the trace cannot be written: No such file or directory"):
        write_trace(tmp_path / "nowhere" / "out.pftrace", TRACKS)


def _events(trace: Trace) -> list[tuple[int, TrackEvent]]:
    return [(packet.timestamp, packet.track_event) for packet in trace.packet if packet.HasField("track_event")]
