"""SFT and ORPO losses and gradients equal TRL's, an independent trainer.

Values come from trl 1.16: its SFT head and loss, and its experimental ORPO trainer. Importing it
takes ten seconds, so both comparisons stand in one file.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def trl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports, none of ours
        return pytest.importorskip("trl")


def _items(path: Path, *, is_pair: bool) -> Any:
    from cbtqa.tuning.data.chat_format import ChatFormat
    from cbtqa.tuning.data.encoding import encode
    from cbtqa.tuning.data.examples import read_training_examples
    from cbtqa.tuning.settings import FinetuneSettings
    from tests.support.tiny_models import tiny_tokenizer, write_rows

    rows = write_rows(path, 5, is_pair=is_pair)
    settings = FinetuneSettings(data=rows, objective="orpo" if is_pair else "sft")
    return encode(read_training_examples(settings), ChatFormat(tiny_tokenizer()), settings).items


def _models() -> tuple[Any, Any]:
    """Theirs as transformers makes it, ours with our attention and head; the same weights."""
    from cbtqa.tuning.attention import register_attention
    from cbtqa.tuning.losses import attach_log_probs
    from tests.support.tiny_models import tiny_model

    ours = tiny_model()
    ours.set_attn_implementation(register_attention())
    for model in (theirs := tiny_model(), ours):
        model.get_output_embeddings().weight.requires_grad_(False)
    assert attach_log_probs(ours)
    return theirs, ours


def _gradient(model: Any) -> Any:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _arguments(trl_config: Any, folder: Path, **more: Any) -> Any:
    return trl_config(
        output_dir=str(folder), report_to="none", bf16=False, use_cpu=True, max_length=2048,
        per_device_train_batch_size=5, disable_tqdm=True, **more,
    )  # fmt: skip


def _same(ours: Any, theirs: Any) -> float:
    return float((_gradient(ours) - _gradient(theirs)).norm() / _gradient(theirs).norm())


def test_the_sft_loss_and_its_gradient_equal_trls(trl: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    from cbtqa.tuning.data.packing import StepData, StepPlan
    from cbtqa.tuning.losses import sft_loss
    from cbtqa.tuning.settings import FinetuneSettings
    from tests.support.tiny_models import tiny_tokenizer

    items = _items(tmp_path / "rows.jsonl", is_pair=False)
    theirs, ours = _models()
    rows = [
        {"input_ids": item.documents[0].ids.tolist(), "labels": item.documents[0].labels().tolist()}
        for item in items
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.SFTTrainer(
            model=theirs,
            args=_arguments(trl.SFTConfig, tmp_path, packing=False, gradient_checkpointing=False),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer(),
        )
        batch = trainer.data_collator([trainer.train_dataset[k] for k in range(len(rows))])
        theirs.train()
        expected = trainer.compute_loss(theirs, batch)
        expected.backward()
    plan = StepPlan([item.n_tokens for item in items], batch_size=5, budget=500)
    step = StepData(items, plan, FinetuneSettings())[0]
    assert len(step.batches) > 1
    total = sum(sft_loss(ours(**part.inputs), step.n_learnt) for part in step.batches)
    total.backward()
    assert total.item() == pytest.approx(expected.item(), abs=1e-6)
    assert _same(ours, theirs) < 1e-6


def test_the_orpo_loss_and_its_gradient_equal_trls(trl: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    from cbtqa.tuning.data.packing import make_batch
    from cbtqa.tuning.losses import orpo_terms
    from cbtqa.tuning.settings import FinetuneSettings
    from tests.support.tiny_models import tiny_tokenizer

    items = _items(tmp_path / "pairs.jsonl", is_pair=True)
    theirs, ours = _models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        dummy = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
        trainer = ORPOTrainer(
            model=theirs,
            args=_arguments(ORPOConfig, tmp_path, beta=0.1, gradient_checkpointing=False),
            train_dataset=Dataset.from_list(dummy),
            processing_class=tiny_tokenizer(),
        )
        batch = trainer.data_collator([_trl_row(item) for item in items])
        theirs.train()
        expected, metrics = trainer.get_batch_loss_metrics(theirs, batch)
        expected.backward()
    made = make_batch(items, FinetuneSettings(objective="orpo"))
    log_probs = ours(**made.inputs)
    n_nll = sum(len(item.documents[0]) - 1 for item in items)
    terms = orpo_terms(
        log_probs, made.document, made.in_answer, n_pairs=5, n_pairs_in_step=5,
        n_nll_in_step=n_nll, beta=0.1,
    )  # fmt: skip
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert terms.nll.item() == pytest.approx(metrics["nll_loss"], abs=1e-6)
    assert int(terms.n_preferred) / 5 == pytest.approx(metrics["rewards/accuracies"])
    assert _same(ours, theirs) < 1e-6
    padded = (
        2
        * batch["chosen_input_ids"].shape[0]
        * max(batch["chosen_input_ids"].shape[1], batch["rejected_input_ids"].shape[1])
    )
    assert made.n_tokens < padded


def _trl_row(item: Any) -> dict[str, Any]:
    row = {}
    for name, document in zip(("chosen", "rejected"), item.documents, strict=True):
        row[f"{name}_input_ids"] = document.ids.tolist()
        row[f"{name}_attention_mask"] = [1] * len(document)
        row[f"{name}_labels"] = document.labels().tolist()
        row["prompt_input_ids"] = document.ids[: document.n_prompt].tolist()
        row["prompt_attention_mask"] = [1] * document.n_prompt
    return row
