"""How KV cache travels in steady state: the way's load, the wait for it, and what of a transfer prefill does not hide.

The NICs of the prefill ranks, and those of the decode ranks, are servers with a queue before each
(Pollaczek-Khinchine); a layer's cache travels while later layers are computed, so what is left after the prompt is its
last layer's, or what the way is slower than prefill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fourlane.twin.assembly_parts import KvTransfer
    from fourlane.twin.steady.request_mix import RequestMix

    Floats = NDArray[np.float64]

__all__ = ["KvState", "exposed_times", "kv_capacity", "kv_state"]


_FULL = 0.9
"""Use of a NIC from which on its rank's pages become scarce."""


@dataclass(frozen=True, slots=True)
class KvState:
    """The way in steady state.

    Args:
        utilisation: of the busier end.
        wait_s: before a transfer, at both ends.
        rate: bytes a second of one transfer that has the way to itself.
        latency_s: of the first byte.
        token_bytes: KV cache of a token.
        layers: that it is cut into.
    """

    utilisation: float
    wait_s: float
    rate: float
    latency_s: float
    token_bytes: float
    layers: int


def kv_capacity(kv: KvTransfer, mix: RequestMix, token_bytes: float, *, senders: int, receivers: int) -> float:
    """Return the requests a second whose cache the way carries at most."""
    size = float(mix.input_N.mean()) * token_bytes
    return min(senders * kv.out_rate, receivers * kv.in_rate) / size if size > 0 else math.inf


def kv_state(
    kv: KvTransfer,
    mix: RequestMix,
    rate: float,
    *,
    token_bytes: float,
    layers: int,
    senders: tuple[float, int],
    receivers: tuple[float, int],
) -> KvState:
    """Return the way's steady state.

    Args:
        kv: the way, alone.
        mix: of requests.
        rate: requests a second.
        token_bytes: KV cache of a token.
        layers: of the model.
        senders, receivers: prefill and decode ranks that get work, and how many there are: where the working ones'
            NICs are full, their pages become scarce, and routing goes on to others.
    """
    size = float(mix.input_N.mean()) * token_bytes
    square = float((mix.input_N**2).mean()) * token_bytes**2
    uses, wait_s = list[float](), 0.0
    for speed, (working, ends) in ((kv.out_rate, senders), (kv.in_rate, receivers)):
        needed = rate * size / speed
        used = needed / min(float(ends), max(working, needed / _FULL)) if needed else 0.0
        uses.append(used)
        if used >= 1:
            wait_s = math.inf
        elif used > 0:
            wait_s += used / (1 - used) * square / size / speed / 2
    return KvState(
        utilisation=max(uses),
        wait_s=wait_s,
        rate=min(kv.out_rate, kv.in_rate),
        latency_s=kv.latency_s,
        token_bytes=token_bytes,
        layers=layers,
    )


def exposed_times(state: KvState, input_N: Floats, prefill_N: Floats, share_N: Floats) -> Floats:
    """Return what is left of each transfer when its prompt has been computed, [requests].

    Args:
        state: of the way.
        input_N: tokens of the prompts.
        prefill_N: seconds they are computed.
        share_N: 0..1, where each is among those that wait.
    """
    transfer_N = input_N * state.token_bytes / state.rate
    if state.wait_s == 0:
        wait_N = np.zeros_like(input_N)
    elif not math.isfinite(state.wait_s):
        return np.full_like(input_N, math.inf)
    else:
        tail_N = np.maximum(1.0 - share_N, 1e-9)
        used = state.utilisation
        wait_N = np.where(tail_N < used, state.wait_s / used * np.log(used / tail_N), 0.0)
    hidden_N = prefill_N * (state.layers - 1) / state.layers
    return state.latency_s + np.maximum(transfer_N / state.layers, wait_N + transfer_N - hidden_N)
