"""Ranks that compute nothing but speak the engine's messages, with knobs to fail, lag and reorder."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from fourlane.engine.messages import (
    Cancel,
    Failed,
    FromRank,
    Hello,
    KvAddress,
    KvDelivered,
    Prefill,
    RankStats,
    Reserve,
    Reserved,
    Run,
    SequenceSpec,
    TokenEvent,
    Tokens,
    ToRank,
    decode_from_rank,
    decode_to_rank,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fourlane.gateway.router import Router

EOS = 0


class FakeRanks:
    """All ranks of a deployment in the test's event loop; implements `RankLink`.

    Args:
        script: the token at (sequence, index), a pure function like real sampling, so that a
            retry goes on with the same text.
    Knobs (change them at any time):
        step_s: time between tokens; prefill_s: time to the first.
        reorder: let the first token overtaken by the second.
        fail_prefill, fail_decode_at, refuse_reserve, evict_at: how often the next sequences fail there.
        silent: names of ranks that answer nothing.
    """

    def __init__(self, script: Callable[[SequenceSpec, int], int] | None = None, *, eos: int = EOS) -> None:
        self.script = script or (lambda spec, index: 100 + (sum(spec.token_ids[: spec.prompt_tokens]) + index) % 50)
        self.eos = eos
        self.router: Router | None = None
        self.step_s = 0.0
        self.prefill_s = 0.0
        self.reorder = False
        self.fail_prefill = 0
        self.fail_decode = 0
        self.refuse_reserve = 0
        self.evict = 0
        self.fail_at = 3
        self.silent: set[str] = set()
        self.dead: set[str] = set()
        self.sent: list[tuple[str, ToRank]] = []
        self.cancelled: set[int] = set()
        self.pages: Counter[str] = Counter()
        self.most_owned: Counter[str] = Counter()
        self._owned: dict[int, str] = {}
        self._pid = 1000
        self._live: dict[int, SequenceSpec] = {}
        self._keep: set[asyncio.TimerHandle] = set()

    # what the tests do to ranks

    def hello(self, name: str, *, kv_blocks: int = 64, max_length: int = 512) -> Hello:
        """Return the first message of a new process of a rank."""
        role, _, index = name.partition("/")
        self._pid += 1
        return Hello(
            role=role,
            rank=int(index),
            pid=self._pid,
            host="host",
            generation=0,
            kv_blocks=kv_blocks,
            block_size=16,
            max_length=max_length,
            kv_endpoint="tcp://127.0.0.1:1",
            memory_bytes=1 << 28,
            weights_bytes=1 << 26,
            load_seconds=0.1,
            experts=8,
            layers=2,
        )

    def bring_up(self, router: Router, **facts: int) -> None:
        """Connect to a router and let every rank it expects say hello."""
        self.router = router
        for name in router.ranks:
            router.rank_ready(name, self.hello(name, **facts))

    def kill(self, name: str) -> None:
        """Let a rank die: what it would have said is lost, and the router is told."""
        self.dead.add(name)
        self._live = {sid: spec for sid, spec in self._live.items() if self._owned.get(sid) != name}
        self.router.rank_lost(name, "killed by signal 9")

    def revive(self, name: str, **facts: int) -> None:
        """Let a new process take a dead rank's place."""
        self.dead.discard(name)
        self.router.rank_ready(name, self.hello(name, **facts))

    def stats(self, name: str, **values: object) -> RankStats:
        """Let a rank report."""
        known = {
            "waiting": 0, "running": 1, "reserved": 0, "queued_tokens": 0, "free_blocks": 48, "total_blocks": 64,
            "steps": 10, "step_s": 1.0, "exchange_s": 0.25, "idle_steps": 2, "prompt_tokens": 100,
            "cached_tokens": 40, "output_tokens": 60, "evictions": 0, "lane_bytes": {"expert": 1000, "kv": 500},
            "expert_tokens": {"decode": list(range(16))}, "balance_max_over_mean": 1.5, "memory_bytes": 1 << 28,
        }  # fmt: skip
        message = RankStats(**(known | values))
        self._say(name, message)
        return message

    # RankLink

    def send(self, rank_name: str, message: ToRank) -> None:
        """Take a message, as a rank's socket would: through the wire format."""
        message = decode_to_rank(encode(message))
        self.sent.append((rank_name, message))
        if rank_name in self.dead or rank_name in self.silent:
            return
        if isinstance(message, Cancel):
            for sid in message.sequence_ids:
                self.cancelled.add(sid)
                self._live.pop(sid, None)
                self._owned.pop(sid, None)
        elif isinstance(message, Reserve):
            self._reserve(rank_name, message.sequence)
        elif isinstance(message, Prefill):
            self._later(self.prefill_s, lambda: self._prefill(rank_name, message))
        elif isinstance(message, Run):
            self._own(rank_name, message.sequence)
            first = len(message.sequence.token_ids) - message.sequence.prompt_tokens
            self._later(self.prefill_s, lambda: self._decode(rank_name, message.sequence, first))

    def owned(self, name: str) -> int:
        """Return how many sequences a rank holds pages for."""
        return sum(owner == name for owner in self._owned.values())

    def _own(self, name: str, spec: SequenceSpec) -> None:
        self._live[spec.sequence_id] = spec
        self._owned[spec.sequence_id] = name
        self.most_owned[name] = max(self.most_owned[name], self.owned(name))

    def _reserve(self, name: str, spec: SequenceSpec) -> None:
        if self.refuse_reserve:
            self.refuse_reserve -= 1
            self._say(name, Failed(sequence_id=spec.sequence_id, reason=f"{name} has no free pages", retryable=True))
            return
        self._own(name, spec)
        target = KvAddress(endpoint="tcp://127.0.0.1:1", blocks=[1, 2], owner=name)
        self._say(name, Reserved(sequence_id=spec.sequence_id, target=target))

    def _prefill(self, name: str, message: Prefill) -> None:
        spec = message.sequence
        sid = spec.sequence_id
        if sid not in self._live or name in self.dead:
            return
        if self.fail_prefill:
            self.fail_prefill -= 1
            self._say(name, Failed(sequence_id=sid, reason="KV transfer: connection broken", retryable=True))
            return
        first = len(spec.token_ids) - spec.prompt_tokens
        event = self._event(spec, first)
        tokens = Tokens(events=[event])
        delivered = KvDelivered(
            sequence_id=sid, bytes=1000, transfer_s=0.02, hidden_s=0.018, cached_tokens=5, target=message.target.owner
        )
        self._later(0.02 if self.reorder else 0.0, lambda: self._say(name, tokens))
        if event.finish is None:
            self._say(name, delivered)
            self._later(self.step_s, lambda: self._decode(message.target.owner, spec, first + 1))
        else:  # as the engine does: the stream is aborted, and the decode rank complains of it
            self._say(message.target.owner, Failed(sequence_id=sid, reason="KV transfer: aborted", retryable=True))

    def _decode(self, name: str, spec: SequenceSpec, index: int) -> None:
        sid = spec.sequence_id
        if sid not in self._live or name in self.dead or name in self.silent:
            return
        if index >= self.fail_at and (self.fail_decode or self.evict):
            reason = "evicted: out of pages" if self.evict else "KV transfer: checksum differs"
            self.fail_decode, self.evict = (
                (self.fail_decode, self.evict - 1) if self.evict else (self.fail_decode - 1, 0)
            )
            self._forget(sid)
            self._say(name, Failed(sequence_id=sid, reason=reason, retryable=True))
            return
        event = self._event(spec, index)
        if event.finish is not None:
            self._forget(sid)
        self._say(name, Tokens(events=[event]))
        if event.finish is None:
            self._later(self.step_s, lambda: self._decode(name, spec, index + 1))

    def _forget(self, sid: int) -> None:
        self._live.pop(sid, None)
        self._owned.pop(sid, None)

    def _event(self, spec: SequenceSpec, index: int) -> TokenEvent:
        token = self.script(spec, index)
        sampling = spec.sampling
        finish = None
        if (token == self.eos and not sampling.ignore_eos) or token in sampling.stop_token_ids:
            finish = "stop"
        elif index + 1 >= sampling.max_tokens:
            finish = "length"
        logprob, top = None, None
        if sampling.logprobs is not None:
            logprob = -0.5
            top = [(token + offset, -0.5 - offset) for offset in range(sampling.logprobs)]
        return TokenEvent(spec.sequence_id, index, token, logprob, top, finish)

    def _say(self, name: str, message: FromRank) -> None:
        if name in self.dead or name in self.silent or self.router is None:
            return
        message = decode_from_rank(encode(message))
        router = self.router
        asyncio.get_running_loop().call_soon(lambda: router.handle(name, message))

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if delay == 0:
            loop.call_soon(call)
        else:
            loop.call_later(delay, call)
