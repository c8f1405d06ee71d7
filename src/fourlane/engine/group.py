"""The expert-parallel group of a rank: stepping together, sleeping together, forming anew.

All ranks of a group must run the same steps, since every step is an exchange. Whoever has work
while the group sleeps rings the others; with the first counts of a step everyone says whether
there will be more, and if nobody has any, all go back to sleep.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from fourlane.engine.doorbell import Doorbell
from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.local import LocalExchange
from fourlane.engine.exchange.meeting import GroupAddress
from fourlane.engine.exchange.payload import payload_of
from fourlane.engine.exchange.shared_memory import SharedMemoryExchange
from fourlane.engine.exchange.tcp import TcpExchange
from fourlane.engine.exchange.torch_all_to_all import TorchAllToAll
from fourlane.errors import EngineError, PeerLost
from fourlane.spec.traffic import TrafficClass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fourlane.engine.channel import Secret
    from fourlane.engine.exchange.counters import ExchangeCounters
    from fourlane.engine.exchange.group_exchange import SteppedExchange
    from fourlane.engine.rank_config import RankConfig
    from fourlane.lanes.connections import LaneBook
    from fourlane.policy.placement import Placement

__all__ = ["StepGroup", "check_alike", "gpu_index"]

JOIN_TIMEOUT_S = 120.0


class Telling(Protocol):
    """Who can give a short text to all ranks of a group: an exchange."""

    def tell_all(self, text: str) -> list[str]:
        """Return everybody's text, by rank."""
        ...


class StepGroup:
    """A rank's membership in its group.

    `exchange` is None while the group is not formed (before the first `join`, after `leave`); `address`
    is where it met at last. `thread` is the same exchange behind a thread, for steps of two streams; it
    owns the exchange: whoever leaves closes both.
    """

    def __init__(
        self, config: RankConfig, placement: Placement, *, device: torch.device, secret: Secret, lanes: LaneBook
    ) -> None:
        self.exchange: LocalExchange | SteppedExchange | None = None
        self.thread: LocalExchange | CommunicationThread | None = None
        self.generation = -1
        self.step = 0
        self.counters: ExchangeCounters | None = None
        self.address: GroupAddress | None = None
        self._config = config
        self._placement = placement
        self._payload = payload_of(config.exchange_dispatch)
        self._device = device
        self._secret = secret
        self._lanes = lanes
        self._engaged = False
        self.doorbell: Doorbell | None = None
        if config.group_size == 1:
            self.exchange = LocalExchange(placement, payload=self._payload)
            self.thread = self.exchange
            self.counters = self.exchange.counters
            self.generation = config.generation

    def join(self, store: str, generation: int) -> None:
        """Meet the other ranks; blocks until all are there.

        Raises:
            PeerLost: they did not all come in time.
            EngineError: they were told to step in unlike ways.
        """
        config = self._config
        if config.group_size == 1:
            self.generation = generation
            return
        self.leave()
        address = GroupAddress(
            store=store,
            rank=config.group_rank,
            ranks=config.group_size,
            address=config.exchange_address,
            join_s=JOIN_TIMEOUT_S,
            step_s=config.exchange_timeout_s,
            backend=_backend(self._device, config),
            lane=self._lanes.end(TrafficClass.EXPERT),
            control=self._lanes.end(TrafficClass.CONTROL),
        )
        exchange = self._open_exchange(address)
        try:
            exchange.find_nodes(socket.gethostname(), hierarchical=config.exchange_hierarchical)
            check_alike(exchange, config)
            self._hang_doorbell(exchange, store, generation)
        except (PeerLost, EngineError):
            exchange.close()
            self.leave()
            raise
        self.exchange, self.counters, self.address = exchange, exchange.counters, address
        self.thread = CommunicationThread(exchange, device=self._device, patience_s=config.exchange_timeout_s)
        self.generation, self.step, self._engaged = generation, 0, True

    def leave(self) -> None:
        """Leave the group, if in one: a peer is lost, or this rank stops."""
        if isinstance(self.thread, CommunicationThread):
            self.thread.close()
            self.exchange = self.thread = None
        if self.doorbell is not None:
            self.doorbell.close()
            self.doorbell = None

    def must_step(self) -> bool:
        """Tell whether the group is running the next step, with or without work of this rank."""
        if self.doorbell is not None:
            rung = self.doorbell.drain()
            self._engaged |= rung is not None and rung >= self.step
        return self._engaged

    def begin_step(self, *, more: bool, staged: int = 0, refused: int = 0, outlook: Sequence[int] = ()) -> None:
        """Announce this rank's outlook, and wake the others if the group was asleep; see `Exchange.begin_step`."""
        assert self.exchange is not None, "the group is formed before it steps"
        if self.doorbell is not None and not self._engaged:
            self.doorbell.ring(self.step)
        self.exchange.begin_step(self.step, more=more, staged=staged, refused=refused, outlook=outlook)

    def end_step(self) -> None:
        """Take over what the group agreed on."""
        assert self.exchange is not None, "the group is formed while it steps"
        self._engaged = self.exchange.ranks > 1 and self.exchange.agreement().more
        self.step += 1

    def _open_exchange(self, address: GroupAddress) -> SteppedExchange:
        placement, device, counters = self._placement, self._device, self.counters
        balance = self._config.balance
        split = balance is None or balance.split
        if self._config.exchange in ("tcp", "shared_memory"):
            own = TcpExchange if self._config.exchange == "tcp" else SharedMemoryExchange
            return own(
                address,
                placement,
                device=device,
                secret=self._secret,
                counters=counters,
                split=split,
                payload=self._payload,
            )
        if self._config.exchange == "deepep":
            return self._open_deepep(address, split=split)
        if self._config.exchange == "symmetric_memory":
            return self._open_symmetric_memory(address, split=split)
        return TorchAllToAll(address, placement, device=device, counters=counters, split=split, payload=self._payload)

    def _open_deepep(self, address: GroupAddress, *, split: bool) -> SteppedExchange:
        from fourlane.engine.exchange.deepep import DeepEpExchange, Kernels, require_deepep

        config = self._config
        return DeepEpExchange(
            address,
            self._placement,
            kernels=Kernels(
                require_deepep(self._device, own_gpus=address.backend == "nccl"),
                config.exchange_deepep,
                config.exchange_low_latency_tokens,
            ),
            device=self._device,
            counters=self.counters,
            split=split,
            payload=self._payload,
        )

    def _open_symmetric_memory(self, address: GroupAddress, *, split: bool) -> SteppedExchange:
        from fourlane.engine.exchange.symmetric_memory import SymmetricMemoryExchange, require_symmetric_memory

        return SymmetricMemoryExchange(
            address,
            self._placement,
            symmetric=require_symmetric_memory(self._device, own_gpus=address.backend == "nccl"),
            device=self._device,
            counters=self.counters,
            split=split,
            payload=self._payload,
        )

    def _hang_doorbell(self, exchange: SteppedExchange, store: str, generation: int) -> None:
        config = self._config
        bell = Path(config.run_dir) / f"bell-{config.name}-{generation}"
        address = f"ipc://{bell}" if Path(store).is_absolute() else f"tcp://{config.exchange_address}:*"
        self.doorbell = Doorbell(self._secret, config.name, lane=self._lanes.end(TrafficClass.CONTROL))
        endpoints = exchange.tell_all(self.doorbell.bind(address))
        self.doorbell.connect([endpoint for rank, endpoint in enumerate(endpoints) if rank != exchange.rank])


def check_alike(exchange: Telling, config: RankConfig) -> None:
    """See that all ranks of a group were told alike what they must do alike: else a step would hang.

    Args:
        exchange: of the group.
        config: of this rank.

    Raises:
        EngineError: some were told something else; names it, rank by rank.
        PeerLost: a peer died or hangs.
    """
    overlap = config.overlap
    settings = {
        "exchange.dispatch": config.exchange_dispatch,
        "exchange.hierarchical": config.exchange_hierarchical,
        "overlap.mode": overlap.mode,
        "overlap.min_tokens": overlap.min_tokens,
        "overlap.min_gain": overlap.min_gain,
        "balance.split": config.balance is None or config.balance.split,
    }
    told = [row.split(";") for row in exchange.tell_all(";".join(map(str, settings.values())))]
    unlike = [
        f"{name}: {', '.join(values)}"
        for name, values in zip(settings, zip(*told, strict=True), strict=True)
        if len(set(values)) > 1
    ]
    if unlike:
        raise EngineError(
            f"expected the same settings on all ranks of the group, got, by rank, {'; '.join(unlike)}; "
            "start all of them from the same deployment"
        )


def gpu_index(device: str, rank: int, devices: int) -> int:
    """Return the GPU of a rank: "cuda:N" counts from N, "cuda" from 0, and starts over after the last.

    Args:
        device: of the pool.
        rank: in the pool.
        devices: GPUs this process sees.
    """
    first = int(device.partition(":")[2] or 0)
    return (first + rank) % max(1, devices)


def _backend(device: torch.device, config: RankConfig) -> str:
    """Return "nccl" when each rank of the group has a GPU of its own, else "gloo"."""
    if device.type != "cuda":
        return "gloo"
    first = config.group * config.group_size
    members = range(first, first + config.group_size)
    gpus = {gpu_index(config.device, rank, torch.cuda.device_count()) for rank in members}
    return "nccl" if len(gpus) == config.group_size else "gloo"
