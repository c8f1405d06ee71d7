"""Seats for ranks that are measured: on this host, or each behind a link of its own."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from fourlane.engine.measured_ranks import Seats, local_ranks, meeting_place
from fourlane.errors import EnvironmentMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import msgspec

    from fourlane.cli.bench.options import Link
    from fourlane.engine.measured_ranks import Source
    from fourlane.lab.network import Lab

__all__ = ["Seated", "seated"]

_IN_HOST = "fourlane.engine.measured_ranks:run_in_host"


class Seated:
    """Seats of a group, and what its ranks are started in.

    Args:
        seats: of the ranks.
        lab: that has a host for each; None: they all are on this one.
    """

    def __init__(self, seats: Seats, lab: Lab | None) -> None:
        self.seats = seats
        self._lab = lab

    @contextmanager
    def start(self, target: str, plan: msgspec.Struct) -> Iterator[list[Source]]:
        """Start all ranks; yields where they are heard. See `engine.measured_ranks`."""
        import msgspec

        if self._lab is None:
            with local_ranks(target, plan, self.seats.ranks) as sources:
                yield sources
            return
        sent = msgspec.to_builtins(plan)
        with ExitStack() as stack:
            calls = []
            for rank, host in enumerate(self._lab.topology.hosts):
                call = self._lab.call(host, _IN_HOST, run=target, plan=sent, rank=rank)
                stack.callback(call.close)
                calls.append(call)
            yield [call.heard for call in calls]


@contextmanager
def seated(ranks: int, link: Link | None, notes: list[str]) -> Iterator[Seated]:
    """Find seats for a group: with a link in a lab, or, where this machine can hold none, paced.

    Args:
        ranks: of the group.
        link: of each rank; None: no links.
        notes: gets told that there is no lab, and why.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(meeting_place())
        if link is not None:
            try:
                lab = stack.enter_context(_lab(ranks, link))
            except EnvironmentMissing as error:
                note = f"no lab here, so sockets are paced and there are no queues: {error}"
                if note not in notes:
                    notes.append(note)
            else:
                addresses = tuple(lab.address(host, "hpn") for host in lab.topology.hosts)
                yield Seated(Seats(addresses=addresses, folder=folder, interface="hpn", linked=True), lab)
                return
        pace = None if link is None else int(link.rate)
        yield Seated(Seats(addresses=("127.0.0.1",) * ranks, folder=folder, linked=link is not None, pace=pace), None)


def _lab(ranks: int, link: Link) -> Lab:
    from fourlane.lab.network import Lab
    from fourlane.lab.topology import star

    return Lab(star(ranks, rate=link.rate, mtu=link.mtu))
