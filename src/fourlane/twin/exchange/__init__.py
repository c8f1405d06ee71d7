"""How long dispatch and combine of an expert-parallel group take, by packet simulation, tabulated and kept."""

from __future__ import annotations

from importlib import import_module

__all__ = [
    "ExchangeSetting",
    "ExchangeTable",
    "IdealExchange",
    "LanesCase",
    "exchange_setting",
    "exchange_tables",
    "exchange_times",
    "lanes_case",
]

_HOMES = {
    "ExchangeSetting": "setting",
    "ExchangeTable": "table",
    "IdealExchange": "table",
    "LanesCase": "lanes",
    "exchange_setting": "setting",
    "exchange_tables": "filling",
    "exchange_times": "filling",
    "lanes_case": "lanes",
}


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
