"""`cbtqa publish`, `join` and `hub-preview` as processes, with HF_ENDPOINT at the stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import TOKEN
from tests.hub.runs import copy_of, edit_rows, rows_of, write_psyqa, write_ratings
from tests.support.hub import StandInHub
from tests.support.program import environment, run_cbtqa

REPO = "lab/cbt-qa"


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


def test_a_dry_run_needs_no_token_and_sends_nothing(
    finished: Path, hub: StandInHub, tmp_path: Path
) -> None:
    words = ("publish", "dataset", copy_of(finished, tmp_path / "run"), "--to", REPO, "--dry-run")
    # offline, the Hub's library refuses before any socket is opened
    done = run_cbtqa(*words, cwd=tmp_path, **at(hub, tmp_path, HF_TOKEN="", HF_HUB_OFFLINE="1"))
    assert hub.requests == []
    assert (
        "private, gate manual" in done.stderr and "qa/train-00000-of-00001.parquet" in done.stderr
    )
    assert done.stdout.startswith("---\npretty_name") and "extra_gated_fields" in done.stdout
    assert (tmp_path / "run" / "publish" / "preview.html").exists()


@pytest.mark.parametrize("plant", ["secret", "question", "path"])
def test_a_plant_ends_with_7_and_no_request(
    plant: str, run: Path, hub: StandInHub, tmp_path: Path
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
    words = ("publish", "dataset", run, "--to", REPO, "--notes", notes)
    done = run_cbtqa(*words, cwd=tmp_path, code=7, **at(hub, tmp_path))
    assert hub.requests == []
    assert "error: README.md:" in done.stderr and "hint: nothing was sent" in done.stderr
    assert texts["secret"] not in done.stderr


@pytest.mark.parametrize(
    ("arrange", "code", "told"),
    [
        ("no token", 5, "error: no token for the Hub"),
        ("public", 7, "is public"),
        ("unfinished", 7, "the run did not finish"),
        ("no permission", 7, "--include-source-text wants --permission FILE"),
        ("bad name", 3, "expected owner/name"),
    ],
)
def test_what_stands_in_the_way_is_one_clear_line(
    arrange: str, code: int, told: str, run: Path, hub: StandInHub, tmp_path: Path
) -> None:
    words: list[str | Path] = ["publish", "dataset", run, "--to", REPO]
    more = at(hub, tmp_path)
    if arrange == "no token":
        more["HF_TOKEN"] = ""
    elif arrange == "public":
        hub.add_repo("dataset", REPO, is_private=False)
    elif arrange == "unfinished":
        (run / "manifest.json").unlink()
    elif arrange == "no permission":
        words.append("--include-source-text")
    else:
        words[-1] = "no-owner"
    done = run_cbtqa(*words, cwd=tmp_path, code=code, **more)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and told in errors[0]
    assert hub.writes() == []


@pytest.mark.slow
def test_a_published_dataset_is_joined_and_released_by_name_only(
    run: Path, hub: StandInHub, tmp_path: Path
) -> None:
    more = at(hub, tmp_path)
    done = run_cbtqa("publish", "dataset", run, "--to", REPO, "--json", cwd=tmp_path, **more)
    told = json.loads(done.stdout)
    assert told["sent"] and told["visibility"] == "private" and told["tag"] == "v1"
    source = write_psyqa(run, tmp_path / "psyqa.json")
    words = ("join", REPO, "--questions", source, "--out", tmp_path / "joined", "--revision", "v1")
    assert json.loads(run_cbtqa(*words, "--json", cwd=tmp_path, **more).stdout)["n_joined"] == 30
    assert rows_of(tmp_path / "joined") == [{**r, "endpoint_host": None} for r in rows_of(run)]
    refused = run_cbtqa(
        "publish", "release", REPO, "--confirm", "cbt-qa", cwd=tmp_path, code=2, **more
    )
    assert "stays private" in refused.stderr and hub.became_public == []
    run_cbtqa("publish", "release", REPO, "--confirm", REPO, cwd=tmp_path, **more)
    assert not hub.repo("dataset", REPO).is_private
    hub.add_token("hf_" + "r8" * 17, "reader")
    more |= {"HF_TOKEN": "hf_" + "r8" * 17, "HF_HOME": str(tmp_path / "reader")}
    words = ("join", REPO, "--questions", source, "--out", tmp_path / "again")
    assert "access has to be asked for" in run_cbtqa(*words, cwd=tmp_path, code=5, **more).stderr
    words = ("join", "lab/other", "--questions", source, "--out", tmp_path / "again")
    assert "not found on the Hub" in run_cbtqa(*words, cwd=tmp_path, code=5, **more).stderr


@pytest.mark.slow
def test_a_published_dataset_loads_with_datasets_row_by_row(
    run: Path, hub: StandInHub, tmp_path: Path
) -> None:
    more = at(hub, tmp_path)
    ratings = write_ratings(run, tmp_path / "rated")
    words = ("publish", "dataset", run, "--to", REPO, "--ratings", ratings)
    run_cbtqa(*words, cwd=tmp_path, **more)
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
    code = ADAPTER_ROUND_TRIP.format(folder=str(tmp_path), python=sys.executable)
    assert python(code, **at(hub, tmp_path)) == {"largest_difference": 0.0, "adapter_effect": True}
    files = hub.repo("model", "lab/cbt-adapter").files
    config = json.loads(files["adapter_config.json"].data or b"")
    assert config["base_model_name_or_path"] == "invented-lab/Tiny"
    assert str(tmp_path).encode() not in b"".join(blob.data or b"" for blob in files.values())


ADAPTER_ROUND_TRIP = """
import json, subprocess, torch
from pathlib import Path
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
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
subprocess.run(["{python}", "-m", "cbtqa", *words], check=True, capture_output=True)
with torch.no_grad():
    loaded = PeftModel.from_pretrained(make_base(), "lab/cbt-adapter").eval()
    expected, plain = trained(tokens).logits, make_base()(tokens).logits
    largest = (loaded(tokens).logits - expected).abs().max().item()
effect = bool((plain - expected).abs().max() > 1e-3)
print(json.dumps(dict(largest_difference=largest, adapter_effect=effect)))
"""


def test_hub_preview_writes_a_page_and_sends_nothing(
    run: Path, hub: StandInHub, tmp_path: Path
) -> None:
    edit_rows(run, lambda row: None)
    words = ("hub-preview", run, "--out", tmp_path / "page.html", "--json")
    done = run_cbtqa(*words, cwd=tmp_path, **at(hub, tmp_path))
    assert json.loads(done.stdout)["findings"] == []
    assert "申请访问" in (tmp_path / "page.html").read_text("utf-8")
    assert hub.requests == []
