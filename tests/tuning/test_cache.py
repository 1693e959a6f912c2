"""Converted copies: made by the verb that needs one, once, and found again by all the others."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlparse

import pytest

from cbtqa.cli.main import _run as run
from cbtqa.errors import CbtqaError, ConfigError, UsageError
from cbtqa.tuning.backbones import find_backbone
from cbtqa.tuning.loading import choose_backbone
from cbtqa.tuning.weights.cache import cache_folder, cached_copies, clear_cache, converted
from cbtqa.tuning.weights.files import describe_base
from tests.support.hub import StandInHub
from tests.support.original_checkpoints import save_original
from tests.tuning.children import children, run_at_once


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBTQA_CACHE", str(tmp_path / "copies"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A Hub on loopback that has Baichuan-7B, tiny."""
    save_original(tmp_path / "source", "baichuan", parts=2)
    files = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    with StandInHub() as server:
        server.add_repo("model", "baichuan-inc/Baichuan-7B", is_private=False, **files)
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        yield server


def test_a_name_alone_is_downloaded_and_converted_once(hub: StandInHub) -> None:
    told: list[str] = []
    made = choose_backbone("baichuan", on_stage=told.append)
    head = hub.repo("model", "baichuan-inc/Baichuan-7B").head
    assert made.path == cache_folder() / f"Baichuan-7B-{head[:12]}"
    assert (made.known_id, made.architecture) == ("baichuan", "LlamaForCausalLM")
    assert any(words.startswith("downloading baichuan-inc/Baichuan-7B, ") for words in told)
    n_requests, told = len([r for r in hub.requests if r.path.endswith(".bin")]), []
    assert choose_backbone("百川-7B", on_stage=told.append) == made
    assert told == []
    assert len([r for r in hub.requests if r.path.endswith(".bin")]) == n_requests


def test_the_copy_serves_without_the_hub_and_its_cache(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = choose_backbone("baichuan")
    (tmp_path / "hf").rename(tmp_path / "gone")
    hub.fail("HEAD", "/resolve/", status=503, times=1000)
    hub.fail("GET", "/resolve/", status=503, times=1000)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    told: list[str] = []
    assert choose_backbone("baichuan", on_stage=told.append) == made
    assert "its converted copy Baichuan-7B-" in told[0]
    clear_cache(["all"])
    with pytest.raises(ConfigError, match="cannot get baichuan-inc/Baichuan-7B"):
        choose_backbone("baichuan")


def test_an_adapter_finds_its_base_again_and_says_where_it_came_from(hub: StandInHub) -> None:
    record = describe_base(choose_backbone("baichuan"))
    head = hub.repo("model", "baichuan-inc/Baichuan-7B").head
    assert (record.hub_id, record.revision) == ("baichuan-inc/Baichuan-7B", head)
    assert record.is_converted and record.backbone == "baichuan"


def test_a_folder_of_ones_own_is_converted_too_and_again_when_it_changes(tmp_path: Path) -> None:
    save_original(tmp_path / "mine", "qwen")
    first = choose_backbone(str(tmp_path / "mine"))
    assert first.path != tmp_path / "mine" and first.architecture == "Qwen2ForCausalLM"
    assert choose_backbone(str(tmp_path / "mine")) == first
    save_original(tmp_path / "mine", "qwen", seed=1)
    assert choose_backbone(str(tmp_path / "mine")).path != first.path


def test_a_dry_run_converts_nothing(tmp_path: Path) -> None:
    save_original(tmp_path / "mine", "baichuan2")
    assert choose_backbone(str(tmp_path / "mine"), is_dry=True).needs_conversion
    assert cached_copies() == []


class _ModelScope(BaseHTTPRequestHandler):
    """What ModelScope's library asks for when it downloads a model."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        asked = urlparse(self.path)
        if "baichuan-inc/baichuan-7B/" not in asked.path:
            self._send(404, json.dumps({"Code": 404, "Message": "no such model"}).encode())
        elif asked.path.endswith("/repo/files"):
            rows = [
                {
                    "Name": name,
                    "Path": name,
                    "Type": "blob",
                    "Size": len(data),
                    "Sha256": hashlib.sha256(data).hexdigest(),
                }
                for name, data in self.files.items()
            ]
            told = {"Code": 200, "Success": True, "Data": {"Files": rows}}
            self._send(200, json.dumps(told).encode())
        else:
            self._send(200, self.files[parse_qs(asked.query)["FilePath"][0]])

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def test_a_backbone_comes_from_modelscope_by_its_own_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("modelscope", reason="needs modelscope: cbtqa[modelscope]")
    hub = pytest.importorskip("modelscope_hub.config")
    monkeypatch.setattr(hub, "_default_config", None)  # it keeps the address of its first use
    save_original(tmp_path / "source", "baichuan")
    files = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    monkeypatch.setattr(_ModelScope, "files", files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _ModelScope)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    try:
        told: list[str] = []
        made = choose_backbone("baichuan", on_stage=told.append, place="modelscope")
        assert "downloading baichuan-inc/baichuan-7B from ModelScope" in told[0]
        assert made.path is not None and made.path.name.startswith("baichuan-7B-")
        assert (made.known_id, made.architecture) == ("baichuan", "LlamaForCausalLM")
        assert choose_backbone("baichuan", place="modelscope") == made
        with pytest.raises(ConfigError, match="cannot get nobody/none from ModelScope"):
            choose_backbone("nobody/none", place="modelscope")
    finally:
        server.shutdown()
        server.server_close()


def _convert(folder: str, told: list[str], own: str) -> None:
    os.environ["CBTQA_CACHE"] = own  # what forks has the environment of its start
    converted(find_backbone(folder), told.append)


@pytest.mark.xdist_group("children")
def test_two_processes_make_one_copy(tmp_path: Path) -> None:
    save_original(tmp_path / "mine", "baichuan", parts=3, layers=6)
    with children().Manager() as manager:
        told = [manager.list() for _ in range(3)]
        own = str(tmp_path / "copies")
        codes = run_at_once(_convert, [(str(tmp_path / "mine"), one, own) for one in told])
        assert codes == [0, 0, 0]
        assert sum(any("converting" in words for words in each) for each in told) == 1
    assert len(cached_copies()) == 1


def test_what_cannot_be_converted_leaves_no_copy(tmp_path: Path) -> None:
    save_original(tmp_path / "mine", "baichuan")
    (tmp_path / "mine" / "pytorch_model.bin").write_bytes(b"not weights")
    with pytest.raises(CbtqaError, match="pickle"):
        choose_backbone(str(tmp_path / "mine"))
    assert [copy for copy in cached_copies() if copy.record] == []


def test_the_cache_is_listed_and_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cache"], is_debug=False) == 0
    assert "none" in capsys.readouterr().err
    save_original(tmp_path / "mine", "baichuan")
    made = choose_backbone(str(tmp_path / "mine"))
    assert made.path is not None
    stopped = cache_folder() / ".Qwen-7B-0123456789ab.partial"
    stopped.mkdir()
    assert run(["cache", "--json"], is_debug=False) == 0
    copies = json.loads(capsys.readouterr().out)["copies"]
    assert {(one["name"], one["is_complete"]) for one in copies} == {
        ("Qwen-7B-0123456789ab", False),
        (made.path.name, True),
    }
    with pytest.raises(UsageError, match="no converted copy is called nothing"):
        clear_cache([made.path.name, "nothing"])
    assert made.path.is_dir()
    assert run(["cache", "--clear", made.path.name], is_debug=False) == 0
    assert not made.path.exists() and stopped.is_dir()
    assert run(["cache", "--clear", "all"], is_debug=False) == 0
    assert not stopped.exists()
