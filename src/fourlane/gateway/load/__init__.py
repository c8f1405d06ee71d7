"""A load generator for OpenAI-compatible services: what is sent, when, and what was measured.

`workload` and `traces` say what is sent and when, `settings` is all of it as asked for on a command line, `client` is a
light HTTP/1.1 client, `generator` sends and `results` sums up. It knows nothing of fourlane's engine: any service with
`/v1/completions` can be measured.
"""

from __future__ import annotations

from fourlane.gateway.load.client import Client
from fourlane.gateway.load.generator import Load, run_load
from fourlane.gateway.load.results import (
    Objectives,
    Percentiles,
    Record,
    Summary,
    summarize,
)
from fourlane.gateway.load.settings import LoadPlan, LoadSettings
from fourlane.gateway.load.traces import read_trace
from fourlane.gateway.load.workload import PlannedRequest, plan_requests
from fourlane.spec.request_load import Arrivals, Lengths

__all__ = [
    "Arrivals",
    "Client",
    "Lengths",
    "Load",
    "LoadPlan",
    "LoadSettings",
    "Objectives",
    "Percentiles",
    "PlannedRequest",
    "Record",
    "Summary",
    "plan_requests",
    "read_trace",
    "run_load",
    "summarize",
]
