"""Which libraries for GPUs this machine has. Imports neither torch nor any of them."""

from __future__ import annotations

import functools
import importlib.util
from importlib import metadata

__all__ = ["DEEPEP_ABSENT", "deepep_version", "has_triton"]

DEEPEP_ABSENT = (
    "DeepEP is not installed; it is built from source for the GPUs at hand: https://github.com/deepseek-ai/DeepEP"
)


@functools.cache
def has_triton() -> bool:
    """Tell whether Triton's kernels can be compiled here."""
    return importlib.util.find_spec("triton") is not None


def deepep_version() -> str | None:
    """Return the version of the installed deep_ep, or None; "of unknown version" where it does not say."""
    if importlib.util.find_spec("deep_ep") is None:
        return None
    try:
        return metadata.version("deep_ep")
    except metadata.PackageNotFoundError:
        return "of unknown version"
