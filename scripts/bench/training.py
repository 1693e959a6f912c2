"""What a training step costs on a CPU, ours against TRL's SFTTrainer, at CBT-QA lengths.

    python scripts/bench/training.py                    # about two minutes, one thread
    python scripts/bench/training.py --steps 3 --repeat 1

One process, one tiny random model (2 layers x 128, vocabulary 1,024), LoRA r=16 on all linear
layers, float32, 16 examples a step, loss on the answer. Lengths are synthetic: log-normal, prompt
median 190 tokens, answer 410, 130-1,024 in all. Speed: tokens per CPU second, from the end of the
first step to the end of the last, optimiser and data loading included; modes take turns and the
best of each counts. Then the activations per token of the 7B shape, counted on the meta device,
against PEFT's own input cast. Needs trl. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402 - after the switches above
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from peft.helpers import disable_input_dtype_casting  # noqa: E402

from cbtqa.tuning.attention import register_attention  # noqa: E402
from cbtqa.tuning.backbones import find_backbone, to_config  # noqa: E402
from cbtqa.tuning.budget.counting import ModelSizes, count_shape  # noqa: E402
from cbtqa.tuning.budget.estimate import Speed  # noqa: E402
from cbtqa.tuning.data.encoding import Document, Item  # noqa: E402
from cbtqa.tuning.data.packing import (  # noqa: E402
    StepData,
    StepPlan,
)
from cbtqa.tuning.losses import attach_log_probs  # noqa: E402
from cbtqa.tuning.settings import FinetuneSettings  # noqa: E402
from cbtqa.tuning.training.trainer import StepTrainer  # noqa: E402

VOCABULARY, BATCH = 1024, 16
N_ITEMS = 320
"""More than a run sees: grouping by length wants a pool to choose from."""
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_items(n: int, seed: int = 0) -> list[Item]:
    """Random tokens at CBT-QA lengths."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(np.log(190), 0.35, n), 50, 360).astype(int)
    answers = np.clip(rng.lognormal(np.log(410), 0.35, n), 80, 664).astype(int)
    return [
        Item(str(k), (Document(rng.integers(10, VOCABULARY, p + a).astype(np.int32), int(p)),))
        for k, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]


def make_model(attention: str) -> Any:
    """A random model, the same for every mode."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=3,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(attention)
    return model.requires_grad_(False)


def lora() -> LoraConfig:
    """The adapter of every mode."""
    return LoraConfig(r=16, lora_alpha=32, target_modules=LAYERS, task_type="CAUSAL_LM")


class Clock(transformers.TrainerCallback):
    """CPU seconds between the ends of the first and the last step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step ended."""
        self.times.append(time.process_time())

    @property
    def seconds(self) -> float:
        """CPU seconds, the first step left out."""
        return self.times[-1] - self.times[0]


def common(steps: int) -> dict[str, Any]:
    """Arguments of every mode."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": steps,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 42,
    }


def run_ours(items: list[Item], steps: int, budget: int) -> dict[str, float]:
    """Packed, by our trainer."""
    model = make_model(register_attention())
    attach_log_probs(model)
    adapted = get_peft_model(model, lora())
    lengths = [item.n_tokens for item in items]
    plan = StepPlan(lengths, batch_size=BATCH, max_steps=steps, seed=42, budget=budget)
    data = StepData(items, plan, FinetuneSettings())
    clock = Clock()
    trainer = StepTrainer(
        model=adapted,
        args=transformers.TrainingArguments(
            per_device_train_batch_size=1, remove_unused_columns=False, label_names=[],
            average_tokens_across_devices=False, dataloader_pin_memory=False, **common(steps),
        ),
        data=data,
        eval_data=None,
        speed=Speed(ModelSizes.of(adapted), None),
        callbacks=[clock],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    with disable_input_dtype_casting(adapted):
        trainer.train()
    n_tokens = sum(data[number].n_tokens for number in range(1, steps))
    return {"tokens": n_tokens, "cpu_s": clock.seconds, "padding": 0.0}


def run_trl(items: list[Item], steps: int, mode: str) -> dict[str, float]:
    """TRL's SFTTrainer: padded, grouped or packed."""
    import trl
    from datasets import Dataset

    rows = [
        {"input_ids": item.documents[0].ids.tolist(), "labels": item.documents[0].labels().tolist()}
        for item in items
    ]
    more = {"train_sampling_strategy": "group_by_length"} if mode == "grouped" else {}
    clock, seen = Clock(), {"real": 0, "all": 0, "calls": 0}
    per_call = 3 if mode == "packed" else 4
    trainer = trl.SFTTrainer(
        model=make_model("sdpa"),
        args=trl.SFTConfig(
            per_device_train_batch_size=per_call, gradient_accumulation_steps=4, max_length=1024,
            packing=mode == "packed", gradient_checkpointing=False, **common(steps), **more,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        peft_config=lora(),
        callbacks=[clock],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    own_step = trainer.training_step

    def counted_step(model: Any, inputs: Any, *rest: Any, **words: Any) -> Any:
        seen["calls"] += 1
        if seen["calls"] > 4:  # the first optimiser step is left out of the clock, too
            mask = inputs.get("attention_mask")
            seen["all"] += inputs["input_ids"].numel()
            seen["real"] += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        return own_step(model, inputs, *rest, **words)

    trainer.training_step = counted_step
    trainer.train()
    return {
        "tokens": seen["real"],
        "cpu_s": clock.seconds,
        "padding": 1 - seen["real"] / seen["all"],
    }


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    raw = Tokenizer(models.WordLevel({str(k): k for k in range(VOCABULARY)}, unk_token="0"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="2", pad_token="3", unk_token="0"
    )


def count_activations() -> dict[str, float]:
    """MiB per token of Baichuan-7B, r=16 on all linear layers, kept for the backward pass."""
    config = to_config(find_backbone("baichuan"))
    kinds = {
        "ours": {},
        "peft, autocast": {"upcasts": True},
        "peft, autocast, dropout 0.05": {"upcasts": True, "dropout": 0.05},
        "peft": {"upcasts": True, "autocasts": False},
        "peft, dropout 0.05": {"upcasts": True, "autocasts": False, "dropout": 0.05},
    }
    found = {}
    for name, kind in kinds.items():
        adapter = lora()
        adapter.lora_dropout = kind.pop("dropout", 0.0)
        found[name] = count_shape(config, adapter, **kind).plain.saved_per_token / 2**20
    return found


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps of a run")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each mode")
    parser.add_argument("--budget", type=int, default=4096, help="tokens of our micro-batches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    import datasets

    datasets.disable_progress_bars()
    items, steps = make_items(N_ITEMS), arguments.steps
    modes = {
        "ours, packed": lambda: run_ours(items, steps, arguments.budget),
        "trl, padded": lambda: run_trl(items, steps, "padded"),
        "trl, grouped by length": lambda: run_trl(items, steps, "grouped"),
        "trl, packed": lambda: run_trl(items, steps, "packed"),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in modes}
    for _ in range(arguments.repeat):
        for name, run in modes.items():
            runs[name].append(run())
    speed = {name: max(run["tokens"] / run["cpu_s"] for run in of) for name, of in runs.items()}
    ours = speed["ours, packed"]
    kept = count_activations()
    lengths = [item.n_tokens for item in items]
    print(
        json.dumps(
            {
                "tokens_per_cpu_s": {name: round(value) for name, value in speed.items()},
                "padding": {name: round(of[0]["padding"], 3) for name, of in runs.items()},
                "against_trl_padded": round(ours / speed["trl, padded"], 2),
                "against_trl_best": round(
                    ours / max(value for name, value in speed.items() if name != "ours, packed"), 2
                ),
                "lengths": {"min": min(lengths), "median": float(np.median(lengths))}
                | {"max": max(lengths), "examples": len(lengths)},
                "activations_mib_per_token": {
                    name: round(value, 2) for name, value in kept.items()
                },
                "activations_against": {
                    name: round(kept["ours"] / value, 2) for name, value in kept.items()
                },
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
