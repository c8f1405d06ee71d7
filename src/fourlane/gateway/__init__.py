"""The HTTP side: an OpenAI-compatible API in front of the ranks. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.gateway.app import EmbeddedServer, create_app
    from fourlane.gateway.metrics import Metrics
    from fourlane.gateway.router import Limits, Router
    from fourlane.gateway.state import GatewayState, ModelFacts
    from fourlane.gateway.tokenizer import ModelTokenizer

__all__ = [
    "EmbeddedServer",
    "GatewayState",
    "Limits",
    "Metrics",
    "ModelFacts",
    "ModelTokenizer",
    "Router",
    "create_app",
]

_HOME = {
    "EmbeddedServer": "app",
    "GatewayState": "state",
    "Limits": "router",
    "Metrics": "metrics",
    "ModelFacts": "state",
    "ModelTokenizer": "tokenizer",
    "Router": "router",
    "create_app": "app",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
