"""A dry run: what it tells without weights, and that it tells what the run then does."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cbtqa.cli import main as program
from cbtqa.cli.finetune import answer_of, show_dry_run
from cbtqa.errors import CbtqaError, ConfigError, DataError, MissingExtraError, UsageError
from cbtqa.files import read_rows
from cbtqa.settings import resolve
from cbtqa.tuning.budget import cpu
from cbtqa.tuning.budget.estimate import load_cards
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.encoding import encode
from cbtqa.tuning.data.examples import read_training_examples
from cbtqa.tuning.settings import FinetuneSettings
from cbtqa.tuning.training.dry_run import DryRun, approximate, approximate_tokens, dry_run
from tests.support.dataset_folder import write_dataset_folder
from tests.support.tiny_models import tiny_tokenizer, write_rows, write_tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_tiny_model(folder / "base")
    write_rows(folder / "rows.jsonl", 40)
    write_rows(folder / "pairs.jsonl", 8, is_pair=True)
    write_dataset_folder(folder / "dataset", 60)
    return folder


def _plan(bench: Path, **flags: Any) -> DryRun:
    words = {"data": bench / "rows.jsonl", "backbone": str(bench / "base"), **flags}
    return dry_run(resolve(FinetuneSettings, flags=words, environ={}))


def test_tokens_steps_and_trained_parameters_are_those_of_the_run(bench: Path) -> None:
    from cbtqa.tuning.training.finetune import finetune

    flags = {"max_steps": 2, "batch_size": 4, "micro_batch_tokens": 400}
    found = _plan(bench, **flags)
    words = {"data": bench / "rows.jsonl", "backbone": str(bench / "base"), **flags}
    words |= {"out": bench / "run", "n_samples": 0}
    counts = finetune(resolve(FinetuneSettings, flags=words, environ={})).manifest.counts
    assert found.data["train"] == counts["train"]
    assert found.layout.n_steps == counts["n_steps_planned"] == 2
    assert found.n_trainable == counts["n_trainable"]
    assert found.n_parameters == counts["n_trainable"] + counts["n_frozen"]
    log = [row for _, row in read_rows(bench / "run" / "log.jsonl")]
    assert log and found.tokens_by == "tokenizer"


def test_the_layout_is_the_one_that_would_be_trained(bench: Path) -> None:
    found = _plan(bench, micro_batch_tokens=300, epochs=1, batch_size=8)
    layout = found.layout
    assert layout.n_steps == layout.n_steps_laid_out == 5 and layout.n_items == 40
    assert layout.most_tokens <= max(300, found.data["train"]["tokens"]["max"])
    assert 0 < layout.fill <= 1 and layout.padding == 0
    total = layout.mean_tokens * layout.n_micro_batches * layout.n_steps
    assert total == pytest.approx(found.data["train"]["n_tokens"])
    assert found.total_tokens == found.data["train"]["n_tokens"]
    padded = _plan(bench, packing=False, epochs=1, batch_size=8).layout
    assert padded.padding > 0 and padded.most_tokens > padded.mean_tokens


def test_32_bits_take_twice_the_weights(bench: Path) -> None:
    half, whole = _plan(bench).memory["plain"], _plan(bench, precision="fp32").memory["plain"]
    assert whole.weights == 2 * half.weights and whole.adapters == half.adapters
    assert 1.5 * half.activations < whole.activations < 2.5 * half.activations


def test_settings_come_with_their_origin(bench: Path) -> None:
    settings = _plan(bench, rank=4).settings
    assert (settings["rank"].value, settings["rank"].origin) == (4, "--rank")
    assert settings["alpha"].origin.startswith("preset modern")
    assert settings["backbone"].origin == "--backbone"


def test_the_example_shows_what_is_learnt_and_nothing_is_lost(bench: Path) -> None:
    pieces = _plan(bench).example
    assert [piece.is_learnt for piece in pieces] == [False, True]
    row = next(row for _, row in read_rows(bench / "rows.jsonl"))
    assert row["prompt"] in pieces[0].text and pieces[0].text.endswith("<|im_start|>assistant\n")
    assert pieces[1].text == row["completion"] + "<|im_end|>"


@pytest.fixture(scope="module")
def large(bench: Path) -> DryRun:
    """Baichuan-7B, unconverted and without its tokenizer, on five cards."""
    words = {"data": bench / "dataset", "backbone": "baichuan", "batch_size": 64}
    cards = tuple(load_cards()[name] for name in ("h200", "a100-80", "a100-40", "rtx4090", "v100"))
    return dry_run(resolve(FinetuneSettings, flags=words, environ={}), cards=cards)


def test_a_larger_card_needs_no_recomputing_and_is_faster(large: DryRun) -> None:
    by_name = {one.card: one for one in large.cards}
    assert large.layout.most_tokens > 7000
    assert not by_name["H200"].checkpointing and not by_name["A100 80GB"].checkpointing
    assert by_name["A100 40GB"].checkpointing and by_name["A100 40GB"].fits
    assert by_name["H200"].needed_bytes == large.memory["plain"].total
    assert by_name["RTX 4090"].needed_bytes == large.memory["checkpointed"].total
    seconds = [one.seconds or 0.0 for one in large.cards]
    assert 0 < seconds[0] == min(seconds)


def test_a_card_that_is_too_small_says_so_and_how_many_would_do(bench: Path) -> None:
    small = load_cards()["v100"].model_copy(update={"memory_gib": 1.0105})
    words = {"data": bench / "rows.jsonl", "backbone": str(bench / "base")}
    words |= {"gradient_checkpointing": "off"}
    resolved = resolve(FinetuneSettings, flags=words, environ={})
    tight = dry_run(resolved, cards=(small,)).cards[0]
    assert not tight.fits and tight.seconds is None and not tight.checkpointing
    # activations are not divided: more cards do not help here
    assert tight.n_fsdp_cards is None


def test_what_has_to_come_first_is_a_note_not_an_error(large: DryRun) -> None:
    assert any("a download and a conversion, once" in note for note in large.notes)
    assert large.tokens_by == "approximation"
    assert any("approximate" in note for note in large.notes)
    assert large.example[-1].is_learnt and large.data["validation"]["n_items"] > 0


def test_this_machines_cpu_has_a_row_in_the_precision_that_it_trains_in(bench: Path) -> None:
    found = _plan(bench)
    here = found.cpu
    assert here is not None and here.precision == "fp32" and here.fits
    assert here.memory.weights == 4 * (found.n_parameters - found.n_trainable)
    assert here.memory.total < 2 * 2**30 < here.memory_bytes
    work = found.total_tokens * found.flops_per_token
    assert here.seconds == pytest.approx(work / (here.gflops * 1e9 * here.share))
    half = _plan(bench, precision="bf16").cpu
    assert half is not None and half.memory.weights == here.memory.weights / 2


def test_the_memory_of_a_container_counts_where_it_is_less_than_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "LIMITS", (str(tmp_path / "none"),))
    whole = cpu.memory_of_machine()
    for text, expected in (("max\n", whole), ("1000000\n", 1_000_000), (f"{2**60}\n", whole)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(cpu, "LIMITS", (str(tmp_path / "memory.max"),))
        assert cpu.memory_of_machine() == expected


def test_where_there_is_a_card_the_cpu_has_no_row(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert _plan(bench).cpu is None


def test_orpo_counts_both_answers(bench: Path) -> None:
    found = _plan(bench, data=bench / "pairs.jsonl", objective="orpo", batch_size=4)
    per_pair = found.data["train"]["n_tokens"] / found.layout.n_items
    assert found.layout.mean_tokens * found.layout.n_micro_batches == pytest.approx(4 * per_pair)


@pytest.mark.parametrize(
    ("vocabulary", "low", "high"), [(151_936, 0.5, 0.7), (64_000, 0.5, 0.7), (32_000, 1.0, 1.5)]
)
def test_rough_token_counts_follow_the_vocabulary(vocabulary: int, low: float, high: float) -> None:
    text = "最近总是睡不好，心里很乱，不知道该怎么办。" * 10
    assert low * len(text) < approximate_tokens(text, vocabulary) < high * len(text)
    assert approximate_tokens("I cannot sleep and feel lost. " * 10, vocabulary) < 0.5 * 300


def test_rough_items_have_the_real_ones_ids_and_drop_what_is_too_long(bench: Path) -> None:
    settings = FinetuneSettings(data=bench / "rows.jsonl")
    found = read_training_examples(settings)
    rough = approximate(found, 512, settings)
    real = encode(found, ChatFormat(tiny_tokenizer()), settings)
    assert [item.id for item in rough.items] == [item.id for item in real.items]
    short = FinetuneSettings(data=bench / "rows.jsonl", max_length=90)
    fewer = approximate(found, 512, short)
    assert 0 < len(fewer.items) < 40 and fewer.dropped["too_long"] == 40 - len(fewer.items)
    with pytest.raises(DataError, match="no example is left"):
        approximate(found, 512, FinetuneSettings(data=bench / "rows.jsonl", max_length=16))


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"backbone": None}, ConfigError, "no backbone named"),
        ({"backbone": "no-such"}, CbtqaError, "no backbone 'no-such'"),
        ({"data": None}, UsageError, "no data named"),
        ({"target_module": ("lm_head",)}, ConfigError, "stay frozen"),
        ({"preset": "nothing"}, ConfigError, "no preset"),
    ],
)
def test_what_the_run_would_refuse_the_dry_run_refuses(
    bench: Path, flags: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        _plan(bench, **flags)


def test_without_torch_the_extra_is_named(bench: Path) -> None:
    words = ["finetune", str(bench / "rows.jsonl"), "--backbone", str(bench / "base"), "--dry-run"]
    program = f"""import sys
sys.modules["torch"] = None
from cbtqa.cli.main import main
main({words!r})"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == MissingExtraError.exit_code, done.stderr
    assert "cbtqa[train]" in done.stderr


def test_the_command_prints_every_part(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", str(bench / "rows.jsonl"), "--backbone", str(bench / "base"), "--dry-run"]
    assert program._run(words, False) == 0
    told = capsys.readouterr()
    parts = ("Settings", "activations per token", "overhead (assumed)", "this CPU, fp32", "H200")
    for part in (*parts, "RTX 3090"):
        assert part in told.out, part
    assert "green is learnt" in told.out and "not measured" in told.err
    assert program._run([*words, "--json"], False) == 0
    alone = DryRun.model_validate(json.loads(capsys.readouterr().out))
    assert alone.n_processes == 1
    assert program._run([*words, "--cards", "4", "--json"], False) == 0
    shared = DryRun.model_validate(json.loads(capsys.readouterr().out))
    assert shared.n_processes == 4 and shared.cpu is None and alone.cpu is not None
    for one, four in zip(alone.cards, shared.cards, strict=True):
        assert four.seconds == pytest.approx(one.seconds / 4)
    assert program._run([*words[:-1], "--cards", "4"], False) == 2
    assert "torchrun --nproc_per_node 4" in capsys.readouterr().err


def test_a_real_7b_shape_takes_seconds_and_under_two_gigabytes(bench: Path) -> None:
    words = ["finetune", str(bench / "dataset"), "--backbone", "baichuan", "--dry-run", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "cbtqa", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(done.stdout)["n_parameters"] > 7e9
    assert after.ru_maxrss / 1024 < 2048, "MiB"
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert cpu_s < 20, "10 on an idle machine is the aim; hyper-threads in use double CPU seconds"


def test_the_answer_comes_first_and_is_what_the_table_of_cards_says(
    large: DryRun, capsys: pytest.CaptureFixture[str]
) -> None:
    show_dry_run(large)
    shown = capsys.readouterr().out
    assert shown.splitlines()[:2] == answer_of(large)
    assert shown.index("One card: fits") < shown.index("Cards\n") < shown.index("Settings\n")
    fitting = [one for one in large.cards if one.fits]
    last = answer_of(large)[-1]
    assert f"{len(fitting)} of 5 kinds" in last and "token counts are approximate" in last
    assert min(fitting, key=lambda one: one.memory_bytes).card in last
    none = [one.model_copy(update={"fits": False, "seconds": None}) for one in large.cards]
    divided = [none[0].model_copy(update={"n_fsdp_cards": 4}), *none[1:]]
    told = answer_of(large.model_copy(update={"cards": tuple(divided)}))[-1]
    assert "fits on no kind; divided by FSDP it fits on 4 x H200" in told
    told = answer_of(large.model_copy(update={"cards": tuple(none)}))[-1]
    assert "--method qlora" in told
