"""ModelScope as the second place: its real client against a server in the shapes it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import BadResponseError, ConfigError, EndpointAuthError, MissingExtraError
from cbtqa.hub.cards import split_card
from cbtqa.hub.plan import PublishRefusedError
from cbtqa.hub.publish import Prepared, prepare_dataset, prepare_model, publish
from cbtqa.hub.settings import DatasetSettings, ModelSettings
from cbtqa.hub.upload import Uploaded
from cbtqa.secrets import masked
from cbtqa.settings import resolve
from tests.hub.runs import edit_rows
from tests.support.modelscope import TOKEN, Repo, StandInModelScope

pytest.importorskip("modelscope_hub", reason="needs modelscope: cbtqa[modelscope]")
REPO = "lab/cbt-qa"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInModelScope]:
    """A running stand-in, named by the client's own variables."""
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms-cache"))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    with StandInModelScope() as server:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        yield server


def prepared(run: Path, **more: Any) -> Prepared:
    return prepare_dataset(DatasetSettings(run=run, to=REPO, site="modelscope", **more))


def published(run: Path, **more: Any) -> Uploaded:
    return publish(prepared(run, **more))


def assert_complete(repo: Repo, ready: Prepared) -> None:
    assert set(repo.files) == {file.path for file in ready.plan.files} | {".gitattributes"}
    for file in ready.plan.files:
        assert repo.files[file.path] == file.source.read_bytes()


def test_a_dataset_goes_to_a_private_gated_repository_in_one_commit_and_is_tagged(
    run: Path, site: StandInModelScope
) -> None:
    done = published(run)
    repo = site.repos["dataset", REPO]
    assert_complete(repo, prepared(run))
    assert repo.is_private and repo.is_gated and done.is_private
    assert repo.messages == ["Publish with cbtqa (dataset)"]
    assert repo.tags == {"v1": repo.files} and done.tag == "v1"
    assert done.url == f"{site.url}/datasets/{REPO}"
    assert masked(f"Bearer {TOKEN}") == "Bearer [key]"


def test_a_second_run_sends_nothing_and_a_changed_one_gets_the_next_tag(
    run: Path, site: StandInModelScope
) -> None:
    first = published(run)
    site.requests.clear()
    second = published(run)
    assert (second.n_sent, second.tag, second.commit) == (0, "v1", first.commit)
    assert {method for method, _ in site.requests} == {"GET"}
    edit_rows(run, lambda row: row.update(answer=row["answer"] + "加油。"))
    third = published(run)
    repo = site.repos["dataset", REPO]
    assert third.tag == "v2" and third.n_sent and repo.tags["v1"] != repo.tags["v2"]
    assert_complete(repo, prepared(run))


def test_an_adapter_goes_with_a_card_in_modelscopes_keys(
    adapter: Path, site: StandInModelScope
) -> None:
    settings = ModelSettings(run=adapter, to="lab/cbt-adapter", site="modelscope", gate="none")
    ready = prepare_model(settings)
    publish(ready)
    repo = site.repos["model", "lab/cbt-adapter"]
    assert_complete(repo, ready)
    assert not repo.is_gated
    front, body = split_card(repo.files["README.md"].decode())
    assert front["tasks"] == ["text-generation"] and front["frameworks"] == ["Pytorch"]
    assert front["base_model"] and not [key for key in front if key.startswith("extra_gated")]
    assert "modelscope download --model lab/cbt-adapter --local_dir cbt-adapter" in body
    assert "modelscope.cn/models/lab/cbt-adapter" in body


def test_large_files_go_as_blobs_once_and_the_card_never(
    run: Path, site: StandInModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cbtqa.hub.modelscope.INLINE_BYTES", 1000)
    ready = prepared(run)
    publish(ready)
    repo = site.repos["dataset", REPO]
    large = {file.path for file in ready.plan.files if file.n_bytes > 1000} - {"README.md"}
    assert repo.large == large and len([one for one in large if one.endswith(".parquet")]) > 1
    n_sent = len([path for method, path in site.requests if method == "PUT"])
    assert n_sent == len(large)
    site.repos.clear()
    publish(ready)
    assert len([path for method, path in site.requests if method == "PUT"]) == n_sent
    assert_complete(site.repos["dataset", REPO], ready)


def test_the_refusals_are_the_hubs(run: Path, site: StandInModelScope) -> None:
    edit_rows(run, lambda row: row.update(answer=f"{row['answer']}{TOKEN}"))
    with pytest.raises(PublishRefusedError):
        published(run)
    assert site.requests == [], "nothing was asked"


def test_a_public_and_a_foreign_repository_are_refused(run: Path, site: StandInModelScope) -> None:
    site.repos["dataset", REPO] = Repo(is_private=False, is_gated=False)
    with pytest.raises(PublishRefusedError, match="is public"):
        published(run)
    site.repos["dataset", REPO] = Repo(True, True, {"theirs.csv": b"a,b"})
    with pytest.raises(PublishRefusedError, match="holds files that cbtqa did not write"):
        published(run)
    site.repos["dataset", REPO] = Repo(is_private=True, is_gated=False)
    with pytest.raises(PublishRefusedError, match="has another gate than --gate manual"):
        published(run)
    assert site.repos["dataset", REPO].files == {}


def test_a_site_that_tells_no_gate_is_taken_at_the_word_it_was_created_with(
    run: Path, site: StandInModelScope
) -> None:
    site.tells_gate = False
    assert published(run).is_private and site.repos["dataset", REPO].is_gated


def test_failures_are_told_and_what_arrived_is_compared(
    run: Path, site: StandInModelScope, monkeypatch: pytest.MonkeyPatch, quick: list[float]
) -> None:
    site.fails = {"/commit/": 403}
    with pytest.raises(EndpointAuthError, match="refused the token while uploading"):
        published(run)
    site.spoils = True
    with pytest.raises(BadResponseError, match=r"README\.md on ModelScope is not what was scanned"):
        published(run)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-wrong-wrong-wrong")
    with pytest.raises(EndpointAuthError, match="refused the token") as told:
        published(run)
    assert "ms-wrong" not in str(told.value) and "MODELSCOPE_API_TOKEN" in (told.value.hint or "")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    with pytest.raises(EndpointAuthError, match="no token for ModelScope"):
        published(run)


def test_a_dry_run_needs_no_token_and_no_network(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    card = prepared(run).plan.card
    front, body = split_card(card)
    assert not [key for key in front if key.startswith("extra_gated")] and front["configs"]
    assert f"modelscope download --dataset {REPO} --local_dir cbt-qa" in body
    assert "cbtqa join ./cbt-qa" in body and "huggingface.co" not in body


def test_a_gate_that_the_site_does_not_have_is_refused(run: Path) -> None:
    flags = {"run": run, "to": REPO, "site": "modelscope", "gate": "auto"}
    with pytest.raises(ConfigError, match="has no --gate auto"):
        resolve(DatasetSettings, flags=flags, environ={})


def test_without_its_client_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared(run)
    monkeypatch.setitem(__import__("sys").modules, "modelscope_hub", None)
    with pytest.raises(MissingExtraError, match="modelscope"):
        publish(ready)
