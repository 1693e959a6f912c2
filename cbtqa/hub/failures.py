"""What can go wrong on the way to the Hub, as our errors: one clear line, and what to do next.

with failures_told("uploading"):
    api.create_commit(...)
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from cbtqa.errors import (
    BadResponseError,
    EndpointAuthError,
    EndpointError,
    EndpointTimeoutError,
    RateLimitError,
)

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

Found = TypeVar("Found")
MAX_ATTEMPTS = 4
LONGEST_WAIT_S = 60.0
"""A longer wait than this is told to the person instead of slept through."""
AGAIN = "run the same command again: it continues, and sends nothing twice"
TOKEN_HINT = (
    "make one with the role 'write' at https://huggingface.co/settings/tokens, then: "
    "hf auth login (or set HF_TOKEN)"
)


class NotOnHubError(EndpointError):
    """The Hub says that something is not there."""


class NameTakenError(EndpointError):
    """The Hub already has this name, or the branch moved on."""


def patiently(what: str, call: Callable[..., Found], **arguments: Any) -> Found:
    """Calls, and calls again after a failure that waiting may cure; bounded in count and time."""
    attempt = 0
    while True:
        attempt += 1
        try:
            with failures_told(what):
                return call(**arguments)
        except (RateLimitError, BadResponseError, EndpointTimeoutError) as error:
            wait_or_raise(error, attempt)


def wait_or_raise(error: EndpointError, attempt: int, max_attempts: int = MAX_ATTEMPTS) -> None:
    """Waits as the Hub asked, or longer each time; raises when that would be once too often.

    Args:
        attempt: how often it was tried, from 1.
    """
    asked_s = getattr(error, "retry_after_s", None)
    wait_s = min(2.0**attempt, 8.0) if asked_s is None else float(asked_s)
    if attempt >= max_attempts or wait_s > LONGEST_WAIT_S:
        raise error
    time.sleep(wait_s)


@contextmanager
def failures_told(what: str) -> Iterator[None]:
    """Turns the failures of the Hub's library into ours."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except HfHubHTTPError as error:
        raise _error_of(what, error) from error
    except LocalTokenNotFoundError as error:
        raise EndpointAuthError("no token for the Hub", hint=TOKEN_HINT) from error
    except httpx2.TransportError as error:
        raise _broken(what, error) from error
    except RuntimeError as error:
        # huggingface_hub wraps what befalls a single upload, hf_xet speaks in RuntimeError alone
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _error_of(what, cause) from error
        raise _broken(what, cause or error) from error
    except OSError as error:
        # hf_xet's own failures, a local file that is gone, and HF_HUB_OFFLINE
        raise _broken(what, error) from error
    except ValueError as error:
        lines = " ".join(str(error).split())[:300]
        raise EndpointError(f"the Hub did not accept it while {what}: {lines}") from error


def _broken(what: str, error: BaseException) -> EndpointTimeoutError:
    hint = AGAIN
    if "xet" in f"{type(error).__module__} {error}".lower():
        hint += "; a mirror without Xet storage wants HF_HUB_DISABLE_XET=1"
    return EndpointTimeoutError(
        f"the connection to the Hub broke while {what} ({_first_line(error)})", hint=hint
    )


def _error_of(what: str, error: HfHubHTTPError) -> EndpointError:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code if error.response is not None else None
    told = (error.server_message or "").splitlines()
    detail = f": {told[0]}" if told else ""
    if isinstance(error, GatedRepoError):
        return EndpointAuthError(
            f"access has to be asked for first, while {what}",
            hint="open the repository's page on the Hub and fill in its form",
        )
    if isinstance(error, RepositoryNotFoundError | EntryNotFoundError | RevisionNotFoundError):
        hint = "check its name and the revision; a private one wants a token that may read it"
        return NotOnHubError(f"not found on the Hub while {what}{detail}", status=status, hint=hint)
    if status == 401:
        return EndpointAuthError(f"the Hub refused the token while {what}{detail}", hint=TOKEN_HINT)
    if status in (402, 403):
        return EndpointAuthError(
            f"the token may not do this while {what} ({status}){detail}", hint=TOKEN_HINT
        )
    if status in (409, 412):
        return NameTakenError(f"the Hub refused while {what}: conflict ({status}){detail}")
    if status == 429:
        wait_s = _retry_after(error)
        named = f"; it asks to wait {wait_s:.0f} s" if wait_s is not None else ""
        limited = RateLimitError(f"too many requests while {what}{named}", retry_after_s=wait_s)
        limited.hint = AGAIN
        return limited
    if status is not None and status >= 500:
        return BadResponseError(
            f"the Hub failed while {what} ({status}){detail}", status=status, hint=AGAIN
        )
    return EndpointError(f"the Hub refused while {what} ({status}){detail}", status=status)


def _retry_after(error: HfHubHTTPError) -> float | None:
    headers = error.response.headers
    found = re.fullmatch(r"\d+(?:\.\d+)?", headers.get("Retry-After", "").strip())
    if found:
        return float(found[0])
    reset = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
