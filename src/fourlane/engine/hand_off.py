"""The two ends of a prefill-decode hand-off, as the worker's loop sees them.

`KvOutbox` (prefill): streams each layer of a step's K and V as soon as the model has it.
`KvInbox` (decode): reserves pages, and lets a sequence run when its KV is complete.
Transport callbacks come on other threads; they only queue calls into the worker's inbox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourlane.engine.messages import Failed, KvAddress, KvDelivered, Reserve, Reserved
from fourlane.engine.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fourlane.engine.kv_transfer.contract import Delivery, KvReceiver, KvSender
    from fourlane.engine.messages import FromRank
    from fourlane.engine.scheduler import Scheduled, Scheduler, Step
    from fourlane.engine.wakeup import Inbox

__all__ = ["KvInbox", "KvOutbox"]

NOT_NEEDED = "the first token was the last"
"""Why a stream is aborted that has done its work: the decode rank frees its pages and says nothing."""


class KvOutbox:
    """The prefill side."""

    def __init__(
        self,
        sender: KvSender,
        scheduler: Scheduler,
        kv_LQBShd: Tensor,
        *,
        inbox: Inbox,
        post: Callable[[FromRank], None],
    ) -> None:
        self._sender = sender
        self._scheduler = scheduler
        self._kv_LQBShd = kv_LQBShd
        self._inbox = inbox
        self._post = post

    def open(self, sequence: Sequence) -> None:
        """Begin a sequence's stream, with the KV of the prefix that the cache already held."""
        target = sequence.target
        assert target is not None, "only sequences bound for a decode rank are streamed"
        sequence.stream = self._sender.open(
            sequence.sequence_id,
            target,
            on_delivered=lambda delivery: self._inbox.put(lambda: self._delivered(sequence, delivery)),
            on_failed=lambda reason: self._inbox.put(lambda: self._failed(sequence, reason)),
        )
        if sequence.cached_tokens:
            self._send_cached(sequence)

    def on_kv(self, step: Step) -> Callable[[int, Tensor, Tensor], None]:
        """Return the hook that streams a step's new K and V, layer by layer.

        A step run again after a lost peer computes the same KV, in the same pieces or in others: what has
        been queued already is skipped.
        """
        starts: list[int] = []
        row = 0
        for part in step.parts:
            starts.append(row)
            row += part.tokens

        def send(layer: int, k_THd: Tensor, v_THd: Tensor) -> None:
            for part, start in zip(step.parts, starts, strict=True):
                self._send_part(part, layer, k_THd[start : start + part.tokens], v_THd[start : start + part.tokens])

        return send

    def finish(self, sequence: Sequence, first_token_id: int, *, goes_on: bool) -> None:
        """Close a computed sequence's stream; without need for a decode rank, abort it.

        A stream that has failed already left the sequence without one: its pages go back now.
        """
        stream = sequence.stream
        if stream is None:
            self._scheduler.left(sequence.sequence_id)
        elif goes_on:
            stream.finish(tokens=sequence.computed, first_token_id=first_token_id)
        else:
            self.drop(sequence, NOT_NEEDED)
            self._scheduler.left(sequence.sequence_id)

    def drop(self, sequence: Sequence, reason: str) -> None:
        """Give a stream up."""
        stream, sequence.stream = sequence.stream, None
        if stream is not None:
            stream.abort(reason)

    def _send_part(self, part: Scheduled, layer: int, k_THd: Tensor, v_THd: Tensor) -> None:
        sequence = part.sequence
        if sequence.stream is None:
            return
        sent_L = sequence.sent_L
        while len(sent_L) <= layer:
            sent_L.append(sequence.cached_tokens)
        sent = max(0, sent_L[layer] - part.first)
        if sent < part.tokens:
            sequence.stream.send(layer, part.first + sent, k_THd[sent:], v_THd[sent:])
            sent_L[layer] = part.first + part.tokens

    def _send_cached(self, sequence: Sequence) -> None:
        assert sequence.stream is not None
        blocks = sequence.blocks[: sequence.cached_tokens // self._kv_LQBShd.shape[3]]
        for layer, (k_BShd, v_BShd) in enumerate(self._kv_LQBShd):
            sequence.stream.send(layer, 0, k_BShd[blocks].flatten(0, 1), v_BShd[blocks].flatten(0, 1))

    def _delivered(self, sequence: Sequence, delivery: Delivery) -> None:
        self._scheduler.left(sequence.sequence_id)
        sequence.stream = None
        assert sequence.target is not None
        self._post(
            KvDelivered(
                sequence_id=sequence.sequence_id,
                bytes=delivery.bytes,
                transfer_s=delivery.transfer_s,
                hidden_s=delivery.hidden_s,
                cached_tokens=sequence.cached_tokens,
                target=sequence.target.owner,
            )
        )

    def _failed(self, sequence: Sequence, reason: str) -> None:
        if sequence.stream is None:
            return
        sequence.stream = None
        self._scheduler.cancel(sequence.sequence_id)
        self._scheduler.left(sequence.sequence_id)
        self._post(Failed(sequence_id=sequence.sequence_id, reason=f"KV transfer: {reason}", retryable=True))


class KvInbox:
    """The decode side."""

    def __init__(
        self,
        receiver: KvReceiver,
        scheduler: Scheduler,
        *,
        name: str,
        inbox: Inbox,
        post: Callable[[FromRank], None],
    ) -> None:
        self._receiver = receiver
        self._scheduler = scheduler
        self._name = name
        self._inbox = inbox
        self._post = post

    def reserve(self, message: Reserve) -> None:
        """Hold pages and expect KV, or say that there are no pages."""
        sequence = Sequence.of(message.sequence)
        sequence_id = sequence.sequence_id
        if not self._scheduler.reserve(sequence):
            self._post(Failed(sequence_id=sequence_id, reason=f"{self._name} has no free pages", retryable=True))
            return
        self._receiver.expect(
            sequence_id,
            sequence.blocks,
            tokens=len(sequence.token_ids),
            on_complete=lambda token: self._inbox.put(lambda: self._arrived(sequence_id, token)),
            on_failed=lambda reason: self._inbox.put(lambda: self._failed(sequence_id, reason)),
        )
        target = KvAddress(endpoint=self._receiver.endpoint, blocks=sequence.blocks, owner=self._name)
        self._post(Reserved(sequence_id=sequence_id, target=target))

    def forget(self, sequence_id: int) -> None:
        """Drop a reservation; its pages are free again when nothing writes to them any more."""
        sequence = self._scheduler.unreserve(sequence_id)
        if sequence is not None:
            self._receiver.forget(
                sequence_id, on_released=lambda: self._inbox.put(lambda: self._scheduler.release(sequence))
            )

    def _arrived(self, sequence_id: int, first_token_id: int) -> None:
        if sequence_id in self._scheduler.reserved:
            self._scheduler.start(sequence_id, first_token_id)

    def _failed(self, sequence_id: int, reason: str) -> None:
        sequence = self._scheduler.unreserve(sequence_id)
        if sequence is not None:
            self._scheduler.release(sequence)
            if NOT_NEEDED not in reason:
                self._post(Failed(sequence_id=sequence_id, reason=f"KV transfer: {reason}", retryable=True))
