"""Lanes: every kind of traffic marked, so that the network can keep it apart."""
