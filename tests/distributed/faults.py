"""What becomes of a group when one of its ranks dies or hangs, in each phase of an exchange.

Bodies get the group's members as a `Seat` and raise if something is wrong. The last rank is the victim.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import conformance
import pytest
from conformance import EXPERTS, LAYERS, Group
from exchanges import IMPLEMENTATIONS, Joining

from fourlane.engine.exchange.communication_thread import CommunicationThread
from fourlane.engine.exchange.meeting import GroupAddress
from fourlane.errors import PeerLost
from fourlane.policy.placement import linear_placement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exchanges import Implementation

    from fourlane.engine.exchange.contract import Pending

__all__ = ["Seat", "peer_dies", "peer_hangs"]

LOST = "a peer died or hangs"


@dataclass(frozen=True)
class Seat:
    """A rank of a test: who it is, where it meets the others, and how they exchange."""

    rank: int
    ranks: int
    folder: Path
    implementation: str

    @property
    def kind(self) -> Implementation:
        """Return what the implementation promises."""
        return IMPLEMENTATIONS[self.implementation]

    @property
    def is_victim(self) -> bool:
        """Tell whether something happens to this rank."""
        return self.rank == self.ranks - 1

    def address(self, *, store: str = "store", join_s: float = 30.0, step_s: float = 20.0) -> GroupAddress:
        """Return where the group meets."""
        return GroupAddress(str(self.folder / store), self.rank, self.ranks, "127.0.0.1", join_s=join_s, step_s=step_s)

    def join(self, *, store: str = "store", step_s: float = 20.0, **wanted: Any) -> Group:
        """Form the group with the others."""
        placement = linear_placement(layers=LAYERS, experts=EXPERTS, ranks=self.ranks)
        address = self.address(store=store, step_s=step_s)
        joining = Joining(address, placement, **wanted)
        return Group(self.kind.open(joining), self.kind, joining)


def peer_dies(seat: Seat, phase: str) -> None:
    """Survivors of a peer killed in a phase get a typed error at once, meet its successor and go on."""
    if not (seat.folder / f"lived-{seat.rank}").exists():
        (seat.folder / f"lived-{seat.rank}").touch()
        group = seat.join()
        conformance.few_hot_experts(group)
        if seat.is_victim:
            _until(group, phase, lambda: os.kill(os.getpid(), signal.SIGKILL))  # which starts this rank once more
        began = time.monotonic()
        _lose_the_victim(seat, group)
        group.exchange.close()
        assert time.monotonic() - began < 8, "survivors heard of it late"
    group = seat.join(store="again")
    conformance.ragged_batches(group)


def peer_hangs(seat: Seat, phase: str) -> None:
    """A peer that does not go on makes the others fail within the timeout, naming the phase."""
    group = seat.join(step_s=0.8)
    conformance.few_hot_experts(group)
    if seat.is_victim:
        _until(group, phase, lambda: _hang(seat))
    began = time.monotonic()
    message = _lose_the_victim(seat, group)
    group.exchange.close()
    took = time.monotonic() - began
    (seat.folder / f"noticed-{seat.rank}").touch()
    assert f"step {group.steps}" in message, message
    assert phase in message, message
    assert 0.6 < took < 4, took


def _hang(seat: Seat) -> NoReturn:
    """Do nothing until all others have noticed."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and len(list(seat.folder.glob("noticed-*"))) < seat.ranks - 1:
        time.sleep(0.05)
    os._exit(0)


def _until(group: Group, phase: str, act: Callable[[], None]) -> NoReturn:
    """Take part in a step until a phase begins, and then do something else."""
    group.step()
    tokens = [group.tokens(9 + which, seed=group.rank) for which in range(2)]
    if phase == "counts":
        act()
    elif phase == "dispatch":  # counts have gone through, rows have not been sent
        inner = group.exchange.exchange if isinstance(group.exchange, CommunicationThread) else group.exchange
        inner._read_counts = lambda _: act()  # type: ignore[method-assign,union-attr]
        group.dispatch(tokens[0]).wait()
    elif phase == "combine":
        group.dispatch(tokens[0]).wait()
        act()
    raise AssertionError(f"the victim lived through phase {phase!r}")


def _lose_the_victim(seat: Seat, group: Group) -> str:
    """Step until the group's loss shows, also in what else is under way; return the first error."""
    group.step()
    tokens = group.tokens(9, seed=group.rank)
    with pytest.raises(PeerLost, match=LOST) as lost:
        group.pair(tokens)
    if seat.kind.names_peers:
        assert f"rank {seat.ranks - 1}" in str(lost.value)
    with pytest.raises(PeerLost):
        group.pair(tokens)
    return str(lost.value)


def child_outlives_peer(seat: Seat) -> None:
    """A killed peer is missed though a child it had forked holds its connections open."""
    alive = seat.folder / "child"
    if seat.is_victim:
        if alive.exists():
            return  # started once more
        group = seat.join()
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        alive.write_text(str(child), encoding="ascii")
        conformance.few_hot_experts(group)
        os.kill(os.getpid(), signal.SIGKILL)
    group = seat.join()
    conformance.few_hot_experts(group)
    try:
        began = time.monotonic()
        _lose_the_victim(seat, group)
        assert time.monotonic() - began < 8, "survivors heard of it late"
        os.kill(int(alive.read_text(encoding="ascii")), 0)
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(alive.read_text(encoding="ascii")), signal.SIGKILL)


def both_batches_are_lost(seat: Seat) -> None:
    """With two batches under way both waits end with a typed error."""
    group = seat.join()
    conformance.few_hot_experts(group)
    if seat.is_victim:
        os._exit(0)
    group.step()
    begun: list[Pending] = []
    with suppress(PeerLost):  # who hears of it early does not even begin
        begun += [group.dispatch(group.tokens(5, seed=which)) for which in range(2)]
    for one in begun:
        with pytest.raises(PeerLost, match=LOST):
            one.wait()
    group.exchange.close()


def nothing_begins_after_close(seat: Seat) -> None:
    """Who has left the group is told so when he exchanges; leaving twice is no fault."""
    group = seat.join()
    conformance.few_hot_experts(group)
    group.exchange.close()
    group.exchange.close()
    with pytest.raises(PeerLost, match="has left the group"):
        group.pair(group.tokens(3, seed=1))
