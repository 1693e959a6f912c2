"""The few calls of the Hub's own library that are needed, its failures turned into our errors.

Nothing here decides what may be published; see `upload` for the order.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import cbtqa
from cbtqa.errors import (
    BadResponseError,
    EndpointAuthError,
    EndpointError,
    EndpointTimeoutError,
    RateLimitError,
    require,
)
from cbtqa.hub.plan import PlannedFile, RepoKind
from cbtqa.hub.settings import Gate

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError


@dataclass(frozen=True)
class RepoState:
    is_private: bool
    gate: Gate | None
    """None when it is not told."""
    head: str
    """Commit of the branch `main`."""


@dataclass(frozen=True)
class RemoteFile:
    n_bytes: int
    git_sha1: str
    """Of the blob, for small files; of the pointer, for large ones."""
    sha256: str | None
    """Of the content; None for small files."""


@dataclass(frozen=True)
class Account:
    name: str
    orgs: dict[str, str | None]
    """Organisation to the role in it."""
    role: str | None
    """`read`, `write` or `fineGrained`; None when the Hub does not say."""
    writable: tuple[str, ...]
    """Users, organisations and repositories that a fine-grained token may write to."""


def require_hub() -> None:
    """Raises MissingExtraError unless the Hub's library is installed."""
    require("huggingface_hub", "hub")


def saved_token() -> str | None:
    """The token of HF_TOKEN or of `hf auth login`, None without one; no network."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return None
    return get_token()


def find_token() -> str:
    """The token to publish with, or EndpointAuthError; no network."""
    require_hub()
    if token := saved_token():
        return token
    raise EndpointAuthError("no token for the Hub", hint=TOKEN_HINT)


def show_progress(is_wanted: bool) -> None:
    """Lets the Hub's library draw its bars on stderr, or keeps it silent."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined] # documented, not declared
        disable_progress_bars,
        enable_progress_bars,
    )

    (enable_progress_bars if is_wanted else disable_progress_bars)()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def download_dataset(repo_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """A dataset's files as a local folder, from the Hub's cache where they are there already."""
    require_hub()
    from huggingface_hub import snapshot_download

    with reporting_failures(f"downloading {repo_id}"):
        folder = snapshot_download(
            repo_id, repo_type="dataset", revision=revision, allow_patterns=list(patterns)
        )
    return Path(folder)


class Hub:
    """One repository, reached with one token; `endpoint` names a mirror or a private Hub."""

    title: ClassVar[str] = "the Hub"
    own_files: ClassVar[frozenset[str]] = frozenset({".gitattributes"})
    """Files that the Hub itself puts into a new repository."""

    def __init__(
        self, token: str, repo_id: str, kind: RepoKind, *, endpoint: str | None = None
    ) -> None:
        require_hub()
        from huggingface_hub import HfApi

        self.repo_id, self.kind = repo_id, kind
        self._api: HfApi = HfApi(
            endpoint=endpoint, token=token, library_name="cbtqa", library_version=cbtqa.__version__
        )

    @property
    def url(self) -> str:
        prefix = "datasets/" if self.kind == "dataset" else ""
        return f"{self._api.endpoint}/{prefix}{self.repo_id}"

    @property
    def _where(self) -> dict[str, Any]:
        return {"repo_id": self.repo_id, "repo_type": self.kind}

    def account(self) -> Account:
        found = patiently("asking who the token belongs to", self._api.whoami)
        token = found.get("auth", {}).get("accessToken", {})
        scopes = token.get("fineGrained", {}).get("scoped", [])
        return Account(
            name=found["name"],
            orgs={org["name"]: org.get("roleInOrg") for org in found.get("orgs", [])},
            role=token.get("role"),
            writable=tuple(
                str(scope.get("entity", {}).get("name"))
                for scope in scopes
                if "repo.write" in scope.get("permissions", [])
            ),
        )

    def state(self) -> RepoState | None:
        """The repository as it is now; None when there is none (or it is hidden from the token)."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = patiently("looking at the repository", self._api.repo_info, **self._where)
        except NotOnHubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                return None
            raise
        gate: Gate = "none" if not info.gated else "auto" if info.gated == "auto" else "manual"
        # what the Hub does not say counts as public
        return RepoState(info.private is True, gate, str(info.sha or ""))

    def files(self, revision: str) -> dict[str, RemoteFile]:
        from huggingface_hub.hf_api import RepoFile

        def listed() -> list[Any]:
            return list(self._api.list_repo_tree(**self._where, recursive=True, revision=revision))

        return {
            item.path: RemoteFile(item.size, item.blob_id, item.lfs.sha256 if item.lfs else None)
            for item in patiently("listing the repository", listed)
            if isinstance(item, RepoFile)
        }

    def tags(self) -> dict[str, str]:
        refs = patiently("reading the tags", self._api.list_repo_refs, **self._where)
        return {tag.name: tag.target_commit for tag in refs.tags}

    def read(self, path: str, revision: str) -> bytes:
        """The bytes of a small file at a commit, past every cache."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined] # documented, not declared
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        address = hf_hub_url(
            self.repo_id, path, repo_type=self.kind, revision=revision, endpoint=self._api.endpoint
        )
        headers = build_hf_headers(token=self._api.token, library_name="cbtqa")

        def got() -> bytes:
            response = get_session().get(address, headers=headers, follow_redirects=True)
            hf_raise_for_status(response)
            return bytes(response.content)

        return patiently(f"reading {path} back", got)

    def create_private(self, gate: Gate) -> None:
        """Creates the repository, visible to its owner alone; NameTakenError when there is one.

        Args:
            gate: set afterwards here, and at once where a site has no other moment for it.
        """
        create = self._api.create_repo
        patiently("creating the repository", create, **self._where, private=True, exist_ok=False)

    def set_gate(self, gate: Gate) -> None:
        value: Any = False if gate == "none" else gate
        patiently("setting the gate", self._api.update_repo_settings, **self._where, gated=value)

    def commit(
        self, changed: Sequence[PlannedFile], removed: Sequence[str], message: str, parent: str
    ) -> str:
        """Uploads files and makes one commit on top of `parent`; returns its id.

        The files' bytes go first and belong to nothing until the commit names them: a break on the
        way leaves the repository as it was.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [
            *(CommitOperationAdd(file.path, str(file.source)) for file in changed),
            *(CommitOperationDelete(path) for path in removed),
        ]
        with reporting_failures("uploading"):
            made = self._api.create_commit(
                **self._where,
                operations=operations,
                commit_message=message,
                parent_commit=parent or None,
            )
        return str(made.oid)

    def tag(self, name: str, commit: str) -> None:
        create = self._api.create_tag
        patiently("tagging", create, **self._where, tag=name, revision=commit, exist_ok=False)

    def make_public(self) -> None:
        update = self._api.update_repo_settings
        patiently("making it public", update, **self._where, visibility="public")


Found = TypeVar("Found")
MAX_ATTEMPTS = 4
LONGEST_WAIT_S = 60.0
"""A longer wait than this is reported instead."""
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
            with reporting_failures(what):
                return call(**arguments)
        except (RateLimitError, BadResponseError, EndpointTimeoutError) as error:
            wait_or_raise(error, attempt)


def wait_or_raise(error: EndpointError, attempt: int, max_attempts: int = MAX_ATTEMPTS) -> None:
    """Waits as the Hub asked, or longer after each `attempt` (from 1); raises after the last."""
    asked_s = getattr(error, "retry_after_s", None)
    wait_s = min(2.0**attempt, 8.0) if asked_s is None else float(asked_s)
    if attempt >= max_attempts or wait_s > LONGEST_WAIT_S:
        raise error
    time.sleep(wait_s)


@contextmanager
def reporting_failures(what: str) -> Iterator[None]:
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
        line = " ".join(str(error).split())[:300]
        raise EndpointError(f"the Hub did not accept it while {what}: {line}") from error


def _broken(what: str, error: BaseException) -> EndpointTimeoutError:
    hint = AGAIN
    if "xet" in f"{type(error).__module__} {error}".lower():
        hint += "; a mirror without Xet storage wants HF_HUB_DISABLE_XET=1"
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return EndpointTimeoutError(f"the connection to the Hub broke while {what} ({line})", hint=hint)


def _error_of(what: str, error: HfHubHTTPError) -> EndpointError:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code if error.response is not None else None
    message = (error.server_message or "").splitlines()
    detail = f": {message[0]}" if message else ""
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
