"""A real checkpoint is tuned, merged and answers: equal to plain transformers and peft.

SmolLM2-135M-Instruct in 32 bits, thirty steps of two invented openings, LoRA r=8. The first twelve
are done again without cbtqa: one padded batch a step, peft's adapter, torch's AdamW and schedule.
Their losses agree to 1e-3, and so does the held-out loss of the adapter, loaded by peft.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

from cbtqa.files import read_rows
from cbtqa.tuning.data.packing import StepPlan
from tests.support.program import run_cbtqa
from tests.weights.conftest import Figure

pytestmark = [
    pytest.mark.weights,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("training"),
    pytest.mark.filterwarnings("ignore"),  # third-party deprecations, not ours
]
N_HELD_OUT, N_STEPS, BATCH, WARMUP, RATE, RANK = 6, 30, 2, 3, 5e-4, 8
N_AGAIN, TOLERANCE = 12, 1e-3
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _rows() -> list[dict[str, str]]:
    path = Path(__file__).with_name("openings.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tuned(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of thirty steps."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = _rows()
    for name, part in (("train", rows[:-N_HELD_OUT]), ("held", rows[-N_HELD_OUT:])):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    run_cbtqa(
        *("finetune", folder / "train.jsonl", "--validation-data", folder / "held.jsonl"),
        *("--backbone", smollm2, "--out", folder / "adapter", "--max-steps", str(N_STEPS)),
        *("--batch-size", str(BATCH), "--learning-rate", str(RATE), "--warmup", str(WARMUP)),
        *("--rank", str(RANK), "--alpha", str(2 * RANK), "--log-steps", "1"),
        *("--eval-steps", str(N_STEPS), "--n-samples", "0", "--micro-batch-tokens", "1024"),
        cwd=folder,
    )
    return folder


def _encoded(tokenizer: Any, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Prompt and answer with the end of its turn, by the tokenizer's own template."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    return prompt, [*answer, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def _loss(model: Any, rows: list[tuple[list[int], list[int]]]) -> tuple[Any, int]:
    """Summed loss of the answers in one padded batch, and their tokens."""
    import torch

    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels = (
        torch.zeros(len(rows), longest, dtype=torch.long),
        torch.full((len(rows), longest), -100),
    )
    mask = torch.zeros_like(ids)
    for place, (prompt, answer) in enumerate(rows):
        n = len(prompt) + len(answer)
        ids[place, :n] = torch.tensor([*prompt, *answer])
        labels[place, len(prompt) : n] = torch.tensor(answer)
        mask[place, :n] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100
    )
    return total, sum(len(answer) for _, answer in rows)


def _train_plainly(smollm2: Path) -> tuple[list[float], float]:
    """Losses by step, and the held-out loss before: transformers, peft and torch alone."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    auto: Any = AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    rows = [_encoded(tokenizer, row) for row in _rows()]
    train = rows[:-N_HELD_OUT]
    base = auto.from_pretrained(smollm2, dtype=torch.float32)
    before = _held_out(base.eval(), rows)
    set_seed(0)
    words = {"target_modules": sorted(LAYERS), "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, **words))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def rate(step: int) -> float:
        if step < WARMUP:
            return step / WARMUP
        return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (N_STEPS - WARMUP)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    lengths = [len(prompt) + len(answer) for prompt, answer in train]
    plan = StepPlan(lengths, batch_size=BATCH, max_steps=N_STEPS, seed=0)
    losses = []
    model.train()
    for number in range(N_AGAIN):
        total, n = _loss(model, [train[member] for member in plan.step(number).members])
        (total / n).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()) / n)
    return losses, before


def _held_out(model: Any, rows: list[tuple[list[int], list[int]]]) -> float:
    import torch

    with torch.no_grad():
        total, n = _loss(model, rows[-N_HELD_OUT:])
    return float(total) / n


def _held_out_of(adapter: Path, smollm2: Path) -> float:
    """The held-out loss of a saved adapter, loaded by peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    base = auto.from_pretrained(smollm2, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    return _held_out(model, [_encoded(tokenizer, row) for row in _rows()])


def test_thirty_steps_of_a_real_checkpoint_are_those_of_plain_transformers_and_peft(
    tuned: Path, smollm2: Path, figure: Figure
) -> None:
    log = [row for _, row in read_rows(tuned / "adapter" / "log.jsonl")]
    ours = [line["loss"] for line in log if "loss" in line]
    ours_held = next(line["eval_loss"] for line in log if "eval_loss" in line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, before = _train_plainly(smollm2)
        theirs_held = _held_out_of(tuned / "adapter", smollm2)
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=False))
    figure(
        f"finetune: held-out loss {before:.4f} to {ours_held:.5f} (loaded by peft {theirs_held:.5f}"
        f"); the loss of {N_AGAIN} steps at most {apart:.1e} from transformers and peft"
    )
    assert len(ours) == N_STEPS
    assert ours[:N_AGAIN] == pytest.approx(theirs, abs=TOLERANCE)
    assert ours_held == pytest.approx(theirs_held, abs=TOLERANCE)
    assert ours_held < before - 0.1


def _answers(folder: Path) -> dict[str, str]:
    """What was written, by question; a reply cut at the limit is among the rejected ones."""
    answers = {row["question_id"]: row["text"] for _, row in read_rows(folder / "answers.jsonl")}
    rejected = (row for _, row in read_rows(folder / "rejects.jsonl"))
    return answers | {row["item_id"]: row["raw"] for row in rejected}


@pytest.fixture(scope="module")
def written(tuned: Path, smollm2: Path) -> dict[str, dict[str, str]]:
    """What the model writes greedily before, after with its adapter, and merged; by question."""
    whole = tuned / "whole"
    run_cbtqa(*("merge", tuned / "adapter", "--base", smollm2, "--out", whole), cwd=tuned)
    texts = {}
    for name, how in {
        "before": ("--model", smollm2),
        "after": ("--adapter", tuned / "adapter", "--base", smollm2),
        "merged": ("--model", whole),
    }.items():
        words = ("generate", tuned / "held.jsonl", *how, "--out", tuned / name, "--split", "all")
        run_cbtqa(*words, "--limit", "2", "--max-new-tokens", "70", cwd=tuned)
        texts[name] = _answers(tuned / name)
    return texts


@pytest.mark.slow
def test_the_merged_model_writes_the_adapters_greedy_text_and_the_base_another(
    written: dict[str, dict[str, str]],
) -> None:
    assert len(written["after"]) == 2 and all(written["after"].values())
    assert written["after"] == written["merged"]
    assert all(written["after"][name] != text for name, text in written["before"].items())


@pytest.mark.slow
def test_what_the_tuned_model_writes_is_scored(
    tuned: Path, written: dict[str, dict[str, str]], figure: Figure
) -> None:
    held = [json.loads(line) for line in (tuned / "held.jsonl").read_text().splitlines()]
    for name in ("before", "after"):
        _write_rows(tuned / f"{name}.jsonl", written[name], "prediction")
    right = (row["completion"] for row in held)
    _write_rows(tuned / "refs.jsonl", dict(zip(written["after"], right, strict=False)), "reference")
    run_cbtqa(
        *("score", tuned / "before.jsonl", tuned / "after.jsonl", "--ref", tuned / "refs.jsonl"),
        *("--ref-column", "reference", "--metrics", "chrf2", "--bootstrap", "0", "--no-anchors"),
        *("--out", tuned / "scores"),
        cwd=tuned,
    )
    told = json.loads((tuned / "scores" / "scores.json").read_text())
    values = {row["system"]: row["value"] for row in told["scores"] if row["metric"] == "chrf2"}
    figure(f"chrF2 of two answers: {values}")
    assert 0 < values["before"] < 100 and 0 < values["after"] < 100


def _write_rows(path: Path, texts: dict[str, str], column: str) -> None:
    rows = (json.dumps({"id": key, column: text}) for key, text in texts.items())
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
