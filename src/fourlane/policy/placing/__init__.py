"""What places experts: the value, the search's inputs, bounds and repair; `policy.placement` is their face."""
