"""Memory and arithmetic of a step: counted without weights, equal to what a real run keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from transformers import AutoModelForCausalLM

from cbtqa.tuning.backbones import find_backbone, load_backbones, to_config
from cbtqa.tuning.budget.counting import (
    ATTENTION,
    BLOCK_BYTES,
    N_TOKENS,
    LiveBytes,
    ModelSizes,
    SavedBytes,
    ShapeCount,
    count_head,
    count_shape,
)
from cbtqa.tuning.budget.estimate import (
    GIB,
    card_of_device,
    expected_seconds,
    flops_per_token,
    load_cards,
    memory_of,
)
from cbtqa.tuning.loading import lora_config
from cbtqa.tuning.settings import FinetuneSettings
from tests.support.tiny_models import tiny_config

MIB = 2**20
SIZE: dict[str, Any] = {"tokens": 8192, "labelled": 0.7}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _lora(**words: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": LAYERS, "task_type": "CAUSAL_LM", **words})


@pytest.fixture(scope="module")
def baichuan() -> ShapeCount:
    backbone = find_backbone("baichuan")
    return count_shape(to_config(backbone), lora_config(FinetuneSettings(), backbone))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("upcasts", [False, True])
def test_what_is_counted_without_weights_is_what_a_real_run_keeps(kind: str, upcasts: bool) -> None:
    config = tiny_config(kind, hidden_size=96, num_hidden_layers=3)
    count = count_shape(config, _lora(), upcasts=upcasts)
    real = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    real.set_attn_implementation(ATTENTION)
    model = get_peft_model(real, _lora()).train()
    ids = torch.ones(1, N_TOKENS, dtype=torch.long)
    known = (*model.parameters(), *model.buffers())
    saved, live = SavedBytes(*known), LiveBytes(*known)
    casting = (
        torch.autocast("cpu", torch.bfloat16) if upcasts else disable_input_dtype_casting(model)
    )
    with live, torch.autocast("cpu", torch.bfloat16), casting:
        with saved:
            out = model.get_base_model().model(ids, use_cache=False).last_hidden_state
        sizes = saved.sizes
        saved.release()
        out.backward(torch.empty_like(out))
    assert count.plain.saved_per_token * N_TOKENS + count.plain.saved_fixed == sum(sizes)
    counted = count.plain.peak_per_token * N_TOKENS + count.plain.saved_fixed
    assert counted == pytest.approx(live.peak, rel=0.02)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_parameters_are_those_that_peft_counts(baichuan: ShapeCount) -> None:
    config = tiny_config()
    count = count_shape(config, _lora())
    model = get_peft_model(AutoModelForCausalLM.from_config(config), _lora())
    assert (count.n_trainable, count.n_trainable + count.n_frozen) == (
        model.get_nb_trainable_parameters()
    )
    by_hand = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert baichuan.n_trainable == by_hand == 39_976_960
    assert baichuan.n_frozen == 7_000_559_616


def test_a_7b_shape_keeps_what_the_parts_of_a_layer_add_up_to(baichuan: ShapeCount) -> None:
    hidden, inner, rank, layers = 4096, 11008, 16, 32
    norms = 2 * (4 + 2) * hidden + 2 * 4  # float32 input, 16-bit output, its scale
    attention = 4 * 2 * hidden + 4 * 32  # queries, keys, values, result; log-sums of 32 heads
    mlp = 4 * 2 * inner  # gate, its activation, up, product
    adapters = 7 * 2 * rank
    rotary, last = 2 * 2 * 128, (4 + 0) * hidden + 4
    expected = layers * (norms + attention + mlp + adapters) + rotary + last
    assert baichuan.plain.saved_per_token == pytest.approx(expected, rel=0.01)
    assert baichuan.plain.saved_per_token / MIB == pytest.approx(5.20, abs=0.01)


def test_two_depths_tell_every_other(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(num_hidden_layers=9)
    told = count_shape(config, _lora())
    monkeypatch.setattr("cbtqa.tuning.budget.counting.DEPTHS", (2, 9))  # now all nine are counted
    counted = count_shape(config, _lora())
    for one, other in ((told.plain, counted.plain), (told.recomputed, counted.recomputed)):
        assert one.saved_per_token == other.saved_per_token
        assert one.saved_fixed == other.saved_fixed
        assert one.peak_per_token == pytest.approx(other.peak_per_token, rel=2e-3)


def test_dropout_and_the_input_cast_cost_what_they_store() -> None:
    config = to_config(find_backbone("baichuan"))
    config.num_hidden_layers = 2
    plain = count_shape(config, _lora(r=16)).plain.saved_per_token
    usual = count_shape(config, _lora(r=16, lora_dropout=0.05), upcasts=True).plain.saved_per_token
    inputs = 6 * 4096 + 11008  # of the seven adapters of a layer
    shared = 2 * 4096 + 11008  # kept once for several of them when nothing copies them
    unmasked = 3 * 4096  # nothing before the first layer is trained: its inputs want no mask
    assert usual - plain == 2 * (3 * inputs - 2 * shared) - unmasked


def test_recomputing_keeps_one_input_per_layer(baichuan: ShapeCount) -> None:
    kept = baichuan.recomputed.saved_per_token
    assert kept == pytest.approx(32 * 2 * 4096, rel=0.08)
    assert kept < baichuan.recomputed.peak_per_token < 0.1 * baichuan.plain.peak_per_token


def test_the_head_takes_a_chunk_of_logits_not_all_of_them() -> None:
    few, many = count_head(4096, 151_936, 2_000), count_head(4096, 151_936, 8_000)
    all_logits = 8_000 * 151_936 * 4
    assert many < 0.25 * all_logits
    # beyond one chunk only states, gradients and targets grow
    assert many - few < 6_000 * (4 * 2 * 4096 + 64)


def test_every_listed_backbone_can_be_counted() -> None:
    seen = set()
    for name, backbone in load_backbones().items():
        if (backbone.model_type, backbone.target_modules) in seen:
            continue
        seen.add((backbone.model_type, backbone.target_modules))
        config = to_config(backbone)
        kinds = getattr(config, "layer_types", None) or []
        # of a hybrid all kinds: one layer in four attends, the others are linear
        n_layers = 4 if "linear_attention" in kinds else 1
        config.num_hidden_layers = n_layers
        if kinds:
            config.layer_types = kinds[:n_layers]
        count = count_shape(config, lora_config(FinetuneSettings(), backbone))
        assert count.n_trainable > 0 and count.n_layers == 1, name
        assert 0 < count.plain.saved_per_token < count.plain.peak_per_token, name


def test_memory_is_the_sum_of_its_parts(baichuan: ShapeCount) -> None:
    memory = memory_of(baichuan, **SIZE)
    assert memory.weights == 2 * baichuan.n_frozen
    assert memory.adapters == memory.gradients == 4 * baichuan.n_trainable
    assert memory.optimizer == 8 * baichuan.n_trainable
    assert memory.activations == pytest.approx(8192 * 5.199 * MIB, rel=0.01)
    parts = (value for name, value in memory if name != "total")
    assert memory.total == sum(parts)
    assert memory.fits(memory.total) and not memory.fits(memory.total - 1)


def test_4_bits_shrink_the_weights_and_fsdp_divides_them(baichuan: ShapeCount) -> None:
    plain = memory_of(baichuan, **SIZE)
    quantized = memory_of(baichuan, **SIZE, is_quantized=True)
    rest = plain.weights - 2 * baichuan.adapted_weights  # embedding, head, norms
    largest = 2 * 4096 * 11008
    assert quantized.weights == pytest.approx(
        rest + largest + 0.516 * baichuan.adapted_weights, rel=0.001
    )
    divided = memory_of(baichuan, **SIZE, n_cards=8, sharding="fsdp")
    assert divided.weights == plain.weights // 8 + 2 * baichuan.layer_bytes
    assert divided.activations == plain.activations
    assert memory_of(baichuan, **SIZE, n_cards=8).gradients == 2 * plain.gradients


def test_checkpointing_is_for_cards_that_are_too_small(baichuan: ShapeCount) -> None:
    plain = memory_of(baichuan, **SIZE)
    assert plain.fits(load_cards()["h100"].memory_bytes)
    assert not plain.fits(load_cards()["a100-40"].memory_bytes)
    small = memory_of(baichuan, **SIZE, checkpointing=True)
    assert small.fits(load_cards()["rtx4090"].memory_bytes)


def test_live_bytes_follow_what_is_freed() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        second = torch.zeros(5000)
        del first
        view = second[10:]
        third = torch.zeros(1)
        assert live.now == 20_480 + BLOCK_BYTES
        del second, view, third
    assert live.now == 0
    assert live.peak == 4096 + 20_480


def _sizes(hidden: int, inner: int, n_layers: int, keys: int, vocabulary: int) -> ModelSizes:
    """A model's arithmetic by hand; `keys` is the width of its keys, the rank is 16."""
    attention = 2 * hidden * (hidden + keys)
    adapters = 2 * 2 * hidden + 2 * (hidden + keys) + 3 * (hidden + inner)
    return ModelSizes(
        body_weights=n_layers * (attention + 3 * hidden * inner),
        adapter_weights=16 * n_layers * adapters,
        n_layers=n_layers,
        hidden=hidden,
        attention_width=hidden,
        vocabulary=vocabulary,
    )


BY_HAND = {
    "baichuan": _sizes(4096, 11008, 32, 4096, 64_000),
    "qwen": _sizes(4096, 11008, 32, 4096, 151_936),
    "llama3.1": _sizes(4096, 14336, 32, 1024, 128_256),
}


@pytest.mark.parametrize(
    ("name", "gflop", "with_recompute"),
    [("baichuan", 27.5, 41.0), ("qwen", 28.5, 42.5), ("llama3.1", 30.3, 45.2)],
)
def test_arithmetic_agrees_with_the_published_accounting(
    name: str, gflop: float, with_recompute: float
) -> None:
    # forward 2N, backward 2N through frozen weights; 700-token documents, 70 % in the loss
    flops = flops_per_token(BY_HAND[name], length=700, labelled=0.7)
    assert flops.total(checkpointing=False) / 1e9 == pytest.approx(gflop, rel=0.005)
    # our head is not recomputed, which the published figure has it do
    assert flops.total(checkpointing=True) / 1e9 == pytest.approx(with_recompute, rel=0.03)


def test_counted_sizes_give_the_arithmetic_of_sizes_by_hand(baichuan: ShapeCount) -> None:
    counted = flops_per_token(baichuan, length=700, labelled=0.7)
    assert counted == flops_per_token(BY_HAND["baichuan"], length=700, labelled=0.7)


def test_expected_time_is_work_over_throughput() -> None:
    assert expected_seconds(1e6, 28e9, load_cards()["h100"]) == pytest.approx(70.78, rel=1e-3)
    assert expected_seconds(1e6, 28e9, load_cards()["h100"], n_cards=2) == pytest.approx(
        35.39, rel=1e-3
    )


@pytest.mark.parametrize(
    ("driver_name", "gib", "card"),
    [
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA H100 80GB HBM3", 79.2, "h100"),
        ("NVIDIA A100-SXM4-80GB", 79.3, "a100-80"),
        ("NVIDIA A100-SXM4-40GB", 39.5, "a100-40"),
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx4090"),
        ("NVIDIA RTX A6000", 47.4, "a6000"),
        ("NVIDIA L40S", 44.5, "l40s"),
        ("Tesla V100-SXM2-32GB", 31.7, "v100"),
        ("Tesla V100-SXM2-16GB", 15.8, None),
        ("Some Card 9000", 24.0, None),
    ],
)
def test_a_device_is_known_by_its_name_and_memory(
    driver_name: str, gib: float, card: str | None
) -> None:
    found = card_of_device(driver_name, int(gib * GIB))
    assert (found.id if found else None) == card


def test_a_class_that_cannot_run_without_content_is_estimated_by_formula_and_says_why() -> None:
    backbone = find_backbone("qwen3.5")
    config = to_config(backbone)
    config.num_hidden_layers, config.layer_types = 4, config.layer_types[:4]
    count = count_shape(config, lora_config(FinetuneSettings(), backbone))
    assert count.by_formula
    assert count.n_layers == 1  # of linear attention none costs more with the document's length
    assert 0 < count.recomputed.saved_per_token < count.plain.saved_per_token


@pytest.mark.parametrize("name", ["baichuan", "qwen2.5", "llama3.2", "qwen3"])
def test_the_formula_is_near_what_is_counted_where_both_can_be_had(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = find_backbone(name)
    config = to_config(backbone)
    config.num_hidden_layers = 4
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:4]
    lora = lora_config(FinetuneSettings(), backbone)
    counted = count_shape(config, lora)

    def fail(*_: Any) -> Any:
        raise NotImplementedError("no kernel for meta tensors")

    monkeypatch.setattr("cbtqa.tuning.budget.counting._count_passes", fail)
    told = count_shape(config, lora)
    assert (counted.by_formula, told.by_formula) == (None, "no kernel for meta tensors")
    for way in ("plain", "recomputed"):
        known, guessed = getattr(counted, way), getattr(told, way)
        assert guessed.saved_per_token == pytest.approx(known.saved_per_token, rel=0.15), way
        assert guessed.peak_per_token == pytest.approx(known.peak_per_token, rel=0.15), way


def test_of_a_mixture_a_token_is_multiplied_with_the_experts_that_it_is_sent_to() -> None:
    backbone = find_backbone("qwen3-30b-a3b")
    config = to_config(backbone)
    count = count_shape(config, lora_config(FinetuneSettings(), backbone))
    # 3.3 billion active of 30.5, as its page says; head and embedding are not in the layers
    assert count.body_weights / 1e9 == pytest.approx(3.3 - 2 * 0.311, rel=0.05)
    assert count.n_trainable == 48 * 16 * (2048 + 4096 + 2 * (2048 + 512) + 4096 + 2048)
