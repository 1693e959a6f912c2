"""ModelScope as a place to publish to, behind the calls of `client.Hub`.

    ModelScopeHub(token, "my-lab/cbt-qa", "dataset").state()

Its client differs from the Hub's in four ways. It tells no commit ids: the state of a branch or tag
is the hash of its listing (paths, sizes, SHA-256). A commit names no parent: the listing is
compared right before it, and everything is read back afterwards. The gate is chosen when a
repository is created, and neither it nor the visibility can be changed later. Organisations are not
listed: the site itself refuses an owner that the token may not write to.

Source: modelscope_hub 0.5.1 (`api.HubApi`, `_legacy_api.LegacyClient`) of modelscope 1.40.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from cbtqa.errors import (
    BadResponseError,
    EndpointAuthError,
    EndpointError,
    EndpointTimeoutError,
    RateLimitError,
    require,
)
from cbtqa.hub.client import AGAIN, Account, NameTakenError, RemoteFile, RepoState
from cbtqa.hub.plan import CARD_PATH, PlannedFile, PublishRefusedError, RepoKind
from cbtqa.hub.settings import Gate
from cbtqa.secrets import remember

BRANCH = "master"
INLINE_BYTES = 64 * 1024
"""Larger files are sent as blobs, smaller ones in the commit. Source: the client's own limit."""
TOKEN_HINT = (
    "take one from https://modelscope.cn/my/myaccesstoken, then: modelscope login (or set "
    "MODELSCOPE_API_TOKEN)"
)


def saved_modelscope_token() -> str | None:
    """The token of MODELSCOPE_API_TOKEN or of `modelscope login`, None without one; no network."""
    try:
        from modelscope_hub.config import HubConfig
    except ImportError:
        return None
    token = HubConfig().token
    remember(token)
    return token or None


def find_modelscope_token() -> str:
    """The token to publish with, or EndpointAuthError; no network."""
    require("modelscope_hub", "modelscope")
    if token := saved_modelscope_token():
        return token
    raise EndpointAuthError("no token for ModelScope", hint=TOKEN_HINT)


class ModelScopeHub:
    """One repository, reached with one token; MODELSCOPE_ENDPOINT names another site."""

    title: ClassVar[str] = "ModelScope"
    own_files: ClassVar[frozenset[str]] = frozenset(
        {".gitattributes", "README.md", "configuration.json", "dataset_infos.json"}
    )

    def __init__(
        self, token: str, repo_id: str, kind: RepoKind, *, endpoint: str | None = None
    ) -> None:
        library = require("modelscope_hub", "modelscope")
        config = require("modelscope_hub.config", "modelscope").HubConfig(endpoint=endpoint)
        self.repo_id, self.kind = repo_id, kind
        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
        remember(token)
        self._endpoint = str(config.endpoint)
        # an endpoint that is given is the only one: without it, reads may go to the sister site
        self._api: Any = library.HubApi(token=token, endpoint=self._endpoint)
        self._refs: dict[str, str] = {}
        """The branch or tag whose listing has this hash."""

    @property
    def url(self) -> str:
        return f"{self._endpoint}/{self.kind}s/{self.repo_id}"

    def account(self) -> Account:
        found = self._asked("asking who the token belongs to", self._api.whoami)
        return Account(found.username or "", {self.repo_id.split("/")[0]: None}, None, ())

    def state(self) -> RepoState | None:
        """The repository as it is now; None when there is none (or it is hidden from the token)."""
        from modelscope_hub.errors import NotExistError

        try:
            found = self._asked(
                "looking at the repository", self._api.get_repo, self.repo_id, self.kind
            )
        except EndpointError as error:
            if isinstance(error.__cause__, NotExistError):
                return None
            raise
        # what the site does not say counts as public
        is_private = found.private is True or found.visibility == 1
        gate: Gate | None = None
        if found.gated is not None:
            gate = "manual" if found.gated else "none"
        return RepoState(is_private, gate, self._hash_of(BRANCH))

    def files(self, revision: str) -> dict[str, RemoteFile]:
        ref = self._refs.get(revision, revision)
        listed = self._asked(
            "listing the repository",
            self._api.list_repo_files,
            self.repo_id,
            self.kind,
            revision=ref,
        )
        return {
            one.path: RemoteFile(one.size, "", one.sha256 or self._sha256(one.path, ref))
            for one in listed
            if not one.is_dir
        }

    def _sha256(self, path: str, ref: str) -> str:
        """Of a small file, which the site lists without its hash."""
        return hashlib.sha256(self.read(path, ref)).hexdigest()

    def _hash_of(self, ref: str) -> str:
        lines = sorted(
            f"{path} {one.n_bytes} {one.sha256}" for path, one in self.files(ref).items()
        )
        if not lines:
            return ""
        found = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        self._refs[found] = ref
        return found

    def tags(self) -> dict[str, str]:
        _, tags = self._asked(
            "reading the tags", self._api.legacy.list_revisions_detail, self.repo_id, self.kind
        )
        head = self._hash_of(BRANCH)
        found = {str(tag["Revision"]): self._hash_of(str(tag["Revision"])) for tag in tags}
        self._refs[head] = BRANCH
        return found

    def read(self, path: str, revision: str) -> bytes:
        """The bytes of a file, past every cache."""
        ref = self._refs.get(revision, revision)
        with tempfile.TemporaryDirectory() as folder:
            place = self._asked(
                f"reading {path} back",
                self._api.download_file,
                self.repo_id,
                self.kind,
                path,
                revision=ref,
                local_dir=folder,
            )
            return Path(place).read_bytes()

    def create_private(self, gate: Gate) -> None:
        """Creates the repository, visible to its owner alone; NameTakenError when there is one."""
        self._asked(
            "creating the repository",
            self._api.create_repo,
            self.repo_id,
            self.kind,
            visibility="private",
            gated_mode=gate != "none",
            license="other",
        )

    def set_gate(self, gate: Gate) -> None:
        raise PublishRefusedError(
            f"{self.url} has another gate than --gate {gate}, and ModelScope's client sets it "
            "only for a new repository",
            hint="change it on the site, or publish to another name",
        )

    def commit(
        self, changed: Sequence[PlannedFile], removed: Sequence[str], message: str, parent: str
    ) -> str:
        """Uploads files and makes one commit; returns the hash of the listing that it leaves."""
        actions = [self._sent(file) for file in changed]
        actions += [_action("delete", path) for path in removed]
        if self._hash_of(BRANCH) != parent:
            raise NameTakenError("the repository changed meanwhile", hint=AGAIN)
        with _reporting_failures("uploading"):
            self._api.legacy.create_commit(
                self.repo_id, self.kind, actions, message, revision=BRANCH
            )
        return self._hash_of(BRANCH)

    def _sent(self, file: PlannedFile) -> dict[str, Any]:
        """A file as an action of the commit; a large one's bytes are sent first."""
        if file.n_bytes <= INLINE_BYTES or file.path == CARD_PATH:  # the site reads the card
            content = base64.b64encode(file.source.read_bytes()).decode()
            inline = {"type": "normal", "content": content, "encoding": "base64"}
            return _action("create", file.path, size=file.n_bytes, **inline)
        blob = {"oid": file.sha256, "size": file.n_bytes}
        with _reporting_failures("uploading"):
            legacy = self._api.legacy
            place = legacy.validate_blobs(self.repo_id, self.kind, [blob]).get(file.sha256)
            if place is not None:  # None: the site has these bytes
                with file.source.open("rb") as stream:
                    legacy.upload_blob(place, stream, file.n_bytes)
        large = {"type": "lfs", "sha256": file.sha256}
        return _action("create", file.path, size=file.n_bytes, **large)

    def tag(self, name: str, commit: str) -> None:
        ref = self._refs.get(commit, BRANCH)
        self._asked(
            "tagging", self._api.create_repo_tag, self.repo_id, self.kind, name, revision=ref
        )

    @staticmethod
    def _asked(what: str, call: Any, *given: Any, **named: Any) -> Any:
        with _reporting_failures(what):  # the client itself asks again, three times
            return call(*given, **named)


def _action(action: str, path: str, **more: Any) -> dict[str, Any]:
    plain = {"type": "normal", "size": 0, "sha256": "", "content": "", "encoding": ""}
    return {"action": action, "path": path, **plain, **more}


@contextmanager
def _reporting_failures(what: str) -> Iterator[None]:
    from modelscope_hub import errors

    try:
        yield
    except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
        said = f"ModelScope refused the token while {what}{_said(error)}"
        raise EndpointAuthError(said, status=error.status_code, hint=TOKEN_HINT) from error
    except errors.AlreadyExistsError as error:
        raise NameTakenError(f"ModelScope refused while {what}{_said(error)}") from error
    except errors.RateLimitError as error:
        limited = RateLimitError(f"too many requests while {what}")
        limited.hint = AGAIN
        raise limited from error
    except errors.ServerError as error:
        said = f"ModelScope failed while {what}{_said(error)}"
        raise BadResponseError(said, status=error.status_code, hint=AGAIN) from error
    except errors.NetworkError as error:
        said = f"the connection to ModelScope broke while {what}{_said(error)}"
        raise EndpointTimeoutError(said, hint=AGAIN) from error
    except (errors.HubError, ValueError) as error:
        raise EndpointError(f"ModelScope refused while {what}{_said(error)}") from error
    except OSError as error:  # of requests, and a local file that is gone
        said = f"the connection to ModelScope broke while {what}{_said(error)}"
        raise EndpointTimeoutError(said, hint=AGAIN) from error


def _said(error: BaseException) -> str:
    line = " ".join(str(error).split())[:200]
    return f": {line}" if line else ""
