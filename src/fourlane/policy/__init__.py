"""Pure decisions: placement, routing, scheduling. NumPy only; no clock, no I/O, no torch."""
