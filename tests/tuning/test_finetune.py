"""A whole training run: what it learns, writes, resumes and refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from cbtqa.errors import CbtqaError, ConfigError, DataError, IncompleteRunError, UsageError
from cbtqa.files import read_rows
from cbtqa.llm.progress import Progress
from cbtqa.manifest import read_manifest
from cbtqa.settings import resolve
from cbtqa.tuning.libraries import is_disk_full, is_out_of_memory
from cbtqa.tuning.settings import FinetuneSettings
from cbtqa.tuning.training.dry_run import dry_run
from cbtqa.tuning.training.finetune import FinetuneResult, finetune
from cbtqa.tuning.training.trainer import COMPLETE_NAME, last_checkpoint
from tests.support.dataset_folder import write_dataset_folder
from tests.support.tiny_models import write_rows, write_tiny_model

QUICK = {
    "epochs": 2,
    "batch_size": 4,
    "eval_steps": 5,
    "n_samples": 2,
    "sample_tokens": 8,
    "log_steps": 1,
    "learning_rate": 5e-3,
    "micro_batch_tokens": 600,
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base and some rows."""
    folder = tmp_path_factory.mktemp("bench")
    write_tiny_model(folder / "base")
    write_rows(folder / "rows.jsonl", 20)
    write_rows(folder / "other.jsonl", 6)
    write_rows(folder / "pairs.jsonl", 12, is_pair=True)
    return folder


def _flags(bench: Path, out: Path) -> dict[str, Any]:
    places = {"data": bench / "rows.jsonl", "validation_data": bench / "other.jsonl"}
    return {**places, "backbone": str(bench / "base"), "out": out, **QUICK}


def _run(bench: Path, out: Path, **flags: Any) -> FinetuneResult:
    return finetune(resolve(FinetuneSettings, flags=_flags(bench, out) | flags, environ={}))


def _same_bits(first: Path, second: Path) -> bool:
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def finished(bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "tuned"
    _run(bench, out)
    return out


def test_a_run_leaves_adapter_record_curve_samples_and_log(finished: Path, bench: Path) -> None:
    manifest = read_manifest(finished)
    counts = manifest.counts
    assert manifest.kind == "adapter"
    assert counts["n_steps"] == counts["n_steps_planned"] == 10
    assert counts["train"]["n_items"] == 20 and counts["validation"]["n_items"] == 6
    assert counts["last_loss"] < counts["first_loss"]
    assert counts["base"]["name"] == "base" and len(counts["base"]["weights_sha256"]) == 64
    assert set(counts["split_sha256"]) == {"train", "validation"}
    assert {"torch", "transformers", "peft", "accelerate"} <= set(manifest.packages)
    assert manifest.settings["rank"].origin.startswith("preset modern")
    assert manifest.settings["batch_size"].origin == "--batch-size"
    assert [entry.name for entry in manifest.inputs] == ["rows.jsonl", "other.jsonl"]
    written = {entry.name for entry in manifest.files}
    assert {"adapter_model.safetensors", "base.json", "loss.svg", "samples.jsonl"} <= written
    assert (finished / "loss.svg").read_text().startswith("<svg")
    readme = (finished / "README.md").read_text()
    assert "PeftModel.from_pretrained" in readme and "$" not in readme


def test_no_folder_of_this_machine_is_told_in_what_is_published(finished: Path) -> None:
    for name in ("adapter_config.json", "manifest.json", "base.json", "README.md", "run.json"):
        assert str(finished.parent.parent) not in (finished / name).read_text(), name
    config = json.loads((finished / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"


def test_every_log_line_tells_the_speed(finished: Path) -> None:
    lines = [row for _, row in read_rows(finished / "log.jsonl")]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 11))
    assert all(line["tokens_per_s"] > 0 and line["tflops_per_s"] > 0 for line in training)
    assert training[-1]["epoch"] == 2.0 and training[4]["epoch"] == 1.0
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [5, 10]
    assert all("sample_chrf2" in line and "sample_bleu_zh" in line for line in evaluations)
    samples = [row for _, row in read_rows(finished / "samples.jsonl")]
    assert [(row["step"], row["id"]) for row in samples] == [
        (5, "r0"),
        (5, "r1"),
        (10, "r0"),
        (10, "r1"),
    ]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's
def test_the_adapter_loads_in_peft_and_gives_the_recorded_loss(finished: Path, bench: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cbtqa.tuning.data.chat_format import ChatFormat
    from cbtqa.tuning.data.encoding import encode
    from cbtqa.tuning.data.examples import read_training_examples
    from cbtqa.tuning.data.packing import make_batch
    from cbtqa.tuning.losses import attach_log_probs

    settings = FinetuneSettings(data=bench / "other.jsonl")
    chat = ChatFormat(AutoTokenizer.from_pretrained(finished))
    items = encode(read_training_examples(settings), chat, settings).items
    base = AutoModelForCausalLM.from_pretrained(bench / "base", dtype=torch.float32)
    attach_log_probs(base)
    model = PeftModel.from_pretrained(base, finished).eval()
    choice = FinetuneSettings()
    with torch.no_grad():
        log_probs = torch.cat([model(**make_batch([item], choice).inputs) for item in items])
    recorded = read_manifest(finished).counts["eval_loss"]
    assert -log_probs.mean().item() == pytest.approx(recorded, abs=1e-5)


def test_the_same_command_again_does_nothing(finished: Path, bench: Path) -> None:
    before = (finished / "adapter_model.safetensors").stat().st_mtime_ns
    assert _run(bench, finished).was_complete
    assert (finished / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_other_settings_or_other_data_are_refused_with_the_difference(
    finished: Path, bench: Path
) -> None:
    with pytest.raises(ConfigError, match="rank: 16 there, 4 now"):
        _run(bench, finished, rank=4)
    with pytest.raises(ConfigError, match="data: other"):
        _run(bench, finished, data=bench / "other.jsonl")
    with pytest.raises(ConfigError, match="not empty"):
        _run(bench, bench)


def test_the_same_seed_gives_the_same_bits_and_another_budget_the_same_losses(
    finished: Path, bench: Path, tmp_path: Path
) -> None:
    _run(bench, tmp_path / "again")
    assert _same_bits(finished, tmp_path / "again")
    _run(bench, tmp_path / "whole", micro_batch_tokens=50_000)
    losses = [
        [row["loss"] for _, row in read_rows(folder / "log.jsonl") if "loss" in row]
        for folder in (finished, tmp_path / "whole")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_padded_micro_batches_learn_the_same(finished: Path, bench: Path, tmp_path: Path) -> None:
    _run(bench, tmp_path / "padded", packing=False)
    losses = [
        [row["loss"] for _, row in read_rows(folder / "log.jsonl") if "loss" in row]
        for folder in (finished, tmp_path / "padded")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert read_manifest(tmp_path / "padded").counts["is_packed"] is False


def test_recomputed_activations_learn_the_same(finished: Path, bench: Path, tmp_path: Path) -> None:
    _run(bench, tmp_path / "recomputed", gradient_checkpointing="on")
    losses = [
        [row["loss"] for _, row in read_rows(folder / "log.jsonl") if "loss" in row]
        for folder in (finished, tmp_path / "recomputed")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert read_manifest(tmp_path / "recomputed").counts["is_checkpointing"] is True


def test_an_orpo_run_comes_to_prefer_the_chosen_answers(bench: Path, tmp_path: Path) -> None:
    pairs = bench / "pairs.jsonl"
    flags = {"data": pairs, "validation_data": pairs, "objective": "orpo", "epochs": 8}
    _run(bench, tmp_path / "orpo", **flags, learning_rate=2e-2, beta=2.0)
    lines = [row for _, row in read_rows(tmp_path / "orpo/log.jsonl") if "eval_loss" in row]
    assert lines[-1]["eval_loss"] < lines[0]["eval_loss"]
    assert lines[-1]["eval_margin"] > lines[0]["eval_margin"]
    assert 0 <= lines[-1]["eval_preferred"] <= 1


@pytest.mark.parametrize("flags", [{"rslora": True}, {"dora": True}, {"precision": "bf16"}])
def test_the_variants_train(bench: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    counts = _run(bench, tmp_path / "variant", **flags).manifest.counts
    assert counts["last_loss"] < counts["first_loss"]


@pytest.mark.filterwarnings("ignore:.*kernels.*:UserWarning")  # bitsandbytes on a CPU
def test_weights_in_four_bits_train_and_the_base_says_so(bench: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    flags = {"method": "qlora", "optimizer": "adamw", "epochs": 1, "n_samples": 0}
    counts = _run(bench, tmp_path / "qlora", **flags).manifest.counts
    assert counts["last_loss"] < counts["first_loss"]
    assert counts["base"]["is_quantized"] is True


def test_training_stops_early_and_keeps_the_best(bench: Path, tmp_path: Path) -> None:
    flags = {"early_stopping": 2, "epochs": 40, "eval_steps": 1, "learning_rate": 0.5}
    counts = _run(bench, tmp_path / "early", **flags, n_samples=0).manifest.counts
    lines = [row for _, row in read_rows(tmp_path / "early/log.jsonl") if "eval_loss" in row]
    assert counts["n_steps"] < counts["n_steps_planned"]
    assert counts["eval_loss"] == min(line["eval_loss"] for line in lines)
    assert counts["best_step"] == counts["n_steps"] - 2
    best = tmp_path / f"early/checkpoints/checkpoint-{counts['best_step']}"
    kept = load_file(best / "adapter_model.safetensors")
    final = load_file(tmp_path / "early/adapter_model.safetensors")
    assert all(torch.equal(kept[name], final[name]) for name in kept)


def test_a_checkpoint_cut_off_while_being_written_is_not_used(tmp_path: Path) -> None:
    for number in (5, 10, 15):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if number < 15:
            (tmp_path / f"checkpoint-{number}" / COMPLETE_NAME).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()


def test_a_dataset_without_validation_split_is_trained_without_evaluation(
    bench: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    told: list[Progress] = []
    flags = _flags(bench, tmp_path / "plain") | {"validation_data": None, "epochs": 1}
    resolved = resolve(FinetuneSettings, flags=flags, environ={})
    counts = finetune(resolved, on_stage=said.append, on_progress=told.append).manifest.counts
    assert counts["eval_loss"] is None and "validation" not in counts
    assert not (tmp_path / "plain/samples.jsonl").exists()
    assert any("no validation set" in words for words in said)
    n_steps = counts["n_steps_planned"]
    assert [one.n_done for one in told] == list(range(1, n_steps + 1))
    assert {one.n_total for one in told} == {n_steps} and told[0].unit == "steps"
    assert told[-1].eta_s == 0 and re.search(r"^loss \d+\.\d{4}, [\d,]+ tokens/s$", told[-1].note)


@pytest.mark.slow
def test_a_tiny_model_overfits_ten_examples_and_reproduces_them(
    bench: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "short.jsonl", 10, n_sentences=1)
    # a frozen random head must be able to be sure of itself: weights of 0.02 never are
    base = write_tiny_model(tmp_path / "base", initializer_range=0.3)
    flags = {"data": rows, "validation_data": rows, "backbone": str(base), "rank": 32, "alpha": 64}
    more = {"epochs": 45, "batch_size": 5, "eval_steps": 90, "n_samples": 10, "sample_tokens": 80}
    _run(bench, tmp_path / "overfit", **flags, **more, learning_rate=1e-2, warmup=0.1)
    samples = [row for _, row in read_rows(tmp_path / "overfit/samples.jsonl")]
    assert len(samples) == 10
    wrong = [row["id"] for row in samples if row["text"] != row["reference"]]
    assert not wrong
    assert {row["finish_reason"] for row in samples} == {"stop"}


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "error", "words", "hint"),
    [
        ({"backbone": None}, ConfigError, "no backbone", "cbtqa backbones"),
        ({"data": None, "validation_data": None}, UsageError, "no data", "cbtqa finetune"),
        ({"backbone": "baichuan"}, ConfigError, "cannot get baichuan-inc", "hf download"),
        ({"target_module": ("lm_head",)}, ConfigError, "stay frozen", "q_proj"),
        ({"target_module": ("W_pack",)}, ConfigError, "no linear layer W_pack", "q_proj"),
        ({"precision": "fp16"}, ConfigError, "needs a CUDA card", "--precision fp32"),
        ({"max_length": 20}, DataError, "too_long", "--max-length"),
        ({"chat_format": "none-such"}, ConfigError, "no chat format", "chatml"),
        ({"mode": "cot"}, ConfigError, "for built datasets", ""),
        ({"revision": "v9", "backbone": "nobody/none-such"}, ConfigError, "nobody/none-such", "hf"),
    ],
)
def test_bad_input_is_told_with_the_next_step(
    bench: Path,
    tmp_path: Path,
    flags: dict[str, Any],
    error: type[CbtqaError],
    words: str,
    hint: str,
) -> None:
    with pytest.raises(error, match=words) as caught:
        _run(bench, tmp_path / "out", **flags)
    assert hint in (caught.value.hint or "")


def test_rows_beyond_the_context_of_the_backbone_are_left_out_and_told(
    bench: Path, tmp_path: Path
) -> None:
    short = write_tiny_model(tmp_path / "short", max_position_embeddings=230)
    counts = _run(bench, tmp_path / "out", backbone=str(short), epochs=1).manifest.counts
    assert counts["train"]["dropped"]["too_long"] > 0
    assert counts["train"]["tokens"]["max"] <= 230
    assert any("takes 230 tokens" in note for note in counts["notes"])


def test_a_disk_without_room_for_checkpoints_is_told_before_training(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="GB free"):
        _run(bench, tmp_path / "out")


def test_a_template_dataset_is_refused_and_trains_when_allowed(bench: Path, tmp_path: Path) -> None:
    data = write_dataset_folder(tmp_path / "built", n_entries=20, is_template=True)
    flags = {"data": data, "validation_data": None, "epochs": 1, "mode": "steps"}
    with pytest.raises(ConfigError, match="template teacher"):
        _run(bench, tmp_path / "out", **flags)
    counts = _run(bench, tmp_path / "out", **flags, allow_template=True).manifest.counts
    assert counts["validation"]["n_items"] > 0


def test_a_loss_that_is_no_number_ends_the_run(bench: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a number") as caught:
        _run(bench, tmp_path / "out", learning_rate=1e30, max_grad_norm=1e30, warmup=0)
    assert "--learning-rate" in str(caught.value.hint)


def test_a_signal_saves_and_the_same_command_continues_to_the_same_bits(
    finished: Path, bench: Path, tmp_path: Path
) -> None:
    import os
    import signal

    def stop_at_three(line: dict[str, float]) -> None:
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    words = _flags(bench, tmp_path / "out")
    resolved = resolve(FinetuneSettings, flags=words, environ={})
    with pytest.raises(IncompleteRunError, match="stopped by a signal"):
        finetune(resolved, on_line=stop_at_three)
    assert not (tmp_path / "out/manifest.json").exists()
    finetune(resolved)
    assert _same_bits(finished, tmp_path / "out")
    steps = [row["step"] for _, row in read_rows(tmp_path / "out/log.jsonl") if "loss" in row]
    assert steps == list(range(1, 11))


def test_a_disk_that_fills_up_keeps_what_was_done_and_the_command_continues(
    finished: Path, bench: Path, tmp_path: Path
) -> None:
    import resource
    import signal

    def fill_the_disk(line: dict[str, float]) -> None:
        if line["step"] == 7:  # behind the checkpoint of step 5
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resolved = resolve(FinetuneSettings, flags=_flags(bench, tmp_path / "out"), environ={})
    try:
        with pytest.raises(IncompleteRunError, match="disk is full") as caught:
            finetune(resolved, on_line=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "make room" in str(caught.value.hint)
    assert last_checkpoint(tmp_path / "out/checkpoints").name == "checkpoint-5"
    finetune(resolved)
    assert _same_bits(finished, tmp_path / "out")


def test_a_card_without_memory_names_the_ways_out_and_the_run_continues(
    finished: Path, bench: Path, tmp_path: Path
) -> None:
    def no_memory(line: dict[str, float]) -> None:
        if line["step"] == 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    words = _flags(bench, tmp_path / "out") | {"max_length": 500}
    resolved = resolve(FinetuneSettings, flags=words, environ={})
    with pytest.raises(IncompleteRunError, match="no memory left") as caught:
        finetune(resolved, on_line=no_memory)
    assert "--micro-batch-tokens 500" in str(caught.value.hint)
    smaller = resolve(FinetuneSettings, flags={**words, "micro_batch_tokens": 300}, environ={})
    assert finetune(smaller).manifest.counts["n_steps"] == 10


def test_without_torch_the_install_line_is_named(tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.support.program import environment

    code = (
        "import sys; sys.modules['torch'] = None; from cbtqa.cli.main import main;"
        "main(['finetune', 'rows.jsonl', '--backbone', 'baichuan'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "pip install 'cbtqa[train]'" in done.stderr and "Traceback" not in done.stderr


def test_machine_failures_are_recognised_as_the_libraries_word_them() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert is_disk_full(OSError(28, "No space left on device"))
    assert is_disk_full(RuntimeError("PytorchStreamWriter failed writing file data/0"))
    assert not is_disk_full(OSError(13, "Permission denied"))


@pytest.mark.parametrize("is_dry", [True, False])
def test_a_token_without_a_row_in_the_embedding_is_refused_before_training(
    bench: Path, tmp_path: Path, is_dry: bool
) -> None:
    base = tmp_path / "base"
    shutil.copytree(bench / "base", base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    n_rows = AutoConfig.from_pretrained(base).vocab_size
    word = json.loads((bench / "rows.jsonl").read_text("utf-8").splitlines()[0])["completion"][:3]
    fillers = [f"填{number}充" for number in range(max(0, n_rows - len(tokenizer)))]
    tokenizer.add_tokens([*fillers, word])
    tokenizer.save_pretrained(base)
    resolved = resolve(
        FinetuneSettings,
        flags=_flags(bench, tmp_path / "out") | {"backbone": str(base)},
        environ={},
    )
    with pytest.raises(ConfigError, match=f"'{word}' the number .* {n_rows:,} rows"):
        dry_run(resolved) if is_dry else finetune(resolved)


def test_a_run_logs_to_trackio_on_this_machine(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackio", reason="needs trackio: cbtqa[doors]")
    # the folder is read at import
    from trackio import sqlite_storage, utils

    place = tmp_path / "trackio"
    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", place)
    _run(bench, tmp_path / "tracked", tracker=("trackio",), max_steps=4)
    logged = sqlite_storage.SQLiteStorage.get_logs("cbtqa", "tracked")
    losses = [row["train/loss"] for row in logged if "train/loss" in row]
    curve = [row for _, row in read_rows(tmp_path / "tracked" / "log.jsonl") if "loss" in row]
    assert losses and len(losses) == len(curve)
    assert losses == pytest.approx([row["loss"] for row in curve])


def test_a_tracker_that_is_not_there_is_named_with_its_install_line(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trackio is not installed: pip install trackio"):
        _run(bench, tmp_path / "t", tracker=("trackio",))
    with pytest.raises(ConfigError, match="no tracker 'mlflow': tensorboard, trackio, wandb"):
        _run(bench, tmp_path / "t", tracker=("mlflow",))
    assert not (tmp_path / "t").exists()
