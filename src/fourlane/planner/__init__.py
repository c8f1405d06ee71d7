"""Plans of whole services, and the files that launch them."""
