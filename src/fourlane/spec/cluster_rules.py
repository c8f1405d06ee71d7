"""What a cluster must satisfy beyond its fields' types."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from fourlane.spec.hardware import gpu_models, latencies, nic_models, switch_models
from fourlane.spec.reading import Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fourlane.spec.cluster import Cluster, Network, Tier

__all__ = ["cluster_faults"]

LONGEST_NAME = 15  # of a Linux network interface, IFNAMSIZ less the terminator
SMALLEST_MTU = 1280  # of IPv6
LARGEST_MTU = 9216
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")


def cluster_faults(cluster: Cluster) -> Iterator[Fault]:
    """Yield every rule that is broken."""
    yield from _at_least("servers", cluster.servers, 1)
    yield from _at_least("gpus_per_server", cluster.gpus_per_server, 0)
    if cluster.gpu is not None:
        yield from _known("gpu", cluster.gpu, gpu_models())
    for name, network in cluster.networks().items():
        yield from (Fault(f"{name}.{fault.place}", fault.message) for fault in _network(network))


def _network(network: Network) -> Iterator[Fault]:
    yield from _nic(network)
    yield from _interfaces(network)
    if not SMALLEST_MTU <= network.mtu <= LARGEST_MTU:
        yield Fault("mtu", f"expected {SMALLEST_MTU}B to {LARGEST_MTU}B, got {network.mtu}")
    yield from _known("link", network.link, latencies().links)
    for name, tier in network.tiers().items():
        yield from (Fault(f"{name}.{fault.place}", fault.message) for fault in _tier(tier))
    yield from _cabling(network)
    yield from _division(network)


def _nic(network: Network) -> Iterator[Fault]:
    nics = nic_models()
    yield from _known("nic", network.nic, nics)
    nic = nics.get(network.nic)
    if nic is not None and nic.rate is not None and network.rate > nic.rate:
        yield Fault("rate", f"expected at most {nic.rate}, the rate of {network.nic}, got {network.rate}")
    if network.rate < 1:
        yield Fault("rate", f"expected more than nothing, got {network.rate}")
    model = switch_models().get(network.leaf.switch)
    if model is not None and network.rate > model.port_rate:
        yield Fault("rate", f"expected at most {model.port_rate}, a port of {network.leaf.switch}, got {network.rate}")


def _interfaces(network: Network) -> Iterator[Fault]:
    if not network.interfaces:
        yield Fault("interfaces", 'expected at least one interface name such as "eth0", got none')
    for field in ("interfaces", "devices"):
        names = getattr(network, field)
        for index, name in enumerate(names):
            if not _NAME.fullmatch(name):
                message = f'expected a name of up to {LONGEST_NAME} letters, digits and . _ -, got "{name}"'
                yield Fault(f"{field}[{index}]", message)
        if len(set(names)) < len(names):
            yield Fault(field, "expected different names, got one twice")
    if network.devices and len(network.devices) != len(network.interfaces):
        message = f"expected a device for each of {len(network.interfaces)} interfaces, got {len(network.devices)}"
        yield Fault("devices", message)


def _cabling(network: Network) -> Iterator[Fault]:
    if network.leaf.up_ports and network.spine is None:
        yield Fault("spine", f"expected a table [spine], because leaf.up_ports = {network.leaf.up_ports}")
    if network.spine is not None and not network.leaf.up_ports:
        yield Fault("leaf.up_ports", "expected at least 1 with a spine, got 0")
    if network.superspine is None:
        if network.spine is not None and network.spine.up_ports:
            yield Fault("spine.up_ports", "expected 0: there is no tier above a spine without a table [superspine]")
        return
    if network.spine is None:
        yield Fault("superspine", "expected no superspine tier without a spine tier")
    elif not network.spine.up_ports:
        yield Fault("spine.up_ports", "expected at least 1 with a superspine tier, got 0")
    if network.superspine.up_ports:
        yield Fault("superspine.up_ports", "expected 0: there is no tier above a superspine")


def _division(network: Network) -> Iterator[Fault]:
    """Yield what cannot be cut into planes, pods and rails of equal size."""
    yield from _at_least("planes", network.planes, 1)
    yield from _at_least("pods", network.pods, 1)
    planes, pods = max(1, network.planes), max(1, network.pods)
    if len(network.interfaces) % planes:
        yield Fault(
            "interfaces", f"expected one for each of {planes} planes of every NIC, got {len(network.interfaces)}"
        )
    if pods > 1 and network.superspine is None:
        yield Fault("pods", f"expected 1 without a superspine tier to join them, got {pods}")
    if network.spines == "per-rail" and network.spine is None:
        yield Fault("spines", 'expected "shared" without a spine tier, got "per-rail"')
    for name, tier in network.tiers().items():
        parts = planes if name == "superspine" else planes * pods
        if tier.count % parts:
            what = f"{planes} planes" + (f" of {pods} pods" if parts > planes else "")
            yield Fault(f"{name}.count", f"expected a multiple of {parts}, for {what} of equal size, got {tier.count}")


def _tier(tier: Tier) -> Iterator[Fault]:
    models = switch_models()
    yield from _known("switch", tier.switch, models)
    yield from _at_least("count", tier.count, 1)
    yield from _at_least("down_ports", tier.down_ports, 1)
    yield from _at_least("up_ports", tier.up_ports, 0)
    model = models.get(tier.switch)
    if model is not None and tier.up_rate is not None and tier.up_rate > model.port_rate:
        yield Fault("up_rate", f"expected at most {model.port_rate}, a port of {tier.switch}, got {tier.up_rate}")


def _known(place: str, name: str, catalog: Iterable[str]) -> Iterator[Fault]:
    names = sorted(catalog)
    if name not in names:
        close = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f' (did you mean "{close[0]}"?)' if close else ""
        yield Fault(place, f'expected one of {", ".join(names)}, got "{name}"{hint}')


def _at_least(place: str, value: int, least: int) -> Iterator[Fault]:
    if value < least:
        yield Fault(place, f"expected at least {least}, got {value}")
