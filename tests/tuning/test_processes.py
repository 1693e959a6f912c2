"""Training over process borders: killed and continued, and divided among two processes."""

from __future__ import annotations

import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cbtqa.cli.main import _run
from cbtqa.files import read_rows
from cbtqa.manifest import read_manifest
from tests.support.program import environment
from tests.support.tiny_models import write_rows, write_tiny_model
from tests.tuning.children import start_program

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("children")]
FLAGS = (
    *("--epochs", "2", "--batch-size", "4", "--eval-steps", "4", "--n-samples", "1"),
    *("--sample-tokens", "4", "--log-steps", "1", "--learning-rate", "5e-3", "--dropout", "0.1"),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_tiny_model(folder / "base")
    write_rows(folder / "rows.jsonl", 40)
    write_rows(folder / "pairs.jsonl", 12, is_pair=True)
    write_rows(folder / "other.jsonl", 6)
    write_rows(folder / "other-pairs.jsonl", 5, is_pair=True)
    return folder


def _start(bench: Path, runs: list[list[str]], n_processes: int = 1) -> list[BaseProcess]:
    """The program, several commands one after another."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return start_program(bench, runs, environment(**quiet), n_processes)


def _run_here(words: list[str]) -> None:
    assert _run(words, is_debug=True) == 0


def _words(bench: Path, out: str, *more: str, is_pair: bool = False) -> list[str]:
    data = ("pairs.jsonl", "other-pairs.jsonl") if is_pair else ("rows.jsonl", "other.jsonl")
    places = ("--validation-data", bench / data[1], "--backbone", bench / "base")
    given = {**_by_flag(FLAGS), **_by_flag(more)}
    flags = [word for pair in given.items() for word in pair]
    return list(map(str, ("finetune", bench / data[0], *places, "--out", bench / out, *flags)))


def _by_flag(words: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def _said(bench: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(bench.glob("said-*.txt")))


def _losses(folder: Path, key: str) -> list[float]:
    return [row[key] for _, row in read_rows(folder / "log.jsonl") if key in row]


def _same_bits(first: Path, second: Path) -> bool:
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_killed_run_continues_to_the_same_bits(
    bench: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL while training, after a checkpoint; dropout is on, so random states matter."""
    _run_here(_words(bench, "straight"))
    [killed] = _start(bench, [_words(bench, "killed")])
    log = bench / "killed" / "log.jsonl"
    deadline = time.monotonic() + 100
    while not (log.exists() and '"step": 6,' in log.read_text()):
        assert killed.is_alive() and time.monotonic() < deadline, _said(bench)
        time.sleep(0.005)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (bench / "killed/manifest.json").exists()
    _run_here(_words(bench, "killed"))
    assert "continuing from checkpoint-" in capfd.readouterr().err
    assert _same_bits(bench / "straight", bench / "killed")
    assert _losses(bench / "killed", "loss") == _losses(bench / "straight", "loss")
    assert _losses(bench / "killed", "eval_loss") == _losses(bench / "straight", "eval_loss")


def test_two_processes_give_the_losses_of_one(bench: Path) -> None:
    # the last step of an epoch holds fewer examples: one process gets an uneven share
    more = ("--micro-batch-tokens", "700", "--dropout", "0", "--epochs", "1", "--batch-size", "5")
    kinds = {"sft": False, "orpo": True}
    for name, is_pair in kinds.items():
        _run_here(_words(bench, f"{name}-1", *more, "--objective", name, is_pair=is_pair))
    runs = [
        _words(bench, f"{name}-2", *more, "--objective", name, is_pair=is_pair)
        for name, is_pair in kinds.items()
    ]
    two = _start(bench, runs, n_processes=2)
    for process in two:
        process.join(110)
    assert [process.exitcode for process in two] == [0, 0], _said(bench)
    for name, is_pair in kinds.items():
        assert read_manifest(bench / f"{name}-2").counts["n_processes"] == 2
        for key in (
            "loss",
            "grad_norm",
            "eval_loss",
            *(("preferred", "margin") if is_pair else ()),
        ):
            one, divided = (_losses(bench / f"{name}-{n}", key) for n in (1, 2))
            assert one == pytest.approx(divided, rel=1e-4, abs=1e-5), key
        first, second = (load_file(bench / f"{name}-{n}/adapter_model.safetensors") for n in (1, 2))
        assert all(torch.allclose(first[key], second[key], atol=1e-4) for key in first)
