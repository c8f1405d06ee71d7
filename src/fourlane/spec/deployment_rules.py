"""What a deployment must satisfy beyond its fields' types, and what its owner should know."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from fourlane.spec.reading import Fault
from fourlane.units import Quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fourlane.spec.deployment import Balance, Deployment, Gateway, KvTransfer, Pool

__all__ = ["cautions", "deployment_faults", "port_range"]

LAST_PORT = 65535
LARGEST_BLOCK = 256
MOST_STREAMS = 64
LARGEST_GID = 255
_DEVICE = re.compile(r"cpu|cuda(:[0-9]+)?")
_CONTROL = re.compile(r"tcp://(?P<host>[^:/]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]+)")
MOST_LOW_LATENCY_TOKENS = 511  # of DeepEP's queues of 1024: two entries a token, and two more
_STRAIGHT = ("shared_memory", "deepep")
"""Exchanges that take no way over nodes, or one of their own."""
_NIC = re.compile(r"[A-Za-z0-9_.@-]{1,64}(:[0-9]{1,3})?")
_PORTS = re.compile(r"([0-9]+)-([0-9]+)")


def deployment_faults(deployment: Deployment) -> Iterator[Fault]:
    """Yield every rule that is broken."""
    yield from _pools(deployment)
    for role, pool in deployment.pools().items():
        yield from (Fault(f"{role}.{fault.place}", fault.message) for fault in _pool(pool))
    yield from (Fault(f"gateway.{fault.place}", fault.message) for fault in _gateway(deployment.gateway))
    if deployment.model.max_length is not None:
        yield from _at_least("model.max_length", deployment.model.max_length, 2)
    size = deployment.kv_cache.block_size
    if not 1 <= size <= LARGEST_BLOCK or size & (size - 1):
        yield Fault("kv_cache.block_size", f"expected a power of two from 1 to {LARGEST_BLOCK}, got {size}")
    yield from _kv_transfer(deployment.kv_transfer)
    yield from _exchange(deployment)
    yield from _address("exchange.address", deployment.exchange.address)
    yield from _at_least("kv_transfer.timeout", deployment.kv_transfer.timeout, 1)
    yield from _at_least("exchange.timeout", deployment.exchange.timeout, 1)
    yield from _ports(deployment)
    yield from _at_least("overlap.min_tokens", deployment.overlap.min_tokens, 2)
    if deployment.overlap.min_gain < 0:
        yield Fault("overlap.min_gain", f"expected at least 0, got {deployment.overlap.min_gain:g}")
    if deployment.balance is not None:
        yield from (Fault(f"balance.{fault.place}", fault.message) for fault in _balance(deployment.balance))


def cautions(deployment: Deployment) -> list[str]:
    """Return what is allowed but should be meant: sentences for a person, empty if there is nothing."""
    found: list[str] = []
    gateway = deployment.gateway
    if not _is_loopback(gateway.host) and not gateway.api_key:
        found.append(
            f"gateway.host: {gateway.host} can be reached from other machines and gateway.api_key is not set, so "
            "anyone there can use the service; set gateway.api_key, or bind to 127.0.0.1"
        )
    groups = {pool.expert_parallel or pool.ranks for pool in deployment.pools().values()}
    if deployment.balance is not None and max(groups, default=1) == 1:
        found.append(
            "balance: every rank holds all experts (each expert-parallel group is one rank), so there is nothing to "
            "balance; remove [balance], or share the experts over more ranks"
        )
    if deployment.overlap.mode == "always" and max(groups, default=1) == 1:
        found.append(
            "overlap.mode: every rank holds all experts, so there is no communication to hide and steps run in one "
            'stream; remove "always", or share the experts over more ranks'
        )
    if deployment.prefill and deployment.prefill.launch == "local" and deployment.decode:
        remote = deployment.decode.launch == "external"
        if remote and _is_loopback(deployment.kv_transfer.address):
            found.append(
                "kv_transfer.address: a loopback address, so external decode ranks must run on this host; "
                "set the address of the interface that KV traffic shall use"
            )
    return found


def port_range(ports: str) -> range:
    """Return the ports of a range written "first-last", both included.

    Raises:
        ValueError: it is not such a range.
    """
    match = _PORTS.fullmatch(ports)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= LAST_PORT:
        raise ValueError(f'expected a port range such as "7000-7031" within 1-{LAST_PORT}, got "{ports}"')
    return range(first, last + 1)


def _pools(deployment: Deployment) -> Iterator[Fault]:
    split = [role for role in ("prefill", "decode") if getattr(deployment, role) is not None]
    if deployment.unified is not None and split:
        found = ", ".join(f"[{role}]" for role in [*split, "unified"])
        yield Fault("unified", f"expected either [prefill] and [decode] or [unified], got {found}; remove one")
    elif deployment.unified is None and len(split) == 1:
        missing = "decode" if split == ["prefill"] else "prefill"
        yield Fault(missing, f"expected a table [{missing}] to go with [{split[0]}], but it is missing")
    elif deployment.unified is None and not split:
        yield Fault("", "expected tables [prefill] and [decode], or [unified], got none of them")


def _pool(pool: Pool) -> Iterator[Fault]:
    for name in ("ranks", "threads", "chunk_tokens", "max_running", "kv_memory"):
        yield from _at_least(name, getattr(pool, name), 1)
    degree = pool.expert_parallel
    if degree is not None and pool.ranks >= 1 and (degree < 1 or pool.ranks % degree):
        fitting = [str(n) for n in range(1, min(pool.ranks, 4096) + 1) if pool.ranks % n == 0]
        yield Fault(
            "expert_parallel", f"expected a divisor of ranks = {pool.ranks} ({', '.join(fitting[:12])}), got {degree}"
        )
    if not _DEVICE.fullmatch(pool.device):
        yield Fault("device", f'expected "cpu", "cuda" or "cuda:N", got "{pool.device}"')


def _exchange(deployment: Deployment) -> Iterator[Fault]:
    on_gpus = [role for role, pool in deployment.pools().items() if pool.device != "cpu"]
    if deployment.exchange.implementation == "shared_memory" and on_gpus:
        yield Fault(
            "exchange.implementation",
            f'"shared_memory" is for CPUs, got [{on_gpus[0]}] on {deployment.pools()[on_gpus[0]].device}; use "auto"',
        )
    on_cpus = [role for role, pool in deployment.pools().items() if pool.device == "cpu"]
    wanted = deployment.exchange.implementation
    if wanted in ("deepep", "symmetric_memory") and on_cpus:
        yield Fault(
            "exchange.implementation",
            f'"{wanted}" is for pools on GPUs, and [{on_cpus[0]}] is on cpu; expected "auto", "tcp", "shared_memory" '
            f'or "torch_all_to_all", or {on_cpus[0]}.device = "cuda"',
        )
    if deployment.exchange.hierarchical == "always" and deployment.exchange.implementation in _STRAIGHT:
        yield Fault(
            "exchange.hierarchical",
            f'"always" is for "tcp" and "torch_all_to_all", got "{deployment.exchange.implementation}" as '
            'exchange.implementation; use "auto"',
        )
    few = deployment.exchange.low_latency_tokens
    if not 0 <= few <= MOST_LOW_LATENCY_TOKENS:
        yield Fault("exchange.low_latency_tokens", f"expected tokens from 0 to {MOST_LOW_LATENCY_TOKENS}, got {few}")


def _gateway(gateway: Gateway) -> Iterator[Fault]:
    if not gateway.host:
        yield Fault("host", 'expected an address such as "127.0.0.1" or "0.0.0.0", got ""')
    if not 0 <= gateway.port <= LAST_PORT:
        yield Fault("port", f"expected a port from 0 (any free one) to {LAST_PORT}, got {gateway.port}")
    if gateway.api_key == "":
        yield Fault("api_key", 'expected a key, got ""; leave the line out for a service without one')
    for name in ("max_queued_requests", "max_body", "request_timeout", "ready_timeout"):
        yield from _at_least(name, getattr(gateway, name), 1)
    yield from _at_least("max_retries", gateway.max_retries, 0)
    match = _CONTROL.fullmatch(gateway.control) if gateway.control is not None else None
    if gateway.control is not None and (match is None or int(match["port"]) > LAST_PORT):
        yield Fault("control", f'expected an address such as "tcp://10.0.0.1:7600", got "{gateway.control}"')


def _kv_transfer(kv_transfer: KvTransfer) -> Iterator[Fault]:
    yield from _address("kv_transfer.address", kv_transfer.address)
    for index, address in enumerate(kv_transfer.more_addresses):
        yield from _address(f"kv_transfer.more_addresses[{index}]", address)
    addresses = [kv_transfer.address, *kv_transfer.more_addresses]
    for twice in sorted({address for address in addresses if addresses.count(address) > 1}):
        yield Fault("kv_transfer.more_addresses", f'expected addresses of different interfaces, got "{twice}" twice')
    if not 1 <= kv_transfer.streams <= MOST_STREAMS:
        yield Fault("kv_transfer.streams", f"expected 1 to {MOST_STREAMS} connections, got {kv_transfer.streams}")
    for index, device in enumerate(kv_transfer.devices):
        if not _NIC.fullmatch(device):
            place = f"kv_transfer.devices[{index}]"
            yield Fault(place, f'expected a device such as "mlx5_0:1" or an interface such as "eth1", got "{device}"')
    gid_index = kv_transfer.gid_index
    if gid_index is not None and not 0 <= gid_index <= LARGEST_GID:
        yield Fault("kv_transfer.gid_index", f"expected 0 to {LARGEST_GID}, got {gid_index}")
    if kv_transfer.transport in ("tcp", "shared_memory") and (kv_transfer.devices or gid_index is not None):
        name = "devices" if kv_transfer.devices else "gid_index"
        message = f'expected none with transport "{kv_transfer.transport}", which knows addresses only; remove the line'
        yield Fault(f"kv_transfer.{name}", message)


def _balance(balance: Balance) -> Iterator[Fault]:
    yield from _at_least("redundant_experts", balance.redundant_experts, 0)
    for name in ("interval_steps", "window_steps", "moves", "migration_timeout"):
        yield from _at_least(name, getattr(balance, name), 1)
    if balance.bulk_rate is not None:
        yield from _at_least("bulk_rate", balance.bulk_rate, 1)
    if balance.window_steps > balance.interval_steps >= 1:
        message = f"expected at most interval_steps = {balance.interval_steps}, got {balance.window_steps}"
        yield Fault("window_steps", message)
    for name in ("min_gain", "cost_tokens", "cost_activated"):
        if getattr(balance, name) < 0:
            yield Fault(name, f"expected at least 0, got {getattr(balance, name):g}")
    if balance.cost_tokens == balance.cost_activated == 0:
        yield Fault("cost_tokens", "expected cost_tokens or cost_activated above 0, got 0 for both")
    if balance.initial == "":
        yield Fault("initial", 'expected a placement file, got ""; leave the line out to begin with experts in order')


def _ports(deployment: Deployment) -> Iterator[Fault]:
    """Check the syntax, and that every decode rank of this host gets a port of its own."""
    ports, decode = deployment.kv_transfer.ports, deployment.decode
    if ports is None:
        return
    try:
        count = len(port_range(ports))
    except ValueError as error:
        yield Fault("kv_transfer.ports", str(error))
        return
    if decode is not None and decode.launch == "local" and count < decode.ranks:
        message = f'expected a port for each of {decode.ranks} decode ranks, got {count} in "{ports}"'
        yield Fault("kv_transfer.ports", message)


def _at_least(place: str, value: int, least: int) -> Iterator[Fault]:
    if value < least:
        bound = "more than nothing" if isinstance(value, Quantity) else f"at least {least}"
        yield Fault(place, f"expected {bound}, got {value}")


def _address(place: str, address: str) -> Iterator[Fault]:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        yield Fault(place, f'expected an IP address of this host such as "127.0.0.1", got "{address}"')


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
