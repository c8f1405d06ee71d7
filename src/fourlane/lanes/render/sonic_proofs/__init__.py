"""The proofs of `fourlane.lanes.render.sonic_proof`, by subject; each yields what it has found wrong."""
