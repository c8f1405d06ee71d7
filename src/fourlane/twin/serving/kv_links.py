"""KV cache on its way: out of prefill ranks' NICs, into decode ranks'.

Each end serves what it is given in order, at its rate; a piece is through when both ends are, and not before the layer
computed last has followed. So a receiver that several ranks send to is waited for, and so is a sender of several
prompts. Rates are those of `KvTransfer`; not for what lies between the NICs (`fourlane.twin.kv_path`).
"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourlane.twin.assembly_parts import Assembly

__all__ = ["KvLinks"]

Exchanging = tuple[float, float]
RECENT_S = 5.0
"""Over how long the rate of all KV is averaged, fading: what expert traffic beside it feels."""

_LEVELS = 20
"""Shares of time are told apart so finely."""


class KvLinks:
    """Both ends of all transfers."""

    def __init__(self, assembly: Assembly) -> None:
        kv = assembly.kv
        self._out_s, self._in_s = 1 / kv.out_rate, 1 / kv.in_rate
        self._latency_s = kv.latency_s
        self.shared = kv.background(kv.out_rate) > 0
        """Expert traffic goes over the same NICs."""
        self._kv: Any = kv
        self._token_bytes = assembly.kv_token_bytes
        self._layers = assembly.architecture.layers
        self._ranks = assembly.prefill.pool.ranks
        self._out_until = [0.0] * assembly.prefill.ranks
        self._in_until = [0.0] * assembly.decode.ranks
        self.slowdown = [1.0] * assembly.prefill.pool.units
        """How many times as long transfers out of each prefill unit take: links that are down."""
        self.bytes = 0.0
        self._recent, self._counted_to = 0.0, 0.0
        self._known: dict[int, float] = {}
        self.busy_out_s = [0.0] * assembly.prefill.ranks
        self.busy_in_s = [0.0] * assembly.decode.ranks

    def send(self, way: tuple[int, int], tokens: int, *, begin: float, end: float, exchanging: Exchanging) -> float:
        """Send the KV of tokens from a prefill to a decode rank; return when it is there.

        Args:
            way: from which rank to which.
            tokens: whose KV it is.
            begin, end: seconds from and to which it is computed, layer by layer; equal: it was in the prefix cache.
            exchanging: share of time that both ranks' units exchange meanwhile, where that goes over the same NICs.
        """
        sender, receiver = way
        size = tokens * self._token_bytes
        self.bytes += size
        self._recent = self.rate(end) + size / RECENT_S
        first = begin + (end - begin) / self._layers
        slowdown = self.slowdown[sender // self._ranks]
        out_s, in_s = size * self._out_s * slowdown, size * self._in_s * slowdown
        if self.shared:
            out_s, in_s = out_s / self._kept(exchanging[0]), in_s / self._kept(exchanging[1])
        self._out_until[sender] = max(self._out_until[sender], first) + out_s
        self._in_until[receiver] = max(self._in_until[receiver], first) + in_s
        self.busy_out_s[sender] += out_s
        self.busy_in_s[receiver] += in_s
        last_layer = end + max(out_s, in_s) / self._layers
        return max(self._out_until[sender], self._in_until[receiver], last_layer) + self._latency_s

    def _kept(self, exchanging: float) -> float:
        """Return which share of its rate a transfer keeps beside expert traffic."""
        level = round(exchanging * _LEVELS)
        if level not in self._known:
            self._known[level] = self._kv.beside(level / _LEVELS).out_rate / self._kv.out_rate
        return self._known[level]

    def rate(self, now: float) -> float:
        """Return the bytes of KV a second that all ranks sent lately."""
        if now > self._counted_to:
            self._recent *= exp((self._counted_to - now) / RECENT_S)
            self._counted_to = now
        return self._recent
