"""KV pages from prefill to decode, on a lane of their own.

Importing this package imports no torch; `make_receiver` and `make_sender` are loaded when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.engine.kv_transfer.select import make_receiver, make_sender

__all__ = ["make_receiver", "make_sender"]


def __getattr__(name: str) -> object:
    """Load what is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fourlane.engine.kv_transfer import select

    return getattr(select, name)
