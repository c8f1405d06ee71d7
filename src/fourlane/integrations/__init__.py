"""Fourlane's placement in other people's engines: thin adapters, one module an engine."""
