"""Models the engine can serve: reading checkpoints, the layers, native CPU kernels."""
