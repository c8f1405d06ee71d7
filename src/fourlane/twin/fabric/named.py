"""Scenarios with a name and an exact definition, which other simulators have been run on as well.

    named("A64_64K", routing="adaptive").run()

All links 400 Gbit/s, 100 ns each; switches 500 ns, store and forward; packets of 4,096 bytes of payload and 64 of
header, acknowledgements of 64 bytes; all flows start at 0 and are done when their senders have the last
acknowledgement. LS128 is 16 leaves of 8 hosts and 8 spines, FT1024 the fat tree of 16-port switches. One lossless
class, ECMP, out-of-order placement, unless settings say otherwise.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, NamedTuple

from fourlane.errors import SpecError
from fourlane.spec.load import parse
from fourlane.twin.fabric.builders import fat_tree, leaf_spine
from fourlane.twin.fabric.scenario import Scenario
from fourlane.twin.fabric.settings import Settings, settings_faults
from fourlane.twin.fabric.theory import UniformPath
from fourlane.twin.fabric.workloads import all_to_all, between, incast, permutation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fourlane.twin.fabric.flows import Flows
    from fourlane.twin.fabric.topology import Topology

__all__ = ["NAMED", "NamedScenario", "named", "named_scenario"]


class NamedScenario(NamedTuple):
    """What a name stands for.

    `packets_to_one`: data packets that the busiest receiver takes; `links`: of the longest path. `data_packets`, and
    `hops`, the links they take together: over all flows.
    """

    text: str
    topology: Callable[[], Topology]
    flows: Callable[[Topology], Flows]
    packets_to_one: int
    links: int
    data_packets: int
    hops: int

    @property
    def bound_us(self) -> float:
        """Return when the last acknowledgement is back if a receiver's link never idles, all packets being whole."""
        return UniformPath(self.links, 83_200, 1_280, 100_000, 500_000).flow_ps(self.packets_to_one) / 1e6


def _ls128() -> Topology:
    return leaf_spine(16, 8, 8, rate="400Gbps", propagation="100ns", switch_latency="500ns")


def _ft1024() -> Topology:
    return fat_tree(16, rate="400Gbps", propagation="100ns", switch_latency="500ns")


def _permutation(net: Topology) -> Flows:
    return permutation(net, "2MB", seed=1)


def _incast(size: str) -> Callable[[Topology], Flows]:
    def flows(net: Topology) -> Flows:
        return incast(net, size, sources=list(range(8, 72)), destination=0)

    return flows


def _one(size: str) -> Callable[[Topology], Flows]:
    def flows(net: Topology) -> Flows:
        return between(net, [8], [0], size)

    return flows


def _among(hosts: Iterable[int]) -> Callable[[Topology], Flows]:
    def flows(net: Topology) -> Flows:
        return all_to_all(net, "64KiB", hosts=list(hosts))

    return flows


def _spread(ranks: int) -> Callable[[Topology], Flows]:
    """Return an all-to-all of as many ranks on every leaf: rank r is on host (8 r mod 128) + (8 r div 128)."""
    return _among([8 * rank % 128 + 8 * rank // 128 for rank in range(ranks)])


NAMED: dict[str, NamedScenario] = {
    "P1024_2MB": NamedScenario(
        "1,024 hosts each send 2 MB to another, one cycle over all (FT1024)",
        _ft1024,
        _permutation,
        packets_to_one=489,
        links=6,
        data_packets=500_736,
        hops=2_919_330,
    ),
    "P128_2MB": NamedScenario(
        "128 hosts each send 2 MB to another, one cycle over all (LS128)",
        _ls128,
        _permutation,
        packets_to_one=489,
        links=4,
        data_packets=62_592,
        hops=238_632,
    ),
    "I64_64K": NamedScenario(
        "hosts 8 to 71 send 64 KiB each to host 0 (LS128)",
        _ls128,
        _incast("64KiB"),
        packets_to_one=1024,
        links=4,
        data_packets=1024,
        hops=4096,
    ),
    "I64_256K": NamedScenario(
        "hosts 8 to 71 send 256 KiB each to host 0 (LS128)",
        _ls128,
        _incast("256KiB"),
        packets_to_one=4096,
        links=4,
        data_packets=4096,
        hops=16_384,
    ),
    "I64_1M": NamedScenario(
        "hosts 8 to 71 send 1 MiB each to host 0 (LS128)",
        _ls128,
        _incast("1MiB"),
        packets_to_one=16_384,
        links=4,
        data_packets=16_384,
        hops=65_536,
    ),
    "A64_64K": NamedScenario(
        "all-to-all of 64 KiB between hosts 0 to 63 (LS128)",
        _ls128,
        _among(range(64)),
        packets_to_one=1008,
        links=4,
        data_packets=64_512,
        hops=243_712,
    ),
    "A128_64K": NamedScenario(
        "all-to-all of 64 KiB between all 128 hosts (LS128)",
        _ls128,
        _among(range(128)),
        packets_to_one=2032,
        links=4,
        data_packets=260_096,
        hops=1_011_712,
    ),
    "ONE_4K": NamedScenario(
        "one packet from host 8 to host 0 (LS128)",
        _ls128,
        _one("4KiB"),
        packets_to_one=1,
        links=4,
        data_packets=1,
        hops=4,
    ),
    "ONE_1M": NamedScenario(
        "1 MiB from host 8 to host 0 (LS128)",
        _ls128,
        _one("1MiB"),
        packets_to_one=256,
        links=4,
        data_packets=256,
        hops=1024,
    ),
    "A16s_64K": NamedScenario(
        "all-to-all of 64 KiB between 16 hosts, one on each leaf (LS128)",
        _ls128,
        _spread(16),
        packets_to_one=240,
        links=4,
        data_packets=3840,
        hops=15_360,
    ),
    "A32s_64K": NamedScenario(
        "all-to-all of 64 KiB between 32 hosts, two on each leaf (LS128)",
        _ls128,
        _spread(32),
        packets_to_one=496,
        links=4,
        data_packets=15_872,
        hops=62_464,
    ),
}


def named(name: str, **settings: Any) -> Scenario:
    """Return a scenario by its name.

    Args:
        name: one of `NAMED`.
        settings: as for `Scenario`, such as routing="adaptive" or seed=3.

    Raises:
        SpecError: there is none of that name, or a setting is wrong.
    """
    if name not in NAMED:
        close = difflib.get_close_matches(name, NAMED, n=1)
        hint = f' (did you mean "{close[0]}"?)' if close else ""
        raise SpecError(f'scenario: expected one of {", ".join(NAMED)}, got "{name}"{hint}')
    net = NAMED[name].topology()
    return Scenario(net, NAMED[name].flows(net), **settings)


def named_scenario(name: str, overrides: Sequence[str]) -> Scenario:
    """Return a scenario by its name, with `--set` overrides of fields of `Settings`.

    Raises:
        SpecError: there is none of that name, or an override is wrong.
    """
    settings = parse("", Settings, overrides, source=name, rules=settings_faults)
    return named(name, **{field: getattr(settings, field) for field in Settings.__struct_fields__})
