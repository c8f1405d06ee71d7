"""A rank without a model: says what a real one says, and does what a file in the run folder orders.

The supervisor starts it through the nursery as "scripted_rank:run_rank". Orders are files
"order-NAME" in the run folder: "hang" (say nothing more), "exit N" (end with code N),
"lose a peer" (report a failed exchange, once), "fail at start" (end with code 3 before Hello),
"stubborn" (ignore Shutdown). A `Run` is answered with made-up tokens, one every 50 ms.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fourlane.engine.channel import RankChannel, Secret
from fourlane.engine.messages import (
    Hello,
    PeerLostReport,
    RankStats,
    Regroup,
    Regrouped,
    Run,
    Shutdown,
    TokenEvent,
    Tokens,
)

if TYPE_CHECKING:
    from fourlane.engine.messages import ToRank
    from fourlane.engine.rank_config import RankConfig

STATS_S = 0.1
TOKEN_S = 0.05


def run_rank(config: RankConfig) -> int:
    """Live as a rank until told to end; return the exit code."""
    sys.stderr.write(f"{config.name} begins\n")
    rank = _ScriptedRank(config)
    if rank.order() == "fail at start":
        sys.stderr.write("there is not enough memory for this model\n")
        return 3
    return rank.live()


class _ScriptedRank:
    def __init__(self, config: RankConfig) -> None:
        self._orders = Path(config.run_dir) / f"order-{config.name}"
        self._generation = 0 if config.group_size == 1 or config.store else -1
        self._channel = RankChannel(Secret.read(Path(config.secret_file)), config.name)
        self._channel.connect(config.control_endpoint)
        self._config = config
        self._running: dict[int, tuple[int, int]] = {}
        self._status: int | None = None

    def order(self) -> str:
        """Return what the file orders; empty if there is none."""
        try:
            return self._orders.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return ""

    def live(self) -> int:
        """Say Hello and go on until ordered or told to end."""
        self._channel.send(_hello(self._config, self._generation))
        told_at = 0.0
        while self._status is None:
            self._obey(self.order())
            for message in self._channel.drain():
                self._take(message)
            if time.monotonic() - told_at > STATS_S:
                self._channel.send(_stats())
                told_at = time.monotonic()
            self._emit()
            self._channel.poll(TOKEN_S)
        self._channel.close()
        return self._status

    def _obey(self, order: str) -> None:
        if order.startswith("exit"):
            self._status = int(order.split()[1])
        elif order == "hang":
            time.sleep(3600)
        elif order == "lose a peer":
            self._orders.unlink()
            self._channel.send(PeerLostReport(generation=self._generation, step=7, detail="no answer"))

    def _take(self, message: ToRank) -> None:
        match message:
            case Regroup(generation=generation):
                self._generation = generation
                self._channel.send(Regrouped(generation=generation))
            case Shutdown() if self.order() != "stubborn":
                self._status = 0
            case Run(sequence=spec):
                self._running[spec.sequence_id] = (
                    len(spec.token_ids) - spec.prompt_tokens,
                    spec.sampling.max_tokens,
                )
            case _:
                pass

    def _emit(self) -> None:
        events = []
        for sequence_id, (index, most) in list(self._running.items()):
            finish = "length" if index + 1 == most else None
            events.append(TokenEvent(sequence_id=sequence_id, index=index, token_id=100 + index % 50, finish=finish))
            self._running[sequence_id] = (index + 1, most)
            if finish:
                del self._running[sequence_id]
        if events:
            self._channel.send(Tokens(events=events))


def _hello(config: RankConfig, generation: int) -> Hello:
    return Hello(
        role=config.role,
        rank=config.rank,
        pid=os.getpid(),
        host=socket.gethostname(),
        generation=generation,
        kv_blocks=64,
        block_size=config.block_size,
        max_length=512,
        kv_endpoint=None,
        memory_bytes=10 << 20,
        weights_bytes=1 << 20,
        load_seconds=0.01,
        experts=8,
        layers=2,
        rendezvous=config.rendezvous,
    )


def _stats() -> RankStats:
    return RankStats(
        waiting=0,
        running=0,
        reserved=0,
        queued_tokens=0,
        free_blocks=64,
        total_blocks=64,
        steps=0,
        step_s=0.0,
        exchange_s=0.0,
        idle_steps=0,
        prompt_tokens=0,
        cached_tokens=0,
        output_tokens=0,
        evictions=0,
        lane_bytes={},
        balance_max_over_mean=1.0,
        memory_bytes=10 << 20,
    )
