"""Every error fourlane raises on purpose.

    FourlaneError
    ├── SpecError                a file, flag or value is wrong            (exit 2)
    ├── BalanceInputError        a load, placement or number given to the balancer is wrong (exit 2)
    ├── CheckFailed              a check ran and did not pass              (exit 1)
    ├── EnvironmentMissing       a package, kernel feature or device is absent (exit 3)
    ├── CheckpointError          a model folder cannot be served
    │   ├── UnsupportedModel     its architecture or an option of it is not implemented
    │   └── MemoryShortage       it does not fit in the memory there is
    ├── EngineError              the engine could not go on
    │   ├── PeerLost             a rank of the same expert-parallel group died or hung
    │   ├── TransferError        a KV transfer was lost, corrupt, late or refused
    │   └── RankDied             a rank process ended
    ├── LabError                 the lab could not be brought up, or what runs in it failed
    ├── SimulationError          a simulation did not end by itself; carries what is known
    │   ├── SimulationStuck      nothing can happen any more, and flows are unfinished
    │   ├── LimitReached         its limit of events or of simulated time came first
    │   └── WorkerDied           the process that ran it died
    ├── ProtocolError            a message was malformed, forged or of another version
    └── RequestError             a client's request cannot be served; carries the HTTP status
        ├── InvalidRequest       400, 404, 413, 415, 422: the client must change it
        ├── Unauthorized         401: the API key is missing or wrong
        ├── Overloaded           429: come back after `retry_after` seconds
        └── ServiceUnavailable   503: the service failed; a retry is safe

A message says where, what was found, what is allowed and what to do.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BalanceInputError",
    "CheckFailed",
    "CheckpointError",
    "EngineError",
    "EnvironmentMissing",
    "FourlaneError",
    "InvalidRequest",
    "LabError",
    "LimitReached",
    "MemoryShortage",
    "Overloaded",
    "PeerLost",
    "ProtocolError",
    "RankDied",
    "RequestError",
    "ServiceUnavailable",
    "SimulationError",
    "SimulationStuck",
    "SpecError",
    "TransferError",
    "Unauthorized",
    "UnsupportedModel",
    "WorkerDied",
]


class FourlaneError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class SpecError(FourlaneError):
    """Report one or more faults of a spec file, flag or value, all at once."""

    exit_code = 2

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


class BalanceInputError(FourlaneError, ValueError):
    """Report an argument no placement, split or statistics can be made from; the message begins with its name."""

    exit_code = 2


class CheckFailed(FourlaneError):
    """Report that a check ran to its end and did not pass."""


class EnvironmentMissing(FourlaneError):
    """Report that this machine lacks something; the message names how to get it."""

    exit_code = 3


class CheckpointError(FourlaneError):
    """Report a model folder that cannot be served."""

    exit_code = 2


class UnsupportedModel(CheckpointError):
    """Report an architecture, or an option of one, that is not implemented."""


class MemoryShortage(CheckpointError):
    """Report a model that does not fit; the message holds the budget line by line."""

    exit_code = 3


class EngineError(FourlaneError):
    """Base of what goes wrong while the engine runs."""


class PeerLost(EngineError):
    """Report that an exchange could not complete because a peer died or hung."""


class TransferError(EngineError):
    """Report a KV transfer that was lost, corrupt, late or refused."""


class RankDied(EngineError):
    """Report that a rank process ended."""


class LabError(FourlaneError):
    """Report that the lab could not be brought up, or that something running in it failed or was late."""


class SimulationError(FourlaneError):
    """Report that a simulation did not end by itself.

    Args:
        message: what happened, and to what.
        results: what is known so far: a `Results`, or one for each scenario (None where there is none).
    """

    def __init__(self, message: str, results: Any = None) -> None:
        super().__init__(message)
        self.results = results


class SimulationStuck(SimulationError):
    """Report that nothing can happen any more while flows are unfinished; the message names them."""


class LimitReached(SimulationError):
    """Report that the limit of events or of simulated time came before the flows' end."""


class WorkerDied(SimulationError):
    """Report that a process died while it simulated."""


class ProtocolError(FourlaneError):
    """Report a message that was malformed, forged or of another version."""


class RequestError(FourlaneError):
    """Base of refusals to a client; rendered as an OpenAI error body."""

    status = 500
    kind = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(RequestError):
    """Report a request the client must change before sending it again."""

    kind = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status


class Unauthorized(RequestError):
    """Report a missing or wrong API key."""

    status = 401
    kind = "authentication_error"


class Overloaded(RequestError):
    """Report full queues.

    Units:
        retry_after: seconds.
    """

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message, code="overloaded")
        self.retry_after = retry_after


class ServiceUnavailable(RequestError):
    """Report a failure of the service after which a retry is safe.

    Units:
        retry_after: seconds.
    """

    status = 503
    kind = "service_unavailable"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, code="retry")
        self.retry_after = retry_after
