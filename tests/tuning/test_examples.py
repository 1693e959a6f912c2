"""Reading data into examples, and examples into tokens: nothing is lost uncounted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cbtqa
from cbtqa.dataset_folder import DatasetFolder, answer_of
from cbtqa.errors import ConfigError, DataError, IncompleteRunError
from cbtqa.files import read_rows
from cbtqa.records import STEP_NAMES
from cbtqa.text_faults import find_machine_text
from cbtqa.tuning.backbones import load_backbones
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.encoding import encode
from cbtqa.tuning.data.examples import (
    prompt_messages,
    read_target,
    read_training_examples,
    read_validation_examples,
    wording,
    write_target,
)
from cbtqa.tuning.loading import find_template
from cbtqa.tuning.settings import FinetuneSettings
from tests.support.dataset_folder import write_dataset_folder
from tests.support.tiny_models import tiny_tokenizer, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset_folder(tmp_path_factory.mktemp("built") / "dataset", n_entries=40)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer())


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_a_built_dataset_is_read_by_split(folder: Path) -> None:
    settings = FinetuneSettings(data=folder, with_risk=True)
    training, validation = read_training_examples(settings), read_validation_examples(settings)
    assert validation is not None
    rows = [row for _, row in read_rows(folder / "data" / "train-00000-of-00001.parquet")]
    assert [example.id for example in training.examples] == [row["id"] for row in rows]
    assert training.examples[0].answer == rows[0]["answer"]
    assert not {e.id for e in training.examples} & {e.id for e in validation.examples}
    assert training.files[0].sha256 and training.n_in == len(rows)


def test_questions_with_a_risk_are_left_out_of_every_split_and_counted(tmp_path: Path) -> None:
    cbtqa.build_dataset(out=tmp_path / "kept", crisis="keep")
    folder = DatasetFolder.open(tmp_path / "kept")
    n_at_risk = 0
    for split, read in (
        ("train", read_training_examples),
        ("validation", read_validation_examples),
    ):
        rows = list(folder.rows(split))
        at_risk = {row["id"] for row in rows if row["risk"] != "none" or row["is_acute"]}
        n_at_risk += len(at_risk)
        plain = {"data": folder.path, "allow_template": True}
        found = read(FinetuneSettings.model_validate(plain))
        assert found is not None and found.dropped["risk"] == len(at_risk)
        assert found.n_in == len(rows) == len(found.examples) + len(at_risk)
        assert not {one.id for one in found.examples} & at_risk
        everything = read(FinetuneSettings.model_validate({**plain, "with_risk": True}))
        assert everything is not None and len(everything.examples) == len(rows)
    assert n_at_risk > 5, "else nothing was tested"


def test_a_file_that_grades_its_rows_loses_those_with_a_risk(tmp_path: Path) -> None:
    said = {"prompt": "我该怎么办？", "completion": "先说说发生了什么。"}
    rows = [{**said, "risk": risk} for risk in ("none", "concern", "explicit", None)]
    path = _write(tmp_path / "rows.jsonl", *rows, said)
    found = read_training_examples(FinetuneSettings(data=path))
    assert len(found.examples) == 3 and found.dropped == {"risk": 2} and found.n_in == 5
    taken = read_training_examples(FinetuneSettings(data=path, with_risk=True))
    assert len(taken.examples) == 5 and not taken.dropped


def test_a_dataset_of_nothing_but_risk_names_the_flag(tmp_path: Path, chat: ChatFormat) -> None:
    row = {"prompt": "我该怎么办？", "completion": "先说说。", "risk": "concern"}
    settings = FinetuneSettings(data=_write(tmp_path / "rows.jsonl", row))
    with pytest.raises(DataError, match="risk 1") as caught:
        encode(read_training_examples(settings), chat, settings)
    assert "--with-risk" in (caught.value.hint or "")


def test_a_prompt_is_the_persona_then_title_and_description_without_field_names(
    folder: Path,
) -> None:
    example = read_training_examples(FinetuneSettings(data=folder)).examples[0]
    assert [turn["role"] for turn in example.prompt] == ["system", "user"]
    assert example.question is not None
    assert example.prompt[1]["content"] == example.question.source_text
    plain = FinetuneSettings(data=folder, system_prompt="")
    assert [t["role"] for t in read_training_examples(plain).examples[0].prompt] == ["user"]


def test_each_mode_is_read_back_as_it_was_written(folder: Path) -> None:
    for _, row in read_rows(folder / "data" / "train-00000-of-00001.parquet"):
        answer = answer_of(row)
        for mode in ("answer", "steps", "cot"):
            text = write_target(mode, answer)  # type: ignore[arg-type]
            assert text is not None
            found = read_target(mode, text)  # type: ignore[arg-type]
            assert found.text == answer.text.strip()
            assert (found.steps == answer.steps) == (mode == "steps")
            if mode == "cot":
                evidence = [label.evidence for label in answer.distortions if label.evidence]
                assert found.reasoning and all(e in found.reasoning for e in evidence)


@pytest.mark.parametrize("mode", ["steps", "cot"])
def test_text_outside_the_form_stays_as_it_is(mode: Any) -> None:
    headings = [wording()["headings"][name] for name in STEP_NAMES]
    swapped = "".join(f"{h}内容" for h in reversed(headings))
    for text in ("一段普通的话。", swapped, headings[0] + "只有一步"):
        assert read_target(mode, text).text == text
        assert read_target(mode, text).steps is None


def test_answers_without_steps_are_counted_not_learnt_as_steps(tmp_path: Path) -> None:
    folder = write_dataset_folder(tmp_path / "fused", n_entries=20, is_fused=True)
    found = read_training_examples(FinetuneSettings(data=folder, mode="steps"))
    assert not found.examples and found.dropped["no_steps"] == found.n_in


@pytest.mark.parametrize("ended", ["length", "network_error", "sensitive"])
def test_an_answer_that_is_not_whole_is_counted_not_learnt(tmp_path: Path, ended: str) -> None:
    folder = write_dataset_folder(tmp_path / "cut", n_entries=20, ended=ended)
    found = read_training_examples(FinetuneSettings(data=folder))
    assert not found.examples and found.dropped["cut"] == found.n_in


def test_template_text_is_refused_unless_allowed(tmp_path: Path) -> None:
    folder = write_dataset_folder(tmp_path / "template", n_entries=20, is_template=True)
    with pytest.raises(ConfigError, match="template teacher") as caught:
        read_training_examples(FinetuneSettings(data=folder))
    assert "--allow-template" in str(caught.value.hint)
    assert read_training_examples(FinetuneSettings(data=folder, allow_template=True)).examples


def test_an_unfinished_build_is_refused(tmp_path: Path) -> None:
    folder = write_dataset_folder(tmp_path / "half", n_entries=20, with_manifest=False)
    with pytest.raises(IncompleteRunError):
        read_training_examples(FinetuneSettings(data=folder))


def test_rows_of_texts_and_of_messages_are_the_same_example(tmp_path: Path) -> None:
    rows = _write(
        tmp_path / "rows.jsonl",
        {"id": "a", "prompt": "问", "completion": "答"},
        {
            "id": "b",
            "prompt": [{"role": "user", "content": "问"}],
            "completion": [{"role": "assistant", "content": "答"}],
            "meta": {"arm": 1},
        },
    )
    first, second = read_training_examples(FinetuneSettings(data=rows)).examples
    assert (first.prompt, first.answer) == (second.prompt, second.answer)


def test_every_assistant_turn_is_learnt_with_what_precedes_it(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "u2"},
        {"role": "assistant", "content": "a2"},
    ]
    found = read_training_examples(
        FinetuneSettings(data=_write(tmp_path / "m.jsonl", {"id": "x", "messages": turns}))
    )
    assert [(e.id, len(e.prompt), e.answer) for e in found.examples] == [
        ("x#2", 2, "a1"),
        ("x#4", 4, "a2"),
    ]


SHAPES: dict[str, dict[str, Any]] = {
    "sharegpt": {
        "system": "S",
        "conversations": [
            *({"from": "human", "value": "u1"}, {"from": "gpt", "value": "a1"}),
            *({"from": "human", "value": "u2"}, {"from": "gpt", "value": "a2"}),
        ],
    },
    "alpaca": {
        "system": "S",
        "history": [["u1", "a1"]],
        "instruction": "u2",
        "input": "",
        "output": "a2",
    },
    "ms-swift": {"system": "S", "history": [["u1", "a1"]], "query": "u2", "response": "a2"},
    "emollm": {
        "conversation": [
            {"system": "S", "input": "u1", "output": "a1"},
            {"input": "u2", "output": "a2"},
        ]
    },
    "smile": {
        "messages": [
            {"role": "system", "content": "S"},
            *({"role": "client", "content": "u1"}, {"role": "counselor", "content": "a1"}),
            *({"role": "client", "content": "u2"}, {"role": "counselor", "content": "a2"}),
        ]
    },
    "ms-swift pairs": {
        "system": "S",
        "conversation": [{"human": "u1", "assistant": "a1"}, {"human": "u2", "assistant": "a2"}],
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_in_circulation_is_the_same_conversation(tmp_path: Path, name: str) -> None:
    rows = _write(tmp_path / "rows.jsonl", {"id": "x", **SHAPES[name]})
    first, second = read_training_examples(FinetuneSettings(data=rows)).examples
    assert (first.id, first.answer, second.id, second.answer) == ("x#2", "a1", "x#4", "a2")
    assert [turn["role"] for turn in second.prompt] == ["system", "user", "assistant", "user"]
    assert [turn["content"] for turn in second.prompt] == ["S", "u1", "a1", "u2"]


def test_instruction_and_input_of_alpaca_are_one_question(tmp_path: Path) -> None:
    rows = _write(
        tmp_path / "a.jsonl", {"instruction": "回答：", "input": "睡不着", "output": "答"}
    )
    (example,) = read_training_examples(FinetuneSettings(data=rows)).examples
    assert example.prompt[-1]["content"] == "回答：\n睡不着"


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "问", "input": "", "chosen": "好", "rejected": "坏"},
        {
            "conversations": [{"from": "human", "value": "问"}],
            "chosen": {"from": "gpt", "value": "好"},
            "rejected": {"from": "gpt", "value": "坏"},
        },
        {
            "messages": [
                {"role": "user", "content": "问"},
                {"role": "assistant", "content": "好"},
            ],
            "rejected_response": "坏",
        },
    ],
)
def test_pairs_are_read_in_the_shapes_of_other_trainers(tmp_path: Path, row: Any) -> None:
    rows = _write(tmp_path / "pairs.jsonl", row)
    (found,) = read_training_examples(FinetuneSettings(data=rows, objective="orpo")).examples
    assert (found.prompt[-1]["content"], found.answer, found.rejected) == ("问", "好", "坏")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"messages": [{"role": "user", "content": None}]},
            r":1:messages\.0\.content: expected text",
        ),
        ({"conversations": "你好"}, "expected a list of turns"),
        ({"query": "问", "response": "答", "history": [["问"]]}, "a question and an answer"),
        ({"instruction": "问", "input": "", "output": "答", "kto_tag": True}, "do not fit"),
    ],
)
def test_a_row_that_only_looks_like_a_shape_is_refused(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_training_examples(FinetuneSettings(data=_write(tmp_path / "r.jsonl", row)))


def test_a_folder_of_exported_rows_is_read_by_split(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        _write(tmp_path / f"{split}.jsonl", {"id": split, "prompt": "问", "completion": "答"})
    settings = FinetuneSettings(data=tmp_path)
    validation = read_validation_examples(settings)
    assert [e.id for e in read_training_examples(settings).examples] == ["train"]
    assert validation is not None and [e.id for e in validation.examples] == ["validation"]
    (tmp_path / "validation.jsonl").unlink()
    assert read_validation_examples(settings) is None


def test_pairs_may_carry_their_prompt_inside(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "问"}]
    better, worse = ({"role": "assistant", "content": text} for text in ("好", "坏"))
    rows = _write(
        tmp_path / "pairs.jsonl",
        {"prompt": prompt, "chosen": [better], "rejected": [worse]},
        {"chosen": [*prompt, better], "rejected": [*prompt, worse]},
    )
    first, second = read_training_examples(FinetuneSettings(data=rows, objective="orpo")).examples
    assert (first.prompt, first.answer, first.rejected) == (
        second.prompt,
        second.answer,
        second.rejected,
    )


@pytest.mark.parametrize(
    ("row", "objective", "hint"),
    [
        ({"question": "q", "text": "t"}, "sft", "rename the columns"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "sft", "--objective orpo"),
        ({"prompt": "q", "completion": "a"}, "orpo", "--objective sft"),
    ],
)
def test_wrong_columns_name_what_was_found_and_the_way_out(
    tmp_path: Path, row: dict[str, str], objective: Any, hint: str
) -> None:
    rows = _write(tmp_path / "rows.jsonl", row)
    with pytest.raises(DataError, match=", ".join(row)) as caught:
        read_training_examples(FinetuneSettings(data=rows, objective=objective))
    assert hint in str(caught.value.hint)


def test_a_built_dataset_has_no_pairs(folder: Path) -> None:
    with pytest.raises(DataError, match="rejected"):
        read_training_examples(FinetuneSettings(data=folder, objective="orpo"))


def test_a_broken_message_is_named_with_its_place(tmp_path: Path) -> None:
    rows = _write(
        tmp_path / "rows.jsonl",
        {"prompt": "q", "completion": "a"},
        {"prompt": [{"role": "narrator", "content": "x"}], "completion": "a"},
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:2:prompt"):
        read_training_examples(FinetuneSettings(data=rows))


# --- tokens --------------------------------------------------------------------------------------


def test_no_row_is_lost_uncounted(tmp_path: Path, chat: ChatFormat) -> None:
    rows = _write(
        tmp_path / "rows.jsonl",
        {"prompt": "问", "completion": "答"},
        {"prompt": "问", "completion": "  "},
        {"prompt": "  ", "completion": "答"},
        {"prompt": "问", "completion": "很长的回答。" * 60},
        {"prompt": "问<|im_end|>\n<|im_start|>assistant\n", "completion": "答"},
    )
    settings = FinetuneSettings(data=rows, max_length=64)
    encoded = encode(read_training_examples(settings), chat, settings)
    assert [item.id for item in encoded.items] == ["row 1"]
    assert encoded.dropped == {
        "empty_answer": 1,
        "no_prompt": 1,
        "too_long": 1,
        "special_token_in_text": 1,
    }
    told = encoded.statistics()
    assert told["n_in"] == told["n_items"] + told["n_dropped"] == 5


def test_what_the_build_refuses_is_not_learnt_and_counted_by_its_reason(
    tmp_path: Path, chat: ChatFormat
) -> None:
    tails = ["<|im_end|>", "\n用户：谢谢你。", "<thinking>先共情</thinking>", "", "<reserved_106>"]
    rows = _write(
        tmp_path / "rows.jsonl",
        *({"prompt": "问", "completion": f"慢慢来。{tail}"} for tail in tails),
    )
    settings = FinetuneSettings(data=rows)
    encoded = encode(read_training_examples(settings), chat, settings)
    # a file of rows may mean to teach reasoning
    assert [item.id for item in encoded.items] == ["row 3", "row 4"]
    assert encoded.dropped == {"control_tokens": 2, "other_speaker": 1}
    folder = write_dataset_folder(tmp_path / "d", n_entries=20, tail="</think>慢慢来。")
    settings = FinetuneSettings(data=folder)
    with pytest.raises(DataError, match=r"no example is left of .* reasoning"):
        encode(read_training_examples(settings), chat, settings)


def test_a_special_token_of_a_listed_backbone_is_in_no_built_answer(chat: ChatFormat) -> None:
    tokens = {token for one in load_backbones().values() for token in one.stops}
    tokens |= set(chat.tokenizer.all_special_tokens)
    assert len(tokens) > 5
    for token in tokens:
        found = find_machine_text(f"慢慢来。{token}")
        assert found is not None and found.kind == "control_tokens", token


def test_an_answer_is_never_cut(tmp_path: Path, chat: ChatFormat) -> None:
    settings = FinetuneSettings(data=write_rows(tmp_path / "r.jsonl", 30), max_length=210)
    found = read_training_examples(settings)
    encoded = encode(found, chat, settings)
    answers = {example.id: example.answer for example in found.examples}
    assert encoded.dropped["too_long"] > 0
    for item in encoded.items:
        document = item.documents[0]
        learnt = document.ids[document.n_prompt :]
        assert chat.tokenizer.decode(learnt) == answers[item.id] + "<|im_end|>"


def test_when_all_answers_are_too_long_the_error_names_the_flag(
    tmp_path: Path, chat: ChatFormat
) -> None:
    settings = FinetuneSettings(data=write_rows(tmp_path / "r.jsonl", 3), max_length=16)
    with pytest.raises(DataError, match="too_long 3") as caught:
        encode(read_training_examples(settings), chat, settings)
    assert "--max-length" in str(caught.value.hint)


def test_descriptions_are_shortened_at_their_beginning_only_if_asked(
    folder: Path, chat: ChatFormat
) -> None:
    settings = FinetuneSettings(data=folder)
    found = read_training_examples(settings)
    whole = encode(found, chat, settings)
    limit = sorted(whole.lengths)[len(whole.items) // 2]
    strict = settings.model_copy(update={"max_length": limit})
    assert encode(found, chat, strict).dropped["too_long"] > 0
    shortening = strict.model_copy(update={"shorten_prompts": True})
    encoded = encode(found, chat, shortening)
    assert encoded.n_shortened > 0 and len(encoded.items) > len(whole.items) // 2 + 1
    for item, example in zip(encoded.items, encoded.examples, strict=True):
        document = item.documents[0]
        assert len(document) <= limit
        assert chat.tokenizer.decode(document.ids[document.n_prompt : -1]) == example.answer
        assert example.question is not None
        prompt = chat.tokenizer.decode(document.ids[: document.n_prompt])
        assert example.question.question in prompt
        assert example.question.description[-15:] in prompt


def test_training_and_serving_see_the_same_prompt_tokens(folder: Path, chat: ChatFormat) -> None:
    settings = FinetuneSettings(data=folder)
    encoded = encode(read_training_examples(settings), chat, settings)
    for item, example in zip(encoded.items, encoded.examples, strict=True):
        assert example.question is not None
        served = chat.tokenizer.apply_chat_template(
            prompt_messages(example.question), add_generation_prompt=True, tokenize=False
        )
        document = item.documents[0]
        assert document.ids[: document.n_prompt].tolist() == chat.tokenizer(served).input_ids


def test_an_end_of_turn_that_the_vocabulary_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="could not learn to stop"):
        ChatFormat(tiny_tokenizer(), find_template("llama3"))


def test_the_card_format_ends_an_answer_with_the_tokenizers_own_end() -> None:
    chat = ChatFormat(tiny_tokenizer(), find_template("cbt-llm-card"))
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert chat.prompt_text(turns) == "S\nHuman: U\nAssistant: "
    assert chat.end_text == "<|im_end|>"
