"""Bytes of K and V that a socket can send: where they are on CPU, a pinned copy from a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Staging", "ready_event"]


def ready_event(tensor: torch.Tensor) -> torch.cuda.Event | None:
    """Return an event that fires when what has been queued so far has computed a device's tensor."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return event


class Staging:
    """Turn tensors into host bytes. For one thread.

    Copies from a device run on a stream of their own, so that they neither wait for later
    computation nor hold it up.
    """

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def host_bytes(self, tensor: torch.Tensor, ready: torch.cuda.Event | None) -> np.ndarray:
        """Return a contiguous tensor's bytes, uint8 [bytes]; no copy is made of a CPU tensor.

        Args:
            tensor: contiguous.
            ready: from `ready_event`.
        """
        if ready is not None:
            tensor = self._copied(tensor, ready)
        return tensor.reshape(-1).view(torch.uint8).numpy()

    def _copied(self, tensor: torch.Tensor, ready: torch.cuda.Event) -> torch.Tensor:
        stream = self._streams.get(tensor.device)
        if stream is None:
            stream = self._streams[tensor.device] = torch.cuda.Stream(tensor.device)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            host.copy_(tensor, non_blocking=True)
        stream.synchronize()
        return host
