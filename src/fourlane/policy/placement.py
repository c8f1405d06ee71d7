"""Where experts live: a placement maps physical slots to logical experts.

The value is in `policy.placing.value`; this is the name to import it by.
"""

from __future__ import annotations

from fourlane.policy.placing.value import EMPTY, Placement, Replicas, linear_placement

__all__ = ["EMPTY", "Placement", "Replicas", "linear_placement"]
