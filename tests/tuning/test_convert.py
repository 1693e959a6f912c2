"""Conversion: equal to the published models' arithmetic, whole or not at all, and traceable."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cbtqa.cli.main import _run as run
from cbtqa.errors import CbtqaError, ConfigError, DataError, IncompleteRunError, UsageError
from cbtqa.files import parse_record, read_json, sha256_of
from cbtqa.tuning.backbones import find_backbone
from cbtqa.tuning.weights.convert import RECORD_NAME, ConversionRecord, convert, normalise_rows
from cbtqa.tuning.weights.files import Step, describe_base, find_weights, hash_weights
from tests.support.hub import StandInHub
from tests.support.original_checkpoints import (
    Kind,
    original_logits,
    save_original,
    save_tensors,
)

KINDS: tuple[Kind, ...] = ("baichuan", "baichuan2", "qwen")
CLASSES = {"baichuan": "LlamaForCausalLM", "baichuan2": "LlamaForCausalLM"}


def _loaded(folder: Path, dtype: Any = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def _ids(n_tokens: int = 60) -> Any:
    return torch.randint(3, 400, (2, n_tokens), generator=torch.Generator().manual_seed(7))


def _distance(found: Any, expected: Any) -> float:
    """Largest difference, in units of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


# --- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("form", "parts"), [("bin", 1), ("bin", 3), ("safetensors", 1), ("safetensors", 3)]
)
def test_logits_equal_the_published_arithmetic(
    tmp_path: Path, kind: Kind, form: Any, parts: int
) -> None:
    tensors = save_original(tmp_path / "source", kind, form=form, parts=parts)
    record = convert(tmp_path / "source", tmp_path / "out", shard_bytes=80_000)
    model = _loaded(tmp_path / "out")
    assert type(model).__name__ == CLASSES.get(kind, "Qwen2ForCausalLM")
    with torch.no_grad():
        found = model(_ids()).logits
    assert _distance(found, original_logits(kind, tensors, _ids())) < 3e-6
    assert record.conversion == kind
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_wrong_mapping_would_be_seen(tmp_path: Path, kind: Kind) -> None:
    """The comparison above has teeth: exchanging any two tensors of one shape moves the logits."""
    tensors = save_original(tmp_path / "source", kind)
    expected = original_logits(kind, tensors, _ids())
    gate, up = {"qwen": ("w2", "w1")}.get(kind, ("gate_proj", "up_proj"))
    for one, other in (
        (gate, up),
        ("ln_1", "ln_2"),
        ("input_layernorm", "post_attention_layernorm"),
    ):
        first = next((n for n in tensors if f"{one}.weight" in n), None)
        if first is not None:
            second = first.replace(one, other)
            changed = {**tensors, first: tensors[second], second: tensors[first]}
            assert _distance(original_logits(kind, changed, _ids()), expected) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_weights_stay_bit_for_bit(tmp_path: Path, kind: Kind, dtype: str) -> None:
    tensors = save_original(tmp_path / "source", kind, dtype=dtype)
    record = convert(tmp_path / "source", tmp_path / "out")
    assert record.dtypes == (dtype,)
    model = _loaded(tmp_path / "out", getattr(torch, dtype))
    assert read_json(tmp_path / "out" / "config.json")["torch_dtype"] == dtype
    packed = next(
        value for name, value in tensors.items() if "W_pack" in name or "c_attn.weight" in name
    )
    attention = model.model.layers[0].self_attn
    made = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(made, packed)
    head = tensors["lm_head.weight"]
    if kind == "baichuan2":  # divided, so the last bit depends on the machine
        near = {"rtol": torch.finfo(head.dtype).eps, "atol": 0.0}
        torch.testing.assert_close(model.lm_head.weight, normalise_rows(head), **near)
    else:
        assert torch.equal(model.lm_head.weight, head)


def test_the_head_of_baichuan2_is_divided_in_float32_whatever_its_type() -> None:
    weight = torch.randn(9000, 16, generator=torch.Generator().manual_seed(0))
    lengths = weight.double().square().sum(-1).sqrt()
    assert torch.allclose(normalise_rows(weight).double(), weight.double() / lengths[:, None])
    half = weight.half()
    expected = (half.float() / half.float().norm(dim=-1, keepdim=True)).half()
    # another order of summing may turn a rare rounding; dividing in half precision turns many
    assert (normalise_rows(half) != expected).float().mean() < 1e-3


def test_an_old_pickle_that_cannot_be_mapped_is_read_whole(tmp_path: Path) -> None:
    tensors = save_original(tmp_path / "source", "baichuan")
    torch.save(
        tensors, tmp_path / "source" / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    convert(tmp_path / "source", tmp_path / "out")
    with torch.no_grad():
        found = _loaded(tmp_path / "out")(_ids()).logits
    assert _distance(found, original_logits("baichuan", tensors, _ids())) < 3e-6


# --- what is written -----------------------------------------------------------------------------


def test_the_record_says_from_what_and_with_what_was_dropped(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "qwen", parts=2)
    steps: list[Step] = []
    made = convert(tmp_path / "source", tmp_path / "out", shard_bytes=80_000, on_step=steps.append)
    record = parse_record(ConversionRecord, read_json(tmp_path / "out" / RECORD_NAME), "record")
    assert record == made
    assert (record.source.name, record.source.revision) == ("source", None)
    assert {file.name: file.sha256 for file in record.source.files} == {
        path.name: sha256_of(path) for path in (tmp_path / "source").glob("*.bin")
    }
    assert record.dropped == ("transformer.rotary_emb.inv_freq",)
    assert record.dropped_settings == ("chat_format", "max_window_size")
    assert record.n_parameters == sum(
        weight.numel() for weight in _loaded(tmp_path / "out").parameters()
    )
    assert {file.name for file in record.files} | {"conversion.json"} == {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert [step.what for step in steps].count("read") == 2
    assert steps[-1].number == steps[-1].total
    assert (tmp_path / "out" / "LICENSE").read_text() == "Terms of the tiny model.\n"


def test_no_file_names_a_machine_or_asks_for_remote_code(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan")
    convert(tmp_path / "source", tmp_path / "out")
    for path in (tmp_path / "out").glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert "auto_map" not in text


def test_a_converted_folder_is_known_by_its_record(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "qwen")
    convert(tmp_path / "source", tmp_path / "out")
    backbone = find_backbone(tmp_path / "out")
    assert (backbone.needs_conversion, backbone.architecture) == (False, "Qwen2ForCausalLM")
    assert (backbone.template, backbone.end_of_turn) == ("chatml.jinja", "<|im_end|>")
    assert backbone.source_id is None  # a layout says nothing of which weights these are
    base = describe_base(backbone)
    assert base.weights_sha256 == hash_weights(find_weights(str(tmp_path / "out")))
    assert find_backbone(tmp_path / "source").needs_conversion


def test_a_record_is_not_believed_once_the_weights_have_changed(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan")
    record = convert(tmp_path / "source", tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert describe_base(find_backbone(tmp_path / "out")).weights_sha256 != record.weights_sha256


def test_weights_in_the_hub_s_cache_are_known_by_the_hash_they_are_stored_under(
    tmp_path: Path,
) -> None:
    (tmp_path / "blobs").mkdir()
    content = b"weights"
    plain = tmp_path / "model.safetensors"
    plain.write_bytes(content)
    blob = tmp_path / "blobs" / sha256_of(plain)
    blob.write_bytes(content)
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "model.safetensors"
    link.symlink_to(blob)
    assert hash_weights([link]) == hash_weights([plain])
    blob.write_bytes(b"not read again")
    assert hash_weights([link]) == hash_weights([plain])


def test_generation_stops_at_every_token_that_ends_an_answer(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "qwen")
    convert(tmp_path / "source", tmp_path / "out")
    model = _loaded(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ends = [tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    assert model.generation_config.eos_token_id == ends
    assert model.generation_config.pad_token_id == ends[1]
    ids = tokenizer("你好", return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=4, do_sample=False, top_p=None)
    assert made.shape[1] > ids["input_ids"].shape[1]


# --- what is refused -----------------------------------------------------------------------------


def _drop(tensors: dict[str, Any]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def _add(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)


def _narrow(tensors: dict[str, Any]) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-2].clone()


def _uneven(tensors: dict[str, Any]) -> None:
    name = "model.layers.0.self_attn.W_pack.weight"
    tensors[name] = tensors[name][:-1].clone()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_drop, "1 tensors are missing, the first is model.layers.1.mlp.up_proj.weight"),
        (_add, "unexpected tensor model.layers.0.self_attn.q_norm.weight"),
        (_narrow, "do not fit config.json, the first is lm_head.weight"),
        (_uneven, "do not divide into query, key and value"),
    ],
)
def test_weights_that_are_not_the_layout_are_refused_before_anything_is_written(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], words: str
) -> None:
    tensors = save_original(tmp_path / "source", "baichuan")
    damage(tensors)
    save_tensors(tmp_path / "source", tensors, "bin", 1)
    with pytest.raises(DataError, match=words):
        convert(tmp_path / "source", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_cut_download_is_told_as_one(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan", form="safetensors")
    weights = tmp_path / "source" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged weights") as caught:
        convert(tmp_path / "source", tmp_path / "out")
    assert "download" in (caught.value.hint or "")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan", parts=3)
    (tmp_path / "source" / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(DataError, match=r"1 are missing: .*00002-of-00003"):
        convert(tmp_path / "source", tmp_path / "out")


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code in a checkpoint ran",))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_original(tmp_path / "source", "baichuan")
    torch.save({"model.norm.weight": _Payload()}, tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(DataError, match="more than tensors"):
        convert(tmp_path / "source", tmp_path / "out")
    assert "code in a checkpoint ran" not in capfd.readouterr().out


def test_settings_that_no_native_class_has_are_refused(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "qwen")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps({**read_json(path), "rotary_pct": 0.5}))
    with pytest.raises(ConfigError, match=r"rotary_pct is 0\.5"):
        convert(tmp_path / "source", tmp_path / "out")


def test_alibi_is_refused_by_name_and_by_folder(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan2")
    path = tmp_path / "source" / "config.json"
    config = read_json(path)
    del config["max_position_embeddings"]
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="ALiBi"):
        convert(tmp_path / "source", tmp_path / "out")
    with pytest.raises(ConfigError, match="ALiBi"):
        convert("baichuan-inc/Baichuan2-13B-Chat", tmp_path / "out")


def test_a_native_model_has_nothing_to_convert(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan")
    convert(tmp_path / "source", tmp_path / "once")
    with pytest.raises(UsageError, match="nothing to convert") as caught:
        convert(tmp_path / "once", tmp_path / "twice")
    assert "cbtqa finetune --backbone" in (caught.value.hint or "")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        convert(tmp_path / "source", tmp_path / "out")


def test_a_model_that_is_not_to_be_had_names_the_download(tmp_path: Path) -> None:
    with pytest.raises(CbtqaError) as caught:
        convert("baichuan", tmp_path / "out")
    assert "hf download baichuan-inc/Baichuan-7B" in (caught.value.hint or "")


def test_a_download_in_the_hub_s_cache_is_recorded_with_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "cache" / "models--baichuan-inc--Baichuan-7B"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    save_original(model / "snapshots" / commit, "baichuan", parts=2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    record = convert("baichuan", tmp_path / "out")
    assert record.backbone == "baichuan"
    assert (record.source.name, record.source.revision) == ("baichuan-inc/Baichuan-7B", commit)
    backbone = find_backbone(tmp_path / "out")
    assert (backbone.source_id, backbone.needs_conversion) == ("baichuan", False)
    assert "Baichuan-7B licence" in backbone.licence


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A Hub on loopback with an empty cache before it."""
    with StandInHub() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        yield server


def test_a_model_is_downloaded_file_by_file_and_held_to_one_commit(
    tmp_path: Path, hub: StandInHub
) -> None:
    save_original(tmp_path / "source", "qwen", form="safetensors", parts=2)
    files = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    repo = hub.add_repo("model", "Qwen/Qwen-7B", is_private=False, **files)
    record = convert("qwen", tmp_path / "out")
    assert (record.backbone, record.source.revision) == ("qwen", repo.head)
    fetched = {request.path.rpartition("/")[2] for request in hub.requests}
    assert set(files) - {"tokenizer_config.json"} <= fetched
    asked = [r.path for r in hub.requests if r.path.endswith(".safetensors")]
    assert all(f"/resolve/{repo.head}/" in path for path in asked)


def test_gated_and_missing_models_name_the_next_step(tmp_path: Path, hub: StandInHub) -> None:
    hub.add_repo(
        "model", "Qwen/Qwen-7B", is_private=False, **{"config.json": b"{}"}
    ).gated = "manual"
    with pytest.raises(ConfigError, match="gated") as caught:
        convert("qwen", tmp_path / "out")
    assert "hf auth login" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="not a valid model identifier") as caught:
        convert("nobody/nothing", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name == "out"] == []


def test_the_layout_can_be_told_where_the_configuration_is_wrong(tmp_path: Path) -> None:
    tensors = save_original(tmp_path / "source", "baichuan2")
    assert convert(tmp_path / "source", tmp_path / "a", layout="baichuan").conversion == "baichuan"
    with torch.no_grad():
        found = _loaded(tmp_path / "a")(_ids()).logits
    assert _distance(found, original_logits("baichuan", tensors, _ids())) < 3e-6


# --- stopped in the middle -----------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from pathlib import Path
from cbtqa.tuning.weights.convert import convert
def stop(step):
    if step.what == "written" and step.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], Path(sys.argv[2]), shard_bytes=80_000, on_step=stop)
"""


def test_a_killed_run_leaves_nothing_that_looks_whole_and_goes_on(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan")
    words = [sys.executable, "-c", _KILLED, str(tmp_path / "source"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists()
    steps: list[Step] = []
    record = convert(
        tmp_path / "source", tmp_path / "out", shard_bytes=80_000, on_step=steps.append
    )
    written = [step for step in steps if step.what == "written"]
    assert [step.is_kept for step in written][:3] == [True, True, False]
    straight = convert(tmp_path / "source", tmp_path / "straight", shard_bytes=80_000)
    assert record.weights_sha256 == straight.weights_sha256
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out", "straight"}


def test_what_was_begun_from_another_source_is_not_mixed_in(tmp_path: Path) -> None:
    save_original(tmp_path / "source", "baichuan")

    def interrupt(step: Step) -> None:
        if step.what == "written" and step.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "source", tmp_path / "out", shard_bytes=80_000, on_step=interrupt)
    tensors = save_original(tmp_path / "source", "baichuan", seed=1)
    convert(tmp_path / "source", tmp_path / "out", shard_bytes=80_000)
    with torch.no_grad():
        found = _loaded(tmp_path / "out")(_ids()).logits
    assert _distance(found, original_logits("baichuan", tensors, _ids())) < 3e-6


@contextmanager
def _no_file_above(n_bytes: int) -> Iterator[None]:
    """Lets writes fail as on a full disk; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [100_000, 20_000])  # the weights, already the tokenizer
def test_a_full_disk_is_told_and_the_same_command_goes_on(tmp_path: Path, n_bytes: int) -> None:
    save_original(tmp_path / "source", "baichuan")
    full = r"no space left on the disk of .*; 0 finished files of weights are kept"
    with _no_file_above(n_bytes), pytest.raises(IncompleteRunError, match=full) as caught:
        convert(tmp_path / "source", tmp_path / "out")
    assert "same command" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "source", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_original(tmp_path / "source", "baichuan")
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(ConfigError, match="more than are free"):
        convert(tmp_path / "source", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command_tells_each_file_and_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_original(tmp_path / "source", "qwen")
    monkeypatch.chdir(tmp_path)
    assert run(["convert", "source", "--out", "out"], is_debug=False) == 0
    told = capsys.readouterr()
    assert "written 1 of 1: model.safetensors" in told.err
    assert "next: cbtqa finetune --backbone out --dry-run" in told.err
    assert "texts cut alike" in told.out
    assert run(["convert", "source", "--out", "out"], is_debug=False) == 2
    assert "out exists already" in capsys.readouterr().err
    assert run(["convert", "source", "--out", "again", "--json"], is_debug=False) == 0
    assert json.loads(capsys.readouterr().out)["conversion"] == "qwen"
