"""`cbtqa publish`, `join` and `hub-preview` as a user meets them; round trips as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbtqa.cli.main import main
from cbtqa.hub.publish import Prepared, publish
from tests.hub.conftest import TOKEN
from tests.hub.runs import copy_of, rows_of, write_psyqa, write_ratings
from tests.support.hub import StandInHub
from tests.support.program import environment, run_cbtqa

REPO = "lab/cbt-qa"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def at(hub: StandInHub, tmp_path: Path, **more: str) -> dict[str, str]:
    """The environment of a process that takes the stand-in for the Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }


def python(code: str, **more: str) -> Any:
    """Runs a few lines in a process of their own; they print one JSON value."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Program:
    """The program in this process, with the stand-in as its Hub."""

    def __init__(self, hub: StandInHub, read: Callable[[], tuple[str, str]]) -> None:
        self.hub, self._read = hub, read

    def __call__(self, *words: str | Path, code: int = 0) -> tuple[str, str]:
        """Runs a command; gives stdout and stderr."""
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = self._read()
        assert ended.value.code == code, f"exit {ended.value.code}\n{out}\n{err}"
        return out, err


@pytest.fixture
def cbtqa(
    hub: StandInHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Program:
    """The program, told what HF_ENDPOINT and HF_HOME tell a process at its start."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return Program(hub, lambda: tuple(capsys.readouterr()))


def test_a_dry_run_needs_no_token_and_sends_nothing(
    finished: Path, hub: StandInHub, tmp_path: Path
) -> None:
    words = ("publish", "dataset", copy_of(finished, tmp_path / "run"), "--to", REPO, "--dry-run")
    # offline, the Hub's library refuses before any socket is opened
    done = run_cbtqa(
        *words, cwd=tmp_path, as_process=True, **at(hub, tmp_path, HF_TOKEN="", HF_HUB_OFFLINE="1")
    )
    assert hub.requests == []
    assert (
        "private, gate manual" in done.stderr and "qa/train-00000-of-00001.parquet" in done.stderr
    )
    assert done.stdout.startswith("---\npretty_name") and "extra_gated_fields" in done.stdout
    assert (tmp_path / "run" / "publish" / "preview.html").exists()


@pytest.mark.parametrize("plant", ["secret", "question", "path"])
def test_a_plant_ends_with_7_and_no_request(
    plant: str, run: Path, cbtqa: Program, tmp_path: Path
) -> None:
    texts = {
        "secret": "密钥 ghp_" + "q8W" * 12,
        "question": json.loads(write_psyqa(run, tmp_path / "psyqa.json").read_text("utf-8"))[4][
            "description"
        ],
        "path": "见 /data2/li/psyqa.json",
    }
    notes = tmp_path / "notes.md"
    notes.write_text(f"Funding: none.\n\n{texts[plant]}\n", "utf-8")
    _, err = cbtqa("publish", "dataset", run, "--to", REPO, "--notes", notes, code=7)
    assert cbtqa.hub.requests == []
    assert "error: README.md:" in err and "hint: nothing was sent" in err
    assert texts["secret"] not in err


@pytest.mark.parametrize(
    ("arrange", "code", "told"),
    [
        ("no token", 5, "error: no token for the Hub"),
        ("public", 7, "is public"),
        ("unfinished", 6, "the run did not finish"),
        ("no permission", 7, "--include-source-text wants --permission FILE"),
        ("bad name", 3, "expected owner/name"),
    ],
)
def test_what_stands_in_the_way_is_one_clear_line(
    arrange: str,
    code: int,
    told: str,
    run: Path,
    cbtqa: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words: list[str | Path] = ["publish", "dataset", run, "--to", REPO]
    if arrange == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif arrange == "public":
        cbtqa.hub.add_repo("dataset", REPO, is_private=False)
    elif arrange == "unfinished":
        (run / "manifest.json").unlink()
    elif arrange == "no permission":
        words.append("--include-source-text")
    else:
        words[-1] = "no-owner"
    _, err = cbtqa(*words, code=code)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and told in errors[0]
    assert cbtqa.hub.writes() == []


def test_a_published_dataset_is_joined_and_released_by_name_only(
    run: Path, cbtqa: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = cbtqa("publish", "dataset", run, "--to", REPO, "--json")
    told = json.loads(out)
    assert told["sent"] and told["visibility"] == "private" and told["tag"] == "v1"
    source = write_psyqa(run, tmp_path / "psyqa.json")
    words = ("join", REPO, "--questions", source, "--revision", "v1")
    out, _ = cbtqa(*words, "--out", tmp_path / "joined", "--json")
    assert json.loads(out)["n_joined"] == 30
    kept_back = dict.fromkeys(("endpoint_host", "dangers", "is_acute", "is_minor"))
    assert rows_of(tmp_path / "joined") == [{**row, **kept_back} for row in rows_of(run)]
    _, err = cbtqa("publish", "release", REPO, "--confirm", "cbt-qa", code=2)
    assert "stays private" in err and cbtqa.hub.became_public == []
    out, _ = cbtqa("publish", "release", REPO, "--confirm", REPO, "--json")
    assert json.loads(out)["visibility"] == "public"
    assert not cbtqa.hub.repo("dataset", REPO).is_private


def test_joining_what_is_gated_or_missing_says_so(
    ready: Prepared,
    cbtqa: Program,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(ready, endpoint=cbtqa.hub.url)
    cbtqa.hub.repo("dataset", REPO).is_private = False
    monkeypatch.setenv("HF_TOKEN", cbtqa.hub.add_token("hf_" + "r8" * 17, "reader"))
    source = write_psyqa(finished, tmp_path / "psyqa.json")
    words = ("--questions", source, "--out", tmp_path / "joined")
    _, err = cbtqa("join", REPO, *words, code=5)
    assert "access has to be asked for" in err
    _, err = cbtqa("join", "lab/other", *words, code=5)
    assert "not found on the Hub" in err
    _, err = cbtqa("join", "no such thing", *words, code=4)
    assert "neither a folder nor owner/name" in err


@pytest.mark.slow
def test_a_published_dataset_loads_with_datasets_row_by_row(
    run: Path, hub: StandInHub, tmp_path: Path
) -> None:
    more = at(hub, tmp_path)
    ratings = write_ratings(run, tmp_path / "rated")
    words = ("publish", "dataset", run, "--to", REPO, "--ratings", ratings)
    run_cbtqa(*words, cwd=tmp_path, as_process=True, **more)
    code = (
        "import json, datasets\n"
        f"names = datasets.get_dataset_config_names({REPO!r})\n"
        "loaded = {}\n"
        "for name in names:\n"
        f"    sets = datasets.load_dataset({REPO!r}, name)\n"
        "    loaded[name] = {split: list(rows) for split, rows in sets.items()}\n"
        "print(json.dumps(loaded))"
    )
    loaded = python(code, HF_HUB_DISABLE_PROGRESS_BARS="1", **more)
    assert sorted(loaded) == ["distortions", "qa", "ratings", "ratings_summary"]
    published = run / "publish" / "files"
    for config, splits in loaded.items():
        paths = {path.name.split("-")[0]: path for path in (published / config).iterdir()}
        assert set(paths) == set(splits)
        for split, rows in splits.items():
            assert rows == _rows_in(paths[split])
    answers = {row["id"]: row["answer"] for rows in loaded["qa"].values() for row in rows}
    assert answers == {row["id"]: row["answer"] for row in rows_of(run)}


def _rows_in(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


@pytest.mark.slow
def test_a_published_adapter_loads_with_peft_and_gives_the_same_logits(
    hub: StandInHub, tmp_path: Path
) -> None:
    code = ADAPTER_ROUND_TRIP.format(folder=str(tmp_path))
    assert python(code, **at(hub, tmp_path)) == {"largest_difference": 0.0, "adapter_effect": True}
    files = hub.repo("model", "lab/cbt-adapter").files
    config = json.loads(files["adapter_config.json"].data or b"")
    assert config["base_model_name_or_path"] == "invented-lab/Tiny"
    assert str(tmp_path).encode() not in b"".join(blob.data or b"" for blob in files.values())


ADAPTER_ROUND_TRIP = """
import contextlib, io, json, torch
from pathlib import Path
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from cbtqa.cli.main import _run as program
from cbtqa.manifest import Manifest, now, write_manifest

folder = Path("{folder}")
shape = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
shape |= dict(num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
tokens = torch.arange(20).reshape(2, 10)

def make_base():
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    base.config._name_or_path = str(folder / "models" / "tiny")
    return base

kind = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
trained = get_peft_model(make_base(), kind).eval()
trained.save_pretrained(folder / "adapter")
write_manifest(folder / "adapter", Manifest(kind="adapter", started_at=now(), finished_at=now()))
words = ["publish", "model", str(folder / "adapter"), "--to", "lab/cbt-adapter"]
words += ["--base", "invented-lab/Tiny@" + "1" * 40]
with contextlib.redirect_stdout(io.StringIO()):
    assert program(words, False) == 0
with torch.no_grad():
    loaded = PeftModel.from_pretrained(make_base(), "lab/cbt-adapter").eval()
    expected, plain = trained(tokens).logits, make_base()(tokens).logits
    largest = (loaded(tokens).logits - expected).abs().max().item()
effect = bool((plain - expected).abs().max() > 1e-3)
print(json.dumps(dict(largest_difference=largest, adapter_effect=effect)))
"""


def test_hub_preview_writes_a_page_and_sends_nothing(
    run: Path, cbtqa: Program, tmp_path: Path
) -> None:
    out, _ = cbtqa("hub-preview", run, "--out", tmp_path / "page.html", "--json")
    assert json.loads(out)["findings"] == []
    assert "申请访问" in (tmp_path / "page.html").read_text("utf-8")
    assert cbtqa.hub.requests == []
