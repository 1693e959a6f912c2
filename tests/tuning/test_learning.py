"""What is learnt, and with what weight: packing, masks, micro-batches, the fused head, ORPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from cbtqa.tuning import attention
from cbtqa.tuning.attention import pack_inputs, register_attention
from cbtqa.tuning.backbones import Backbone, Title
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.encoding import IGNORED, Item, encode
from cbtqa.tuning.data.examples import read_training_examples
from cbtqa.tuning.data.packing import StepData, StepPlan, make_batch, make_filler
from cbtqa.tuning.loading import add_adapter
from cbtqa.tuning.losses import attach_log_probs, head_log_probs, orpo_terms, sft_loss
from cbtqa.tuning.settings import FinetuneSettings
from tests.support.tiny_models import tiny_model, tiny_tokenizer, write_rows

SFT = FinetuneSettings()
ORPO = FinetuneSettings(objective="orpo")


def _items(folder: Path, n: int, *, is_pair: bool = False) -> list[Item]:
    rows = write_rows(folder / f"rows-{is_pair}.jsonl", n, is_pair=is_pair)
    settings = FinetuneSettings(data=rows, objective="orpo" if is_pair else "sft")
    chat = ChatFormat(tiny_tokenizer())
    return encode(read_training_examples(settings), chat, settings).items


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return _items(tmp_path_factory.mktemp("sft"), 8)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    return _items(tmp_path_factory.mktemp("orpo"), 6, is_pair=True)


def _model(kind: str = "qwen2", **sizes: Any) -> Any:
    model = tiny_model(kind, **sizes)
    model.set_attn_implementation(register_attention())
    attach_log_probs(model)
    return model


def _gradient(model: Any) -> torch.Tensor:
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(found)


def _with_adapter(model: Any) -> Any:
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    return add_adapter(model, config, Backbone(id="tiny", title=Title(en="tiny", zh="tiny")))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_packed_documents_are_learnt_as_each_alone(kind: str, items: list[Item]) -> None:
    model = _model(kind)
    packed = model(**make_batch(items, SFT).inputs)
    alone = torch.cat([model(**make_batch([item], SFT).inputs) for item in items])
    assert packed.shape == alone.shape
    assert (packed - alone).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_padded_rows_need_no_mask(kind: str, items: list[Item]) -> None:
    model = _model(kind)
    packed = model(**make_batch(items, SFT).inputs)
    padded = model(**make_batch(items, SFT, is_packed=False).inputs)
    assert (packed - padded).abs().max() < 2e-6


@pytest.mark.parametrize("removed", ["boundaries", "positions", "no cache"])
def test_documents_mix_as_soon_as_their_guard_is_missing(removed: str, items: list[Item]) -> None:
    model = _model()
    inputs = make_batch(items[:3], SFT).inputs
    right = model(**inputs)
    if removed == "boundaries":
        broken = {k: v for k, v in inputs.items() if not k.startswith(("cu_seq", "max_length"))}
    else:  # what guards transformers' own attention
        model.set_attn_implementation("sdpa")
        assert (model(**inputs) - right).abs().max() < 1e-5
        straight = torch.arange(inputs["input_ids"].shape[1])[None]
        change = {"position_ids": straight} if removed == "positions" else {"use_cache": True}
        broken = {**inputs, **change}
    assert (model(**broken) - right).abs().max() > 1e-3


def _mixing(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
    """Attention that ignores where documents begin."""
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    return mixed.transpose(1, 2).contiguous(), None


def _failing(error: type[Exception], words: str) -> Any:
    def attend(*_: Any, **__: Any) -> Any:
        raise error(words)

    return attend


def test_the_probe_finds_a_model_that_mixes_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    assert attention.pack_if_apart(model) is None
    assert model.config._attn_implementation == attention.DOCUMENTS
    model = tiny_model()
    own = model.config._attn_implementation
    monkeypatch.setattr(attention, "attend", _mixing)
    assert attention.pack_if_apart(model) == "packed documents see each other in it"
    assert model.config._attn_implementation == own


@pytest.mark.parametrize(
    "error", [NotImplementedError, RuntimeError, TypeError, KeyError, AssertionError, ImportError]
)
def test_a_probe_that_fails_for_whatever_reason_means_padding_and_says_so(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    own = model.config._attn_implementation
    monkeypatch.setattr(attention, "attend", _failing(error, "no such kernel"))
    reason = attention.pack_if_apart(model)
    assert reason is not None and "no such kernel" in reason
    assert model.config._attn_implementation == own


def test_a_device_without_memory_ends_the_probe_as_it_ends_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "attend", _failing(RuntimeError, "CUDA out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        attention.pack_if_apart(tiny_model())


def test_a_model_that_reads_ahead_or_wants_more_than_tokens_is_no_causal_model() -> None:
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for is_decoder, words in ((True, None), (False, "depends on later tokens")):
        config = BertConfig(**sizes, intermediate_size=32, is_decoder=is_decoder)
        torch.manual_seed(0)
        reason = attention.why_not_causal(BertLMHeadModel(config))
        assert (reason is None) if words is None else words in str(reason)
    broken = tiny_model()
    broken.model.layers[0].forward = _failing(TypeError, "pixel_values are missing")
    assert "no logits for token ids alone" in str(attention.why_not_causal(broken))


def test_a_head_that_cannot_be_probed_gives_its_own_logits() -> None:
    model = tiny_model()
    model.model.forward = _failing(TypeError, "unexpected argument use_cache")
    assert not attach_log_probs(model)


def test_a_sliding_window_is_kept_within_each_document() -> None:
    torch.manual_seed(0)
    states = [torch.randn(1, 2, 14, 8) for _ in range(3)]
    starts = torch.tensor([0, 5, 14], dtype=torch.int32)
    packed, _ = attention.attend(
        torch.nn.Module(), *states, sliding_window=3, cu_seq_lens_q=starts, max_length_q=9
    )
    place = 11  # seventh token of the second document: sees the tokens 9, 10, 11
    q, k, v = (part[:, :, slice(None)] for part in states)
    weights = (q[0, :, place, None] @ k[0, :, 9:12].mT / 8**0.5).softmax(-1)
    assert torch.allclose((weights @ v[0, :, 9:12])[:, 0], packed[0, place], atol=1e-6)


def test_attention_that_no_kernel_does_is_refused() -> None:
    states = torch.randn(1, 2, 4, 8)
    with pytest.raises(NotImplementedError):
        attention.attend(torch.nn.Module(), states, states, states, softcap=30.0)


def test_prompt_tokens_are_never_learnt_and_the_end_of_turn_is(items: list[Item]) -> None:
    tokenizer = tiny_tokenizer()
    for is_packed in (True, False):
        batch = make_batch(items, SFT, is_packed=is_packed)
        flat = batch.inputs["input_ids"].flatten()
        assert torch.equal(flat[batch.inputs["learn_at"] + 1], batch.inputs["targets"])
        assert batch.in_answer.all()
        for number, item in enumerate(items):
            document = item.documents[0]
            learnt = batch.inputs["targets"][batch.document == number].tolist()
            assert learnt == document.ids[document.n_prompt :].tolist()
            assert learnt[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
            assert (document.labels()[: document.n_prompt] == IGNORED).all()
            assert tokenizer.decode(document.ids[: document.n_prompt]).endswith("assistant\n")


def test_learning_the_whole_text_leaves_out_the_first_token_of_each_document(
    items: list[Item],
) -> None:
    batch = make_batch(items, FinetuneSettings(loss_on="text"))
    assert len(batch.inputs["targets"]) == sum(item.n_tokens - 1 for item in items)
    starts = set(batch.inputs["cu_seq_lens_q"].tolist())
    assert not starts & {int(place) + 1 for place in batch.inputs["learn_at"]}


@pytest.mark.parametrize("is_packed", [True, False])
def test_one_by_four_is_two_by_two_is_four_by_one(items: list[Item], is_packed: bool) -> None:
    """A step's loss and gradient do not depend on how it is divided into micro-batches."""
    model = _with_adapter(_model())
    longest = max(item.n_tokens for item in items)
    found = {}
    for budget in (longest, 2 * longest, 4 * longest, 100_000):
        plan = StepPlan(
            [i.n_tokens for i in items], batch_size=4, budget=budget, is_packed=is_packed
        )
        step = StepData(items, plan, SFT, is_packed=is_packed)[0]
        loss = sum(sft_loss(model(**b.inputs), step.n_learnt) for b in step.batches)
        loss.backward()
        found[len(step.batches)] = (loss.item(), _gradient(model))
    assert {1, 4} <= set(found) and len(found) >= 3
    for loss, gradient in found.values():
        assert loss == pytest.approx(found[1][0], abs=1e-6)
        assert torch.allclose(gradient, found[1][1], atol=1e-7)


def test_the_loss_is_weighted_by_tokens_not_by_micro_batches(items: list[Item]) -> None:
    model = _model()
    plan = StepPlan([i.n_tokens for i in items], batch_size=8, budget=1)
    step = StepData(items, plan, SFT)[0]
    per_item = [model(**batch.inputs).detach() for batch in step.batches]
    right = -torch.cat(per_item).mean()
    plain_mean = torch.stack([-of_item.mean() for of_item in per_item]).mean()
    ours = sum(float(sft_loss(of_item, step.n_learnt)) for of_item in per_item)
    assert ours == pytest.approx(right.item(), abs=1e-6)
    assert abs(float(plain_mean - ours)) > 1e-4  # the usual mistake would be seen


def test_a_filler_learns_nothing_and_still_reaches_the_adapter(items: list[Item]) -> None:
    model = _with_adapter(_model())
    filler = make_filler(items[0], SFT, is_packed=True, pad_id=0)
    sft_loss(model(**filler.inputs), 10).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert _gradient(model).abs().max() == 0


def test_the_chunked_head_gives_torchs_cross_entropy_and_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(33, 16, requires_grad=True), torch.randn(50, 16)
    targets = torch.randint(50, (33,))
    scale = torch.rand(33)
    plain = (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (plain * scale).sum().backward()
    expected, hidden.grad = hidden.grad.clone(), None
    monkeypatch.setattr("cbtqa.tuning.losses.LOGITS_AT_ONCE", 400)  # eight rows a chunk
    chunked = head_log_probs(hidden, weight, targets)
    (chunked * scale).sum().backward()
    assert torch.allclose(chunked, plain, atol=1e-6)
    assert torch.allclose(hidden.grad, expected, atol=1e-6)


def test_a_model_that_scales_its_logits_uses_its_own(items: list[Item]) -> None:
    from transformers import AutoModelForCausalLM, GraniteConfig

    sizes = tiny_model().config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings")
    config = GraniteConfig(**{name: sizes[name] for name in names}, logits_scaling=4.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(register_attention())
    assert not attach_log_probs(model)
    batch = make_batch(items[:2], SFT)
    log_probs = model(**batch.inputs)
    item = items[0].documents[0]
    logits = model(torch.tensor([item.ids.tolist()]), use_cache=False).logits[0].log_softmax(-1)
    places = torch.arange(item.n_prompt - 1, len(item) - 1)
    expected = logits[places, torch.tensor(item.ids[item.n_prompt :].tolist())]
    assert torch.allclose(log_probs[: len(places)], expected, atol=1e-5)


def _orpo(model: Any, pairs: list[Item], budget: int) -> tuple[float, torch.Tensor, int]:
    plan = StepPlan([p.n_tokens for p in pairs], batch_size=len(pairs), budget=budget)
    step = StepData(pairs, plan, ORPO)[0]
    total = 0.0
    for batch in step.batches:
        terms = orpo_terms(
            model(**batch.inputs),
            batch.document,
            batch.in_answer,
            n_pairs=batch.n_items,
            n_pairs_in_step=step.n_items,
            n_nll_in_step=step.n_learnt,
            beta=0.1,
        )
        terms.loss.backward()
        total += terms.loss.item()
    return total, _gradient(model), len(step.batches)


def test_orpo_does_not_depend_on_how_pairs_are_divided(pairs: list[Item]) -> None:
    model = _with_adapter(_model())
    whole, split = _orpo(model, pairs, 100_000), _orpo(model, pairs, 1)
    assert (whole[2], split[2]) == (1, len(pairs))
    assert whole[0] == pytest.approx(split[0], abs=1e-6)
    assert torch.allclose(whole[1], split[1], atol=1e-7)


def test_orpo_learns_prompt_and_chosen_answer_but_no_rejected_prompt(pairs: list[Item]) -> None:
    batch = make_batch(pairs, ORPO)
    for number, document in enumerate(d for item in pairs for d in item.documents):
        n_learnt = int((batch.document == number).sum())
        is_chosen = number % 2 == 0
        assert n_learnt == len(document) - (1 if is_chosen else document.n_prompt)
    answer_only = make_batch(pairs, FinetuneSettings(objective="orpo", orpo_nll="answer"))
    assert answer_only.in_answer.all()


def test_packed_inputs_restart_positions_and_name_no_mask() -> None:
    inputs = pack_inputs([[5, 6, 7], [8, 9]])
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert inputs["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert "attention_mask" not in inputs and inputs["use_cache"] is False
