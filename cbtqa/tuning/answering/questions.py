"""The questions to answer: a dataset's, a question file's, or rows of prompts; checks of answers.

asked = read_asked(settings, mode, system_prompt)
asked.items[0].messages, asked.rejections
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path

from cbtqa.dataset_folder import QUESTION_COLUMNS, DatasetFolder, question_of
from cbtqa.errors import ConfigError, DataError, UsageError
from cbtqa.files import read_rows
from cbtqa.llm.chat import Fault, Reply, fault_of_reply, fault_of_text
from cbtqa.manifest import FileEntry, describe_file
from cbtqa.psyqa import SourceItem, read_questions
from cbtqa.records import Question, Reason, Rejection, Risk
from cbtqa.safety.encoder import open_encoder
from cbtqa.safety.screen import screen_each
from cbtqa.shapes import Message, shape_of
from cbtqa.text_faults import find_machine_text
from cbtqa.tuning.answering.settings import GenerateSettings
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.examples import prompt_messages, read_messages, row_turns
from cbtqa.tuning.settings import Mode


@dataclass(frozen=True, slots=True)
class AskedItem:
    """One question as messages."""

    id: str
    messages: tuple[Message, ...]
    risk: Risk
    """Graded on the question."""
    question: str = ""
    """What is asked, without what the prompt adds."""

    @property
    def key(self) -> str:
        """Names the answer in the journal: the id, and a hash that changes with the messages."""
        text = json.dumps(self.messages, ensure_ascii=False, sort_keys=True)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return f"{self.id}:{digest}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt in tokens."""

    key: str
    ids: tuple[int, ...]


@dataclass
class Asked:
    """The questions of a run."""

    items: list[AskedItem] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    """Rows of a question file that are no questions."""
    files: tuple[FileEntry, ...] = ()
    """What was read, by hash."""


def read_asked(settings: GenerateSettings, mode: Mode, system_prompt: str | None) -> Asked:
    """Reads the questions.

    Args:
        system_prompt: None for the mode's own. Rows of prompts bring their own.

    Raises:
        UsageError: no data named.
        IncompleteRunError: a dataset whose build has not finished.
        DataError: not a file of questions or prompts, no such split, an id twice, no row at all.
    """
    path = settings.data
    if path is None:
        raise UsageError(
            "nothing to answer",
            hint="cbtqa generate cbtqa-dataset --adapter runs/tuned --out runs/answers",
        )
    if path.is_dir():
        parts = DatasetFolder.open(path).files(settings.split)
        entries = tuple(describe_file(part, path) for part in parts)
    else:
        entries = (describe_file(path),)
    asked, seen = Asked(files=entries), set[str]()
    for found in islice(_read_items(settings, path, mode, system_prompt), settings.limit):
        if isinstance(found, Rejection):
            asked.rejections.append(found)
            continue
        if found.id in seen:
            raise DataError(f"the id {found.id} occurs twice", where=str(path))
        seen.add(found.id)
        asked.items.append(found)
    if not asked.items:
        raise DataError("holds no question", where=str(path))
    return asked


def _read_items(
    settings: GenerateSettings, path: Path, mode: Mode, system_prompt: str | None
) -> Iterator[AskedItem | Rejection]:
    model = open_encoder(settings.screen_model)

    def item_of(question: Question, risk: Risk) -> AskedItem:
        messages = prompt_messages(question, mode, system_prompt)
        return AskedItem(question.id, tuple(messages), risk, question.source_text)

    if path.is_dir():
        columns = (*QUESTION_COLUMNS, "risk")
        for row in DatasetFolder.open(path).rows(settings.split, columns):
            yield item_of(question_of(row), row["risk"])
    elif _holds_prompts(path, settings.encoding):
        prompts = _prompt_items(path, settings.encoding)
        for item, screening in screen_each(prompts, attrgetter("question"), model=model):
            yield replace(item, risk=screening.risk)
    else:
        rows = read_questions(path, encoding=settings.encoding)
        for read, screening in screen_each(rows, _text_of, model=model):
            if isinstance(read, Rejection):
                yield read
            else:
                yield item_of(read.question, screening.risk)


def _text_of(read: SourceItem | Rejection) -> str:
    return "" if isinstance(read, Rejection) else read.question.source_text


def _holds_prompts(path: Path, encoding: str) -> bool:
    """True when the file's first row has a prompt or turns; a question file has none."""
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".json", ".parquet"):
        return False
    try:
        _, row = next(read_rows(path, encoding), ("", {}))
    except DataError:
        return False  # a damaged question file is reported better by its own reader
    return "prompt" in row or shape_of(row) is not None


def _prompt_items(path: Path, encoding: str) -> Iterator[AskedItem]:
    """The rows of a file of prompts, not screened yet."""
    for number, (where, row) in enumerate(read_rows(path, encoding), 1):
        if shape_of(row) is None:
            turns = read_messages(row.get("prompt"), "user", where)
        else:
            turns = row_turns(row, where)
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()  # an answer after the last question is not shown to the model
        if not turns or not turns[-1]["content"].strip():
            words = "expected a prompt: a text, or messages that end with the user's"
            raise DataError(words, where=where)
        text = "\n".join(turn["content"] for turn in turns if turn["role"] == "user")
        item_id = str(row.get("id") or f"row {number}")
        yield AskedItem(item_id, tuple(turns), "none", text)


LEAK_CHARS = 14
"""So many characters in a row of the system text count as a leak. assumed; as in `dataset.check`"""
LEAST_MARK = 4
"""Characters that a turn's mark must have to be looked for: `:` alone is in many answers."""


@dataclass(frozen=True)
class AnswerChecks:
    """Rejects a reply that is empty, cut off, holds its prompt, or goes on as raw output does.

    No more than that: a score over only the good answers would mean nothing.
    """

    turn_mark: str = ""
    """What the chat format writes before a user's turn, such as a line `Human:`: a model that
    writes it talks to itself. Empty where it is unknown, at an endpoint."""

    def fault_of(self, item: AskedItem, reply: Reply) -> Fault | None:
        """What is wrong with a reply, or None."""
        return fault_of_reply(reply) or self.fault_in(item, reply.text)

    def fault_in(self, item: AskedItem, text: str) -> Fault | None:
        """Machine text, or parts of the prompt, in a text."""
        if len(self.turn_mark.strip()) >= LEAST_MARK and self.turn_mark in text:
            mark = self.turn_mark.strip()
            return Fault(Reason.OTHER_SPEAKER, f"goes on with a turn of the user: {mark}")
        if found := find_machine_text(text):
            return fault_of_text(found)
        for turn in item.messages:
            system = turn["content"] if turn["role"] == "system" else ""
            for start in range(len(system) - LEAK_CHARS + 1):
                part = system[start : start + LEAK_CHARS]
                if part in text:
                    return Fault(Reason.PROMPT_LEAK, f"repeats its instruction: {part}")
        return None


def turn_mark_of(chat: ChatFormat) -> str:
    """The text between an answer and the user's next question, without special tokens, as decoded
    answers are. Empty for a template that takes one question only."""
    first, answer, second = "问题一", "回答一", "问题二"
    turns = [("user", first), ("assistant", answer), ("user", second)]
    try:
        text = chat.prompt_text([{"role": role, "content": content} for role, content in turns])
    except (ConfigError, ValueError, TypeError):
        return ""
    between = text.partition(answer)[2].partition(second)[0]
    for token in (chat.end_text, *chat.tokenizer.all_special_tokens):
        between = between.replace(token, "")
    return between.rstrip(" ")
