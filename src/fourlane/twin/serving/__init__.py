"""Requests through the simulated service, event by event: gateway, prefill units, KV transfers, decode units.

`simulate` runs an assembled twin under its load. Decisions are the live service's own (`policy.request_routing`,
`policy.scheduling`); what steps and transfers take comes from the assembly. Not for steady states in closed form
(`twin.operating_point`).
"""
