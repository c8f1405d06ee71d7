"""What every transport must do, tried on each."""

from __future__ import annotations

import gc
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kv_lanes import (
    GEOMETRY,
    Ending,
    Lane,
    eventually,
    make_kv,
    open_files,
    send_all,
    start_lane,
)

from fourlane.engine.kv_transfer.contract import Delivery, KvGeometry
from fourlane.engine.kv_transfer.frames import OFFSET
from fourlane.engine.kv_transfer.offers import OfferOutlet
from fourlane.engine.seal import Secret
from fourlane.errors import TransferError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.engine.kv_transfer.outlet import Outlet
    from fourlane.engine.kv_transfer.pages import SequencePages
    from fourlane.engine.kv_transfer.stream import Chunk


class Slowed:
    """An outlet that can be held before it puts a chunk, and spoils what it puts."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.needs_grant = outlet.needs_grant
        self.paths = outlet.paths
        self.go = threading.Event()
        self.go.set()
        self.put_layers: list[int] = []
        self.spoil = False
        self.held = threading.Event()

    def connect(self, path: int) -> object:
        return self.outlet.connect(path)

    def has_room(self) -> bool:
        return self.outlet.has_room()

    def answered(self, sequence_id: int) -> None:
        self.outlet.answered(sequence_id)

    def nap_s(self) -> float | None:
        return self.outlet.nap_s()

    def advance(self) -> None:
        self.outlet.advance()

    def grant(self, blocks: list[int]) -> SequencePages:
        return self.outlet.grant(blocks)

    def put(self, sequence_id: int, chunk: Chunk, pages: SequencePages | None) -> list[memoryview]:
        if not self.go.is_set():
            self.held.set()
            assert self.go.wait(20)
        self.put_layers.append(chunk.layer)
        views = self.outlet.put(sequence_id, chunk, pages)
        if self.spoil:
            self._spoil(chunk, pages, views)
        return views

    def _spoil(self, chunk: Chunk, pages: SequencePages | None, views: list[memoryview]) -> None:
        if self.needs_grant:
            start, _ = pages.runs(chunk.layer, chunk.first_token, 1)[0]
            self.outlet._cache[start] ^= 1
        elif isinstance(self.outlet, OfferOutlet):
            self.outlet._ring.bytes[OFFSET.unpack(views[1])[0]] ^= 1
        else:
            spoiled = bytearray(views[2])
            spoiled[-1] ^= 128
            views[2] = memoryview(spoiled)

    def interrupt(self) -> None:
        self.outlet.interrupt()

    def close(self) -> None:
        self.outlet.close()


@pytest.fixture
def outlets() -> Iterator[list[Slowed]]:
    """The outlets that `wrap` has made; released at the end, so that senders can be closed."""
    made: list[Slowed] = []
    yield made
    for outlet in made:
        outlet.go.set()


def wrapping(outlets: list[Slowed], *, held: bool = False, spoil: bool = False) -> Callable[[Outlet], Outlet]:
    def wrap(outlet: Outlet) -> Outlet:
        slowed = Slowed(outlet)
        slowed.spoil = spoil
        if held:
            slowed.go.clear()
        outlets.append(slowed)
        return slowed

    return wrap


@st.composite
def journeys(draw: st.DrawFn) -> tuple[list[int], int, tuple[int, ...]]:
    """Pages in any order, tokens that need them, and where the chunks are cut."""
    blocks = draw(st.permutations(range(GEOMETRY.blocks)))[: draw(st.integers(1, GEOMETRY.blocks))]
    tokens = draw(st.integers((len(blocks) - 1) * GEOMETRY.block_size + 1, len(blocks) * GEOMETRY.block_size))
    cuts = draw(st.sets(st.integers(1, tokens - 1), max_size=4)) if tokens > 1 else set()
    return blocks, tokens, tuple(sorted(cuts))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(journey=journeys(), seed=st.integers(0, 99), sequence_id=st.integers(0, 2**60))
def test_kv_lands_in_its_pages_and_nowhere_else(
    lane: Lane, journey: tuple[list[int], int, tuple[int, ...]], seed: int, sequence_id: int
) -> None:
    blocks, tokens, cuts = journey
    sender = lane.senders[0] if lane.senders else lane.sender()
    lane.storage.tensor.fill_(-1.0)
    kv = make_kv(tokens, seed=seed)
    arrived = lane.expect(sequence_id, blocks, tokens)
    stream, sent = lane.open(sender, sequence_id)
    send_all(stream, kv, token=seed, cuts=cuts)
    assert arrived.wait() == seed
    delivery = sent.wait()
    assert isinstance(delivery, Delivery)
    assert delivery.bytes == kv.nbytes
    assert 0.0 <= delivery.hidden_s <= delivery.transfer_s
    assert torch.equal(lane.landed(blocks, tokens), kv)
    others = [block for block in range(GEOMETRY.blocks) if block not in blocks]
    assert (lane.storage.tensor[:, :, others] == -1).all()
    assert (lane.storage.tensor[:, :, blocks].flatten(2, 3)[:, :, tokens:] == -1).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_travels_bit_for_bit(make_lane: Callable[..., Lane], transport: str, dtype: str) -> None:
    geometry = replace(GEOMETRY, dtype=dtype)
    lane = make_lane(transport, geometry)
    kv = make_kv(10, geometry)
    arrived = lane.expect(1, [4, 1, 8], 10)
    send_all(lane.open(lane.sender(), 1)[0], kv)
    assert arrived.wait() == 7
    assert torch.equal(lane.landed([4, 1, 8], 10), kv)


def test_sequences_of_two_senders_interleave(lane: Lane) -> None:
    senders = [lane.sender("prefill-0"), lane.sender("prefill-1")]
    pages = [[0, 5], [1, 6], [2, 7], [3, 8]]
    kvs = [make_kv(8, seed=number) for number in range(4)]
    arrived = [lane.expect(number, pages[number], 8) for number in range(4)]
    streams = [lane.open(senders[number % 2], number)[0] for number in range(4)]
    for layer in range(GEOMETRY.layers):
        for stream, kv in zip(streams, kvs, strict=True):
            stream.send(layer, 0, kv[layer, 0], kv[layer, 1])
    for number, stream in enumerate(streams):
        stream.finish(tokens=8, first_token_id=100 + number)
    assert [ending.wait() for ending in arrived] == [100, 101, 102, 103]
    assert all(torch.equal(lane.landed(pages[n], 8), kvs[n]) for n in range(4))


def test_bytes_sent_counts_the_payload_of_all_streams(lane: Lane) -> None:
    sender = lane.sender()
    kv = make_kv(8)
    for number in range(3):
        arrived = lane.expect(number, [0, 1], 8)
        stream, sent = lane.open(sender, number)
        send_all(stream, kv)
        arrived.wait()
        sent.wait()
    assert sender.bytes_sent() == 3 * kv.nbytes


def test_what_is_sent_before_the_end_of_computation_counts_as_hidden(lane: Lane) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    stream, sent = lane.open(lane.sender(), 1)
    kv = make_kv(8)
    for layer in range(GEOMETRY.layers):
        stream.send(layer, 0, kv[layer, 0], kv[layer, 1])
    eventually(lambda: lane.senders[0].bytes_sent() == kv.nbytes)
    stream.finish(tokens=8, first_token_id=1)
    arrived.wait()
    delivery = sent.wait()
    assert isinstance(delivery, Delivery)
    assert 0 < delivery.hidden_s < delivery.transfer_s


def test_a_sender_with_another_secret_is_refused_with_a_reason(lane: Lane) -> None:
    arrived = lane.expect(1, [0], 4)
    _, sent = lane.open(lane.sender(secret=Secret(bytes(32))), 1)
    assert "refused: not sealed with this deployment's secret" in sent.failure()
    assert not arrived.came


@pytest.mark.parametrize("change", [{"layers": 4}, {"block_size": 8}, {"kv_heads": 1}, {"dtype": "bfloat16"}])
def test_an_unlike_cache_is_refused_with_the_difference(lane: Lane, change: dict[str, object]) -> None:
    lane.expect(1, [0], 4)
    _, sent = lane.open(lane.sender(geometry=replace(GEOMETRY, **change)), 1)
    name, value = next(iter(change.items()))
    assert f"unlike KV caches: {name}: expected {getattr(GEOMETRY, name)}, got {value}" in sent.failure()


def test_a_sequence_nobody_expects_is_refused_and_its_neighbours_arrive(lane: Lane) -> None:
    sender = lane.sender()
    _, unknown = lane.open(sender, 99)
    assert "sequence 99 is not expected here" in unknown.failure()
    arrived = lane.expect(1, [3, 2], 8)
    stream, sent = lane.open(sender, 1)
    send_all(stream, make_kv(8))
    assert arrived.wait() == 7
    assert isinstance(sent.wait(), Delivery)


def test_corrupt_bytes_fail_both_sides_and_name_the_place(lane: Lane, outlets: list[Slowed]) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    stream, sent = lane.open(lane.sender(wrap=wrapping(outlets, spoil=True)), 1)
    send_all(stream, make_kv(8))
    layer = r"\d" if lane.transport == "tcp striped" else "0"  # its connections race
    assert re.search(f"of layer {layer} from prefill-0", arrived.failure())
    assert "arrived corrupt: expected CRC-32C" in arrived.failure()
    assert re.search(f"decode-0 refused: tokens 0 to 8 of layer {layer}", sent.failure())


def test_tokens_that_come_twice_fail_the_sequence(lane: Lane) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    stream, sent = lane.open(lane.sender(), 1)
    kv = make_kv(8)
    stream.send(0, 0, kv[0, 0, :5], kv[0, 1, :5])
    stream.send(0, 4, kv[0, 0, 4:], kv[0, 1, 4:])
    # Over several connections either may be the second.
    assert re.search("tokens (4 to 8|0 to 5) of layer 0 came twice", arrived.failure())
    assert "came twice" in sent.failure()


def test_a_missing_layer_is_found_at_the_end(lane: Lane) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    stream, sent = lane.open(lane.sender(), 1)
    kv = make_kv(8)
    stream.send(0, 0, kv[0, 0], kv[0, 1])
    stream.send(2, 0, kv[2, 0, :3], kv[2, 1, :3])
    stream.finish(tokens=8, first_token_id=1)
    assert "finished with 8 tokens and 1 of 3 layers and parts of 1" in arrived.failure()
    assert "1 of 3 layers" in sent.failure()


def test_another_number_of_tokens_than_expected_fails(lane: Lane) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    stream, sent = lane.open(lane.sender(), 1)
    send_all(stream, make_kv(7))
    assert "expected 8 tokens" in arrived.failure()
    assert "expected 8 tokens" in sent.failure()


@pytest.mark.parametrize(("first", "tokens"), [(6, 4), (8, 4), (0, 12)])
def test_ranges_outside_of_the_pages_are_refused_and_nothing_is_written(lane: Lane, first: int, tokens: int) -> None:
    lane.storage.tensor.fill_(-1.0)
    arrived = lane.expect(1, [5, 6], 8)
    stream, sent = lane.open(lane.sender(geometry=GEOMETRY), 1)
    kv = make_kv(tokens)
    stream.send(0, first, kv[0, 0], kv[0, 1])
    arrived.failure()
    sent.failure()
    outside = [block for block in range(GEOMETRY.blocks) if block not in (5, 6)]
    assert (lane.storage.tensor[:, :, outside] == -1).all()


def test_an_aborted_stream_tells_the_receiver_and_calls_nobody_back(lane: Lane) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    stream, sent = lane.open(lane.sender(), 1)
    kv = make_kv(8)
    stream.send(0, 0, kv[0, 0], kv[0, 1])
    stream.abort("the client went away")
    assert "prefill-0" in arrived.failure()
    assert "gave up: the client went away" in arrived.failure()
    stream.finish(tokens=8, first_token_id=1)
    time.sleep(0.05)
    assert not sent.came


def test_the_connection_outlives_a_sequence_that_failed_on_it(lane: Lane, outlets: list[Slowed]) -> None:
    sender = lane.sender(wrap=wrapping(outlets, spoil=True))
    first = lane.expect(1, [0, 1], 8)
    send_all(lane.open(sender, 1)[0], make_kv(8))
    first.failure()
    outlets[0].spoil = False
    again = lane.expect(2, [0, 1], 8)
    kv = make_kv(8, seed=5)
    send_all(lane.open(sender, 2)[0], kv)
    assert again.wait() == 7
    assert torch.equal(lane.landed([0, 1], 8), kv)
    assert len(outlets) == 1


def test_forgetting_what_nobody_sends_releases_at_once(lane: Lane) -> None:
    arrived, released = lane.expect(1, [0, 1], 8), Ending()
    lane.receiver.forget(1, released)
    assert released.came
    lane.receiver.forget(1, released)
    lane.receiver.forget(77, released)
    assert len(released.values) == 3
    _, sent = lane.open(lane.sender(), 1)
    assert "not expected here" in sent.failure()
    assert not arrived.came


def test_after_a_release_in_the_middle_of_a_transfer_the_pages_stay_untouched(
    lane: Lane, outlets: list[Slowed]
) -> None:
    arrived, released = lane.expect(1, [0, 1], 8), Ending()
    stream, sent = lane.open(lane.sender(wrap=wrapping(outlets)), 1)
    kv = make_kv(8)
    stream.send(0, 0, kv[0, 0], kv[0, 1])
    eventually(lambda: lane.senders[0].bytes_sent() > 0)
    outlets[0].go.clear()
    stream.send(1, 0, kv[1, 0], kv[1, 1])
    assert outlets[0].held.wait(10)
    lane.receiver.forget(1, released)
    if lane.transport != "shared_memory":
        released.wait()
        lane.storage.tensor.fill_(-1.0)
        outlets[0].go.set()
    else:
        time.sleep(0.1)
        assert not released.came, "the sender may still be writing"
        outlets[0].go.set()
        released.wait()
        lane.storage.tensor.fill_(-1.0)
    # Over TCP the next chunk may reach the receiver before it gets to say that it dropped the sequence.
    assert re.search("the receiver dropped it|is not expected here", sent.failure())
    send_rest = lane.expect(2, [5, 6], 8)
    send_all(lane.open(lane.senders[0], 2)[0], kv)
    send_rest.wait()
    assert (lane.storage.tensor[:, :, [0, 1]] == -1).all()
    assert not arrived.came


def test_a_failed_sequence_is_reported_only_when_its_sender_has_stopped(
    make_lane: Callable[..., Lane], outlets: list[Slowed]
) -> None:
    lane = make_lane("shared_memory", timeout_s=0.3)
    arrived = lane.expect(1, [0, 1], 8)
    stream, _ = lane.open(lane.sender(wrap=wrapping(outlets, held=True)), 1)
    stream.send(0, 0, make_kv(8)[0, 0], make_kv(8)[0, 1])
    assert outlets[0].held.wait(10)
    time.sleep(0.6)
    assert not arrived.came
    outlets[0].go.set()
    assert "nothing came from prefill-0" in arrived.failure()


def test_forgetting_twice_while_the_sender_writes_releases_both(
    make_lane: Callable[..., Lane], outlets: list[Slowed]
) -> None:
    lane = make_lane("shared_memory")
    lane.expect(1, [0, 1], 8)
    stream, _ = lane.open(lane.sender(wrap=wrapping(outlets, held=True)), 1)
    stream.send(0, 0, make_kv(8)[0, 0], make_kv(8)[0, 1])
    assert outlets[0].held.wait(10)
    first, second = Ending(), Ending()
    lane.receiver.forget(1, first)
    lane.receiver.forget(1, second)
    outlets[0].go.set()
    first.wait()
    second.wait()


def test_a_sender_that_closes_fails_what_it_was_sending_on_both_sides(lane: Lane) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    sender = lane.sender()
    stream, sent = lane.open(sender, 1)
    kv = make_kv(8)
    stream.send(0, 0, kv[0, 0], kv[0, 1])
    eventually(lambda: sender.bytes_sent() > 0)
    sender.close()
    assert "the sender was closed" in sent.failure()
    # A library may find out before our own connection does.
    assert re.search("lost the connection to prefill-0|be read from prefill-0", arrived.failure())
    assert "of 3 layers" in arrived.failure()
    with pytest.raises(TransferError, match="closed"):
        lane.open(sender, 2)


def test_a_receiver_that_closes_fails_what_it_expected_on_both_sides(lane: Lane) -> None:
    begun, waiting = lane.expect(1, [0, 1], 8), lane.expect(2, [2, 3], 8)
    stream, sent = lane.open(lane.sender(), 1)
    kv = make_kv(8)
    stream.send(0, 0, kv[0, 0], kv[0, 1])
    eventually(lambda: lane.senders[0].bytes_sent() > 0)
    time.sleep(0.05)
    lane.receiver.close()
    assert "decode-0 closed its KV receiver" in begun.failure()
    assert "decode-0 closed its KV receiver" in waiting.failure()
    assert "KV to decode-0" in sent.failure()
    with pytest.raises(TransferError, match="closed"):
        lane.expect(3, [4], 4)


def test_a_receiver_that_is_not_there_fails_the_stream_and_names_it(lane: Lane) -> None:
    sender = lane.sender()
    lane.receiver.close()
    for attempt in range(3):
        _, sent = lane.open(sender, attempt)
        assert "KV to decode-0: no connection" in sent.failure()
        assert lane.receiver.endpoint in sent.failure()


def test_a_stream_that_stands_still_ends_with_peer_and_progress(make_lane: Callable[..., Lane], transport: str) -> None:
    lane = make_lane(transport, timeout_s=0.3)
    arrived = lane.expect(1, [0, 1], 8)
    stream, sent = lane.open(lane.sender(), 1)
    kv = make_kv(8)
    for layer in (0, 1):
        stream.send(layer, 0, kv[layer, 0], kv[layer, 1])
    reason = arrived.failure()
    assert "nothing came from prefill-0" in reason
    assert "for 0.3 s (2 of 3 layers)" in reason
    assert "decode-0 refused: nothing came" in sent.failure()


def test_a_stream_that_never_begins_gets_ten_times_as_long(make_lane: Callable[..., Lane], transport: str) -> None:
    lane = make_lane(transport, timeout_s=0.05)
    began = time.monotonic()
    assert lane.expect(1, [0, 1], 8).failure() == "no sender began within 0.5 s"
    assert 0.5 <= time.monotonic() - began < 5


def test_a_sequence_cannot_be_expected_twice_or_in_pages_that_do_not_fit(lane: Lane) -> None:
    lane.expect(1, [0, 1], 8)
    with pytest.raises(ValueError, match="sequence 1 is expected already"):
        lane.expect(1, [2, 3], 8)
    for blocks, tokens in (([0, 0], 8), ([12], 4), ([-1], 4), ([], 1), ([0], 5), ([0], 0)):
        with pytest.raises(ValueError, match=r"pages: expected|tokens: expected"):
            lane.expect(2, blocks, tokens)


def test_only_the_first_sender_of_a_sequence_may_fill_its_pages(lane: Lane) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    kv = make_kv(8)
    first, _ = lane.open(lane.sender("prefill-0"), 1)
    first.send(0, 0, kv[0, 0], kv[0, 1])
    eventually(lambda: lane.senders[0].bytes_sent() > 0)
    _, second = lane.open(lane.sender("prefill-1"), 1)
    assert "another sender is sending it already" in second.failure()
    for layer in (1, 2):
        first.send(layer, 0, kv[layer, 0], kv[layer, 1])
    first.finish(tokens=8, first_token_id=3)
    assert arrived.wait() == 3


@pytest.mark.parametrize("fault", ["shape", "strides", "dtype"])
def test_tensors_that_do_not_fit_are_refused_where_they_are_sent(lane: Lane, fault: str) -> None:
    stream, _ = lane.open(lane.sender(), 1)
    wrong = {
        "shape": torch.zeros(4, 3, 8),
        "strides": torch.zeros(4, 8, 2).transpose(1, 2),
        "dtype": torch.zeros(4, 2, 8, dtype=torch.bfloat16),
    }[fault]
    with pytest.raises(ValueError, match="KV: expected"):
        stream.send(0, 0, wrong, wrong)


@pytest.mark.parametrize(("layer", "first"), [(3, 0), (-1, 0), (0, -1)])
def test_layers_and_tokens_that_cannot_be_are_refused_where_they_are_sent(lane: Lane, layer: int, first: int) -> None:
    stream, _ = lane.open(lane.sender(), 1)
    with pytest.raises(ValueError, match="KV: expected layers 0 to 2"):
        stream.send(layer, first, make_kv(1)[0, 0], make_kv(1)[0, 1])


def test_tensors_made_in_inference_mode_are_sent(lane: Lane) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    with torch.inference_mode():
        kv = make_kv(8)
        send_all(lane.open(lane.sender(), 1)[0], kv)
    assert arrived.wait() == 7
    assert torch.equal(lane.landed([0, 1], 8), kv)


def test_idle_threads_sleep_in_the_kernel(lane: Lane) -> None:
    arrived = lane.expect(1, [0, 1], 8)
    stream, sent = lane.open(lane.sender(), 1)
    send_all(stream, make_kv(8))
    arrived.wait()
    sent.wait()
    time.sleep(0.2)
    before = _switches()
    time.sleep(0.5)
    assert len(before) == 2
    assert _switches() == before, "a thread woke up though there was nothing to do"


def _switches() -> dict[str, str]:
    """Return how often each KV thread of this process went to sleep."""
    found = {}
    for thread in threading.enumerate():
        if thread.name.startswith("kv-"):
            lines = Path(f"/proc/self/task/{thread.native_id}/status").read_text().splitlines()
            found[thread.name] = next(line for line in lines if line.startswith("voluntary_ctxt_switches"))
    return found


def test_nothing_is_left_after_closing(transport: str, tmp_path: Path) -> None:
    gc.collect()
    threads, descriptors = set(threading.enumerate()), open_files()
    _use_once(transport, tmp_path)
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert open_files() <= descriptors
    assert list(tmp_path.iterdir()) == []


def _use_once(transport: str, run_dir: Path) -> None:
    lane = start_lane(transport, run_dir)
    arrived = lane.expect(1, [0, 1], 8)
    stream, sent = lane.open(lane.sender(), 1)
    send_all(stream, make_kv(8))
    arrived.wait()
    sent.wait()
    lane.close()


def test_large_kv_crosses_in_many_pieces(make_lane: Callable[..., Lane], transport: str) -> None:
    geometry = KvGeometry(layers=2, blocks=700, block_size=16, kv_heads=4, head_dim=64)
    lane = make_lane(transport, geometry)
    blocks = torch.randperm(700, generator=torch.Generator().manual_seed(3)).tolist()
    kv = make_kv(700 * 16, geometry)
    arrived = lane.expect(1, blocks, 700 * 16)
    stream, sent = lane.open(lane.sender(geometry=geometry), 1)
    send_all(stream, kv, cuts=(5000,))
    assert arrived.wait() == 7
    assert isinstance(sent.wait(), Delivery)
    assert torch.equal(lane.landed(blocks, 700 * 16), kv)


def test_many_sequences_at_once_all_arrive(lane: Lane) -> None:
    senders = [lane.sender(f"prefill-{number}") for number in range(2)]
    for round_ in range(5):
        kvs = [make_kv(4, seed=round_ * 100 + number) for number in range(12)]
        arrived = [lane.expect(round_ * 100 + n, [n], 4) for n in range(12)]
        for n in range(12):
            send_all(lane.open(senders[n % 2], round_ * 100 + n)[0], kvs[n], token=n, cuts=(1, 2))
        assert [ending.wait() for ending in arrived] == list(range(12))
        assert all(torch.equal(lane.landed([n], 4), kvs[n]) for n in range(12))
