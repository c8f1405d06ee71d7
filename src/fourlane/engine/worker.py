"""One rank: the loop that drains messages, schedules, computes, samples and reports.

`run_rank` is the whole life of a rank process. The loop blocks in poll() when there is nothing
to do; every other wait is inside the exchange and ends in `PeerLost` at the latest.
"""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import zmq

from fourlane.engine.balance.balancer import Balancer
from fourlane.engine.balance.initial import first_placement
from fourlane.engine.channel import RankChannel, Secret
from fourlane.engine.exchange.group_exchange import SteppedExchange
from fourlane.engine.group import StepGroup, gpu_index
from fourlane.engine.hand_off import KvInbox, KvOutbox
from fourlane.engine.kv_cache import BlockPool
from fourlane.engine.kv_transfer import make_receiver, make_sender
from fourlane.engine.kv_transfer.storage import allocate_kv
from fourlane.engine.messages import (
    Cancel,
    Failed,
    Hello,
    PeerLostReport,
    Prefill,
    Regroup,
    Regrouped,
    Reserve,
    Run,
    Shutdown,
    TokenEvent,
    Tokens,
)
from fourlane.engine.micro_batches import StepRunner
from fourlane.engine.model.config import read_config
from fourlane.engine.model.qwen3_moe import load_model
from fourlane.engine.overlap import Overlapping
from fourlane.engine.rank_stats import StatsReporter, resident_bytes
from fourlane.engine.sampler import SamplingRow, sample
from fourlane.engine.scheduler import Limits, Scheduler
from fourlane.engine.sequence import Sequence
from fourlane.engine.wakeup import Inbox
from fourlane.errors import EngineError, FourlaneError, PeerLost
from fourlane.lanes.connections import LaneBook
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.contract import KvReceiver, KvSender
    from fourlane.engine.messages import FromRank, SequenceSpec, ToRank
    from fourlane.engine.rank_config import RankConfig
    from fourlane.engine.sampler import Sampled
    from fourlane.engine.scheduler import Step

__all__ = ["RankWorker", "run_rank"]

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP_BELOW_BYTES = 256 << 20
SWITCH_INTERVAL_S = 0.0005
"""How long the computing thread may keep the interpreter from a KV thread that has something to do."""


def run_rank(config: RankConfig) -> int:
    """Serve as one rank until told to stop; return the exit code.

    Args:
        config: who this rank is, what it loads, whom it talks to.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _keep_freed_memory()
    torch.set_num_threads(config.threads)
    torch.set_grad_enabled(False)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    worker: RankWorker | None = None
    try:
        worker = RankWorker(config)
        worker.run()
    except FourlaneError as error:
        log.error("%s: %s", config.name, error)  # noqa: TRY400 - the message says it all
        return error.exit_code
    finally:
        if worker is not None:
            worker.close()
    return 0


class RankWorker:
    """Everything one rank owns, and its loop."""

    def __init__(self, config: RankConfig) -> None:
        """Load the model, allocate pages, open sockets. Meets nobody yet.

        Raises:
            CheckpointError: the model cannot be served here.
            EngineError: the pages asked for do not hold a single sequence.
        """
        began = time.monotonic()
        self.config = config
        self.device = _device(config)
        model_config = read_config(Path(config.model_path))
        secret = Secret.read(Path(config.secret_file))
        placement = first_placement(
            config.balance,
            layers=len(model_config.moe_layers),
            experts=model_config.experts,
            ranks=config.group_size,
        )
        self.placement = placement
        moving = config.balance is not None and config.balance.rebalance and config.group_size > 1
        self.model = load_model(
            config.model_path,
            device=self.device,
            weights=config.weights,
            placement=placement,
            rank=config.group_rank,
            kv_memory=config.kv_memory,
            chunk_tokens=config.chunk_tokens,
            spare_layers=int(moving),
        )
        self.geometry = self.model.kv_geometry(blocks=self._page_count(), block_size=config.block_size)
        self.max_length = min(
            config.max_length or model_config.max_positions,
            model_config.max_positions,
            self.geometry.blocks * config.block_size,
        )
        self.storage = allocate_kv(self.geometry, self.device, shared=config.role == "decode")
        pool = BlockPool(self.geometry.blocks, prefix_cache=config.prefix_cache and config.role != "decode")
        limits = Limits(
            chunk_tokens=config.chunk_tokens,
            max_running=config.max_running,
            max_length=self.max_length,
            block_size=config.block_size,
            eos_ids=frozenset(model_config.eos_token_ids),
        )
        self.scheduler = Scheduler(pool, limits)
        self.inbox = Inbox()
        self.lanes = LaneBook(config.marks, owner=config.name)
        self.channel = RankChannel(secret, config.name, lane=self.lanes.end(TrafficClass.CONTROL))
        self.channel.connect(config.control_endpoint)
        self.group = StepGroup(config, placement, device=self.device, secret=secret, lanes=self.lanes)
        self.balancer: Balancer | None = None
        if config.balance is not None and config.group_size > 1:
            self.balancer = Balancer(config, self.model, placement, lanes=self.lanes, secret=secret)
        runner = StepRunner(self.model, self.storage.tensor)
        self.overlap = Overlapping(config, runner, layers=len(model_config.moe_layers))
        self.stats = StatsReporter(self.scheduler)
        self._secret = secret
        self._sender: KvSender | None = None
        self._receiver: KvReceiver | None = None
        self._outbox, self._kv_inbox = self._open_kv_lane()
        self._poller = self._make_poller()
        self._stopping = False
        self._hub_changes = 0
        self._load_s = time.monotonic() - began

    def run(self) -> None:
        """Form the group if it can meet already, say hello, then loop until `Shutdown`."""
        if self.config.group_size > 1 and self.config.store:
            self._join(self.config.store, self.config.generation)
        self._hello()
        while not self._stopping:
            self._report_if_due()
            self._drain()
            if not self._stopping and not self._step_if_needed():
                self._sleep()

    def close(self) -> None:
        """Leave the group, stop threads, close sockets."""
        self._leave()
        for part in (self._sender, self._receiver):
            if part is not None:
                part.close()
        self.channel.close()

    # messages

    def _post(self, message: FromRank) -> None:
        self.channel.send(message)

    def _drain(self) -> None:
        self.inbox.run()
        messages = self.channel.drain()
        if self.channel.hub_changes != self._hub_changes:
            self._hub_changes = self.channel.hub_changes
            self._forget_everything()
        for message in messages:
            self._handle(message)

    def _forget_everything(self) -> None:
        """Drop all sequences: the gateway was replaced, and the new one knows none of them."""
        sequence_ids = self.scheduler.everyone()
        log.warning("%s: a new gateway; dropped %d sequences of the old one", self.config.name, len(sequence_ids))
        for sequence_id in sequence_ids:
            self._cancel(sequence_id)

    def _handle(self, message: ToRank) -> None:
        match message:
            case Run(sequence=spec):
                self._submit(spec, Sequence.of(spec))
            case Prefill(sequence=spec, target=target):
                self._submit(spec, Sequence.of(spec, target=target))
            case Reserve():
                assert self._kv_inbox is not None, "only decode ranks are sent Reserve"
                self._kv_inbox.reserve(message)
            case Cancel(sequence_ids=ids):
                for sequence_id in ids:
                    self._cancel(sequence_id)
            case Regroup(generation=generation, store=store):
                self._regroup(store, generation)
            case Shutdown():
                self._stopping = True

    def _submit(self, spec: SequenceSpec, sequence: Sequence) -> None:
        if len(spec.token_ids) > self.max_length:
            reason = f"{len(spec.token_ids)} tokens do not fit; {self.config.name} holds at most {self.max_length}"
            self._post(Failed(sequence_id=spec.sequence_id, reason=reason, retryable=False))
            return
        self.scheduler.submit(sequence)

    def _cancel(self, sequence_id: int) -> None:
        sequence = self.scheduler.cancel(sequence_id) or self.scheduler.left(sequence_id)
        if sequence is not None and self._outbox is not None:
            self._outbox.drop(sequence, "cancelled")
        if self._kv_inbox is not None:
            self._kv_inbox.forget(sequence_id)

    # steps

    def _step_if_needed(self) -> bool:
        """Run a step if this rank or its group has one to run; tell whether it did."""
        if self.group.exchange is None:
            return False
        if not self.group.must_step() and not self.scheduler.has_work():
            return False
        try:
            self._step()
        except PeerLost as error:
            log.warning("%s: %s", self.config.name, error)
            self._leave()
            self._poller = self._make_poller()
            self._post(PeerLostReport(generation=self.group.generation, step=self.group.step, detail=str(error)))
        return True

    def _step(self) -> None:
        began = time.perf_counter()
        step = self._schedule()
        staged, refused = self.balancer.announcement() if self.balancer is not None else (0, 0)
        outlook = self.overlap.outlook(self.scheduler, step)
        self.group.begin_step(more=step.more, staged=staged, refused=refused, outlook=outlook)
        exchange = self.group.thread
        assert exchange is not None, "a group steps when it is formed"
        waited_s = exchange.counters.wait_s
        on_kv = self._outbox.on_kv if self._outbox is not None else None
        logits_NV = self.overlap.run(step, exchange, self.placement, on_kv=on_kv)
        self.group.end_step()
        agreement = exchange.agreement()
        self.overlap.end_step(agreement)
        eos_ids = self.scheduler.limits.eos_ids
        sampled = sample(logits_NV, [_sampling_row(sequence, eos_ids) for sequence in step.sampling])
        self._commit(step, sampled)
        if self.balancer is not None:
            self.placement = self.balancer.end_step(agreement, exchange.counters.load_LE)
        exchange_s = exchange.counters.wait_s - waited_s
        self.stats.count_step(time.perf_counter() - began, exchange_s=exchange_s, empty=not step.parts)

    def _schedule(self) -> Step:
        for sequence in self.scheduler.admit():
            if self._outbox is not None:
                self._outbox.open(sequence)
        for sequence in self.scheduler.make_room():
            reason = f"evicted: {self.config.name} ran out of pages"
            self._post(Failed(sequence_id=sequence.sequence_id, reason=reason, retryable=True))
        return self.scheduler.schedule()

    def _commit(self, step: Step, sampled: list[Sampled]) -> None:
        events = []
        results = self.scheduler.commit(step, [row.token_id for row in sampled])
        for (sequence, token, reason), row in zip(results, sampled, strict=True):
            event = TokenEvent(
                sequence_id=sequence.sequence_id,
                index=sequence.output_tokens - 1,
                token_id=token,
                logprob=row.logprob,
                top=row.top,
                finish=reason,
            )
            events.append(event)
            if self._outbox is not None:
                self._outbox.finish(sequence, token, goes_on=reason is None)
        if events:
            self._post(Tokens(events=events))

    # group

    def _regroup(self, store: str, generation: int) -> None:
        if generation <= self.group.generation:
            return
        self._join(store, generation)
        if self.group.exchange is not None:
            self._post(Regrouped(generation=generation))

    def _join(self, store: str, generation: int) -> None:
        self.overlap.reset()
        try:
            self.group.join(store, generation)
            self._join_balancing()
        except PeerLost as error:
            log.warning("%s: %s", self.config.name, error)
            self._leave()
            self._post(PeerLostReport(generation=generation, step=0, detail=str(error)))
        self._poller = self._make_poller()

    def _join_balancing(self) -> None:
        exchange, address = self.group.exchange, self.group.address
        if self.balancer is not None and address is not None and isinstance(exchange, SteppedExchange):
            self.balancer.join(exchange, address)
            self.placement = self.balancer.placement

    def _leave(self) -> None:
        self.group.leave()
        self.overlap.reset()
        if self.balancer is not None:
            self.balancer.leave()

    # sleeping and reporting

    def _sleep(self) -> None:
        self._poller.poll(self.stats.wait_ms(time.monotonic()))

    def _report_if_due(self) -> None:
        if self.stats.due(time.monotonic()):
            kv_bytes = self._sender.bytes_sent() if self._sender is not None else 0
            balancer = self.balancer
            self._post(
                self.stats.report(
                    self.group.counters,
                    kv_bytes=kv_bytes,
                    bulk_bytes=balancer.bytes_sent if balancer is not None else None,
                    lanes=self.lanes,
                    overlap=self.overlap.stats,
                    migrations=balancer.stats() if balancer is not None else None,
                )
            )

    def _hello(self) -> None:
        config = self.config
        self._post(
            Hello(
                role=config.role,
                rank=config.rank,
                pid=os.getpid(),
                host=socket.gethostname(),
                generation=self.group.generation,
                kv_blocks=self.geometry.blocks,
                block_size=config.block_size,
                max_length=self.max_length,
                kv_endpoint=self._receiver.endpoint if self._receiver is not None else None,
                memory_bytes=resident_bytes(),
                weights_bytes=self.model.weights_bytes,
                load_seconds=self._load_s,
                experts=self.placement.experts,
                layers=self.placement.layers,
                rendezvous=config.rendezvous,
                marks=list(config.marks.values()),
                connections=self.lanes.opened(),
            )
        )

    # construction

    def _page_count(self) -> int:
        page = self.model.kv_geometry(blocks=1, block_size=self.config.block_size).total_bytes
        pages = self.config.kv_memory // page
        if pages < 1:
            raise EngineError(
                f"{self.config.role}.kv_memory: expected room for at least one page of {page} bytes, "
                f"got {self.config.kv_memory} bytes"
            )
        return pages

    def _open_kv_lane(self) -> tuple[KvOutbox | None, KvInbox | None]:
        config, scheduler, lane = self.config, self.scheduler, self.lanes.end(TrafficClass.KV)
        if config.role == "prefill":
            self._sender = make_sender(config, self.geometry, secret=self._secret, lane=lane)
            tensor = self.storage.tensor
            return KvOutbox(self._sender, scheduler, tensor, inbox=self.inbox, post=self._post), None
        if config.role == "decode":
            self._receiver = make_receiver(config, self.storage, self.geometry, secret=self._secret, lane=lane)
            name = config.name
            return None, KvInbox(self._receiver, scheduler, name=name, inbox=self.inbox, post=self._post)
        return None, None

    def _make_poller(self) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self.channel.socket, zmq.POLLIN)
        poller.register(self.inbox.fileno(), zmq.POLLIN)
        if self.group.doorbell is not None:
            poller.register(self.group.doorbell.socket, zmq.POLLIN)
        return poller


def _device(config: RankConfig) -> torch.device:
    """Return where this rank computes; on CUDA it becomes the process's device."""
    if not config.device.startswith("cuda"):
        return torch.device(config.device)
    device = torch.device("cuda", gpu_index(config.device, config.rank, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step, instead of faulting the pages in again."""
    with suppress(AttributeError, OSError):  # another C library: nothing to set
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BELOW_BYTES)


def _sampling_row(sequence: Sequence, eos_ids: frozenset[int]) -> SamplingRow:
    return SamplingRow(
        sampling=sequence.sampling,
        index=sequence.output_tokens,
        token_ids=sequence.token_ids,
        prompt_tokens=sequence.prompt_tokens,
        eos_ids=eos_ids,
    )
