"""How long the parts of a forward pass take on a GPU, by a roofline with the efficiencies that were reached."""

from fourlane.twin.kernel_times.roofline import RooflineTimes, weights_type

__all__ = ["RooflineTimes", "weights_type"]
