"""Errors in the form of OpenAI's API: a status, and an object under `error`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from qwchat.characters import escape_json
from qwchat.errors import ConstraintError, PromptTooLongError, QwchatError, TemplateError, UsageError

_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
}


class ApiError(Exception):
    """A request that gets an error as its answer.

    Args:
        status: HTTP status.
        message: one line that says what is wrong and what to do.
        param: field of the body that is wrong, such as `messages[2].content`.
        code: name of the error for programs.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = HTTPStatus(status), message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, object]:
        """The object of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def json_bytes(value: object) -> bytes:
    """Return `value` as JSON in UTF-8 on one line, with control characters escaped."""
    return escape_json(json.dumps(value, ensure_ascii=False, separators=(",", ":"))).encode("utf-8", "replace")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that is wrong."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, param, code)


def busy(message: str, retry_seconds: int = 1) -> ApiError:
    """Return the error for a request that may succeed `retry_seconds` later."""
    headers = {"Retry-After": str(max(1, retry_seconds))}
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, message, code="overloaded", headers=headers)


def api_error_of(error: Exception, param: str | None = None) -> ApiError:
    """Return the answer to a request that failed with `error`. `param` is the field that the request got wrong.

    The message of an unexpected error is not sent: it may contain a prompt.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return bad_request(str(error), param or "messages", "context_length_exceeded")
    if isinstance(error, UsageError | TemplateError | ConstraintError):
        return bad_request(str(error), param)
    message = str(error) if isinstance(error, QwchatError) else f"internal error: {type(error).__name__}"
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message)
