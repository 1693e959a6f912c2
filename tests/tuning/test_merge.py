"""Merging: the merged model answers as base and adapter do, and only for the right base."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cbtqa.cli.main import _run as run
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import read_json, write_json
from cbtqa.records import Question
from cbtqa.safety.notices import not_a_therapist
from cbtqa.tuning.answering.model import open_model
from cbtqa.tuning.answering.modelfile import write_modelfile
from cbtqa.tuning.answering.settings import SpeakerSettings
from cbtqa.tuning.backbones import find_backbone
from cbtqa.tuning.data.examples import prompt_messages
from cbtqa.tuning.weights.adapter import read_adapter
from cbtqa.tuning.weights.convert import convert
from cbtqa.tuning.weights.files import (
    describe_base,
    find_weights,
    hash_weights,
    read_base_record,
    write_base_record,
)
from cbtqa.tuning.weights.merge import CONVERTER, MergeRecord, merge
from tests.support.original_checkpoints import save_original
from tests.support.tiny_backbones import tiny_random_model

# peft 0.21 reads an attribute that transformers 5.23 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
IDS = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted tiny Baichuan-7B in float32."""
    folder = tmp_path_factory.mktemp("base")
    save_original(folder / "source", "baichuan")
    convert(folder / "source", folder / "converted", shard_bytes=80_000)
    return folder / "converted"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.disable_progress_bar()
    yield


def _load(folder: Path, dtype: Any = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def _logits(model: Any) -> Any:
    """Computed in float64, so that what is compared is the weights and not the kernels."""
    with torch.no_grad():
        return model.eval().double()(IDS).logits


def _distance(found: Any, expected: Any) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def save_adapter(folder: Path, base: Path, *, seed: int = 0, **words: Any) -> Any:
    """An adapter with random weights on both sides, as peft saves it; gives its logits."""
    import peft

    backbone = find_backbone(base)
    config = peft.LoraConfig(
        **{
            "r": 4,
            "lora_alpha": 8,
            "target_modules": list(backbone.target_modules),
            "task_type": "CAUSAL_LM",
            **words,
        }
    )
    torch.manual_seed(seed)
    model = peft.get_peft_model(_load(base), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "magnitude" in name or "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.peft_config["default"].base_model_name_or_path = backbone.display_name
    model.save_pretrained(folder, save_embedding_layers=False)
    write_base_record(folder, describe_base(backbone))
    return _logits(model)


VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 3}},
    "whole weights": {"modules_to_save": ["lm_head"]},
}


# --- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_answers_as_base_and_adapter_together(
    base: Path, tmp_path: Path, variant: str
) -> None:
    with_adapter = save_adapter(tmp_path / "adapter", base, **VARIANTS[variant])
    record = merge(tmp_path / "adapter", tmp_path / "out", base=str(base), shard_bytes=80_000)
    merged = _load(tmp_path / "out")
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert _distance(_logits(merged), with_adapter) < 1e-6
    assert _distance(_logits(_load(base)), with_adapter) > 1e-2  # the adapter does something
    assert record.n_merged == 14
    assert record.n_replaced == (variant == "whole weights")
    assert record.method == (variant if variant in ("rsLoRA", "DoRA") else "LoRA")


@pytest.mark.parametrize("name", ["llama3.2", "glm4", "qwen3", "minicpm"])
def test_other_classes_tied_or_fused_merge_too(base: Path, tmp_path: Path, name: str) -> None:
    model = tiny_random_model(find_backbone(name))
    model.save_pretrained(tmp_path / "base")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / file).write_bytes((base / file).read_bytes())
    modules = list(find_backbone(name).target_modules)
    with_adapter = save_adapter(tmp_path / "adapter", tmp_path / "base", target_modules=modules)
    merge(tmp_path / "adapter", tmp_path / "out", base=str(tmp_path / "base"))
    assert _distance(_logits(_load(tmp_path / "out")), with_adapter) < 1e-6


def test_sixteen_bits_are_reached_by_one_cast(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", base)
    merge(tmp_path / "adapter", tmp_path / "full", base=str(base))
    record = merge(tmp_path / "adapter", tmp_path / "half", base=str(base), dtype="bfloat16")
    assert record.dtypes == ("bfloat16",)
    full, half = _load(tmp_path / "full"), _load(tmp_path / "half", torch.bfloat16)
    for (name, one), (_, other) in zip(
        full.state_dict().items(), half.state_dict().items(), strict=True
    ):
        assert torch.equal(one.to(torch.bfloat16), other), name


# --- what is written -----------------------------------------------------------------------------


def test_tokenizer_format_ends_and_record_go_with_it(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ messages[0].content }}: mine"
    tokenizer.save_pretrained(tmp_path / "adapter")
    record = merge(tmp_path / "adapter", tmp_path / "out", base=str(base))
    made = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    message = [{"role": "user", "content": "你好"}]
    assert made.apply_chat_template(message, tokenize=False) == "你好: mine"
    text = "  先看看，这个 <reserved_106> 想法😀。"
    assert made(text)["input_ids"] == tokenizer(text)["input_ids"]
    settings = read_json(tmp_path / "out" / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == 2
    assert (tmp_path / "out" / "LICENSE").is_file()
    assert MergeRecord.model_validate(read_json(tmp_path / "out" / "merge.json")) == record
    assert record.base == read_base_record(tmp_path / "adapter")
    assert record.weights_sha256 == hash_weights(find_weights(str(tmp_path / "out")))
    text = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.json"))
    assert str(tmp_path) not in text
    assert "peft_type" not in text


def test_the_format_that_was_learned_outlives_the_base_s_own(base: Path, tmp_path: Path) -> None:
    """An adapter of Baichuan trained in another chat format ends its answers otherwise."""
    save_adapter(tmp_path / "adapter", base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<reserved_106>' if m.role == 'user' else '<reserved_107>' }}"
        "{{ m.content }}{{ '<reserved_108>' if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}<reserved_107>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "adapter")
    merge(tmp_path / "adapter", tmp_path / "out", base=str(base))
    end = tokenizer.convert_tokens_to_ids("<reserved_108>")
    assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [end, 2]
    record = tmp_path / "out" / "merge.json"
    write_json(record, {**read_json(record), "backbone": "baichuan"})
    merged = find_backbone(tmp_path / "out")
    assert (merged.source_id, merged.licence) == ("baichuan", find_backbone("baichuan").licence)
    assert (merged.template, merged.end_of_turn, merged.stops) == (None, None, ())


def test_a_merged_folder_is_a_backbone_again(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "one", base)
    merge(tmp_path / "one", tmp_path / "merged", base=str(base))
    backbone = find_backbone(tmp_path / "merged")
    assert (backbone.needs_conversion, backbone.architecture) == (False, "LlamaForCausalLM")
    with_both = save_adapter(tmp_path / "two", tmp_path / "merged", seed=1)
    merge(tmp_path / "two", tmp_path / "again", base=str(tmp_path / "merged"))
    assert _distance(_logits(_load(tmp_path / "again")), with_both) < 1e-6


# --- what is refused -----------------------------------------------------------------------------


def test_another_base_of_the_same_shape_is_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", base)
    save_original(tmp_path / "source", "baichuan", seed=9)
    convert(tmp_path / "source", tmp_path / "other")
    with pytest.raises(DataError, match=r"trained on converted .* this base is other"):
        merge(tmp_path / "adapter", tmp_path / "out", base=str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_a_record_is_merged_with_a_word_of_warning(
    base: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "adapter", base)
    (tmp_path / "adapter" / "base.json").unlink()
    record = merge(tmp_path / "adapter", tmp_path / "out", base=str(base))
    assert "rests on shapes alone" in record.notes[0]
    save_original(tmp_path / "source", "baichuan", layers=1)
    convert(tmp_path / "source", tmp_path / "short")
    with pytest.raises(DataError, match=r"no weight model\.layers\.1\..*and 6 more"):
        merge(tmp_path / "adapter", tmp_path / "out2", base=str(tmp_path / "short"))


def test_a_base_in_four_bits_is_refused(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", base)
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    config = {**read_json(base / "config.json"), "quantization_config": {"load_in_4bit": True}}
    write_json(quantised / "config.json", config)
    with pytest.raises(ConfigError, match="quantised weights"):
        merge(tmp_path / "adapter", tmp_path / "out", base=str(quantised))


def test_an_adapter_trained_on_four_bits_says_so(base: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", base)
    record = describe_base(find_backbone(base), is_quantized=True)
    write_base_record(tmp_path / "adapter", record)
    assert "4 bits" in merge(tmp_path / "adapter", tmp_path / "out", base=str(base)).notes[0]


def test_a_base_in_its_published_layout_is_converted_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CBTQA_CACHE", str(tmp_path / "copies"))
    published = str(base.parent / "source")
    convert(published, tmp_path / "own")
    save_adapter(tmp_path / "adapter", tmp_path / "own")
    told: list[str] = []
    record = merge(tmp_path / "adapter", tmp_path / "a", base=published, on_stage=told.append)
    again = merge(tmp_path / "adapter", tmp_path / "b", base=published)
    assert record.weights_sha256 == again.weights_sha256
    assert sum("converting" in words for words in told) == 1


def test_a_base_known_by_name_only_asks_for_its_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(tmp_path / "adapter", base)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="called 'converted', which is not found") as caught:
        merge(tmp_path / "adapter", tmp_path / "out")
    assert "--base" in (caught.value.hint or "")
    monkeypatch.chdir(base.parent)
    merge(tmp_path / "adapter", tmp_path / "out")  # stands beside: found by its name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "type IA3"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised by pissa"),
    ],
)
def test_adapters_of_another_arithmetic_are_refused_by_name(
    base: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    save_adapter(tmp_path / "adapter", base)
    path = tmp_path / "adapter" / "adapter_config.json"
    write_json(path, {**read_json(path), **change})
    with pytest.raises(ConfigError, match=words) as caught:
        merge(tmp_path / "adapter", tmp_path / "out", base=str(base))
    assert "merge_and_unload" in (caught.value.hint or "")


def test_what_is_no_adapter_is_told_so(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no adapter here"):
        read_adapter(base)
    save_adapter(tmp_path / "adapter", base)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match="training has not finished"):
        read_adapter(tmp_path / "adapter")


# --- the command ---------------------------------------------------------------------------------

_STAND_IN = """
import argparse, pathlib, sys
given = argparse.ArgumentParser()  # the options of llama.cpp's own that are used here
given.add_argument("model", type=pathlib.Path)
given.add_argument("--outfile", type=pathlib.Path)
given.add_argument(
    "--outtype", choices=["f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"], default="auto"
)
words = given.parse_args()
assert (words.model / "merge.json").is_file() and words.outtype == "f16"
print("talk of the converter")
words.outfile.write_bytes(sys.stdin.buffer.read(0) + {content!r})
"""


def _field(modelfile: str, name: str) -> list[str]:
    """The values of an instruction of a Modelfile, between three quotation marks each."""
    return re.findall(rf'^{name} """(.*?)"""$', modelfile, re.M | re.S)


def _by_ollama(template: str, system: str, prompt: str, response: str) -> str:
    """What Ollama makes of a TEMPLATE of this one shape."""
    shape = r"\{\{ if \.System \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}(.*)"
    told, plain, rest = re.fullmatch(shape, template, re.S).groups()  # type: ignore[union-attr]
    text = (told if system else plain) + rest
    values = {".System": system, ".Prompt": prompt, ".Response": response}
    for name, value in values.items():
        text = text.replace(f"{{{{ {name} }}}}", value)
    assert "{{" not in text
    return text


def test_a_modelfile_asks_as_the_model_was_trained_and_stops_where_it_ends(
    base: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "adapter", base)
    merge(tmp_path / "adapter", tmp_path / "out", base=str(base))
    path = write_modelfile(tmp_path / "out", tmp_path / "adapter", tmp_path / "cbt.gguf")
    text = path.read_text("utf-8")
    assert "FROM ./cbt.gguf\n" in text and path.name == "cbt.Modelfile"
    model = open_model(SpeakerSettings(model=str(tmp_path / "out")))
    (template,), (system,) = _field(text, "TEMPLATE"), _field(text, "SYSTEM")
    asked = prompt_messages(Question(id="q", question="最近睡不好。"), "answer")
    assert system == asked[0]["content"]
    bos = model.chat.tokenizer.bos_token or ""
    for said in (system, ""):
        messages = asked if said else asked[1:]
        wanted = model.chat.prompt_text(messages).removeprefix(bos) + "慢慢来。"
        found = _by_ollama(template, said, asked[1]["content"], "慢慢来。")
        assert found == wanted + model.chat.end_text
    stops = re.findall(r'^PARAMETER stop """(.*?)"""$', text, re.M | re.S)
    assert model.chat.end_text in stops
    assert set(model.chat.tokenizer.convert_tokens_to_ids(stops)) == set(model.stops)
    assert not_a_therapist() in _field(text, "LICENSE")[0] and "no crisis screen" in text
    with pytest.raises(UsageError, match="exists already"):
        write_modelfile(tmp_path / "out", tmp_path / "adapter", tmp_path / "cbt.gguf")


def test_the_command_prints_what_to_serve_and_writes_gguf(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    save_adapter(tmp_path / "adapter", base)
    (tmp_path / CONVERTER).write_text(_STAND_IN.format(content=b"GGUF and more"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    words = ["merge", "adapter", "--out", "out", "--base", str(base), "--gguf", "out.gguf"]
    assert run(words, is_debug=False) == 3
    assert "git clone https://github.com/ggml-org/llama.cpp" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()  # told before the work, not after it
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: None if name == "gguf" else real(name, *more),
    )
    assert run(words, is_debug=False) == 3
    assert "needs the Python package gguf" in capfd.readouterr().err
    (tmp_path / "gguf-py").mkdir()
    assert run([*words, "--json"], is_debug=False) == 0
    told = capfd.readouterr()
    serve = json.loads(told.out)["serve"]
    assert serve["vllm"].startswith("vllm serve out ")
    assert "talk of the converter" in told.err
    assert (tmp_path / "out.gguf").read_bytes().startswith(b"GGUF")
    assert serve["llama.cpp"] == "llama-server -m out.gguf"
    assert serve["ollama"] == "ollama create out -f out.Modelfile"
    assert (tmp_path / "out.Modelfile").is_file()
    words[3] = "other"
    assert run(words, is_debug=False) == 2
    assert "out.gguf exists already" in capfd.readouterr().err and not Path("other").exists()


def test_a_converter_that_fails_leaves_no_gguf(base: Path, tmp_path: Path) -> None:
    from cbtqa.tuning.weights.merge import write_gguf

    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "merge.json").write_text("{}")
    script = tmp_path / CONVERTER
    for text, words in (
        ("raise SystemExit(3)", "ended with 3"),
        (_STAND_IN.format(content=b"no"), "not GGUF"),
    ):
        script.write_text(text)
        with pytest.raises(DataError, match=words):
            write_gguf(tmp_path / "merged", tmp_path / "out.gguf", script)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONVERTER, "merged"]
