"""A running lab: namespaces joined into a topology, with queues on every interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from fourlane.lab.links import host_batch, spreading_batch, switch_batch, switch_settings
from fourlane.lab.namespaces import Namespaces
from fourlane.lab.queues import apply_queues, count, one_fifo, read_back
from fourlane.lab.topology import LEAVES
from fourlane.units import Size

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from fourlane.lab.namespaces import Call
    from fourlane.lab.queues import Counters
    from fourlane.lab.topology import Port, Topology
    from fourlane.lanes.render.host import HostQueues
    from fourlane.spec.cluster import NetworkName
    from fourlane.spec.traffic import TrafficClass

__all__ = ["Lab"]

FIFO_BUFFER = Size(1 << 20)


class Lab:
    """Hosts and switches up and joined, each interface with one FIFO until `lanes` gives it others.

    Use as a context manager: at its end, or when this process dies, everything is gone.

    Args:
        topology: what is brought up.

    Raises:
        EnvironmentMissing: this machine cannot hold a lab; says what is missing.
        LabError: a step of the bring-up failed; says which command in which namespace.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.spaces = Namespaces(topology.namespaces())
        try:
            self._join()
            self.lanes(lambda port: one_fifo(port.network, topology.network(port.network).rate, buffer=FIFO_BUFFER))
        except BaseException:
            self.spaces.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.spaces.close()

    def lanes(self, queues_of: Callable[[Port], HostQueues], *, network: NetworkName | None = None) -> None:
        """Give every interface (of one network, or of all) the queues that `queues_of` returns for it.

        Counters start anew, and what is queued is lost.
        """
        apply_queues(self.spaces, [(port, queues_of(port)) for port in self.topology.ports(network)])

    def read_back(self, port: Port) -> HostQueues:
        """Return the queues that the kernel holds for an interface."""
        return read_back(self.spaces, port)

    def count(self, port: Port) -> Mapping[TrafficClass, Counters]:
        """Return the counters of an interface, lane by lane."""
        return count(self.spaces, port)

    def spread(self, name: NetworkName, *, on: bool) -> None:
        """Let the leaves spread packets over the spines one by one, or go back to a hash over the flow."""
        for leaf in self.topology.switches(name)[:LEAVES]:
            lines = spreading_batch(self.topology, leaf, name, on=on)
            self.spaces.run(leaf, ["tc", "-batch", "-"], text="\n".join(lines) + "\n")

    def call(self, host: str, target: str, **arguments: object) -> Call:
        """Start a Python function, "module:function", in a host."""
        return self.spaces.call(host, target, **arguments)

    def start(self, host: str, command: Sequence[str], **settings: Any) -> subprocess.Popen[Any]:
        """Start a program in a host; it dies with this process. `settings` are those of `subprocess.Popen`."""
        return self.spaces.start(host, command, **settings)

    def run(self, host: str, command: Sequence[str], *, timeout_s: float = 20.0) -> str:
        """Run a program in a host to its end and return what it writes."""
        return self.spaces.run(host, command, timeout_s=timeout_s)

    def address(self, host: str, name: NetworkName) -> str:
        """Return a host's IPv4 address on a network."""
        return self.topology.address(host, name)

    def address6(self, host: str, name: NetworkName) -> str:
        """Return a host's IPv6 address on a network; only stars carry it."""
        return self.topology.address6(host, name)

    def _join(self) -> None:
        topology = self.topology
        for network in topology.networks:
            for switch in topology.switches(network.name):
                self._batch(switch, switch_batch(topology, switch, self.spaces.holders))
                settings = switch_settings(topology, switch)
                if settings:
                    self.spaces.call(switch, "fourlane.lab.settings:write_sysctls", settings=settings).result(10)
        for host in topology.hosts:
            self._batch(host, host_batch(topology, host))
        for network in topology.networks:
            if network.spread:
                self.spread(network.name, on=True)

    def _batch(self, name: str, lines: Sequence[str]) -> None:
        self.spaces.run(name, ["ip", "-batch", "-"], text="\n".join(lines) + "\n")
