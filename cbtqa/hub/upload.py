"""The order that cannot leak: from a plan that passed the scan to a private, gated repository.

    check the token -> look at the repository, refuse a public one -> create it private -> gate
    it -> upload onto the head that was seen -> tag that commit -> read back and compare

The repository holds the old state or the whole new one, never a part; nothing here makes anything
public. Every step looks at what is there first, so running it again after a break continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbtqa.errors import BadResponseError, EndpointAuthError, RateLimitError
from cbtqa.files import write_json
from cbtqa.hub.client import (
    AGAIN,
    Account,
    Hub,
    NameTakenError,
    RemoteFile,
    RepoState,
    wait_or_raise,
)
from cbtqa.hub.modelscope import ModelScopeHub
from cbtqa.hub.plan import PROVENANCE_PATH, STAGING, PlannedFile, PublishPlan, PublishRefusedError
from cbtqa.manifest import now, read_manifest, write_manifest
from cbtqa.records import Tabular

RECORD_NAME = "record.json"
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Uploaded(Tabular):
    url: str
    commit: str
    tag: str
    is_private: bool
    n_sent: int
    """Files whose bytes were sent; 0 when everything was there."""
    n_kept: int
    n_removed: int

    def to_dict(self) -> dict[str, Any]:
        shown = dict(vars(self))
        visibility = "private" if shown.pop("is_private") else "public"
        return {**shown, "visibility": visibility}


def upload(
    plan: PublishPlan,
    hub: Hub | ModelScopeHub,
    *,
    run: Path,
    tag: str | None = None,
    allow_public: bool = False,
    on_stage: OnStage = lambda stage: None,
) -> Uploaded:
    """Brings a plan onto the Hub. The plan must have passed `scan.refuse_findings`.

    Raises:
        EndpointError: a token that may not write, a name that is taken, a broken connection, a
            failing Hub. The repository is as it was before.
        PublishRefusedError: the repository is public, or belongs to something else.
    """
    on_stage("checking the token")
    require_write(hub.account(), plan.repo_id)
    on_stage("looking at the repository")
    state = _opened(plan, hub, allow_public, on_stage)
    if state.gate not in (None, plan.gate):
        on_stage("setting the gate")
        hub.set_gate(plan.gate)
    _record_acknowledgements(run, plan)
    commit, n_sent, n_removed = _sent(plan, hub, state, allow_public, on_stage)
    on_stage("tagging")
    name = _tagged(hub, commit, tag)
    on_stage("reading back")
    _compare(plan, hub, commit)
    after = hub.state()
    if after is None or not (after.is_private or allow_public):
        raise PublishRefusedError(
            f"{plan.repo_id} is not private any more: somebody changed it meanwhile",
            hint=f"look at {hub.url}/settings",
        )
    n_kept = len(plan.files) - n_sent
    done = Uploaded(hub.url, commit, name, after.is_private, n_sent, n_kept, n_removed)
    record = {**plan.summary(), **done.to_dict(), "published_at": now()}
    write_json(run / STAGING / RECORD_NAME, record)
    return done


def require_write(account: Account, repo_id: str) -> None:
    """Raises EndpointAuthError when the token may not write there, as far as the Hub says."""
    owner = repo_id.split("/")[0]
    mine = {account.name, *account.orgs}
    if account.role == "read":
        raise EndpointAuthError(
            "the token may only read",
            hint="make one with the role 'write' at https://huggingface.co/settings/tokens",
        )
    if owner not in mine or account.orgs.get(owner) == "read":
        places = sorted(name for name in mine if account.orgs.get(name) != "read")
        raise EndpointAuthError(
            f"the token of {account.name} may not write to {owner}",
            hint=f"publish to one of: {', '.join(places)}",
        )
    if account.role == "fineGrained" and not {owner, repo_id} & set(account.writable):
        raise EndpointAuthError(
            f"this fine-grained token has no write permission for {repo_id}",
            hint="give it 'write access to contents/settings of repos' for this owner",
        )


def _opened(
    plan: PublishPlan, hub: Hub | ModelScopeHub, allow_public: bool, on_stage: OnStage
) -> RepoState:
    """A repository that may be written to: private, and empty or ours."""
    state = hub.state()
    if state is None:
        on_stage("creating it, private")
        state = _created(plan, hub)
    _refuse_public(hub, state, allow_public)
    present = set(hub.files(state.head)) - hub.own_files if state.head else set()
    if present and PROVENANCE_PATH not in present:
        raise PublishRefusedError(
            f"the name {plan.repo_id} is taken: the repository holds files that cbtqa did not "
            f"write, such as {min(present)}",
            hint="publish to another name",
        )
    return state


def _created(plan: PublishPlan, hub: Hub | ModelScopeHub) -> RepoState:
    """The new repository as the Hub shows it: asked again, not believed, since an organisation's
    rules, a second publisher or a lost answer may have made it otherwise."""
    conflict: NameTakenError | None = None
    try:
        hub.create_private(plan.gate)
    except NameTakenError as error:
        conflict = error
    state = hub.state()
    if state is None:
        raise NameTakenError(
            f"the name {plan.repo_id} is taken by a repository that this token cannot see",
            hint="choose another name",
        ) from conflict
    return state


def _refuse_public(hub: Hub | ModelScopeHub, state: RepoState, allow_public: bool) -> None:
    if not state.is_private and not allow_public:
        raise PublishRefusedError(
            f"{hub.url} is public: everything sent there can be read at once",
            hint="publish to another name, make it private, or add --allow-public if that is meant",
        )


def _sent(
    plan: PublishPlan,
    hub: Hub | ModelScopeHub,
    state: RepoState,
    allow_public: bool,
    on_stage: OnStage,
) -> tuple[str, int, int]:
    """The commit that holds the plan; files that are there already are not sent again."""
    planned = {file.path for file in plan.files}
    attempt, n_sent, n_removed = 0, 0, 0
    while True:
        attempt += 1
        remote = hub.files(state.head) if state.head else {}
        changed = [file for file in plan.files if not _is_same(file, remote.get(file.path))]
        removed = sorted(set(remote) - planned - hub.own_files)
        if not changed and not removed:
            return state.head, n_sent, n_removed
        n_sent, n_removed = len(changed), len(removed)
        on_stage(f"uploading {n_sent} files, {sum(file.n_bytes for file in changed):,} bytes")
        message = f"Publish with cbtqa ({plan.kind})"
        try:
            return hub.commit(changed, removed, message, state.head), n_sent, n_removed
        except NameTakenError as error:
            raise NameTakenError(
                "the repository changed while its files were uploaded; nothing was overwritten",
                hint=AGAIN,
            ) from error
        except (RateLimitError, BadResponseError) as error:
            # the commit may have been made although its answer was a failure: look again
            wait_or_raise(error, attempt, max_attempts=3)
            state = hub.state() or state
            _refuse_public(hub, state, allow_public)


def _is_same(file: PlannedFile, remote: RemoteFile | None) -> bool:
    if remote is None or remote.n_bytes != file.n_bytes:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == file.sha256
    data = file.source.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return remote.git_sha1 == blob.hexdigest()


def _tagged(hub: Hub | ModelScopeHub, commit: str, wanted: str | None) -> str:
    """The name of the version: the one wanted, the one the commit has, or the next number."""
    tags = hub.tags()
    if wanted is not None:
        if tags.get(wanted, commit) != commit:
            raise PublishRefusedError(
                f"the tag {wanted} names another commit, and a tag is never moved",
                hint="give the version another name with --tag",
            )
        name = wanted
    else:
        numbered = {int(tag[1:]): tag for tag in tags if tag[:1] == "v" and tag[1:].isdigit()}
        own = [tag for _, tag in sorted(numbered.items()) if tags[tag] == commit]
        name = own[-1] if own else f"v{max(numbered, default=0) + 1}"
    if name not in tags:
        hub.tag(name, commit)
    return name


def _compare(plan: PublishPlan, hub: Hub | ModelScopeHub, commit: str) -> None:
    """Compares every file with the Hub's: small ones byte for byte, large ones by SHA-256."""
    remote = hub.files(commit)
    for file in plan.files:
        found = remote.get(file.path)
        same = _is_same(file, found)
        if same and found is not None and found.sha256 is None:
            same = hub.read(file.path, commit) == file.source.read_bytes()
        if not same:
            message = f"{file.path} on {hub.title} is not what was scanned and sent"
            raise BadResponseError(message, hint=AGAIN)


def _record_acknowledgements(run: Path, plan: PublishPlan) -> None:
    if not plan.acknowledgements:
        return
    manifest = read_manifest(run)
    merged: Mapping[str, str] = {**manifest.acknowledgements, **plan.acknowledgements}
    if merged != manifest.acknowledgements:
        write_manifest(run, manifest.model_copy(update={"acknowledgements": dict(merged)}))
