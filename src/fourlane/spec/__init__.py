"""What there is and what is wanted: TOML files into immutable structs. No torch, no I/O but `load`."""
