"""Fourlane's placement in SGLang: files it starts from.

The files themselves are in `sglang_files`.
"""

from __future__ import annotations

from fourlane.integrations.sglang_files import (
    read_physical_to_logical,
    read_recorded_loads,
    write_init_expert_location,
)

__all__ = ["read_physical_to_logical", "read_recorded_loads", "write_init_expert_location"]
