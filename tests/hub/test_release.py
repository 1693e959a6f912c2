"""Making a repository public: only what was published, only when its name is typed out."""

from __future__ import annotations

from typing import Any

import pytest

from cbtqa.errors import BadResponseError, EndpointAuthError, EndpointError, UsageError
from cbtqa.hub.plan import PublishRefusedError
from cbtqa.hub.publish import Prepared, prepare_dataset, prepare_model, publish
from cbtqa.hub.release import check_release, release
from cbtqa.hub.settings import DatasetSettings, ModelSettings
from tests.hub.conftest import TOKEN
from tests.support.hub import Blob, StandInHub

REPO = "lab/cbt-qa"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def published(ready: Prepared, hub: StandInHub) -> StandInHub:
    """The stand-in with a published, private dataset."""
    publish(ready, endpoint=hub.url)
    hub.requests.clear()
    return hub


def put(hub: StandInHub, path: str, data: bytes, *, keep_tag: bool = True) -> None:
    """Somebody changes a file on the Hub by hand."""
    repo = hub.repo("dataset", REPO)
    commit = hub._add_commit(repo, {**repo.files, path: Blob(len(data), "0" * 40, None, data)})
    if keep_tag:
        repo.tags["v1"] = commit


def test_the_name_typed_out_makes_it_public_and_keeps_the_gate(published: StandInHub) -> None:
    checked = check_release(REPO, endpoint=published.url)
    assert checked.summary()["tag"] == "v1" and checked.hub.kind == "dataset"
    assert published.repo("dataset", REPO).is_private
    assert release(checked, REPO + "\n") == f"{published.url}/datasets/{REPO}"
    repo = published.repo("dataset", REPO)
    assert not repo.is_private and repo.gated == "manual"


@pytest.mark.parametrize("typed", ["", "y", "cbt-qa", "lab/cbt-qA"])
def test_anything_else_leaves_it_private(typed: str, published: StandInHub) -> None:
    checked = check_release(REPO, endpoint=published.url)
    with pytest.raises(UsageError, match="stays private"):
        release(checked, typed)
    assert published.writes() == [] and published.became_public == []


def test_what_is_not_there_or_not_ours_is_refused(hub: StandInHub) -> None:
    with pytest.raises(EndpointError, match="no repository"):
        check_release(REPO, endpoint=hub.url)
    hub.add_repo("dataset", REPO, **{"thesis.txt": b"mine"})
    with pytest.raises(PublishRefusedError, match="not published with cbtqa"):
        check_release(REPO, endpoint=hub.url)
    hub.add_token(TOKEN, "lab", role="read")
    with pytest.raises(EndpointAuthError, match="may only read"):
        check_release(REPO, endpoint=hub.url)
    assert hub.writes() == []


@pytest.mark.parametrize(
    ("path", "data", "told"),
    [
        ("raw/psyqa.json", b"[]", r"raw/psyqa\.json on the Hub is not what was published"),
        ("README.md", b"---\na: b\n---\nkey hf_" + b"Zz9" * 10, "looks like a secret"),
        ("README.md", b"---\na: b\n---\nContact: [your name]", "a blank in the card"),
    ],
)
def test_what_was_put_there_by_hand_is_looked_at(
    path: str, data: bytes, told: str, published: StandInHub
) -> None:
    put(published, path, data)
    with pytest.raises(PublishRefusedError, match=told):
        check_release(REPO, endpoint=published.url)


def test_a_state_that_no_publication_finished_with_is_refused(published: StandInHub) -> None:
    readme = published.repo("dataset", REPO).files["README.md"].data or b""
    put(published, "README.md", readme + b"\nmore\n", keep_tag=False)
    with pytest.raises(PublishRefusedError, match="no tag"):
        check_release(REPO, endpoint=published.url)


def test_a_change_between_the_look_and_the_word_is_refused(published: StandInHub) -> None:
    checked = check_release(REPO, endpoint=published.url)
    put(published, "README.md", b"---\na: b\n---\nother")
    with pytest.raises(PublishRefusedError, match="changed meanwhile"):
        release(checked, REPO)
    assert published.repo("dataset", REPO).is_private


def test_a_dataset_and_a_model_of_one_name_have_to_be_told_apart(
    published: StandInHub, adapter: Any
) -> None:
    publish(prepare_model(ModelSettings(run=adapter, to=REPO)), endpoint=published.url)
    with pytest.raises(UsageError, match="a dataset and a model"):
        check_release(REPO, endpoint=published.url)
    assert check_release(REPO, "model", endpoint=published.url).hub.kind == "model"


def test_question_text_without_a_gate_is_never_made_public(
    run: Any, hub: StandInHub, tmp_path: Any
) -> None:
    permission = tmp_path / "grant.pdf"
    permission.write_bytes(b"%PDF-1.7 granted")
    settings = DatasetSettings(
        run=run, to=REPO, include_source_text=True, permission=permission, gate="none"
    )
    publish(prepare_dataset(settings), endpoint=hub.url)
    with pytest.raises(PublishRefusedError, match="no gate"):
        check_release(REPO, endpoint=hub.url)


def test_a_public_one_is_public_already(published: StandInHub) -> None:
    release(check_release(REPO, endpoint=published.url), REPO)
    with pytest.raises(UsageError, match="public already"):
        check_release(REPO, endpoint=published.url)


def test_a_hub_that_only_pretends_is_noticed(published: StandInHub) -> None:
    checked = check_release(REPO, endpoint=published.url)
    published.fail("PUT", "/settings", status=200)
    with pytest.raises(BadResponseError, match="private still"):
        release(checked, REPO)
