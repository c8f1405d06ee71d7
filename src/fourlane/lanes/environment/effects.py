"""What an environment really does: which ToS byte and service level each library's connections get, and from where.

Libraries differ in how they read a number, in their defaults and in what beats what; all of that is here. Not for
whether it is what a plan wants (`fourlane.lanes.environment.lint`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.lanes.environment.libraries import KNOBS, STREAMS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fourlane.lanes.environment.libraries import Fabric, StreamName

__all__ = [
    "DEEPEP_DEFAULT_SL",
    "HCCL_DEFAULT_TOS",
    "UCX_DEFAULT_TOS",
    "Effect",
    "Number",
    "Setting",
    "effect_of",
    "read_number",
]

UCX_DEFAULT_TOS = 106
HCCL_DEFAULT_TOS = 132
DEEPEP_DEFAULT_SL = 3
_MOST_TOS = 255
_MOST_SL = 15
_LEADING = re.compile(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)")


@dataclass(frozen=True, slots=True)
class Number:
    """What a library makes of a variable's text; `value` None: as if it were unset. `fault` says what is odd."""

    value: int | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and what decided it: a variable, or "default", or a file in sysfs. `value` None: not known here."""

    value: int | None
    decided_by: str
    because: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What the connections of one kind carry. A part is None where the fabric, or the library, has no such thing."""

    stream: StreamName
    fabric: Fabric
    tos: Setting | None
    sl: Setting | None


def read_number(name: str, text: str) -> Number:
    """Read a variable's number as its library does.

    NCCL and NVSHMEM read it as C does (0x is hexadecimal, a leading 0 octal, what follows the digits is ignored),
    Mooncake as decimal, UCX knows "auto" and refuses nonsense, DeepEP is Python.
    """
    library = KNOBS[name].library
    limit = {"ToS byte": _MOST_TOS, "service level": _MOST_SL}.get(KNOBS[name].unit)
    if name == "EP_OVERRIDE_RDMA_SL":
        limit = _MOST_TOS  # on Ethernet it is a ToS byte
    if library == "ucx" and text.strip() == "auto":
        return Number(None)
    number = _READERS[library](text)
    if number.value is None or limit is None:
        return number
    if number.value == -1 and library in ("nccl", "mooncake"):
        return Number(None, number.fault)
    if not 0 <= number.value <= limit:
        return _beyond(library, number.value, limit)
    return number


def _beyond(library: str, value: int, limit: int) -> Number:
    expected = f"expected 0 to {limit}, got {value}"
    if library == "mooncake":
        return Number(None, f"{expected}: Mooncake ignores it")
    return Number(value & limit, f"{expected}: what does not fit is cut off, {value & limit} is left")


def _as_c(text: str) -> Number:
    match = _LEADING.match(text)
    if match is None:
        return Number(0, f'expected a number, got "{text}": it is read as 0')
    sign, digits = match.groups()
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
    if octal:
        digits = re.match(r"[0-7]+", digits)[0]  # type: ignore[index]
    value = int(digits, 8 if octal else 0) * (-1 if sign == "-" else 1)
    if octal:
        return Number(value, f'"{text.strip()}" begins with 0 and is read as octal: {value}')
    if text[match.end() :].strip():
        return Number(value, f'expected a number, got "{text}": it is read as {value}')
    return Number(value)


def _as_stoi(text: str) -> Number:
    match = re.match(r"\s*([+-]?[0-9]+)", text)
    if match is None:
        return Number(None, f'expected a number, got "{text}": Mooncake ignores it')
    value = int(match[1])
    if text[match.end() :].strip():
        return Number(value, f'expected a decimal number, got "{text}": it is read as {value}')
    return Number(value)


def _strict(text: str, consequence: str) -> Number:
    try:
        return Number(int(text.strip()))
    except ValueError:
        return Number(None, f'expected a number, got "{text}": {consequence}')


_READERS: dict[str, Callable[[str], Number]] = {
    "nccl": _as_c,
    "nvshmem": _as_c,
    "mooncake": _as_stoi,
    "ucx": lambda text: _strict(text, "UCX refuses to start"),
    "deepep": lambda text: _strict(text, "DeepEP fails to start"),
    "hccl": lambda text: _strict(text, "HCCL fails to start"),
    "uccl": _as_c,
    "gloo": lambda text: _strict(text, "it is no number"),
}


def effect_of(stream: StreamName, env: Mapping[str, str], fabric: Fabric, *, forced_tos: int | None = None) -> Effect:
    """Work out what a stream's connections carry.

    Args:
        forced_tos: the ToS byte that its device puts on all queue pairs set up through the kernel, if any.
    """
    facts = STREAMS[stream]
    if not facts.tos or fabric == "ethernet" or (stream == "NVSHMEM" and fabric == "erdma"):
        return Effect(stream, fabric, None, None)  # no marks of its own, or it does not run there
    sl = _SERVICE_LEVELS[stream](env, fabric) if stream in _SERVICE_LEVELS else None
    if fabric == "infiniband":
        return Effect(stream, fabric, None, sl)
    tos = _TOS_BYTES[stream](env)
    if forced_tos is not None and facts.kernel:
        path = "/sys/class/infiniband/<device>/tc/1/traffic_class"
        tos = Setting(forced_tos, path, f"forced on all kernel queue pairs of the device, whatever {facts.tos} says")
    return Effect(stream, fabric, tos, sl)


def _held(env: Mapping[str, str], name: str) -> int | None:
    return read_number(name, env[name]).value if name in env else None


def _nccl_tos(env: Mapping[str, str]) -> Setting:
    value = _held(env, "NCCL_IB_TC")
    if value is not None:
        return Setting(value, "NCCL_IB_TC", "for every communicator, whatever its trafficClass")
    return Setting(0, "default", "NCCL_IB_TC is unset: 0, unless a communicator has a trafficClass of its own")


def _clear_to_send_tos(env: Mapping[str, str]) -> Setting:
    value = _held(env, "NCCL_IB_FIFO_TC")
    if value is not None:
        return Setting(value, "NCCL_IB_FIFO_TC", "for clear-to-send messages alone")
    data = _nccl_tos(env)
    return Setting(data.value, data.decided_by, "NCCL_IB_FIFO_TC is unset: clear-to-send messages are marked like data")


def _gin_tos(env: Mapping[str, str]) -> Setting:
    value = _held(env, "NCCL_GIN_IB_TC")
    if value is not None:
        return Setting(value, "NCCL_GIN_IB_TC", "for GPU-initiated queue pairs alone, from NCCL 2.30.7 on")
    value = _held(env, "NCCL_IB_TC")
    if value is not None:
        return Setting(value, "NCCL_IB_TC", "NCCL_GIN_IB_TC is unset: NCCL's own value holds for DeepEP too")
    value = _held(env, "EP_OVERRIDE_RDMA_SL")
    if value is not None:
        return Setting(value, "EP_OVERRIDE_RDMA_SL", "on Ethernet DeepEP's service level is handed on as the ToS byte")
    why = f"neither NCCL_GIN_IB_TC nor NCCL_IB_TC is set: DeepEP's service level, {DEEPEP_DEFAULT_SL}, is the ToS byte"
    return Setting(DEEPEP_DEFAULT_SL, "default", why)


def _nvshmem_tos(env: Mapping[str, str]) -> Setting:
    value = _held(env, "NVSHMEM_IB_TRAFFIC_CLASS")
    if value is not None:
        return Setting(value, "NVSHMEM_IB_TRAFFIC_CLASS", "its DSCP; the ECN bits are left to the NIC")
    return Setting(0, "default", "NVSHMEM_IB_TRAFFIC_CLASS is unset: 0")


def _ucx_tos(env: Mapping[str, str]) -> Setting:
    value = _held(env, "UCX_IB_TRAFFIC_CLASS")
    if value is not None:
        return Setting(value, "UCX_IB_TRAFFIC_CLASS", "the ToS byte, though UCX's help calls it a DSCP")
    how = "auto" if "UCX_IB_TRAFFIC_CLASS" in env else "unset"
    return Setting(UCX_DEFAULT_TOS, "default", f"UCX_IB_TRAFFIC_CLASS is {how}: 106, DSCP 26 with ECT(0)")


def _mooncake_tos(env: Mapping[str, str]) -> Setting:
    value = _held(env, "MC_IB_TC")
    if value is not None:
        return Setting(value, "MC_IB_TC", "unless the device forces another")
    return Setting(0, "default", "MC_IB_TC is unset: 0")


def _hccl_tos(env: Mapping[str, str]) -> Setting:
    value = _held(env, "HCCL_RDMA_TC")
    if value is not None:
        return Setting(value, "HCCL_RDMA_TC", "as set")
    return Setting(HCCL_DEFAULT_TOS, "default", f"HCCL_RDMA_TC is unset: {HCCL_DEFAULT_TOS}")


def _uccl_tos(env: Mapping[str, str]) -> Setting:
    value = _held(env, "UCCL_P2P_RDMA_TC")
    if value is not None:
        return Setting(value, "UCCL_P2P_RDMA_TC", "as set")
    return Setting(None, "default", "UCCL_P2P_RDMA_TC is unset: defaults differ by version")


_TOS_BYTES: dict[str, Callable[[Mapping[str, str]], Setting]] = {
    "NCCL": _nccl_tos,
    "NCCL clear-to-send": _clear_to_send_tos,
    "NCCL GIN": _gin_tos,
    "NVSHMEM": _nvshmem_tos,
    "UCX": _ucx_tos,
    "Mooncake": _mooncake_tos,
    "HCCL": _hccl_tos,
    "UCCL": _uccl_tos,
}


def _plain_sl(name: str) -> Callable[[Mapping[str, str], Fabric], Setting]:
    def work_out(env: Mapping[str, str], fabric: Fabric) -> Setting:
        del fabric
        value = _held(env, name)
        return Setting(0, "default", f"{name} is unset: 0") if value is None else Setting(value, name, "as set")

    return work_out


def _nccl_sl(env: Mapping[str, str], fabric: Fabric) -> Setting:
    del fabric
    value = _held(env, "NCCL_IB_SL")
    if value is not None:
        return Setting(value, "NCCL_IB_SL", "for every communicator")
    return Setting(0, "default", "NCCL_IB_SL is unset: a communicator's trafficClass is its service level too, else 0")


def _gin_sl(env: Mapping[str, str], fabric: Fabric) -> Setting | None:
    if fabric != "infiniband":
        return None  # on Ethernet none is set
    value = _held(env, "NCCL_IB_SL")
    if value is not None:
        return Setting(value, "NCCL_IB_SL", "it beats DeepEP's own service level")
    value = _held(env, "EP_OVERRIDE_RDMA_SL")
    if value is not None:
        return Setting(value, "EP_OVERRIDE_RDMA_SL", "DeepEP's service level")
    return Setting(DEEPEP_DEFAULT_SL, "default", "DeepEP's service level where nothing else is said")


_SERVICE_LEVELS: dict[str, Callable[[Mapping[str, str], Fabric], Setting | None]] = {
    "NCCL": _nccl_sl,
    "NCCL GIN": _gin_sl,
    "NVSHMEM": _plain_sl("NVSHMEM_IB_SL"),
    "UCX": _plain_sl("UCX_IB_SL"),
    "Mooncake": _plain_sl("MC_IB_SL"),
    "HCCL": _plain_sl("HCCL_RDMA_SL"),
    "UCCL": _plain_sl("UCCL_P2P_RDMA_SL"),
}
