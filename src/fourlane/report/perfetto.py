"""Write what happened when as a Perfetto trace, for <https://ui.perfetto.dev>.

Perfetto's own Python package is imported only when a trace is written.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import msgspec

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

__all__ = ["Slice", "Track", "write_trace"]

_SEQUENCE = 1
"""One writer wrote the whole trace."""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """Something that took a while.

    Units:
        begin_s, end_s: seconds of any one clock.
    """

    name: str
    category: str
    begin_s: float
    end_s: float
    notes: dict[str, int | str] = {}


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the trace: slices that follow each other, under the name of their process."""

    process: str
    name: str
    slices: list[Slice]


def write_trace(path: Path, tracks: Sequence[Track]) -> None:
    """Write a trace; its time begins with the first slice.

    Args:
        path: where to.
        tracks: rows, in the order in which they are shown; those of a process one after the other.

    Raises:
        SpecError: the file cannot be written.
    """
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

    builder = TraceProtoBuilder()
    processes = {name: pid for pid, name in enumerate(dict.fromkeys(track.process for track in tracks), start=1)}
    for name, pid in processes.items():
        _describe_process(builder.add_packet(), name, pid)
    began_s = min((each.begin_s for track in tracks for each in track.slices), default=0.0)
    for row, track in enumerate(tracks):
        number = _number_of(track)
        _describe_track(builder.add_packet(), track, row, number, parent=_number_of(track.process))
        for each in track.slices:
            _add_slice(builder, each, number, began_s)
    try:
        path.write_bytes(builder.serialize())
    except OSError as error:
        raise SpecError(f"{path}: the trace cannot be written: {error.strerror}") from error


def _number_of(what: Track | str) -> int:
    """Return what identifies a track in the file."""
    named = what if isinstance(what, str) else f"{what.process}\0{what.name}"
    return zlib.crc32(named.encode()) + 1


def _describe_process(packet: TracePacket, name: str, pid: int) -> None:
    packet.trusted_packet_sequence_id = _SEQUENCE
    packet.track_descriptor.uuid = _number_of(name)
    packet.track_descriptor.process.pid = pid
    packet.track_descriptor.process.process_name = name
    packet.track_descriptor.child_ordering = packet.track_descriptor.EXPLICIT


def _describe_track(packet: TracePacket, track: Track, row: int, number: int, *, parent: int) -> None:
    packet.trusted_packet_sequence_id = _SEQUENCE
    packet.track_descriptor.uuid = number
    packet.track_descriptor.parent_uuid = parent
    packet.track_descriptor.name = track.name
    packet.track_descriptor.sibling_order_rank = row


def _add_slice(builder: TraceProtoBuilder, each: Slice, number: int, began_s: float) -> None:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

    for kind, at_s in ((TrackEvent.TYPE_SLICE_BEGIN, each.begin_s), (TrackEvent.TYPE_SLICE_END, each.end_s)):
        packet = builder.add_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        packet.timestamp = round((at_s - began_s) * 1e9)
        packet.track_event.type = kind
        packet.track_event.track_uuid = number
        if kind == TrackEvent.TYPE_SLICE_BEGIN:
            packet.track_event.name = each.name
            packet.track_event.categories.append(each.category)
            for name, value in each.notes.items():
                note = packet.track_event.debug_annotations.add()
                note.name = name
                if isinstance(value, int):
                    note.int_value = value
                else:
                    note.string_value = value
