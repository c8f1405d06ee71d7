"""The cluster simulated: the same policies as the live service, over a modelled network."""
