"""What a session's turns look like when they are none: marks that any reader of sessions sees.

    marked(session).turns[7].marks        # ("repeated",)

Turns are marked, never changed. A session is marked when it is written and again when it is read,
so that transcripts made elsewhere, and folders of earlier versions, are judged by the same rules.
The words are in marks.yaml; what the thresholds were measured on is in docs/log.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from cbtqa.records import Session, Turn, TurnMark
from cbtqa.simulation.study import shipped_yaml
from cbtqa.text_faults import find_machine_text

Role = Literal["patient", "therapist"]
SPOILING: tuple[TurnMark, ...] = ("machine_text", "note_to_model", "wrong_speaker", "farewell_loop")
"""Marks of turns after which the conversation is none any more."""
CONTENT_MARKS: tuple[TurnMark, ...] = (
    *SPOILING,
    *("narration", "repeated", "cut"),
)
"""Marks of what a turn says, the most harmful first; the others are of how it came about."""
RUN = 8
"""Words in a row that count as the same words."""
SAME = 0.8
"""Share of a turn's words in such runs from which it says the same as another; measured."""
LONG = 15
"""Words from which one repetition is no chance: 3 of 9,699 turns between people have one."""
SHORT = 5
"""Words from which a turn said three times, or twice in a row, is a repetition."""
LEAVING, FEWEST_LEAVING = 6, 3
"""Turns that a leave-taking may have, and how many of them say more than thanks from which it is
one; assumed."""
FEWEST_CUT = 20
"""Words from which a turn without an end is cut; people break off shorter ones."""
NOTE_RUN = 6
"""Words in a row of a note that no turn may hold."""
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|‘[^’]*’|(?<!\w)'[^']*'(?!\w)")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]*]*\s+|\n+")
_ASIDE = re.compile(
    r"(?<!\*)\*(?!\*)([^*\n]+)\*(?!\*)|\(([^()\n]+)\)|\[([^\[\]\n]+)\]|(?<!\w)_([^_\n]+)_(?!\w)"
)
_LAST_LINE_IS_LISTED = re.compile(r"^\s*(?:[-*•#]|\d+[.)])[^\n]*\Z", re.MULTILINE)
_WHOLE_END = re.compile(r"[.!?…。！？:;~\-–—\"'”’)\]*]\s*$|[^\w\s,]\s*$")
_REPORTS = re.compile(r"\b(?:said|says|told|tells|asked|wrote|thought|goes|like),? ", re.IGNORECASE)
_DATA = re.compile(r"\s*(?:```\w*\s*)?(?:\{\s*[\"']\w+[\"']\s*:|\[\s*(?:\{|[\"']))")
_IN_FIRST_PERSON = re.compile(r"\b(?:i|i'm|my|me|you|your|we|it|this|that)\b", re.IGNORECASE)


class _Said(NamedTuple):
    """A turn's words, and its runs of them."""

    words: tuple[str, ...]
    runs: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, text: str) -> _Said:
        words = words_of(text)
        return cls(words, tuple(_runs(words, RUN)))

    def is_same_as(self, other: _Said) -> bool:
        """Whether nearly all of these words were said in the other turn, too."""
        if not self.runs:
            return self.words == other.words
        known, covered = set(other.runs), set[int]()
        for start, run in enumerate(self.runs):
            if run in known:
                covered.update(range(start, start + RUN))
        return len(covered) >= SAME * len(self.words)


def words_of(text: str) -> tuple[str, ...]:
    """Lower-case words, without punctuation."""
    return tuple(_WORD.findall(text.lower().replace("’", "'")))


def marked(session: Session) -> Session:
    """The session with the marks that its words deserve, beside those that it has.

    Words of the built-in rules are not searched for repetitions: they have a few lines and say
    them again, and are no source for training anyhow.
    """
    rules: set[str] = set()
    if not session.provenance.is_training_source:
        rules.add("therapist")
    patient = session.patient_provenance or session.provenance
    if not patient.is_training_source:
        rules.add("patient")
    found = content_marks(session.turns, session.stop_reason == "imported", rules)
    turns = tuple(map(_with_marks, session.turns, found))
    return session if turns == session.turns else session.model_copy(update={"turns": turns})


def _with_marks(turn: Turn, found: Sequence[TurnMark]) -> Turn:
    new = tuple(mark for mark in found if mark not in turn.marks)
    return turn.model_copy(update={"marks": (*turn.marks, *new)}) if new else turn


def content_marks(
    turns: Sequence[Turn], is_imported: bool = False, rules: Iterable[str] = ()
) -> list[list[TurnMark]]:
    """The marks of every turn, in the order of `CONTENT_MARKS`.

    Args:
        is_imported: people may have written it down: `[laughs]` is then no narration.
        rules: the roles that built-in rules play.
    """
    found: list[set[TurnMark]] = [set(marks_of_words(turn, is_imported)) for turn in turns]
    for place in _repeated(turns, set(rules)):
        found[place].add("repeated")
    for place in _leaving_on(turns):
        found[place].add("farewell_loop")
    return [[mark for mark in CONTENT_MARKS if mark in marks] for marks in found]


def marks_of_words(turn: Turn, is_imported: bool = False) -> Iterator[TurnMark]:
    """The marks that a turn earns by itself, whatever is said around it."""
    text, rules = turn.text, _rules()
    lines = _by_sentence(_QUOTED.sub(" ", text))
    fault = find_machine_text(text)
    is_other = fault is not None and fault.kind == "other_speaker"
    if (fault is not None and not is_other) or is_data(text):
        yield "machine_text"
    private = [turn.complaint] if turn.complaint else []
    if rules.note_to_model[turn.role].search(lines) or repeats_note(text, private):
        yield "note_to_model"
    if is_other or _speaks_for(rules.wrong_speaker[turn.role], lines):
        yield "wrong_speaker"
    if rules.third_person.search(lines) or any(_asides(text, is_imported)):
        yield "narration"
    if is_cut(text):
        yield "cut"


def is_data(text: str) -> bool:
    """Whether a text is an object or a list of a program, in place of words."""
    return _DATA.match(text) is not None


def is_cut(text: str) -> bool:
    """Whether a text of sentences breaks off inside one; a list may end without a full stop."""
    text = text.rstrip()
    if len(text.split()) < FEWEST_CUT or _WHOLE_END.search(text):
        return False
    return re.search(r"[.!?]\s", text) is not None and not _LAST_LINE_IS_LISTED.search(text)


def repeats_note(text: str, private: Iterable[str] = ()) -> bool:
    """Whether a text holds words of a note about the task, or of a private one to its speaker.

    Of a private note only words that address somebody count: a patient who was told of a bad
    memory may well speak of it, and a supervisor may suggest words in quotation marks.
    """
    said = f" {' '.join(words_of(text))} "
    given = [(note, _OF_THE_TASK) for note in _notes_about_replies()]
    given += [(_QUOTED.sub(" ", note), _ADDRESSING) for note in private]
    return any(
        f" {' '.join(run)} " in said
        for note, keys in given
        for run in _runs(words_of(note), NOTE_RUN)
        if not keys.isdisjoint(run)
    )


_ADDRESSING = frozenset(("you", "your"))
_OF_THE_TASK = frozenset(("reply", "message", "note", "supervisor", "simulation", "played"))


@cache
def _notes_about_replies() -> tuple[str, ...]:
    """The sentences that a model may be given about its own reply, without their holes."""
    words: Mapping[str, Any] = shipped_yaml("wording.yaml")
    whole = (*words["again"].values(), words["revise"], words["revise_patient"])
    return tuple(part for sentence in whole for part in re.split(r"\$\w+", sentence))


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    for start in range(len(words) - length + 1):
        yield tuple(words[start : start + length])


# --- the rules -----------------------------------------------------------------------------------


class _Rules(NamedTuple):
    leaving: re.Pattern[str]
    polite: re.Pattern[str]
    wrong_speaker: Mapping[str, re.Pattern[str]]
    gesture: re.Pattern[str]
    transcribed: re.Pattern[str]
    third_person: re.Pattern[str]
    note_to_model: Mapping[str, re.Pattern[str]]


@cache
def _rules() -> _Rules:
    value: Mapping[str, Any] = shipped_yaml("marks.yaml")
    narration, notes = value["narration"], value["note_to_model"]
    return _Rules(
        leaving=_one_of(value["farewell"]["leaving"]),
        polite=_one_of(value["farewell"]["polite"]),
        wrong_speaker={role: _one_of(own) for role, own in value["wrong_speaker"].items()},
        gesture=_one_of([narration["gesture"]]),
        transcribed=_one_of([narration["transcribed"]]),
        third_person=_one_of([narration["third_person"]]),
        note_to_model={
            role: _one_of([*notes["any"], *notes.get(role, ())])
            for role in ("patient", "therapist")
        },
    )


def _one_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{one})" for one in patterns), re.IGNORECASE | re.MULTILINE)


def _by_sentence(text: str) -> str:
    """A text with every sentence on a line of its own, with straight apostrophes."""
    return _SENTENCE.sub("\n", text.replace("’", "'").strip())


def _speaks_for(pattern: re.Pattern[str], lines: str) -> bool:
    """Whether words are said that are not reported as somebody else's."""
    return any(
        _REPORTS.search(lines, lines.rfind("\n", 0, match.start()) + 1, match.start()) is None
        for match in pattern.finditer(lines)
    )


def _asides(text: str, is_imported: bool) -> Iterator[bool]:
    """For each text in brackets or asterisks, whether it says what somebody does."""
    for match in _ASIDE.finditer(text.replace("’", "'")):
        aside = next(one for one in match.groups() if one).strip()
        is_long = len(aside.split()) > 14
        if is_imported and _rules().transcribed.fullmatch(aside.strip(". ")):
            continue
        says_gesture = _rules().gesture.match(aside) is not None
        yield says_gesture and not is_long and not _IN_FIRST_PERSON.search(aside)


# --- what only shows over several turns ----------------------------------------------------------


def _repeated(turns: Sequence[Turn], rules: set[str]) -> Iterator[int]:
    """Turns that say again what their own side, or the turn before, has said."""
    said = [_Said.of(turn.text) for turn in turns]
    own: dict[str, list[int]] = {"patient": [], "therapist": []}
    for place, turn in enumerate(turns):
        n_words, earlier = len(said[place].words), own[turn.role]
        if turn.role not in rules:
            same = [one for one in earlier if said[place].is_same_as(said[one])]
            is_next = bool(earlier) and earlier[-1] in same
            is_long = n_words >= LONG and bool(same or _echoes(turns, said, place))
            is_loop = n_words >= SHORT and (is_next or len(same) > 1)
            if is_long or is_loop or (is_next and _is_stuck(said, place)):
                yield place
        earlier.append(place)


def _echoes(turns: Sequence[Turn], said: Sequence[_Said], place: int) -> bool:
    is_answer = place > 0 and turns[place - 1].role != turns[place].role
    return is_answer and said[place].is_same_as(said[place - 1])


def _is_stuck(said: Sequence[_Said], place: int) -> bool:
    """Whether the other side has said the same twice, too."""
    return place > 2 and said[place - 1].is_same_as(said[place - 3])


def _leaving_on(turns: Sequence[Turn]) -> Iterator[int]:
    """Turns that take leave after everybody has."""
    n_in_a_row, n_leaving = 0, 0
    waiting: list[int] = []
    for place, turn in enumerate(turns):
        lines = _by_sentence(turn.text)
        leaves = _rules().leaving.search(lines) is not None
        is_polite = all(map(_rules().polite.search, lines.splitlines()))
        if not leaves and not is_polite:
            n_in_a_row, n_leaving, waiting = 0, 0, []
            continue
        n_in_a_row, n_leaving = n_in_a_row + 1, n_leaving + leaves
        if n_in_a_row > LEAVING:
            waiting.append(place)
        if n_leaving >= FEWEST_LEAVING:
            yield from waiting
            waiting = []
