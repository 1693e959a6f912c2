"""Backbones: what is declared agrees with itself, with the classes it names, and with folders."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cbtqa.cli.main import _run as run
from cbtqa.errors import CbtqaError, ConfigError, DataError, UsageError
from cbtqa.tuning.backbones import (
    Backbone,
    completed,
    count_parameters,
    find_backbone,
    load_backbones,
    template_text,
    to_config,
)
from cbtqa.tuning.loading import load_base
from cbtqa.tuning.weights.tiny import VOCAB
from tests.support.tiny_backbones import tiny_random_model

KNOWN = list(load_backbones().values())
PUBLISHED_BILLIONS = {
    "qwen": 7.72,
    "llama-chinese": 6.74,
    "qwen2.5": 7.62,
    "qwen2.5-0.5b": 0.49,
    "qwen3": 8.19,
    "qwen3-4b": 4.02,
    "qwen3-30b-a3b": 30.53,
    "gemma3": 1.00,
    "yi": 6.06,
    "yi-9b": 8.83,
    "glm4": 9.40,
    "mistral": 7.25,
    "llama3.1": 8.03,
    "llama3.2": 3.21,
    "llama3.2-1b": 1.24,
}
"""Parameters in billions as the models' pages on the Hub state them."""


def _different(backbones: list[Backbone]) -> Iterator[Backbone]:
    """One backbone for each shape and class."""
    seen = set()
    for backbone in backbones:
        key = (backbone.model_type, repr(backbone.shape))
        if key not in seen:
            seen.add(key)
            yield backbone


# --- what is declared ----------------------------------------------------------------------------


def test_the_four_backbones_of_the_paper_and_those_of_the_extension_are_listed() -> None:
    wanted = {"baichuan", "qwen", "llama-chinese", "alpaca-chinese", "baichuan2", "qwen2.5"}
    wanted |= {"qwen3", "internlm", "glm4", "yi", "minicpm", "deepseek", "mistral"}
    assert wanted | {"llama3.1", "llama3.2", "cbt-llm"} <= set(load_backbones())


def test_real_shapes_build_the_named_class_without_memory_and_count_right() -> None:
    for backbone in _different(KNOWN):
        assert backbone.shape is not None
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(to_config(backbone))
        assert type(model).__name__ == backbone.architecture, backbone.id
        n = sum(weight.numel() for weight in model.parameters())
        assert count_parameters(backbone.shape) == pytest.approx(n, rel=1e-3), backbone.id
        if backbone.id in PUBLISHED_BILLIONS:
            assert n / 1e9 == pytest.approx(PUBLISHED_BILLIONS[backbone.id], abs=0.006), backbone.id


def test_adapters_go_on_every_linear_layer_but_the_head() -> None:
    for backbone in _different(KNOWN):
        model = tiny_random_model(backbone)
        linear = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        assert set(backbone.target_modules) == linear - {"lm_head"}, backbone.id
        logits = model(torch.arange(3, 23)[None]).logits
        assert logits.shape == (1, 20, VOCAB)
        assert torch.isfinite(logits).all()


def test_names_aliases_and_hub_ids_are_unique() -> None:
    names = [
        name.casefold()
        for backbone in KNOWN
        for name in {backbone.id, *backbone.aliases, backbone.hub_id or ""}
    ]
    assert len(names) == len(set(names))


# --- chat formats --------------------------------------------------------------------------------


def _render(backbone: Backbone, messages: list[dict[str, str]], *, asks: bool = False) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(template_text(backbone) or "")
    return template.render(
        messages=messages, add_generation_prompt=asks, bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("backbone", [b for b in KNOWN if b.template], ids=lambda b: b.id)
def test_an_answer_stands_in_training_as_it_is_asked_for(backbone: Backbone) -> None:
    end = "</s>" if backbone.end_of_turn in ("</s>", "<｜end▁of▁sentence｜>") else None
    end = end or backbone.end_of_turn or ""
    system = {"role": "system", "content": "角色"}
    first = {"role": "user", "content": "第一问"}
    answer = {"role": "assistant", "content": "第一答"}
    second = {"role": "user", "content": "第二问"}
    for turns in ([first], [system, first], [system, first, answer, second]):
        prompt = _render(backbone, turns, asks=True)
        whole = _render(backbone, [*turns, {"role": "assistant", "content": "回答"}])
        assert whole.startswith(prompt + "回答" + end)
        assert [text["content"] in prompt for text in turns] == [True] * len(turns)
    assert backbone.end_of_turn in backbone.stops


def test_the_cbt_llm_card_is_written_as_the_card_writes_it() -> None:
    messages = [
        {"role": "system", "content": "你是咨询师。"},
        {"role": "user", "content": "标题描述"},
    ]
    prompt = _render(find_backbone("cbt-llm"), messages, asks=True)
    assert prompt == "你是咨询师。\nHuman: 标题描述\nAssistant: "


def test_every_template_is_used_and_every_name_is_a_template() -> None:
    folder = files("cbtqa.tuning") / "templates"
    shipped = {entry.name for entry in folder.iterdir() if entry.name.endswith(".jinja")}
    assert {backbone.template for backbone in KNOWN if backbone.template} == shipped


# --- finding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baichuan", "Baichuan-7B", "百川-7B", "baichuan-inc/baichuan-7b"])
def test_a_backbone_answers_to_its_names_in_both_languages(name: str) -> None:
    assert find_backbone(name).id == "baichuan"


def test_an_unknown_name_is_answered_with_close_ones() -> None:
    with pytest.raises(UsageError, match="no backbone 'baichaun'") as caught:
        find_backbone("baichaun")
    assert "baichuan" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["baichuan-inc/Baichuan-13B-Base", "baichuan2-13b-chat"])
def test_13b_models_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="ALiBi"):
        find_backbone(name)


def test_a_13b_folder_is_refused_by_its_configuration(tmp_path: Path) -> None:
    config = {"model_type": "baichuan", "architectures": ["BaichuanForCausalLM"]}
    config |= {"hidden_size": 5120, "vocab_size": 125696, "model_max_length": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="ALiBi"):
        find_backbone(tmp_path)


def test_a_hub_id_that_is_not_listed_is_taken_and_read_only_when_it_is_loaded() -> None:
    backbone = find_backbone("someone/some-model")
    assert (backbone.location, backbone.shape, backbone.needs_conversion) == (
        "someone/some-model",
        None,
        False,
    )
    with pytest.raises(ConfigError) as caught:
        completed(backbone)
    assert "hf download someone/some-model" in (caught.value.hint or "")


def _write(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_is_described_by_its_own_configuration(tmp_path: Path) -> None:
    tiny = tiny_random_model(find_backbone("qwen2.5"))
    tiny.save_pretrained(tmp_path / "mine")
    backbone = find_backbone(tmp_path / "mine")
    assert (backbone.architecture, backbone.model_type) == ("Qwen2ForCausalLM", "qwen2")
    assert backbone.shape is not None
    assert (backbone.shape.vocab, backbone.shape.rope["rope_theta"]) == (VOCAB, 1000000.0)
    assert backbone.display_name == "mine"
    assert to_config(backbone).hidden_size == 64
    assert backbone.template == "cbt-llm-card.jinja"
    (tmp_path / "mine" / "chat_template.jinja").write_text("{{ messages }}")
    assert find_backbone(tmp_path / "mine").template is None


@pytest.mark.parametrize("name", ["glm4", "minicpm"])
def test_a_folder_of_a_listed_type_has_the_layers_and_the_size_of_its_type(
    tmp_path: Path, name: str
) -> None:
    model = tiny_random_model(find_backbone(name))
    model.save_pretrained(tmp_path)
    backbone = find_backbone(tmp_path)
    assert backbone.target_modules == find_backbone(name).target_modules
    assert backbone.shape is not None
    n = sum(weight.numel() for weight in model.parameters())
    assert count_parameters(backbone.shape) == pytest.approx(n, rel=0.02)  # norms weigh more here


def test_the_download_of_a_listed_model_keeps_its_formats(tmp_path: Path) -> None:
    config = {"model_type": "qwen2", "vocab_size": 152064, "architectures": ["Qwen2ForCausalLM"]}
    backbone = find_backbone(_write(tmp_path / "Qwen2.5-7B-Instruct", config))
    assert (backbone.source_id, backbone.end_of_turn) == ("qwen2.5", "<|im_end|>")
    other = find_backbone(_write(tmp_path / "Baichuan-7B", config))
    assert other.source_id is None


def test_a_downloaded_folder_wins_over_the_name_it_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen-7b").mkdir()
    assert find_backbone("qwen-7b").path is None  # nothing in it yet
    _write(tmp_path / "qwen-7b", {"model_type": "qwen", "vocab_size": 151936})
    backbone = find_backbone("qwen-7b")
    assert (backbone.path, backbone.source_id) == (Path("qwen-7b"), "qwen")


@pytest.mark.parametrize(
    ("files_", "words"),
    [
        ({}, "no config.json"),
        ({"adapter_config.json": "{}"}, "an adapter, not a base model"),
        ({"config.json": "{}"}, "names no model_type"),
    ],
)
def test_a_folder_that_is_no_model_is_told_so(
    tmp_path: Path, files_: dict[str, str], words: str
) -> None:
    for name, text in files_.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        find_backbone(tmp_path)


def test_a_type_that_needs_code_from_the_hub_is_refused(tmp_path: Path) -> None:
    backbone = find_backbone(_write(tmp_path, {"model_type": "internlm2", "vocab_size": 5}))
    with pytest.raises(CbtqaError) as caught:
        to_config(backbone)
    assert "remote code" in (caught.value.hint or "")


# --- the command ---------------------------------------------------------------------------------


def test_where_a_fact_was_looked_up_is_shown_with_the_mirror(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["backbones", "qwen3.5"], is_debug=False) == 0
    assert "on ModelScope" in capsys.readouterr().out
    assert run(["backbones", "qwen3.5", "--json"], is_debug=False) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["modelscope_id"] == "Qwen/Qwen3.5-4B"
    assert one["sources"][0].startswith("licence and context: card of Qwen/Qwen3.5-4B-Base")
    assert all("from memory" not in " ".join(backbone.assumed) for backbone in KNOWN)


def test_the_command_lists_explains_and_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backbones"], is_debug=False) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in load_backbones())
    assert run(["backbones", "百川-7B"], is_debug=False) == 0
    told = capsys.readouterr()
    assert "baichuan-inc/Baichuan-7B, a download of about 13.0 GiB" in told.out
    assert "the paper trained in the format of the CBT-LLM card" in told.out
    assert "converted by the first verb that needs it, once, into" in " ".join(told.out.split())
    assert "next: cbtqa finetune --backbone 百川-7B --dry-run" in told.err
    assert run(["backbones", "qwen", "--json"], is_debug=False) == 0
    one = json.loads(capsys.readouterr().out)
    assert (one["conversion"], one["stops"]) == ("qwen", ["<|im_end|>", "<|endoftext|>"])
    assert run(["backbones", "qwen9"], is_debug=False) == 2
    assert "did you mean qwen" in capsys.readouterr().err


def test_the_list_loads_no_heavy_library() -> None:
    code = (
        "import sys; from cbtqa.cli.main import _run; _run(['backbones', 'baichuan'], False);"
        "print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("[]")


def test_models_are_loaded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loads at once leave transformers' tying of weights off: later models get a random head."""
    tiny_random_model(find_backbone("qwen2.5-0.5b")).save_pretrained(tmp_path)
    backbone = find_backbone(tmp_path)
    loaded, inside = transformers.AutoModelForCausalLM.from_pretrained, []

    def watched(*words: Any, **more: Any) -> Any:
        inside.append(len(inside))
        time.sleep(0.05)
        try:
            return loaded(*words, **more)
        finally:
            most.append(len(inside))
            inside.pop()

    most: list[int] = []
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", watched)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: load_base(backbone, "fp32"), range(3)))
    assert most == [1, 1, 1]
