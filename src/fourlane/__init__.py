"""Serve mixture-of-experts models with prefill and decode separated, a lane for every kind of traffic."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
