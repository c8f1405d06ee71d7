"""Classes of traffic, and the mark each carries on the wire.

The one table from which the default lane plan, and sockets without a plan, take a class's DSCP.
Not here: queues, weights, buffers (`fourlane.lanes.plan`).
"""

from __future__ import annotations

from enum import Enum

__all__ = ["TrafficClass", "dscp_to_tos", "tos_to_dscp"]

MOST_DSCP = 63
MOST_TOS = 255


class TrafficClass(Enum):
    """A kind of traffic; its value is the name people write.

    The default DSCPs are chosen so that `dscp >> 3` is the priority wanted, which is what an
    unconfigured NIC derives from a DSCP: expert 46 -> 5, collective 26 -> 3, kv 18 -> 2,
    control 48 -> 6, bulk 8 -> 1, the rest 0 -> 0.

    Source: default DSCP map of NVIDIA ConnectX (priority = DSCP / 8); RFC 2474 and RFC 4594 for
        the code points (EF 46, AF31 26, AF21 18, CS6 48, CS1 8 for what may wait).
    """

    EXPERT = "expert"
    COLLECTIVE = "collective"
    KV = "kv"
    CONTROL = "control"
    BULK = "bulk"
    DEFAULT = "default"

    @property
    def dscp(self) -> int:
        """Return the class's default DSCP, 0 to 63."""
        return {"expert": 46, "collective": 26, "kv": 18, "control": 48, "bulk": 8, "default": 0}[self.value]

    @property
    def priority(self) -> int:
        """Return the priority the default DSCP stands for, 0 to 7; 7 is never used."""
        return self.dscp >> 3


def dscp_to_tos(dscp: int, *, ecn: int = 0) -> int:
    """Return the ToS (traffic class) byte of a DSCP: the DSCP in the upper six bits, ECN below.

    Args:
        dscp: 0 to 63.
        ecn: the two ECN bits, 0 to 3. For TCP the kernel sets them itself; leave 0.

    Raises:
        ValueError: out of range, as when a ToS byte is given where a DSCP belongs.
    """
    if not 0 <= dscp <= MOST_DSCP:
        raise ValueError(f"DSCP: expected 0 to {MOST_DSCP}, got {dscp} (a ToS byte is four times the DSCP)")
    if not 0 <= ecn <= 3:
        raise ValueError(f"ECN bits: expected 0 to 3, got {ecn}")
    return dscp << 2 | ecn


def tos_to_dscp(tos: int) -> int:
    """Return the DSCP in a ToS (traffic class) byte; the ECN bits are left out.

    Raises:
        ValueError: not a byte.
    """
    if not 0 <= tos <= MOST_TOS:
        raise ValueError(f"ToS byte: expected 0 to {MOST_TOS}, got {tos}")
    return tos >> 2
