"""The errors that can stop a run.

    CbtqaError                   anything this package raises on purpose
      UsageError            2    the words of the command do not fit together
      ConfigError           3    settings are wrong; lists every bad one at once, with its origin
      MissingExtraError     3    an optional dependency is not installed; names the install line
      DataError             4    a file is not what it should be; says file:line:field
        PromptError         4    a prompt file and the values for it do not fit
      EndpointError         5    a language-model endpoint failed
        EndpointAuthError        the key is missing or refused
        RateLimitError           too many requests; may carry the wait the server asked for
        EndpointTimeoutError     no answer within the limit
          NotListeningError      this machine refuses the connection: no such server on it
        BadResponseError         an answer that is not the protocol
      IncompleteRunError    6    outputs are kept; the same command continues
      LicenceGateError      7    a licence or agreement forbids the step without permission
      AnswerWithheldError   8    a model's answer is unsafe and not shown

Rooms add finer kinds of their own, such as `hub.plan.PublishRefusedError` (7) and
`llm.endpoint.AddressError` (2).

Run-level trouble raises one of these. Item-level trouble never raises: it is a
`records.Rejection` value. An unexpected exception is our bug and exits with 1; Ctrl-C with 130.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class CbtqaError(Exception):
    """Base of all errors; `hint` names the next command or step."""

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(CbtqaError):
    """The words of the command do not fit together."""

    exit_code = 2


class ConfigError(CbtqaError):
    """One or more settings are wrong; the message lists each with where it came from."""

    exit_code = 3


class MissingExtraError(CbtqaError):
    """An optional dependency is not installed."""

    exit_code = 3

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"this needs the Python module '{module}', which is not installed",
            hint=f"pip install 'cbtqa[{extra}]'",
        )


def require(module: str, extra: str) -> Any:
    """A module of an optional library, or a MissingExtraError that names its extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or module, extra) from None


def faults_of(error: ValidationError) -> list[dict[str, Any]]:
    """What pydantic found wrong, fault by fault, each with `loc`, `type`, `input` and `msg`; the
    words of our own checks stand alone in `msg`."""
    faults: list[dict[str, Any]] = [dict(one) for one in error.errors(include_url=False)]
    return [{**one, "msg": str(one["msg"]).removeprefix("Value error, ")} for one in faults]


class DataError(CbtqaError):
    """A file is not what it should be; `where` reads `file:line:field` as far as known."""

    exit_code = 4

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.where = where


class PromptError(DataError):
    """A prompt file is malformed, or was rendered with other variables than it declares."""


class EndpointError(CbtqaError):
    """A language-model endpoint failed; `is_retryable` tells whether the same request may help."""

    exit_code = 5
    is_retryable = False

    def __init__(self, message: str, *, status: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class EndpointAuthError(EndpointError):
    """The endpoint refused the key, or wants one and got none."""


class RateLimitError(EndpointError):
    """The endpoint asked for fewer requests; `retry_after_s` is the wait it named, if any."""

    is_retryable = True

    def __init__(
        self, message: str, *, status: int | None = 429, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class EndpointTimeoutError(EndpointError):
    """No (whole) answer within the time limit, or the connection broke."""

    is_retryable = True


class NotListeningError(EndpointTimeoutError):
    """This machine itself says that nothing listens on the port: no network can be at fault."""


class BadResponseError(EndpointError):
    """The endpoint answered with something that is not the protocol, or with a 5xx status."""

    is_retryable = True


class IncompleteRunError(CbtqaError):
    """The run stopped before its end; what was done is kept and the same command continues."""

    exit_code = 6


class LicenceGateError(CbtqaError):
    """A licence or user agreement forbids the step unless permission is stated."""

    exit_code = 7


class AnswerWithheldError(CbtqaError):
    """The one answer that was asked for did not pass the safety checks and is not shown."""

    exit_code = 8
