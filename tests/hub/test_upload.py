"""The order that cannot leak: against a server that speaks the Hub's protocol and breaks on demand."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import (
    BadResponseError,
    EndpointAuthError,
    EndpointError,
    EndpointTimeoutError,
    RateLimitError,
)
from cbtqa.hub.client import NameTakenError
from cbtqa.hub.plan import PublishRefusedError
from cbtqa.hub.publish import Prepared, prepare_dataset, prepare_model, publish
from cbtqa.hub.settings import DatasetSettings, ModelSettings
from cbtqa.hub.upload import Uploaded
from cbtqa.manifest import read_manifest
from tests.hub.child import PRELOADED, publish_in_child
from tests.hub.conftest import TOKEN
from tests.hub.runs import edit_rows, rows_of, write_dataset
from tests.support.hub import Repo, Request, StandInHub

REPO = "lab/cbt-qa"
# huggingface_hub 2.4.0 hands files to httpx2 in a way that httpx2 has begun to discourage
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def prepared(run: Path, **more: Any) -> Prepared:
    return prepare_dataset(DatasetSettings(run=run, to=more.pop("to", REPO), **more))


def published(run: Path, hub: StandInHub, **more: Any) -> Uploaded:
    return publish(prepared(run, **more), endpoint=hub.url)


def assert_complete(repo: Repo, ready: Prepared) -> None:
    """Every planned file is there, byte for byte, and nothing else but the Hub's own."""
    assert set(repo.files) == {file.path for file in ready.plan.files} | {".gitattributes"}
    for file in ready.plan.files:
        assert repo.files[file.path].data == file.source.read_bytes()


# --- the order -----------------------------------------------------------------------------------


def test_publishing_creates_gates_uploads_tags_and_reads_back_in_this_order(
    run: Path, hub: StandInHub
) -> None:
    done = published(run, hub)
    repo = hub.repo("dataset", REPO)
    assert_complete(repo, prepared(run))
    assert repo.is_private and repo.gated == "manual" and hub.became_public == []
    assert repo.tags == {"v1": done.commit} and done.commit == repo.head
    steps = [r.path.rsplit("/", 2)[-2:] for r in hub.requests if r.is_write]
    names = ["/".join(step) for step in steps if "lfs" not in step[0]]
    order = ["repos/create", "cbt-qa/settings", "api/validate-yaml", "preupload/main"]
    assert names[:4] == order
    assert names[-2] == "commit/main" and names[-1].startswith("tag/")
    last_write = max(i for i, r in enumerate(hub.requests) if r.is_write)
    read_back = {
        r.path.rsplit("/", 1)[-1] for r in hub.requests[last_write:] if "resolve" in r.path
    }
    assert read_back == {"README.md", "LICENSE.md", "croissant.json", "provenance.json"}
    assert done.url == f"{hub.url}/datasets/{REPO}"


def test_a_second_run_sends_nothing(run: Path, hub: StandInHub) -> None:
    first = published(run, hub)
    hub.requests.clear()
    second = published(run, hub)
    assert hub.writes() == []
    assert (second.commit, second.tag, second.n_sent) == (first.commit, "v1", 0)


def test_a_changed_run_sends_what_changed_and_gets_the_next_tag(run: Path, hub: StandInHub) -> None:
    first = published(run, hub)
    changed = rows_of(run)[0]["id"]
    edit_rows(run, lambda row: row.update(seed=row["seed"] + (row["id"] == changed)))
    hub.requests.clear()
    second = published(run, hub)
    assert len(hub.writes("^/lfs/[0-9a-f]{64}$")) == 1
    assert second.tag == "v2" and second.n_kept > second.n_sent >= 1
    assert hub.repo("dataset", REPO).tags == {"v1": first.commit, "v2": second.commit}
    assert_complete(hub.repo("dataset", REPO), prepared(run))


def test_files_that_are_no_longer_part_of_it_are_removed(run: Path, hub: StandInHub) -> None:
    published(run, hub)
    done = published(run, hub, withhold_crisis=True)
    assert done.n_removed >= 1
    assert not any("crisis" in path for path in hub.repo("dataset", REPO).files)
    assert_complete(hub.repo("dataset", REPO), prepared(run, withhold_crisis=True))


def test_large_files_go_in_parts(run: Path, hub: StandInHub) -> None:
    hub.part_bytes = 5_000
    published(run, hub)
    assert len(hub.writes(r"/lfs/\w+/\d+$")) > 3
    assert_complete(hub.repo("dataset", REPO), prepared(run))


def test_the_default_way_through_xet_works_too(
    run: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    done = published(run, hub)
    assert any("xet-write-token" in request.path for request in hub.requests)
    assert hub.writes("lfs") == []
    assert hub.repo("dataset", REPO).tags == {"v1": done.commit}


def test_a_model_repository_is_reached_without_the_datasets_prefix(
    adapter: Path, hub: StandInHub
) -> None:
    ready = prepare_model(ModelSettings(run=adapter, to="lab/cbt-adapter"))
    done = publish(ready, endpoint=hub.url)
    assert done.url == f"{hub.url}/lab/cbt-adapter"
    assert_complete(hub.repo("model", "lab/cbt-adapter"), ready)


def test_what_was_published_is_recorded_beside_the_run(run: Path, hub: StandInHub) -> None:
    done = published(run, hub)
    record = json.loads((run / "publish" / "record.json").read_text("utf-8"))
    assert (record["commit"], record["tag"]) == (done.commit, "v1")
    assert {file["path"] for file in record["files"]} == set(hub.repo("dataset", REPO).files) - {
        ".gitattributes"
    }


def test_a_permission_is_written_into_the_manifest_and_stays_the_same(
    run: Path, hub: StandInHub, tmp_path: Path
) -> None:
    permission = tmp_path / "grant.pdf"
    permission.write_bytes(b"%PDF-1.7 granted")
    more = {"include_source_text": True, "permission": permission}
    published(run, hub, **more)
    recorded = read_manifest(run).acknowledgements["source_text"]
    assert "grant.pdf" in recorded and REPO in recorded
    hub.requests.clear()
    published(run, hub, **more)
    assert hub.writes() == []
    assert read_manifest(run).acknowledgements["source_text"] == recorded


# --- killed on the way ---------------------------------------------------------------------------


def killed_at(run: Path, hub: StandInHub, number: int) -> None:
    """Publishes in a process of its own, killed when the request of this number was served.

    The next request is never sent: what the Hub holds then is what a kill before it leaves, too.
    """
    seen = 0

    def watch(moment: str, request: Request) -> None:
        nonlocal seen
        seen += moment == "after"
        if seen == number:
            os.kill(int(child.pid or 0), signal.SIGKILL)

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    child = context.Process(target=publish_in_child, args=(run, REPO, hub.url, TOKEN))
    hub.on_request = watch
    child.start()
    child.join(60)
    hub.on_request = lambda moment, request: None
    assert child.exitcode == -signal.SIGKILL


def firsts_of_their_kind(requests: list[Request]) -> list[int]:
    """Numbers, from 1, of requests whose like has not been before, and of all that write."""
    seen = set()
    found = []
    for number, one in enumerate(requests, 1):
        kind = (one.method, re.sub(r"/resolve/.*|/tree/.*|[0-9a-f]{40,}", "", one.path))
        if (one.is_write and "/lfs/" not in one.path) or kind not in seen:
            found.append(number)
        seen.add(kind)
    return found


@pytest.mark.slow
def test_killed_at_every_kind_of_request_then_run_again_it_ends_complete_and_private(
    tmp_path: Path, hub: StandInHub
) -> None:
    run = write_dataset(tmp_path / "run", 3)
    ready = prepared(run)
    whole = publish(ready, endpoint=hub.url)
    assert len(hub.requests) > 20 and hub.writes("/lfs/")
    for number in firsts_of_their_kind(hub.requests[:-1]):
        hub.repos.clear()
        hub.objects.clear()
        hub.requests.clear()
        killed_at(run, hub, number)
        assert len(hub.requests) >= number
        repo = hub.repos.get(("dataset", REPO))
        if repo is not None:
            # the old state or the whole new one, never a part
            assert set(repo.files) == {".gitattributes"} or len(repo.files) == whole.n_sent + 1
            assert not repo.tags or repo.tags["v1"] == repo.head
        held = set(hub.objects)
        hub.requests.clear()
        done = publish(ready, endpoint=hub.url)
        repo = hub.repo("dataset", REPO)
        assert_complete(repo, ready)
        assert repo.tags == {"v1": done.commit} and len(repo.order) == 2, "one commit of ours"
        sent_again = {r.path.split("/")[-1] for r in hub.writes("^/lfs/[0-9a-f]{64}$")} & held
        assert not sent_again, "bytes that had arrived were sent again"
    assert hub.became_public == []


# --- what stops it, and when ---------------------------------------------------------------------

Plant = Callable[[Path], None]


def _plant(text: str) -> Plant:
    def plant(run: Path) -> None:
        first = rows_of(run)[0]["id"]

        def edit(row: dict[str, Any]) -> None:
            if row["id"] == first:
                row["answer"] += text
                row.update({k: None for k in row if k in _STEPS})

        edit_rows(run, edit)

    return plant


def _plant_question(run: Path) -> None:
    _plant(rows_of(run)[3]["description"])(run)


_STEPS = {
    *("validation_and_empathy", "key_thought", "challenge_or_reflection"),
    *("strategy_or_insight", "encouragement_and_foresight"),
}


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (_plant("（密钥 sk-" + "Ab9" * 8 + "）"), "looks like a secret"),
        (_plant_question, "repeats protected text"),
        (_plant("，见 /scratch/li/psyqa/full.json"), "an absolute path"),
    ],
    ids=["secret", "question", "path"],
)
def test_a_plant_stops_it_before_the_first_request(
    plant: Plant, told: str, run: Path, hub: StandInHub
) -> None:
    plant(run)
    with pytest.raises(PublishRefusedError, match=told):
        published(run, hub)
    assert hub.requests == []


def test_no_token_stops_it_before_the_first_request(
    run: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(EndpointAuthError, match="no token") as caught:
        published(run, hub)
    assert "hf auth login" in str(caught.value.hint) and hub.requests == []


def test_a_token_in_the_files_is_found_even_without_a_telling_form(
    run: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-odd-token-of-a-mirror")
    _plant("an-odd-token-of-a-mirror")(run)
    with pytest.raises(PublishRefusedError, match="a key that is in use on this machine"):
        published(run, hub)


@pytest.mark.parametrize(
    ("account", "told"),
    [
        ({"name": "lab", "role": "read"}, "may only read"),
        ({"name": "other", "role": "write"}, "may not write to lab"),
        ({"name": "other", "role": "write", "orgs": {"lab": "read"}}, "may not write to lab"),
        ({"name": "lab", "role": "fineGrained", "scopes": []}, "no write permission"),
    ],
    ids=["read", "owner", "reader of the organisation", "fine-grained"],
)
def test_a_token_that_may_not_write_is_refused_before_anything_is_made(
    account: dict[str, Any], told: str, run: Path, hub: StandInHub
) -> None:
    hub.add_token(TOKEN, account.pop("name"), **account)
    with pytest.raises(EndpointAuthError, match=told):
        published(run, hub)
    assert hub.writes() == [] and hub.repos == {}


def test_a_fine_grained_token_with_the_right_scope_may(run: Path, hub: StandInHub) -> None:
    scope = {"entity": {"type": "dataset", "name": REPO}, "permissions": ["repo.write"]}
    hub.add_token(TOKEN, "lab", role="fineGrained", scopes=[scope])
    assert published(run, hub).tag == "v1"


def test_a_token_the_hub_does_not_know_is_refused(
    run: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x9" * 17)
    with pytest.raises(EndpointAuthError, match="refused the token"):
        published(run, hub)


def test_a_public_repository_is_refused_unless_it_is_meant(run: Path, hub: StandInHub) -> None:
    hub.add_repo("dataset", REPO, is_private=False)
    with pytest.raises(PublishRefusedError, match="is public") as caught:
        published(run, hub)
    assert caught.value.exit_code == 7 and hub.writes() == []
    done = published(run, hub, allow_public=True)
    assert not done.is_private and hub.repo("dataset", REPO).tags == {"v1": done.commit}


def test_a_name_of_somebody_elses_files_is_refused(run: Path, hub: StandInHub) -> None:
    hub.add_repo("dataset", REPO, **{"thesis.txt": b"mine"})
    with pytest.raises(PublishRefusedError, match=r"is taken: .*thesis\.txt"):
        published(run, hub)
    assert hub.writes() == []


def test_a_hidden_repository_of_this_name_is_refused(run: Path, hub: StandInHub) -> None:
    hidden = {"X-Error-Code": "RepoNotFound"}
    hub.fail("GET", f"/api/datasets/{REPO}", status=404, headers=hidden, times=100)
    hub.add_repo("dataset", REPO)
    with pytest.raises(NameTakenError, match="is taken"):
        published(run, hub)


def test_a_repository_that_turns_out_public_after_creation_gets_nothing(
    run: Path, hub: StandInHub
) -> None:
    def open_it(moment: str, request: Request) -> None:
        if moment == "after" and request.path == "/api/repos/create":
            hub.repo("dataset", REPO).is_private = False

    hub.on_request = open_it
    with pytest.raises(PublishRefusedError, match="is public"):
        published(run, hub)
    assert [r.path for r in hub.writes()] == ["/api/repos/create"]


def test_a_repository_opened_by_somebody_meanwhile_is_told(run: Path, hub: StandInHub) -> None:
    def open_it(moment: str, request: Request) -> None:
        if moment == "after" and "/tag/" in request.path:
            hub.repo("dataset", REPO).is_private = False

    hub.on_request = open_it
    with pytest.raises(PublishRefusedError, match="not private any more"):
        published(run, hub)


def test_a_tag_is_never_moved(run: Path, hub: StandInHub) -> None:
    published(run, hub, tag="paper")
    assert published(run, hub, tag="paper").tag == "paper"
    edit_rows(run, lambda row: row.update(seed=9))
    with pytest.raises(PublishRefusedError, match="never moved"):
        published(run, hub, tag="paper")


# --- a failing Hub -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "whoami"), ("GET", f"/api/datasets/{REPO}"), ("PUT", "/settings")),
        *(("POST", "/repos/create"), ("POST", "/preupload/"), ("POST", "/objects/batch")),
        *(("PUT", "/lfs/"), ("POST", "/commit/"), ("POST", "/tag/"), ("GET", "/resolve/")),
    ],
)
@pytest.mark.parametrize("status", [503, 429, None], ids=["failing", "limited", "cut"])
def test_a_failure_that_passes_is_waited_out_or_ends_in_one_line_and_is_resumed(
    method: str, path: str, status: int | None, ready: Prepared, hub: StandInHub, quick: list[float]
) -> None:
    hub.fail(method, path, status=status, headers={"Retry-After": "1"} if status == 429 else None)
    try:
        publish(ready, endpoint=hub.url)
    except EndpointError as error:
        assert error.exit_code == 5 and "\n" not in str(error)
        assert "run the same command again" in str(error.hint) or "taken" in str(error)
        publish(ready, endpoint=hub.url)
    assert_complete(hub.repo("dataset", REPO), ready)
    assert hub.became_public == [] and len(hub.repo("dataset", REPO).tags) == 1


def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    ready: Prepared, hub: StandInHub, quick: list[float]
) -> None:
    hub.fail("POST", "/commit/", is_late=True)
    with pytest.raises(EndpointTimeoutError, match="broke while uploading") as caught:
        publish(ready, endpoint=hub.url)
    assert caught.value.exit_code == 5
    done = publish(ready, endpoint=hub.url)
    assert done.n_sent == 0 and len(hub.repo("dataset", REPO).order) == 2


def test_a_network_cut_for_good_in_the_middle_is_resumed_without_sending_twice(
    ready: Prepared, hub: StandInHub, quick: list[float]
) -> None:
    n_let_through = 0

    def cut_after_two(moment: str, request: Request) -> None:
        nonlocal n_let_through
        if moment == "after" and request.method == "PUT" and "/lfs/" in request.path:
            n_let_through += 1
            if n_let_through == 2:
                hub.fail("PUT", "/lfs/", times=1_000)

    hub.on_request = cut_after_two
    with pytest.raises(EndpointTimeoutError, match="broke while uploading"):
        publish(ready, endpoint=hub.url)
    held = set(hub.objects)
    assert held and hub.repo("dataset", REPO).is_private
    assert set(hub.repo("dataset", REPO).files) == {".gitattributes"}
    hub.heal()
    hub.on_request = lambda moment, request: None
    hub.requests.clear()
    publish(ready, endpoint=hub.url)
    assert not held & {request.path.split("/")[-1] for request in hub.writes("/lfs/")}
    assert_complete(hub.repo("dataset", REPO), ready)


def test_a_hub_that_stays_down_is_told_in_one_line(
    ready: Prepared, hub: StandInHub, quick: list[float]
) -> None:
    hub.fail("GET", "whoami", status=502, times=100)
    with pytest.raises(BadResponseError, match=r"failed while asking .* \(502\)") as caught:
        publish(ready, endpoint=hub.url)
    assert "\n" not in str(caught.value) and sum(quick) < 60


def test_a_rate_limit_is_waited_out_as_asked_or_told_when_it_is_long(
    ready: Prepared, hub: StandInHub, quick: list[float]
) -> None:
    hub.fail("GET", "whoami", status=429, headers={"Retry-After": "7"})
    publish(ready, endpoint=hub.url)
    assert 7.0 in quick
    hub.fail("GET", "whoami", status=429, headers={"RateLimit": '"api";r=0;t=240'})
    with pytest.raises(RateLimitError, match="wait 240 s"):
        publish(ready, endpoint=hub.url)


def test_somebody_elses_commit_meanwhile_is_not_overwritten(
    ready: Prepared, hub: StandInHub
) -> None:
    def commit_first(moment: str, request: Request) -> None:
        if moment == "before" and "/commit/" in request.path:
            repo = hub.repo("dataset", REPO)
            hub._add_commit(repo, dict(repo.files))

    hub.on_request = commit_first
    with pytest.raises(NameTakenError, match="changed while its files were uploaded"):
        publish(ready, endpoint=hub.url)


def test_bytes_that_come_back_otherwise_are_noticed(ready: Prepared, hub: StandInHub) -> None:
    def damage(moment: str, request: Request) -> None:
        if moment == "after" and "/tag/" in request.path:
            repo = hub.repo("dataset", REPO)
            blob = repo.files["LICENSE.md"]
            changed = bytearray(blob.data or b"")
            changed[0] ^= 1
            repo.files["LICENSE.md"] = type(blob)(
                blob.size, blob.git_sha1, blob.sha256, bytes(changed)
            )

    hub.on_request = damage
    with pytest.raises(
        BadResponseError, match=r"LICENSE\.md on the Hub is not what was scanned and sent"
    ):
        publish(ready, endpoint=hub.url)


def test_a_file_that_changes_after_the_scan_is_noticed(run: Path, hub: StandInHub) -> None:
    ready = prepared(run)
    assert [file.sha256 for file in ready.plan.files]
    table = next(file for file in ready.plan.files if file.path.startswith("qa/train"))

    def swap(moment: str, request: Request) -> None:
        if moment == "after" and request.path == "/api/validate-yaml":
            data = bytearray(table.source.read_bytes())
            data[len(data) // 2] ^= 1
            table.source.write_bytes(data)

    hub.on_request = swap
    with pytest.raises(BadResponseError, match="not what was scanned and sent"):
        publish(ready, endpoint=hub.url)
    assert hub.repo("dataset", REPO).is_private


def test_a_dead_address_is_told_in_one_line(
    ready: Prepared, hub: StandInHub, quick: list[float]
) -> None:
    with pytest.raises(EndpointTimeoutError, match="broke while asking"):
        publish(ready, endpoint="http://127.0.0.1:9")


def test_a_mirror_without_xet_names_the_way_out(
    ready: Prepared, hub: StandInHub, quick: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.fail("GET", "xet-write-token", status=404, times=100)
    with pytest.raises(EndpointTimeoutError) as caught:
        publish(ready, endpoint=hub.url)
    assert "HF_HUB_DISABLE_XET=1" in str(caught.value.hint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    publish(ready, endpoint=hub.url)
    assert_complete(hub.repo("dataset", REPO), ready)
