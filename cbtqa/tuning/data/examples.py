"""Training examples from a built dataset or from a file of rows.

A built dataset is read by split; its rows are written out in the mode asked for. A file has rows of
one kind, recognised by their columns; further columns are ignored:

    {"prompt": ..., "completion": ...}     SFT; a text, or a list of messages, each
    {"messages": [...]}                    SFT; every assistant turn with all that precedes it
    ShareGPT, Alpaca, ms-swift, EmoLLM     SFT; the same, see `cbtqa.shapes`
    {"prompt": ..., "chosen": ..., "rejected": ...}    ORPO; `prompt` may be inside both, or in the
                                           columns of any of these shapes
    {"messages": [...], "rejected_response": ...}      ORPO as in ms-swift

A folder with `train.jsonl`, as `cbtqa simulate export` writes, is read by split as well.
What cannot become an example is counted under its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any

from cbtqa.dataset_folder import DatasetFolder, answer_of, question_of
from cbtqa.distortions.taxonomy import shipped_concepts
from cbtqa.endings import Ending, ending_of
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import read_rows
from cbtqa.manifest import FileEntry, describe_file
from cbtqa.records import STEP_NAMES, CbtAnswer, CbtSteps, Question
from cbtqa.shapes import BadField, Message, read_turns, shape_of, turns_of
from cbtqa.tuning.libraries import read_table
from cbtqa.tuning.settings import FinetuneSettings, Mode, Objective


@dataclass(frozen=True, slots=True)
class ReadTarget:
    """A model's text in its parts."""

    text: str
    """The answer alone; steps joined, without headings."""
    steps: CbtSteps | None = None
    reasoning: str | None = None
    """The text before the answer; None when the mode has none or the model wrote none."""


wording = partial(read_table, "targets.zh.yaml")


def prompt_messages(
    question: Question, mode: Mode = "answer", system_prompt: str | None = None
) -> list[Message]:
    """System text (None: the mode's own; empty: none) and question, in training and generation."""
    system = system_prompt
    if system is None:
        parts = wording()["system"]
        system = parts["persona"] + parts["task"][mode] + parts["bounds"]
    turns = [{"role": "system", "content": system}] if system.strip() else []
    return [*turns, {"role": "user", "content": question.source_text.strip()}]


def write_target(mode: Mode, answer: CbtAnswer) -> str | None:
    """The text to learn; None when the answer lacks the steps that the mode needs."""
    if mode == "answer":
        return answer.text.strip()
    if mode == "steps":
        if answer.steps is None:
            return None
        headings = wording()["headings"]
        parts = (f"{headings[name]}{getattr(answer.steps, name).strip()}" for name in STEP_NAMES)
        return "\n".join(parts)
    words, concepts, found = wording()["cot"], shipped_concepts(), ""
    for label in answer.distortions:
        name = concepts[label.id].zh if label.id in concepts else label.id
        form = words["with_evidence" if label.evidence else "without_evidence"]
        found += Template(form).substitute(name=name, evidence=label.evidence or "")
    thinking = found or words["none"]
    return f"{words['thinking']}{thinking}\n{words['answer']}{answer.text.strip()}"


def read_target(mode: Mode, text: str) -> ReadTarget:
    """Takes a model's text apart; what does not follow the mode's form stays as it is."""
    text = text.strip()
    if mode == "steps":
        headings = [wording()["headings"][name] for name in STEP_NAMES]
        pattern = "|".join(map(re.escape, headings))
        first, *parts = (piece.strip() for piece in re.split(pattern, text))
        if re.findall(pattern, text) == headings and not first and all(parts):
            steps = CbtSteps(**dict(zip(STEP_NAMES, parts, strict=True)))
            return ReadTarget(steps.joined(), steps=steps)
    if mode == "cot":
        words = wording()["cot"]
        before, mark, after = text.partition("\n" + words["answer"])
        if mark and after.strip():
            reasoning = before.strip().removeprefix(words["thinking"]).strip()
            return ReadTarget(after.strip(), reasoning=reasoning or None)
    return ReadTarget(text)


RISKS = ("concern", "explicit")
"""Grades of a row's question that keep the row out of training unless it is asked for."""


@dataclass(frozen=True, slots=True)
class Example:
    """One answer to learn, with what comes before it."""

    id: str
    prompt: tuple[Message, ...]
    """Messages in order; the last is not the assistant's."""
    answer: str
    """ORPO: the chosen answer."""
    rejected: str | None = None
    """ORPO: the rejected answer; None in SFT."""
    question: Question | None = None
    """The dataset's question, whose description may be shortened; None for rows of a file."""


@dataclass
class ExampleSet:
    """The examples of one split, and what was left out."""

    name: str
    """`train`, `validation`, ... or the file's name."""
    examples: list[Example] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason to number of rows (messages: of turns)."""
    n_in: int = 0
    """Rows read."""
    files: tuple[FileEntry, ...] = ()
    """What was read, by hash."""


def read_training_examples(settings: FinetuneSettings) -> ExampleSet:
    """The examples to learn from.

    Raises:
        UsageError: no data named.
        ConfigError: text of the template teacher without `allow_template`.
        DataError: columns that do not fit the objective, or damaged rows.
    """
    return _read(settings, check_data_named(settings), "train")


def check_data_named(settings: FinetuneSettings) -> Path:
    """The data; raises UsageError where none is named."""
    if settings.data is None:
        hint = "cbtqa finetune cbtqa-dataset --backbone qwen2.5 --out runs/tuned"
        raise UsageError("no data named", hint=hint)
    return settings.data


def read_validation_examples(settings: FinetuneSettings) -> ExampleSet | None:
    """The examples to evaluate on, or None; raises as `read_training_examples`."""
    if settings.validation_data is not None:
        return _read(settings, settings.validation_data, "validation")
    folder = settings.data
    if folder is None or not folder.is_dir():
        return None
    if is_of_rows(folder):
        has_rows = (folder / "validation.jsonl").is_file()
    else:
        has_rows = "validation" in DatasetFolder.open(folder).splits
    return _read(settings, folder, "validation") if has_rows else None


def is_of_rows(path: Path) -> bool:
    """True for a file of rows, and for a folder of them (`train.jsonl`); False for a dataset."""
    return path.is_file() or (path / "train.jsonl").is_file()


def _read(settings: FinetuneSettings, path: Path, split: str) -> ExampleSet:
    rows = path / f"{split}.jsonl" if path.is_dir() else path
    if rows.is_file() or not path.is_dir():
        return _read_file(settings, rows)
    dataset = DatasetFolder.open(path)
    parts = dataset.files(split)
    if settings.objective == "orpo":
        raise DataError(
            "a built dataset has one answer per question, ORPO needs a chosen and a rejected one",
            where=str(path),
            hint="use --objective sft, or a file of prompt, chosen and rejected",
        )
    found = ExampleSet(split, files=tuple(describe_file(part, path) for part in parts))
    n_template = 0
    for row in islice(dataset.rows(split), settings.limit):
        found.n_in += 1
        n_template += not row["is_training_source"]
        _add(found, dataset_example(settings, row))
    refuse_template(settings, n_template, found.n_in, found.name)
    return found


def dataset_example(settings: FinetuneSettings, row: Mapping[str, Any]) -> Example | str:
    """The example of a dataset's row, or the reason why there is none."""
    answer, question = answer_of(row), question_of(row)
    if (answer.risk != "none" or answer.is_acute) and not settings.with_risk:
        return "risk"
    if ending_of(answer.provenance.finish_reason) is not Ending.WHOLE:
        return "cut"
    target = write_target(settings.mode, answer)
    if target is None:
        return "no_steps"
    prompt = prompt_messages(question, settings.mode, settings.system_prompt)
    return Example(question.id, tuple(prompt), target, question=question)


def refuse_template(settings: FinetuneSettings, n_template: int, n_answers: int, name: str) -> None:
    """Raises a ConfigError for answers of the template teacher, unless they are allowed."""
    if n_template and not settings.allow_template:
        raise ConfigError(
            f"{n_template:,} of {n_answers:,} answers in {name} were written by the "
            "template teacher (rules, no model), which is no source for training",
            hint="build with a model: cbtqa build-dataset --endpoint URL --model NAME; to try "
            "things out: --allow-template",
        )


def _read_file(settings: FinetuneSettings, path: Path) -> ExampleSet:
    found = ExampleSet(path.stem)
    n_template = 0
    for where, row in islice(read_rows(path), settings.limit):
        if found.n_in == 0:
            _check_columns(settings.objective, row, where)
        found.n_in += 1
        n_template += row.get("is_training_source") is False
        is_risky = row.get("risk") in RISKS or row.get("is_acute") is True
        if is_risky and not settings.with_risk:
            found.dropped["risk"] += 1
            continue
        name = str(row.get("id") or f"row {found.n_in}")
        for made in _row_examples(row, name, where, settings.objective):
            _add(found, made)
    if not found.n_in:
        raise DataError("holds no row", where=str(path))
    found.files = (describe_file(path),)
    refuse_template(settings, n_template, found.n_in, found.name)
    return found


def _check_columns(objective: Objective, row: Mapping[str, Any], where: str) -> None:
    is_sft = {"prompt", "completion"} <= set(row) or shape_of(row) is not None
    has_pair = ("chosen" in row and "rejected" in row) or "rejected_response" in row
    if objective == "orpo" and not has_pair:
        expected, other = "prompt, chosen and rejected", "--objective sft"
    elif objective == "sft" and (not is_sft or "kto_tag" in row):
        expected, other = "prompt and completion, messages, ShareGPT or Alpaca", "--objective orpo"
    else:
        return
    is_other = is_sft if objective == "orpo" else has_pair
    raise DataError(
        f"columns {', '.join(row)} do not fit: {objective} wants {expected}",
        where=where,
        hint=f"add {other}" if is_other else "rename the columns, or name a built dataset's folder",
    )


def _row_examples(
    row: Mapping[str, Any], name: str, where: str, objective: Objective
) -> Iterator[Example | str]:
    if objective == "orpo":
        yield _pair_example(row, name, where)
    elif {"prompt", "completion"} <= set(row):
        prompt = read_messages(row["prompt"], "user", f"{where}:prompt")
        yield _example(name, prompt, _answer(row["completion"], f"{where}:completion"))
    else:
        turns = row_turns(row, where)
        places = [k for k, turn in enumerate(turns) if turn["role"] == "assistant" and k]
        if not places:
            yield "no_answer"
        for place in places:
            yield _example(f"{name}#{place}", turns[:place], turns[place]["content"])


def _pair_example(row: Mapping[str, Any], name: str, where: str) -> Example | str:
    if "rejected_response" in row:
        turns = row_turns(row, where)
        prompt, chosen = turns[:-1], turns[-1:]
        rejected = read_messages(
            row["rejected_response"], "assistant", f"{where}:rejected_response"
        )
    else:
        chosen = read_messages(row["chosen"], "assistant", f"{where}:chosen")
        rejected = read_messages(row["rejected"], "assistant", f"{where}:rejected")
        if row.get("prompt") is not None:
            prompt = read_messages(row["prompt"], "user", f"{where}:prompt")
        elif shape_of([*row, "output"]) is not None:  # LLaMA-Factory: the prompt in its own shape
            prompt = row_turns({**row, "output": None}, where)
        elif len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
            raise DataError("chosen and rejected do not share their prompt", where=where)
        else:
            prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    worse = _answer(rejected, f"{where}:rejected")
    if not worse.strip():
        return "empty_answer"
    return _example(name, prompt, _answer(chosen, f"{where}:chosen"), worse)


def row_turns(row: Mapping[str, Any], where: str) -> list[Message]:
    """The turns of a row of any shape of `cbtqa.shapes`; raises DataError for a row of none."""
    try:
        return read_turns(row)
    except BadField as bad:
        place = f"{where}:{bad.field}" if bad.field else where
        raise DataError(bad.problem, where=place) from None


def _example(
    name: str, prompt: list[Message], answer: str, rejected: str | None = None
) -> Example | str:
    if not answer.strip():
        return "empty_answer"
    if not any(turn["content"].strip() for turn in prompt) or prompt[-1]["role"] == "assistant":
        return "no_prompt"
    return Example(name, tuple(prompt), answer.strip(), rejected and rejected.strip())


def read_messages(value: Any, role: str, where: str) -> list[Message]:
    """A text as one message of `role`, or a list of messages; raises DataError for other values."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list | dict):
        raise DataError("expected a text or a list of messages", where=where)
    field = where.rpartition(":")[2]
    try:
        return turns_of(value, field)
    except BadField as bad:
        raise DataError(bad.problem, where=f"{where}{bad.field.removeprefix(field)}") from None


def _answer(value: Any, where: str) -> str:
    turns = read_messages(value, "assistant", where)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise DataError("expected a text or one assistant message", where=where)
    return turns[0]["content"]


def _add(found: ExampleSet, made: Example | str) -> None:
    if isinstance(made, str):
        found.dropped[made] += 1
    else:
        found.examples.append(made)
