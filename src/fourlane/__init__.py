"""Serve mixture-of-experts models with prefill and decode separated, a lane for every kind of traffic.

Names are imported when first used: `import fourlane` loads neither torch nor NumPy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourlane.errors import FourlaneError, SpecError
    from fourlane.spec.deployment import Deployment
    from fourlane.spec.load import load_deployment
    from fourlane.units import Duration, Rate, Size

__all__ = [
    "Deployment",
    "Duration",
    "FourlaneError",
    "Rate",
    "Size",
    "SpecError",
    "__version__",
    "load_deployment",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it."""
    home = {
        "Deployment": "fourlane.spec.deployment",
        "Duration": "fourlane.units",
        "FourlaneError": "fourlane.errors",
        "Rate": "fourlane.units",
        "Size": "fourlane.units",
        "SpecError": "fourlane.errors",
        "load_deployment": "fourlane.spec.load",
    }.get(name)
    if home is None:
        raise AttributeError(f"module 'fourlane' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
