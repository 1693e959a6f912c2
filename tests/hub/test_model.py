"""A published model: which files, which base, which scores, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cbtqa.errors import DataError, UsageError
from cbtqa.hub.card_schema import ModelFront, check_front
from cbtqa.hub.cards import split_card
from cbtqa.hub.model import plan_model
from cbtqa.hub.plan import PublishPlan, PublishRefusedError
from cbtqa.hub.scan import scan_plan
from cbtqa.hub.settings import ModelSettings
from cbtqa.tuning.data.chat_format import set_thinking
from cbtqa.tuning.loading import find_template
from cbtqa.tuning.settings import Thinking
from tests.hub.runs import (
    BASE,
    REVISION,
    write_adapter,
    write_merged,
    write_psyqa,
    write_ratings,
    write_scores,
)


def plan_of(run: Path, **more: Any) -> PublishPlan:
    plan, watch = plan_model(ModelSettings(run=run, to="lab/cbt-adapter", **more))
    assert scan_plan(plan, watch) == []
    return plan


def json_of(plan: PublishPlan, path: str) -> Any:
    return json.loads(plan.file(path).source.read_text("utf-8"))


def test_an_adapter_goes_out_with_its_base_by_hub_id_and_no_path(adapter: Path) -> None:
    plan = plan_of(adapter)
    assert [file.path for file in plan.files] == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "provenance.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    config = json_of(plan, "adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, REVISION)
    assert "name_or_path" not in json_of(plan, "tokenizer_config.json")
    for file in plan.files:
        assert str(adapter.parent).encode() not in file.source.read_bytes()
    weights = plan.file("adapter_model.safetensors")
    assert weights.source == adapter / "adapter_model.safetensors"
    recorded = {file["path"]: file["sha256"] for file in json_of(plan, "provenance.json")["files"]}
    assert recorded["adapter_model.safetensors"] == weights.sha256
    assert set(recorded) == {file.path for file in plan.files} - {"README.md", "provenance.json"}


def test_optimiser_states_and_pickles_stay_behind_with_a_reason(adapter: Path) -> None:
    left = dict(plan_of(adapter).left_out)
    assert left["checkpoint-10/"] == "checkpoints of the training"
    assert left["manifest.json"] == "its content is in provenance.json"
    assert left["training_args.bin"] == "pickled settings"
    assert "samples.jsonl" in left


def test_the_card_says_what_a_reader_needs_in_both_languages(adapter: Path) -> None:
    card = plan_of(adapter, dataset=("lab/cbt-qa",), licence="apache-2.0").card
    for told in (
        *(f'"{BASE}", revision="{REVISION}"', "PeftModel.from_pretrained", "vllm serve"),
        *("learning_rate", "0.0002", "eval_loss", "1.25", "datasets/lab/cbt-qa", "12356", "988"),
        *("## 已知局限", "## Known limits", "## 危机处理", "## Crisis handling", "@inproceedings"),
    ):
        assert told in card, told


def test_scores_with_signatures_and_intervals_make_the_model_index(
    adapter: Path, run: Path, tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    scores = write_scores(run, tmp_path / "scores")
    plan = plan_of(adapter, scores=(scores,), dataset=("lab/cbt-qa",))
    front, _ = split_card(plan.card)
    assert check_front(ModelFront, front) == front
    stored = json.loads((scores / "scores.json").read_text("utf-8"))
    given = {s["metric"]: s for s in stored["scores"] if s["system"] == "ours"}
    results = ModelCard(plan.card).data.eval_results
    assert results is not None and {r.metric_type for r in results} == set(given)
    for result in results:
        score = given[result.metric_type]
        assert result.metric_value == score["value"]
        assert result.metric_args["signature"] == score["signature"]
        low = score["low"]
        assert result.metric_args.get("low") == low
        assert low is None or low <= result.metric_value
        assert result.dataset_type == "lab/cbt-qa"
    assert given["chrf2"]["signature"] in plan.card


def test_one_of_several_scored_systems_has_to_be_named(
    adapter: Path, run: Path, tmp_path: Path
) -> None:
    scores = write_scores(run, tmp_path / "scores", n_systems=2)
    with pytest.raises(UsageError, match="scores 2 systems: ours, base"):
        plan_of(adapter, scores=(scores,))
    with pytest.raises(UsageError, match="no system 'theirs'"):
        plan_of(adapter, scores=(scores,), system="theirs")
    assert "chrF" in plan_of(adapter, scores=(scores,), system="ours").card


def test_ratings_by_people_stand_in_the_card(adapter: Path, run: Path, tmp_path: Path) -> None:
    ratings = write_ratings(run, tmp_path / "rated")
    card = plan_of(adapter, ratings=(ratings,), system="ours").card
    assert "| ours | relevance (cbt-llm.v1) |" in card
    assert "王小明" not in card


def test_the_front_matter_of_a_model_fits_the_schema(adapter: Path) -> None:
    front, _ = split_card(plan_of(adapter).card)
    assert front["base_model"] == BASE and front["library_name"] == "peft"
    assert front["license_link"] == f"https://huggingface.co/{BASE}"
    for change in ({"base_model": "/models/x"}, {"library_name": "x"}, {"language": []}):
        with pytest.raises(DataError):
            check_front(ModelFront, {**front, **change})
    index = [
        {
            "name": "x",
            "results": [
                {
                    "task": {"type": "t", "name": "n"},
                    "dataset": {"type": "d", "name": "n"},
                    "metrics": [{"type": "bleu", "name": "BLEU", "value": 1.0, "args": {}}],
                }
            ],
        }
    ]
    with pytest.raises(DataError, match="a score without"):
        check_front(ModelFront, {**front, "model-index": index})


@pytest.mark.parametrize(
    ("recorded", "base", "told"),
    [
        ({"name": "tiny-chat"}, None, "does not say which repository"),
        ({"name": "tiny-chat", "backbone": "baichuan"}, None, r"\(baichuan\)"),
        ({"name": BASE, "revision": None}, None, "does not say which repository"),
        ({"name": BASE, "revision": "main"}, None, "a branch moves"),
        ({}, "/models/tiny@abc", "expected owner/name@revision"),
        ({}, "lab/tiny", "expected owner/name@revision"),
        ({}, "lab/tiny@main", "a branch moves"),
    ],
)
def test_a_base_that_readers_cannot_get_is_refused(
    recorded: dict[str, Any], base: str | None, told: str, tmp_path: Path
) -> None:
    run = write_adapter(tmp_path / "adapter", base=recorded)
    with pytest.raises(PublishRefusedError, match=told):
        plan_of(run, base=base)


def test_a_converted_base_comes_with_its_conversion(tmp_path: Path) -> None:
    run = write_adapter(
        tmp_path / "adapter", base={"name": "baichuan-llama", "backbone": "baichuan"}
    )
    plan = plan_of(run, base="baichuan-inc/Baichuan-7B@v1")
    assert "cbtqa convert baichuan-inc/Baichuan-7B --revision v1 --out base" in plan.card
    assert 'from_pretrained("base")' in plan.card
    assert any("convert" in remark for remark in plan.remarks)


def test_a_base_that_a_verb_converted_needs_no_naming(tmp_path: Path) -> None:
    recorded = {
        "name": "Baichuan-7B-0123456789ab",
        "backbone": "baichuan",
        "hub_id": "baichuan-inc/Baichuan-7B",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "is_converted": True,
    }
    plan = plan_of(write_adapter(tmp_path / "adapter", base=recorded))
    command = "cbtqa convert baichuan-inc/Baichuan-7B --revision 0123456789abcdef"
    assert command in plan.card and "0123456789ab-" not in plan.card


def test_an_unfinished_training_is_refused(adapter: Path) -> None:
    (adapter / "manifest.json").unlink()
    with pytest.raises(PublishRefusedError, match="did not finish"):
        plan_of(adapter)


def test_weights_in_a_pickle_are_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(PublishRefusedError, match="pickles"):
        plan_of(adapter)


def test_merged_weights_go_out_with_the_licence_of_their_base(tmp_path: Path) -> None:
    plan = plan_of(write_merged(tmp_path / "merged"))
    assert {"LICENSE", "config.json", "model.safetensors"} <= {file.path for file in plan.files}
    assert "_name_or_path" not in json_of(plan, "config.json")
    front, body = split_card(plan.card)
    assert front["library_name"] == "transformers" and "`LICENSE`" in body


def test_merged_weights_without_a_licence_are_refused(tmp_path: Path) -> None:
    run = write_merged(tmp_path / "merged", with_licence=False)
    with pytest.raises(PublishRefusedError, match="licence"):
        plan_of(run)
    own = tmp_path / "LICENSE"
    own.write_text("Licence of the base.", "utf-8")
    assert "LICENSE" in {file.path for file in plan_of(run, licence_file=(own,)).files}


@pytest.mark.parametrize("thinking", ["off", "on"])
def test_the_thinking_switch_of_training_is_published_as_it_stands(
    adapter: Path, thinking: Thinking
) -> None:
    template = set_thinking(find_template("qwen3.5"), thinking)
    (adapter / "chat_template.jinja").write_text(template, "utf-8")
    assert plan_of(adapter).file("chat_template.jinja").source.read_text("utf-8") == template


def test_question_text_in_a_chat_template_is_found_with_the_source(
    adapter: Path, run: Path, tmp_path: Path
) -> None:
    source = write_psyqa(run, tmp_path / "psyqa.json")
    stolen = json.loads(source.read_text("utf-8"))[0]["description"]
    (adapter / "chat_template.jinja").write_text(f"示例：{stolen}", "utf-8")
    plan, watch = plan_model(ModelSettings(run=adapter, to="lab/x", source=source))
    assert {finding.where.split(":")[0] for finding in scan_plan(plan, watch)} == {
        "chat_template.jinja"
    }


def test_scores_on_a_benchmark_are_entries_that_the_hub_s_client_parses(
    run: Path, adapter: Path, tmp_path: Path
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    scores = write_scores(run, tmp_path / "scores")
    plan = plan_of(adapter, scores=(scores,), benchmark=f"lab/cbt-bench@{REVISION}")
    source = plan.file(".eval_results/lab--cbt-bench.yaml").source
    written = yaml.safe_load(source.read_text("utf-8"))
    entries = hub.parse_eval_result_entries(written)
    assert hub.eval_result_entries_to_yaml(entries) == written
    shown = split_card(plan.card)[0]["model-index"][0]["results"][0]["metrics"]
    assert {one.task_id: one.value for one in entries} == {
        metric["type"]: metric["value"] for metric in shown
    }
    assert {(one.dataset_id, one.dataset_revision) for one in entries} == {
        ("lab/cbt-bench", REVISION)
    }
    assert all(one.source_url == "https://huggingface.co/lab/cbt-adapter" for one in entries)
    assert plan.file(".eval_results/lab--cbt-bench.yaml").path in {
        file["path"] for file in json_of(plan, "provenance.json")["files"]
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"benchmark": "lab/bench"}, "exactly one --scores"),
        ({"benchmark": "bench", "scores": ("x",)}, "expected owner/name"),
    ],
)
def test_a_benchmark_wants_its_scores_and_a_repository(
    adapter: Path, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSettings(run=adapter, to="lab/cbt-adapter", **flags)
