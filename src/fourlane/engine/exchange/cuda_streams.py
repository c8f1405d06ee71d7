"""Order a GPU's computing stream with a communicating one by events, so that no thread waits for the GPU.

The allocator is told who uses what, so that memory is not given to another before both streams are
past it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

__all__ = ["CudaStreams"]

_URGENT = -1
"""A small transfer should not queue behind kernels that fill the GPU."""


class CudaStreams:
    """A stream to communicate on, beside the one that computes.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=_URGENT)

    def post(self, used: Iterable[Tensor]) -> torch.cuda.Event:
        """Mark, on the computing thread, the point from which on tensors may be sent."""
        for tensor in used:
            tensor.record_stream(self._stream)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    @contextmanager
    def communicating(self, posted: torch.cuda.Event | None) -> Iterator[None]:
        """Do what follows on the communicating stream, behind what was posted if that is to be waited for."""
        with torch.cuda.stream(self._stream):
            if posted is not None:
                self._stream.wait_event(posted)
            yield

    def mark(self) -> torch.cuda.Event:
        """Mark, on the communicating thread, the point at which an operation's results are there."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def take_over(self, through: torch.cuda.Event, results: Iterable[Tensor]) -> None:
        """Let the computing stream go on only behind that point, and use the results."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(through)
        for tensor in results:
            tensor.record_stream(computing)
