"""PFC headroom: the buffer a port needs for what still arrives after it has asked for silence.

Source: SONiC, doc/qos/dynamically-headroom-calculation.md and swss cfgmgr/buffer_headroom_mellanox.lua;
IEEE 802.3 Annex 31B for the response time of the peer. With small packets only, the formula gives
NVIDIA's own table for SN5600 (24 rows, 10G to 800G by 5, 40 and 300 m) exactly or 1 KiB less, so 1 KiB
is added: never less than the vendor's figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourlane.units import Length, Rate, Size

if TYPE_CHECKING:
    from fourlane.spec.hardware import SwitchModel

__all__ = ["Headroom", "formula_xoff", "port_headroom"]

_KIB = 1024
_QUANTUM = 64
_QUANTA = ((1, 2), (10, 67), (25, 80), (40, 118), (50, 147), (100, 394), (200, 453), (400, 905), (800, 905))
"""Response time of a paused peer by port rate in Gbit/s, in pause quanta of 64 bytes."""
_PORT_MTU = 9216
_MAC_AND_PHY = 0.8 * _KIB
_METRES_PER_SECOND = 1.98e8
_TABLE_DIFFERENCE = _KIB
ROCE_MTU = Size(4096)
"""Largest path MTU of RoCE: the packet that may be half sent when the pause arrives."""
LANES_OF_DOUBLED_PIPELINE = 8


@dataclass(frozen=True, slots=True)
class Headroom:
    """What one lossless class needs on one port.

    Units:
        xoff: bytes that may still arrive after the pause. xon: bytes left when the sender may go on.
        size: bytes the port's priority group reserves in all, where headroom is not shared.
    """

    xoff: Size
    xon: Size
    size: Size


def port_headroom(model: SwitchModel, rate: Rate, cable: Length, *, given: Size | None = None) -> Headroom | None:
    """Work out the headroom of a port for one lossless class.

    Args:
        model: the switch.
        rate: of the port.
        cable: its length.
        given: a figure to use instead of the model's own.

    Returns:
        None where no figure is published for this model and rate, and none is given.
    """
    wide = rate * model.lanes_per_port >= model.port_rate * LANES_OF_DOUBLED_PIPELINE
    xon = _round_up(model.pipeline * (2 if wide else 1))
    if given is not None:
        xoff = given
    elif model.headroom == "fixed":
        if model.headroom_fixed_to is None or rate > model.headroom_fixed_to:
            return None
        xoff = model.headroom_fixed
    elif model.cell is None:
        return None
    else:
        xoff = Size(formula_xoff(model, rate, cable, lossless_mtu=ROCE_MTU) + _TABLE_DIFFERENCE)
    return Headroom(xoff=xoff, xon=xon, size=Size(xoff + xon + (_PORT_MTU if wide else 0)))


def formula_xoff(
    model: SwitchModel, rate: Rate, cable: Length, *, lossless_mtu: Size, small_share: float = 1.0
) -> Size:
    """Return the formula's bytes, rounded up to whole KiB, without the added KiB.

    Args:
        model: a switch with a cell size.
        rate: of the port.
        cable: its length.
        lossless_mtu: largest packet of the lossless class.
        small_share: share of bytes in packets small enough to waste the most of their cells, 0 to 1.
    """
    if model.cell is None:
        raise ValueError(f"{model.chip}: the headroom formula needs the cell size, which the catalog does not have")
    in_cable = 2 * cable.metres * int(rate) / _METRES_PER_SECOND / 8
    propagation = _PORT_MTU + in_cable + _MAC_AND_PHY + _peer_response(rate) + model.rate_allowance * int(rate) / 1e9
    cell = int(model.cell)
    worst = math.ceil(cell / 64) if cell > 128 else math.ceil(2 * cell / (1 + cell))
    occupancy = 1 - small_share + small_share * worst
    return _round_up(lossless_mtu + propagation * occupancy)


def _peer_response(rate: Rate) -> int:
    """Return the bytes a peer may still send while it takes notice; of the next listed rate if between two."""
    gbps = int(rate) / 1e9
    quanta = next((quanta for listed, quanta in _QUANTA if gbps <= listed), _QUANTA[-1][1])
    return quanta * _QUANTUM


def _round_up(size: float) -> Size:
    return Size(math.ceil(size / _KIB) * _KIB)
