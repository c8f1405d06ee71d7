"""Prefill hands KV to decode, as the worker's loop sees it; transports are played by fakes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch

from fourlane.engine.hand_off import KvInbox, KvOutbox
from fourlane.engine.kv_cache import BlockPool
from fourlane.engine.kv_transfer.contract import Delivery
from fourlane.engine.messages import Failed, KvAddress, KvDelivered, Reserve, Reserved, Sampling, SequenceSpec
from fourlane.engine.micro_batches import split_step
from fourlane.engine.scheduler import Limits, Scheduler
from fourlane.engine.sequence import Sequence
from fourlane.engine.wakeup import Inbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fourlane.engine.messages import FromRank

LAYERS, BLOCKS, PAGE = 2, 16, 4
TARGET = KvAddress(endpoint="tcp://x", blocks=[1, 2], owner="decode-0")


@dataclass
class FakeStream:
    sent: list[tuple[int, int, int]] = field(default_factory=list)
    finished: tuple[int, int] | None = None
    aborted: str | None = None

    def send(self, layer: int, first_token: int, k_THd: torch.Tensor, v_THd: torch.Tensor) -> None:
        assert k_THd.shape == v_THd.shape
        assert k_THd.is_contiguous()
        self.sent.append((layer, first_token, k_THd.shape[0]))

    def finish(self, *, tokens: int, first_token_id: int) -> None:
        self.finished = (tokens, first_token_id)

    def abort(self, reason: str) -> None:
        self.aborted = reason


class FakeSender:
    def __init__(self) -> None:
        self.stream = FakeStream()

    def open(
        self,
        sequence_id: int,
        target: KvAddress,
        *,
        on_delivered: Callable[[Delivery], None],
        on_failed: Callable[[str], None],
    ) -> FakeStream:
        assert (sequence_id, target) == (9, TARGET)
        self.delivered, self.failed = on_delivered, on_failed
        return self.stream

    def bytes_sent(self) -> int:
        return 0

    def close(self) -> None:
        pass


class FakeReceiver:
    endpoint = "tcp://x"

    def __init__(self) -> None:
        self.forgotten: list[int] = []

    def expect(
        self,
        sequence_id: int,
        blocks: list[int],
        *,
        tokens: int,
        on_complete: Callable[[int], None],
        on_failed: Callable[[str], None],
    ) -> None:
        assert (sequence_id, len(blocks), tokens) == (9, 2, 6)
        self.complete, self.failed = on_complete, on_failed

    def forget(self, sequence_id: int, on_released: Callable[[], None]) -> None:
        self.forgotten.append(sequence_id)
        self.released = on_released

    def close(self) -> None:
        pass


@pytest.fixture
def scheduler() -> Scheduler:
    limits = Limits(chunk_tokens=6, max_running=4, max_length=60, block_size=PAGE, eos_ids=frozenset({0}))
    return Scheduler(BlockPool(BLOCKS, prefix_cache=True), limits)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    box = Inbox()
    yield box
    box.close()


def spec(prompt: int) -> SequenceSpec:
    sampling = Sampling(max_tokens=5)
    return SequenceSpec(sequence_id=9, token_ids=list(range(1, prompt + 1)), prompt_tokens=prompt, sampling=sampling)


class Prefill:
    """A prefill rank's scheduler and outbox over a fake sender."""

    def __init__(self, scheduler: Scheduler, inbox: Inbox) -> None:
        self.scheduler, self.inbox = scheduler, inbox
        self.sender = FakeSender()
        self.posted: list[FromRank] = []
        kv_LQBShd = torch.zeros(LAYERS, 2, BLOCKS, PAGE, 1, 2)
        self.outbox = KvOutbox(self.sender, scheduler, kv_LQBShd, inbox=inbox, post=self.posted.append)

    def begin(self, prompt: int) -> Sequence:
        sequence = Sequence.of(spec(prompt), target=TARGET)
        self.scheduler.submit(sequence)
        for admitted in self.scheduler.admit():
            self.outbox.open(admitted)
        return sequence

    def step(self, *, lost_after_layer: int | None = None, token: int = 7) -> None:
        step = self.scheduler.schedule()
        hook = self.outbox.on_kv(step)
        rows = sum(part.tokens for part in step.parts)
        for layer in range(LAYERS):
            hook(layer, torch.zeros(rows, 1, 2), torch.zeros(rows, 1, 2))
            if lost_after_layer == layer:
                return
        for sequence, value, reason in self.scheduler.commit(step, [token] * len(step.sampling)):
            self.outbox.finish(sequence, value, goes_on=reason is None)


@pytest.fixture
def prefill(scheduler: Scheduler, inbox: Inbox) -> Prefill:
    return Prefill(scheduler, inbox)


def test_every_layer_of_every_chunk_is_sent_and_the_stream_finished_with_the_first_token(prefill: Prefill) -> None:
    prefill.begin(10)
    prefill.step()
    prefill.step()
    assert prefill.sender.stream.sent == [(0, 0, 6), (1, 0, 6), (0, 6, 4), (1, 6, 4)]
    assert prefill.sender.stream.finished == (10, 7)


def test_a_step_run_again_sends_only_what_was_not_sent(prefill: Prefill) -> None:
    prefill.begin(5)
    prefill.step(lost_after_layer=0)
    prefill.step()
    assert prefill.sender.stream.sent == [(0, 0, 5), (1, 0, 5)]


def test_a_chunk_of_two_micro_batches_run_again_otherwise_sends_each_token_of_each_layer_once(prefill: Prefill) -> None:
    prefill.begin(5)
    hooks = [(prefill.outbox.on_kv(half), half) for half in split_step(prefill.scheduler.schedule())]
    for layer, half in ((0, 0), (0, 1), (1, 0)):  # then a peer is lost
        hook, step = hooks[half]
        rows = sum(part.tokens for part in step.parts)
        hook(layer, torch.zeros(rows, 1, 2), torch.zeros(rows, 1, 2))
    prefill.step()
    assert prefill.sender.stream.sent == [(0, 0, 3), (0, 3, 2), (1, 0, 3), (1, 3, 2)]
    assert prefill.sender.stream.finished == (5, 7)


def test_a_cached_prefix_is_sent_from_the_pages(prefill: Prefill) -> None:
    prefill.begin(9)
    prefill.step()
    prefill.step()
    prefill.sender.stream = FakeStream()
    prefill.begin(9)
    assert prefill.sender.stream.sent == [(0, 0, 8), (1, 0, 8)]
    prefill.step()
    assert prefill.sender.stream.sent[2:] == [(0, 8, 1), (1, 8, 1)]


def test_pages_are_held_until_the_kv_is_delivered(prefill: Prefill) -> None:
    prefill.begin(5)
    prefill.step()
    assert prefill.scheduler.pool.free_blocks == BLOCKS - 2
    prefill.sender.delivered(Delivery(bytes=100, transfer_s=2.0, hidden_s=1.5))
    prefill.inbox.run()
    assert prefill.scheduler.pool.free_blocks == BLOCKS
    delivered = prefill.posted[0]
    assert isinstance(delivered, KvDelivered)
    assert (delivered.bytes, delivered.hidden_s, delivered.target) == (100, 1.5, "decode-0")


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_broken_stream_ends_the_sequence_whenever_it_breaks(prefill: Prefill, steps: int) -> None:
    prefill.begin(10)
    for _ in range(steps):
        prefill.step()
    prefill.sender.failed("connection reset")
    prefill.inbox.run()
    failed = prefill.posted[0]
    assert isinstance(failed, Failed)
    assert failed.retryable
    assert "connection reset" in failed.reason
    assert not prefill.scheduler.has_work()
    assert prefill.scheduler.pool.free_blocks == BLOCKS


def test_a_first_token_that_is_the_last_needs_no_decode_rank(prefill: Prefill) -> None:
    prefill.begin(5)
    prefill.step(token=0)
    assert prefill.sender.stream.aborted == "the first token was the last"
    assert prefill.scheduler.pool.free_blocks == BLOCKS


class Decode:
    """A decode rank's scheduler and inbox over a fake receiver."""

    def __init__(self, scheduler: Scheduler, inbox: Inbox) -> None:
        self.scheduler, self.inbox = scheduler, inbox
        self.receiver = FakeReceiver()
        self.posted: list[FromRank] = []
        self.kv_inbox = KvInbox(self.receiver, scheduler, name="decode-0", inbox=inbox, post=self.posted.append)


@pytest.fixture
def decode(scheduler: Scheduler, inbox: Inbox) -> Decode:
    return Decode(scheduler, inbox)


def test_a_reservation_names_its_pages_and_runs_when_its_kv_is_there(decode: Decode) -> None:
    decode.kv_inbox.reserve(Reserve(sequence=spec(6)))
    reserved = decode.posted[0]
    assert isinstance(reserved, Reserved)
    assert len(reserved.target.blocks) == 2
    decode.receiver.complete(42)
    decode.inbox.run()
    assert decode.scheduler.running[0].token_ids[-1] == 42
    assert decode.scheduler.has_work()


def test_without_pages_a_reservation_is_refused_but_may_be_tried_again(decode: Decode) -> None:
    decode.scheduler.pool.take(BLOCKS)
    decode.kv_inbox.reserve(Reserve(sequence=spec(6)))
    refused = decode.posted[0]
    assert isinstance(refused, Failed)
    assert refused.retryable
    assert "decode-0 has no free pages" in refused.reason


def test_kv_that_fails_to_arrive_frees_the_pages_and_says_so(decode: Decode) -> None:
    decode.kv_inbox.reserve(Reserve(sequence=spec(6)))
    decode.receiver.failed("checksum of layer 1 disagrees")
    decode.inbox.run()
    assert decode.scheduler.pool.free_blocks == BLOCKS
    failed = decode.posted[1]
    assert isinstance(failed, Failed)
    assert "checksum of layer 1" in failed.reason


def test_a_stream_that_was_not_needed_frees_its_pages_without_a_word(decode: Decode) -> None:
    decode.kv_inbox.reserve(Reserve(sequence=spec(6)))
    decode.receiver.failed("aborted by prefill-0: the first token was the last")
    decode.inbox.run()
    assert decode.scheduler.pool.free_blocks == BLOCKS
    assert len(decode.posted) == 1


def test_pages_of_a_forgotten_reservation_come_back_only_when_nothing_writes_to_them(decode: Decode) -> None:
    decode.kv_inbox.reserve(Reserve(sequence=spec(6)))
    decode.kv_inbox.forget(9)
    assert decode.receiver.forgotten == [9]
    assert decode.scheduler.pool.free_blocks == BLOCKS - 2
    decode.receiver.released()
    decode.inbox.run()
    assert decode.scheduler.pool.free_blocks == BLOCKS


def test_kv_that_arrives_after_it_was_forgotten_starts_nothing(decode: Decode) -> None:
    decode.kv_inbox.reserve(Reserve(sequence=spec(6)))
    decode.kv_inbox.forget(9)
    decode.receiver.complete(42)
    decode.inbox.run()
    assert not decode.scheduler.running
