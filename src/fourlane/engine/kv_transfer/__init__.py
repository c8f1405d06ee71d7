"""KV pages from prefill to decode, on a lane of their own."""
