"""What models of switches, NICs and GPUs can do, and how long they take: sourced figures, from the catalog beside it.

Not for how many there are and how they are cabled (`fourlane.spec.cluster`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from fourlane.errors import SpecError
from fourlane.spec.load import load
from fourlane.spec.reading import did_you_mean
from fourlane.units import Duration, Length, Rate, Size

__all__ = [
    "ChipLatency",
    "GpuModel",
    "Latencies",
    "LinkModel",
    "NicLatency",
    "NicModel",
    "SwitchModel",
    "gpu_models",
    "latencies",
    "load_gpu",
    "nic_models",
    "switch_models",
]

_CATALOG = Path(__file__).parent / "catalog"


class SwitchModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A switch model.

    `buffer` is shared by all ports; `cell` the unit it is given out in. `queues` egress queues and
    `priorities` PFC priorities a port. `pfc = false`: no lossless class can be had. `alpha_exponents`
    are the least and greatest n of a dynamic threshold 2^n. `headroom` names how the room for packets
    that arrive after a pause is worked out: by formula (which needs `cell`), or `headroom_fixed` whatever
    the cable, published for ports up to `headroom_fixed_to`.

    Units:
        pipeline: bytes a packet may occupy on its way through the chip, added to a PFC resume threshold.
        rate_allowance: bytes of headroom for each Gbit/s of port rate, on top of the formula.
    """

    vendor: str
    chip: str
    ports: int
    port_rate: Rate
    lanes_per_port: int
    buffer: Size
    cell: Size | None = None
    queues: int = 8
    priorities: int = 8
    pfc: bool = True
    trimming: bool = False
    adaptive_routing: tuple[str, ...] = ()
    """Operating systems on which it can be configured."""
    alpha_exponents: tuple[int, ...] = (-7, 7)
    headroom: Literal["formula", "fixed"] = "formula"
    headroom_fixed: Size = Size(0)
    headroom_fixed_to: Rate | None = None
    pipeline: Size = Size(0)
    rate_allowance: int = 0
    source: str


class NicModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A NIC model: its fastest port (None: it differs), and what of a lane plan it can be told.

    `dcb`: priorities, ETS, PFC; `adaptive_routing`: it can ask for adaptive routing and put
    packets that overtook each other back in order; `ecn_per_priority`: congestion control can be
    switched off for one priority alone.
    """

    vendor: str
    rate: Rate | None = None
    dcb: bool
    adaptive_routing: bool
    ecn_per_priority: bool
    priorities: int = 8
    source: str


class ChipLatency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long an idle switch keeps a packet, first bit in to first bit out; `published`, or assumed."""

    latency: Duration
    published: bool
    cut_through: bool
    source: str


class NicLatency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a NIC takes between memory and wire, each way; `pcie` is a part of both."""

    tx: Duration
    rx: Duration
    pcie: Duration
    published: bool
    source: str


class LinkModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Delay of a link: by its length, and for forward error correction."""

    per_metre: Duration
    fec: Duration
    source: str

    def delay(self, length: Length) -> Duration:
        """Return the delay of a link of some length."""
        return Duration(round(int(self.per_metre) * int(length) / 1000) + int(self.fec))


class Latencies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where time goes on an idle path: switches by chip, NICs by model, links by kind."""

    chips: dict[str, ChipLatency]
    nics: dict[str, NicLatency]
    links: dict[str, LinkModel]


class GpuModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU model: what it can compute at most, its memory, and how it reaches others.

    `processors`: those communication kernels may take a share of (SMs, AI cores). `nvlink`: bandwidth each way of the
    scale-up network, whatever its name; `nvlink_usable` what can be had of it; `nvlink_gpus` how many it joins;
    `latency` at either end, `nvswitch_latency` in its switch. `nic`: the one that usually belongs to each GPU.

    Units:
        bf16_tflops, fp8_tflops, int8_tflops: 10^12 operations a second, dense; None: it has no such arithmetic.
    """

    bf16_tflops: float
    fp8_tflops: float | None = None
    int8_tflops: float | None = None
    memory: Size
    memory_rate: Rate
    processors: int
    nvlink: Rate
    nvlink_usable: Rate
    nvlink_gpus: int = 8
    nic: Rate
    latency: Duration
    nvswitch_latency: Duration
    source: str

    def flops(self, dtype: Literal["fp8", "int8", "bf16", "fp32"]) -> float | None:
        """Return the peak of operations a second in a type; None: it has no such arithmetic, or no figure of it."""
        tflops = {"fp8": self.fp8_tflops, "int8": self.int8_tflops, "bf16": self.bf16_tflops}.get(dtype)
        return None if tflops is None else tflops * 1e12


class _Gpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, GpuModel]
    unpublished: dict[str, str]


class _Switches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, SwitchModel]


class _Nics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, NicModel]


@cache
def switch_models() -> dict[str, SwitchModel]:
    """Return the switch models of the catalog, by name."""
    return load(_CATALOG / "switches.toml", _Switches).models


@cache
def nic_models() -> dict[str, NicModel]:
    """Return the NIC models of the catalog, by name."""
    return load(_CATALOG / "nics.toml", _Nics).models


@cache
def gpu_models() -> dict[str, GpuModel]:
    """Return the GPU models of the catalog, by name."""
    return _gpus().models


def load_gpu(name: str) -> GpuModel:
    """Return the GPU model of a name, whatever its case.

    Raises:
        SpecError: the catalog has none of that name.
    """
    known = gpu_models()
    found = name.lower().replace("_", "-").replace(" ", "-")
    if found in known:
        return known[found]
    own = "give a hardware profile of your own (a .toml that `fourlane twin calibrate` writes)"
    if found in _gpus().unpublished:
        raise SpecError(f"hardware: {found}: {_gpus().unpublished[found]}, and figures are not made up here; {own}")
    names = ", ".join(known)
    raise SpecError(f'hardware: expected one of {names}, got "{name}"{did_you_mean(found, known)}; or {own}')


@cache
def _gpus() -> _Gpus:
    return load(_CATALOG / "gpus.toml", _Gpus)


@cache
def latencies() -> Latencies:
    """Return the latencies of the catalog."""
    return load(_CATALOG / "latencies.toml", Latencies)
