"""The shapes in which rows of questions, answers and conversations circulate, as plain messages.

    {"messages": [{"role": "user", "content": ...}, ...]}              OpenAI, TRL, ms-swift
    {"conversations": [{"from": "human", "value": ...}, ...]}          ShareGPT, LLaMA-Factory
    {"conversation": [{"system": ..., "input": ..., "output": ...}]}   EmoLLM, XTuner
    {"instruction": ..., "input": ..., "output": ..., "history": ...}  Alpaca, LLaMA-Factory
    {"query": ..., "response": ..., "history": [[..., ...]]}           ms-swift

A list may be given as JSON in a text cell, or as `datasets` exports lists of objects: one object
of lists. What is not in the tables below is refused by its name, never guessed.

Source: the data README of LLaMA-Factory, "Custom dataset" of ms-swift, the data files of EmoLLM
and SMILE.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from cbtqa.plain_values import decode_json

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": ...}`."""
ROLES = ("system", "user", "assistant")
_SPEAKERS = {
    "system": ("system", "系统"),
    "user": (
        *("user", "human", "client", "patient", "seeker", "help-seeker", "usr"),
        *("用户", "来访者", "求助者", "患者"),
    ),
    "assistant": (
        *("assistant", "gpt", "bot", "chatgpt", "model", "ai"),
        *("counselor", "counsellor", "therapist", "supporter", "helper", "doctor"),
        *("助手", "咨询师", "心理咨询师", "支持者", "治疗师"),
    ),
}
ROLE_OF = {name: role for role, names in _SPEAKERS.items() for name in names}
"""Who speaks, by the names in circulation; names in Latin letters without regard to case."""
_ROLE_KEYS = ("role", "from", "speaker")
_TEXT_KEYS = ("content", "value", "text", "utterance")
_TURN_PAIRS = (
    *(("input", "output"), ("human", "assistant"), ("user", "assistant")),
    *(("query", "response"), ("client", "counselor")),
)
"""Keys of one object that holds a turn of each side."""
TURN_COLUMNS = {
    "messages": "chat messages",
    "conversations": "ShareGPT conversations",
    "conversation": "conversations as in EmoLLM and XTuner",
    "dialog": "conversations",
    "dialogue": "conversations",
}
"""Columns that hold a list of turns, and what such rows are called."""
PAIR_COLUMNS = {
    ("instruction", "output"): "Alpaca rows",
    ("query", "response"): "ms-swift rows",
    ("prompt", "response"): "pairs of prompt and response",
    ("context", "response"): "pairs of context and response",
    ("input", "output"): "pairs of input and output",
}
"""Columns of one exchange, and what such rows are called."""


class BadField(Exception):
    """A field that does not fit; becomes a rejection, or an error with the file's line."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field, self.problem = field, problem


class Shape(NamedTuple):
    """What rows of a file are, by their columns."""

    name: str
    """In words, such as `ShareGPT conversations`."""
    columns: tuple[str, ...]
    """The columns that hold the turns, as the file spells them."""


def shape_of(columns: Collection[str]) -> Shape | None:
    """What rows with these columns are; None for rows of no conversation."""
    spelled = {name.strip().lower(): name for name in reversed(list(columns))}
    for column, name in TURN_COLUMNS.items():
        if column in spelled:
            return Shape(name, (spelled[column],))
    for pair, name in PAIR_COLUMNS.items():
        if all(column in spelled for column in pair):
            further = [column for column in ("input",) if pair[0] == "instruction"]
            names = (pair[0], *further, pair[1])
            return Shape(name, tuple(spelled[column] for column in names if column in spelled))
    return None


def are_turns(columns: Collection[str]) -> bool:
    """True when each row is one turn, so that the file is one conversation (SMILE)."""
    return any(key in columns for key in _ROLE_KEYS) and any(key in columns for key in _TEXT_KEYS)


def read_turns(row: Mapping[str, Any]) -> list[Message]:
    """The turns of a row of any shape of `shape_of`, in order, the system text first.

    Raises:
        BadField: the row has no such columns, an unknown speaker, or a turn without text.
    """
    shape = shape_of(row)
    if shape is None:
        raise BadField("", "no turns: none of the columns of a conversation")
    named = {name.strip().lower(): name for name in row}
    system = [
        {"role": "system", "content": row[named[name]]}
        for name in ("system", "system_prompt")
        if name in named and isinstance(row[named[name]], str) and row[named[name]].strip()
    ][:1]
    if shape.columns[0].strip().lower() in TURN_COLUMNS:
        turns = turns_of(row[shape.columns[0]], shape.columns[0])
        return turns if turns and turns[0]["role"] == "system" else [*system, *turns]
    *asked, answer = shape.columns
    parts = [_text(row[name], name) for name in asked if row[name] is not None]
    turns = _history(row.get(named.get("history", "")))
    turns.append({"role": "user", "content": "\n".join(part for part in parts if part.strip())})
    if row[answer] is not None:
        turns.append({"role": "assistant", "content": _text(row[answer], answer)})
    return [*system, *turns]


def _history(value: object) -> list[Message]:
    turns: list[Message] = []
    for index, part in enumerate(as_list(value)):
        where = f"history.{index}"
        if isinstance(part, list | tuple):
            if len(part) != 2:
                raise BadField(where, f"expected a question and an answer, found {len(part)} parts")
            for role, text in zip(("user", "assistant"), part, strict=True):
                turns.append({"role": role, "content": _text(text, where)})
        else:
            turns += _turn(part, where)
    return turns


def turns_of(value: object, field: str) -> list[Message]:
    """The turns in one cell: objects of one turn or of a turn of each side.

    Raises:
        BadField: the cell is no list of turns.
    """
    if isinstance(value, str) and not value.lstrip().startswith("["):
        raise BadField(field, "expected a list of turns, found text")
    found = as_list(value)
    return [turn for index, part in enumerate(found) for turn in _turn(part, f"{field}.{index}")]


def _turn(part: object, where: str) -> list[Message]:
    if not isinstance(part, dict):
        raise BadField(where, f"expected a turn as an object, found {name_of(part)}")
    if part.get("loss") in (False, 0) and part.get("loss") is not None:
        raise BadField(where, "a turn that is not to be learnt (`loss`) cannot be marked here")
    for key in _ROLE_KEYS:
        if key in part:
            text = next((name for name in _TEXT_KEYS if name in part), _TEXT_KEYS[0])
            content = _text(part.get(text), f"{where}.{text}")
            return [{"role": role_of(part[key], f"{where}.{key}"), "content": content}]
    for ours, theirs in _TURN_PAIRS:
        if ours in part or theirs in part:
            named = (("system", "system"), ("user", ours), ("assistant", theirs))
            return [
                {"role": role, "content": _text(part[key], f"{where}.{key}")}
                for role, key in named
                if part.get(key) not in (None, "")
            ]
    raise BadField(where, f"no turn: its keys are {', '.join(map(str, part)) or 'none'}"[:200])


def role_of(name: object, where: str) -> str:
    """The role of a speaker by the names in circulation.

    Raises:
        BadField: not one of them.
    """
    role = ROLE_OF.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        found = repr(name)[:40]
        raise BadField(where, f"unknown speaker {found}; known: {', '.join(ROLE_OF)}")
    return role


def _text(value: object, where: str) -> str:
    # the content parts of OpenAI; a picture has no text that could be learnt
    parts = value if isinstance(value, list) else []
    if parts and all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in parts):
        return "\n".join(one["text"] for one in parts)
    if not isinstance(value, str):
        raise BadField(where, f"expected text, found {name_of(value)}")
    return value


def first_turn(turns: list[Message]) -> str:
    """What the client says before anyone answers; empty when the client never speaks."""
    said: list[str] = []
    for turn in turns:
        if turn["role"] == "user" and turn["content"].strip():
            said.append(turn["content"].strip())
        elif turn["role"] == "assistant" and said:
            break
    return "\n".join(said)


def as_list(found: object) -> list[Any]:
    """A cell as a list: given as one, as JSON in a text cell, as one value, or empty.

    An object whose values are lists of one length is what `datasets` makes of a list of objects.

    Raises:
        BadField: such lists of different lengths.
    """
    if isinstance(found, str) and found.lstrip().startswith(("[", "{")):
        with suppress(ValueError, RecursionError):
            found = decode_json.decode(found)
    if found is None or found == "":
        return []
    if isinstance(found, dict) and found and all(isinstance(part, list) for part in found.values()):
        if len({len(part) for part in found.values()}) > 1:
            sizes = ", ".join(f"{name} {len(part)}" for name, part in found.items())
            raise BadField("", f"lists of different lengths: {sizes}")
        return [dict(zip(found, parts, strict=True)) for parts in zip(*found.values(), strict=True)]
    return found if isinstance(found, list) else [found]


def name_of(value: object) -> str:
    """What a value is, in words for a person."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false"}
    if value is None:
        return "nothing"
    return names.get(type(value), f"the {type(value).__name__} {value!r}"[:60])
