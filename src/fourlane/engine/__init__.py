"""The live engine: ranks that compute. Only here (and in `integrations`) is torch imported."""
