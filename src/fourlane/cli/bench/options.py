"""Options that benchmarks of exchanges read alike: lists of numbers, and links between ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.units import Rate

__all__ = ["ETHERNET_MTU", "Link", "read_link", "read_numbers"]

ETHERNET_MTU = 1500
LEAST_MTU, GREATEST_MTU = 1280, 9000
"""What IPv6 needs, and what Ethernet's large frames carry."""


@dataclass(frozen=True, slots=True)
class Link:
    """A rank's link to the switch between all.

    Units:
        mtu: bytes of a packet; the processors that forward packets have fewer to forward where it is large.
    """

    rate: Rate
    mtu: int = ETHERNET_MTU

    def __str__(self) -> str:
        """Return the rate, and the size of packets where it is not Ethernet's ordinary one."""
        return str(self.rate) if self.mtu == ETHERNET_MTU else f"{self.rate}, packets of {self.mtu}"

    def ideal_s(self, size: int) -> float:
        """Return for how many seconds so many bytes keep the link busy one way, headers included."""
        from fourlane.lab.flows import ideal_s

        return ideal_s(size, self.rate, mtu=self.mtu)


def read_link(text: str | None, mtu: int, faults: list[str]) -> Link | None:
    """Return the link of options --link and --mtu; what is wrong with them goes to `faults`."""
    from fourlane.units import Rate

    if not LEAST_MTU <= mtu <= GREATEST_MTU:
        fault = f"--mtu: expected {LEAST_MTU} to {GREATEST_MTU}, got {mtu}"
        faults += [fault] if fault not in faults else []
    if text is None:
        return None
    try:
        rate = Rate.parse(text)
    except ValueError as error:
        faults.append(f"--link: {error}")
        return None
    if rate <= 0:
        faults.append(f"--link: expected a rate above 0, got {text}")
    return Link(rate, mtu)


def read_numbers(option: str, text: str, span: range, faults: list[str]) -> tuple[int, ...]:
    """Return the numbers of an option, in order, each once; what is wrong with them goes to `faults`.

    Args:
        option: its name.
        text: numbers between commas.
        span: what they may be.
        faults: is told of those that are something else.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isdigit() or int(part) not in span]
    faults += [f'{option}: expected numbers from {span[0]} to {span[-1]}, got "{part}"' for part in wrong]
    return tuple(sorted({int(part) for part in parts if part not in wrong}))
