"""How long requests are and when they come, as text and figures say it, drawn from one seed.

`fourlane bench serve` sends such loads to a live service, the twin to a simulated one. Not for prompts
(`gateway.load.workload`) nor for recorded loads (`request_traces`).
"""

from __future__ import annotations

import math
import random
import re
from itertools import islice
from typing import TYPE_CHECKING, Literal

import msgspec

from fourlane.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Arrivals", "Lengths", "draw_requests"]

_Z99 = 2.3263478740408408  # the 99th percentile of the standard normal distribution


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution of token counts: "128", "64..256" (uniform) or "lognormal:200/1500" (median / 99th percentile)."""

    kind: Literal["fixed", "uniform", "lognormal"]
    low: int
    high: int

    @classmethod
    def parse(cls, text: str, *, name: str) -> Lengths:
        """Read a distribution from text.

        Raises:
            SpecError: the text is none of the three forms; `name` says where it stood.
        """
        if re.fullmatch(r"\d+", text):
            low = high = int(text)
            kind = "fixed"
        elif match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
            low, high, kind = int(match[1]), int(match[2]), "uniform"
        elif match := re.fullmatch(r"lognormal:(\d+)/(\d+)", text):
            low, high, kind = int(match[1]), int(match[2]), "lognormal"
        else:
            low = high = 0
            kind = "fixed"
        if not 1 <= low <= high:
            raise SpecError(
                f"{name}: expected a count of tokens from 1 such as 128, a range such as 64..256 or "
                f"lognormal:MEDIAN/P99 such as lognormal:200/1500, got {text!r}"
            )
        return cls(kind=kind, low=low, high=high)  # type: ignore[arg-type]

    def draw(self, generator: random.Random) -> int:
        """Draw one length, at least 1."""
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            return generator.randint(self.low, self.high)
        sigma = math.log(self.high / self.low) / _Z99
        return max(1, round(generator.lognormvariate(math.log(self.low), sigma)))


class Arrivals(msgspec.Struct, frozen=True, kw_only=True):
    """When requests come: `concurrency` at a time (closed loop), or `rate` a second whatever happens (open loop).

    `burstiness`: the coefficient of variation of the gaps; 1 is a Poisson process, 0 a metronome, above 1 bursts.
    A `rate` of infinity sends everything at once.
    """

    concurrency: int | None = None
    rate: float | None = None
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise SpecError("arrivals: give either --concurrency (closed loop) or --rate (open loop)")
        if self.concurrency is not None and self.concurrency < 1:
            raise SpecError(f"--concurrency: expected at least 1, got {self.concurrency}")
        if self.rate is not None and not self.rate > 0:
            raise SpecError(f"--rate: expected more than 0 requests a second, got {self.rate:g}")
        if not 0 <= self.burstiness < math.inf:
            raise SpecError(f"--burstiness: expected 0 or more, got {self.burstiness:g}")

    def times(self, generator: random.Random) -> Iterator[float | None]:
        """Yield due times in seconds, without end; None for the closed loop."""
        due = 0.0
        while True:
            yield None if self.rate is None else due
            if self.rate is not None:
                due += self._gap(generator)

    def _gap(self, generator: random.Random) -> float:
        assert self.rate is not None
        if math.isinf(self.rate):
            return 0.0
        if self.burstiness == 0:
            return 1.0 / self.rate
        shape = 1.0 / self.burstiness**2
        return generator.gammavariate(shape, 1.0 / (self.rate * shape))


def draw_requests(
    arrivals: Arrivals, *, requests: int, input_lengths: Lengths, output_lengths: Lengths, seed: int
) -> Iterator[tuple[float | None, int, int]]:
    """Yield due time in seconds (None: closed loop), prompt and answer tokens of each request."""
    generator = random.Random(seed)  # noqa: S311 - load, not cryptography
    times = arrivals.times(random.Random(f"{seed}/arrivals"))  # noqa: S311
    for due_s in islice(times, requests):
        yield due_s, input_lengths.draw(generator), output_lengths.draw(generator)
