"""Answer errors: every one has the OpenAI error body."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from starlette.responses import Response

from fourlane.errors import InvalidRequest, Overloaded, RequestError, ServiceUnavailable
from fourlane.gateway.openai_answers import ErrorBody, ErrorDetail

__all__ = ["error_body", "error_response", "of_status"]

_encode = msgspec.json.Encoder().encode


def error_body(error: RequestError) -> bytes:
    """Return the body that tells a client of an error."""
    detail = ErrorDetail(message=error.message, type=error.kind, param=error.param, code=error.code)
    return _encode(ErrorBody(error=detail))


def error_response(error: RequestError) -> Response:
    """Return the answer to a request that ended in this error, with a hint when to come back."""
    headers = {}
    if isinstance(error, (Overloaded, ServiceUnavailable)):
        headers["retry-after"] = str(error.retry_after)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(error), status_code=error.status, headers=headers, media_type="application/json")


def of_status(status: int, method: str, path: str) -> RequestError:
    """Return the error for a path or method there is not."""
    if status == HTTPStatus.NOT_FOUND:
        return InvalidRequest(f"{path[:200]}: no such path; see /v1/models for what is served", status=status)
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return InvalidRequest(f"{path[:200]}: {method} is not allowed here", status=status)
    return InvalidRequest(HTTPStatus(status).phrase, status=status)
