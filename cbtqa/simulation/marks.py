"""The check of turns: what is said that no turn should say, for played, written and read sessions.

    marked(session).turns[7].marks        # ("repeated",)
    faults_of_last(turns)                 # [("diagnosis", "you have major depressive disorder")]

A player is asked again with the fault named; what stays is marked, never changed. A session is
marked when it is written and again when it is read, so that transcripts made elsewhere, and folders
of earlier versions, are judged by the same rules. The words are in marks.yaml; what the thresholds
were measured on is in docs/log.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from string import Template
from typing import Any, Literal, NamedTuple

from cbtqa.records import Session, Turn, TurnMark
from cbtqa.safety.answers import HARMS as PROBLEMS
from cbtqa.simulation.playing.course import cbt_course
from cbtqa.simulation.playing.events import (
    SAID_UNSAFE,
    SAID_UNSAFE_BY_RULES,
    event_file,
    harms_in,
    names_help,
    speaks_of_risk,
)
from cbtqa.simulation.sentences import (
    by_sentence,
    is_foreign,
    label_of,
    names_illness,
    one_of,
    own_life,
    spoken_lines,
    tells_a_scene,
    without_quotes,
    words_of,
)
from cbtqa.simulation.study import shipped_yaml
from cbtqa.text_faults import find_broken_text, find_machine_text

Role = Literal["patient", "therapist"]
SPOILING: tuple[TurnMark, ...] = ("machine_text", "note_to_model", "wrong_speaker", "farewell_loop")
"""Marks of turns after which the conversation is none any more."""
HARMS: tuple[TurnMark, ...] = (
    *("danger_unanswered", "unsafe_advice", "diagnosis", "promised_cure", "private_life"),
)
"""Marks of a therapist's words that harm: no example to learn from, but what a judge has to see."""
CONTENT_MARKS: tuple[TurnMark, ...] = (
    *SPOILING,
    *HARMS,
    *("speaker_name", "wrong_language", "early_farewell", "next_session"),
    *("narration", "markup", "repeated", "cut"),
)
"""Marks of what a turn says, the most harmful first; the others are of how it came about."""
FAULTY_SHARE = 0.1
"""Share of a session's turns from which faults of form are an error and keep it from the judges,
and of sessions from which those that broke off are an error; assumed."""
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
_ASIDE = re.compile(
    r"(?<!\*)\*(?!\*)([^*\n]+)\*(?!\*)|\(([^()\n]+)\)|\[([^\[\]\n]+)\]|(?<!\w)_([^_\n]+)_(?!\w)"
    r"|<([a-z][^<>\n]+)>|~([^~\n]+)~|\{([^{}\n]+)\}"
)
_LAST_LINE_IS_LISTED = re.compile(r"^\s*(?:[-*•#]|\d+[.)])[^\n]*\Z", re.MULTILINE)
_WHOLE_END = re.compile(r"[.!?…。！？:;~\-–—\"'”’)\]*]\s*$|[^\w\s,]\s*$")
_REPORTS = re.compile(r"\b(?:said|says|told|tells|asked|wrote|thought|goes|like),? ", re.IGNORECASE)
_DATA = re.compile(r"^\s*(?:```\w*\s*)?(?:\{\s*[\"']\w+[\"']\s*:|\[\s*(?:\{|[\"']))", re.MULTILINE)
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


class TurnFault(NamedTuple):
    """What a turn should not say."""

    mark: TurnMark
    found: str = ""
    """The words that show it, shortened; empty where it is the whole turn."""

    def __str__(self) -> str:
        shown = f" ('{self.found}')" if self.found else ""
        return f"{_rules().asks[self.mark]}{shown}"


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
    found = content_marks(session.turns, origin_of(session), rules)
    turns = tuple(map(_with_marks, session.turns, found))
    return session if turns == session.turns else session.model_copy(update={"turns": turns})


Origin = Literal["played", "imported", "people"]
"""`imported`: read from a file, said by a model that it names; `people`: by nobody knows whom."""


def origin_of(session: Session) -> Origin:
    """Where the words of a session come from, as far as it says so."""
    if session.stop_reason != "imported":
        return "played"
    return "people" if session.provenance.model == "unknown" else "imported"


def _with_marks(turn: Turn, found: Sequence[TurnMark]) -> Turn:
    new = tuple(mark for mark in found if mark not in turn.marks)
    return turn.model_copy(update={"marks": (*turn.marks, *new)}) if new else turn


def content_marks(
    turns: Sequence[Turn], origin: Origin = "played", rules: Iterable[str] = ()
) -> list[list[TurnMark]]:
    """The marks of every turn, in the order of `CONTENT_MARKS`.

    Args:
        origin: people may have written it down: `[laughs]` is then no narration, and a life of
            one's own no pretence.
        rules: the roles that built-in rules play.
    """
    played = set(rules)
    found = [
        {one.mark for one in faults_of_words(turn, origin, by_rules=turn.role in played)}
        for turn in turns
    ]
    for place in _repeated(turns, played):
        # a therapist that repeats the patient's words has no life of its own by them
        found[place] = (found[place] - {"private_life"}) | {"repeated"}
    # people say goodbye more than once; between models one round is the end
    again = _leaving_again(turns) if origin == "played" else ()
    for place in (*_leaving_on(turns), *again):
        found[place].add("farewell_loop")
    for place in _leaving_early(turns):
        found[place].add("early_farewell")
    for place in _in_another_language(turns):
        found[place].add("wrong_language")
    for place in range(1, len(turns)):
        if _leaves_danger(turns, place):
            found[place].add("danger_unanswered")
        if origin != "people" and _illness_named(turns, place):
            found[place].add("diagnosis")
    return [[mark for mark in CONTENT_MARKS if mark in marks] for marks in found]


def faults_of_last(
    turns: Sequence[Turn],
    *,
    name: str = "",
    least: int = 0,
    is_single: bool = False,
    country: str | None = None,
) -> list[TurnFault]:
    """What the last of these turns should not say, as the next thing in a session that is played.

    Args:
        name: of the patient, for a name before the words.
        least: turns of a side before which nobody takes leave.
        is_single: there is no next session.
        country: the patient's, where it is known: help has to be of that country.
    """
    turn, place = turns[-1], len(turns) - 1
    found = list(faults_of_words(turn, name=name))
    found += [TurnFault(_FORBIDDEN[kind], words) for kind, words in forbidden_in(turn.text)]
    if place in _repeated(turns, set()):
        found.append(TurnFault("repeated"))
    if place in _leaving_again(turns):
        found.append(TurnFault("farewell_loop"))
    n_own = sum(one.role == turn.role for one in turns)
    is_unasked = turn.role == "patient" and place in _leaving_early(turns)
    if is_unasked or (n_own < least and takes_leave(turn.text)):
        found.append(TurnFault("early_farewell"))
    if is_single and turn.role == "therapist":
        found += _matches("next_session", _rules().next_session, spoken_lines(turn.text))
    if is_foreign(turn.text):
        found.append(TurnFault("wrong_language"))
    if place and _leaves_danger(turns, place, country):
        found.append(TurnFault("danger_unanswered"))
    if illness := _illness_named(turns, place):
        found.append(TurnFault("diagnosis", illness))
    return list({one.mark: one for one in reversed(found)}.values())


_FORBIDDEN: Mapping[str, TurnMark] = {
    "asterisks": "markup",
    "stage_directions": "narration",
    "speaker_names": "speaker_name",
}
"""What the course forbids, as marks."""


def forbidden_in(text: str) -> list[tuple[str, str]]:
    """What the course forbids and a text holds: kind and words."""
    found = []
    for kind, pattern in cbt_course().forbidden.items():
        if match := re.search(pattern, text, re.IGNORECASE | re.MULTILINE):
            found.append((kind, match[0].strip()))
    return found


def _illness_named(turns: Sequence[Turn], place: int) -> str | None:
    """An illness that a therapist's turn names and the patient has not."""
    if turns[place].role != "therapist":
        return None
    said = [turn.text for turn in turns[:place] if turn.role == "patient"]
    return names_illness(spoken_lines(turns[place].text), said)


def faults_of_words(
    turn: Turn, origin: Origin = "played", *, name: str = "", by_rules: bool = False
) -> tuple[TurnFault, ...]:
    """The faults of a turn by itself, whatever is said around it.

    Args:
        by_rules: the speaker is a built-in player, whose clumsy lines are known to be harmless.
    """
    known = event_file().events.get(turn.event or "")
    private = [*([turn.complaint] if turn.complaint else []), *([known.note] if known else [])]
    return _faults_of_words(turn.role, turn.text, origin, tuple(private), name, by_rules)


@lru_cache(maxsize=8192)
def _faults_of_words(
    role: Role, text: str, origin: Origin, private: tuple[str, ...], name: str, by_rules: bool
) -> tuple[TurnFault, ...]:
    rules, lines = _rules(), spoken_lines(text)
    found: list[TurnFault] = []
    fault = find_machine_text(text)
    is_other = fault is not None and fault.kind == "other_speaker"
    broken = find_broken_text(text) if origin != "people" else None  # people blank out names
    if (fault is not None and not is_other) or is_data(text) or broken:
        shown = fault or broken
        found.append(TurnFault("machine_text", shown.found if shown else ""))
    found += _matches("note_to_model", rules.note_to_model[role], lines)
    if repeats_note(text, private):
        found.append(TurnFault("note_to_model"))
    is_flipped = is_other or _speaks_for(rules.wrong_speaker[role], lines)
    if is_flipped:
        found.append(TurnFault("wrong_speaker"))
    if role == "therapist":
        # a patient's words by the therapist, or a person's own, pretend nothing
        may_have_a_life = is_flipped or origin == "people"
        found += _harms(text, lines, may_have_a_life=may_have_a_life, by_rules=by_rules)
    label = rules.speaker_name.match(text) or (name and text.startswith(f"{name}:"))
    if label or label_of(text):
        found.append(TurnFault("speaker_name", text.partition(":")[0]))
    is_scene = origin != "people" and tells_a_scene(text)
    if is_scene or rules.third_person.search(lines) or any(_asides(text, origin != "played")):
        found.append(TurnFault("narration"))
    if rules.markup.search(text):
        found.append(TurnFault("markup"))
    if is_cut(text):
        found.append(TurnFault("cut"))
    return tuple(found)


def _harms(text: str, lines: str, *, may_have_a_life: bool, by_rules: bool) -> Iterator[TurnFault]:
    """What a therapist says that harms, each kind once."""
    found: dict[TurnMark, TurnFault] = {}
    for mark, problem in harms_in(text, SAID_UNSAFE_BY_RULES if by_rules else SAID_UNSAFE):
        if problem.rule in PROBLEMS:  # the model read the sentence, a rule some words of it
            found.setdefault(mark, TurnFault(mark, problem.text[:LONGEST_SHOWN]))
        else:
            words = re.compile(re.escape(problem.text), re.IGNORECASE)
            found |= {one.mark: one for one in _matches(mark, words, lines, True)}
    if not by_rules and (life := own_life(lines)):
        found.setdefault("private_life", TurnFault("private_life", life[:LONGEST_SHOWN]))
    for mark, own in _rules().harms.items():
        found |= {one.mark: one for one in _matches(mark, own, lines, True)}
    if may_have_a_life:
        found.pop("private_life", None)
    return iter(found.values())


LONGEST_SHOWN = 80
"""Characters of the words that are shown of a fault."""


def _matches(
    mark: TurnMark, pattern: re.Pattern[str], lines: str, is_claim: bool = False
) -> Iterator[TurnFault]:
    """A fault at the first match; a claim counts unless it is asked, reported or denied."""
    for match in pattern.finditer(lines):
        start = lines.rfind("\n", 0, match.start()) + 1
        end = lines.find("\n", match.end())
        sentence = lines[start : end if end >= 0 else None]
        is_denied = _rules().denied.search(lines, start, match.start()) is not None
        if not is_claim or not (is_denied or sentence.rstrip().endswith("?")):
            yield TurnFault(mark, match[0].strip()[:LONGEST_SHOWN])
            return


# --- danger, and what is done about it -----------------------------------------------------------


@lru_cache(maxsize=8192)
def speaks_of_danger(text: str) -> bool:
    """Whether a patient's words may mean danger: the screen finds risk, or means, a farewell.

    A goodbye to the therapist is none by itself.
    """
    lines = spoken_lines(text)
    if _rules().danger.search(lines):
        return True
    if not takes_leave(text):
        return speaks_of_risk(text)
    rest = [one for one in by_sentence(text).splitlines() if not takes_leave(one)]
    return speaks_of_risk(" ".join(rest))


def is_danger(turn: Turn) -> bool:
    """Whether a patient's turn may mean danger: by its words, its event, or a further screen."""
    event = event_file().events.get(turn.event or "")
    is_crisis = (event is not None and event.is_crisis) or "risk" in turn.marks
    return turn.role == "patient" and (is_crisis or speaks_of_danger(turn.text))


def _leaves_danger(turns: Sequence[Turn], place: int, country: str | None = None) -> bool:
    """Whether a therapist answers danger without a question about it or a way to help."""
    turn = turns[place]
    if turn.role != "therapist" or not is_danger(turns[place - 1]):
        return False
    return not (_asks_about_danger(turn.text) or names_help(turn.text, country))


def _asks_about_danger(text: str) -> bool:
    sentences = spoken_lines(text).splitlines()
    asked = (one for one in sentences if "?" in one or re.search(r"\bask\b", one, re.I))
    return any(_rules().asks_about_danger.search(one) for one in asked)


def is_data(text: str) -> bool:
    """Whether a line of a text begins an object or a list of a program."""
    return _DATA.search(text) is not None


def is_cut(text: str) -> bool:
    """Whether a text of sentences breaks off inside one; a list may end without a full stop."""
    text = text.rstrip()
    if len(text.split()) < FEWEST_CUT or _WHOLE_END.search(text) or text == text.lower():
        return False  # who writes without capitals writes without full stops, too
    return re.search(r"[.!?]\s", text) is not None and not _LAST_LINE_IS_LISTED.search(text)


def repeats_note(text: str, private: Iterable[str] = ()) -> bool:
    """Whether a text holds words of a note about the task, or of a private one to its speaker.

    Of a private note only words that address somebody count: a patient who was told of a bad
    memory may well speak of it, and a supervisor may suggest words in quotation marks. What a note
    tells its reader to say is no fault either.
    """
    said = f" {' '.join(words_of(text))} "
    given = [(note, _OF_THE_TASK) for note in _notes_about_replies()]
    own_notes = [_TOLD_TO_SAY.sub("", without_quotes(note)) for note in private]
    given += [(note, _ADDRESSING) for note in own_notes]
    own = f" {' '.join(_without_persons(said))} "
    turned = map(_without_persons, own_notes)
    # the note said in the first person, longer than what one says of oneself anyhow
    if any(f" {' '.join(run)} " in own for note in turned for run in _runs(note, NOTE_RUN + 2)):
        return True
    return any(
        f" {' '.join(run)} " in said
        for note, keys in given
        for run in _runs(words_of(note), NOTE_RUN)
        if not keys.isdisjoint(run)
    )


def _without_persons(text: str) -> list[str]:
    """The words of a text with "you are" and "I am" made one."""
    return [_PERSONS.get(word, word) for word in words_of(_CONTRACTED.sub(r"\1 am", text))]


_TOLD_TO_SAY = re.compile(r"\byou say\b[^.]*?\bthat\b[^.]*", re.IGNORECASE)
_CONTRACTED = re.compile(r"\b(i|you)['’](?:m|re)\b", re.IGNORECASE)
_PERSONS = {"you": "i", "your": "my", "yours": "mine", "yourself": "myself", "are": "am"}
_ADDRESSING = frozenset(("you", "your"))
_OF_THE_TASK = frozenset(("reply", "message", "note", "supervisor", "simulation", "played"))


@cache
def _notes_about_replies() -> tuple[str, ...]:
    """The sentences that a model may be given about its own reply, without their holes."""
    words: Mapping[str, Any] = shipped_yaml("wording.yaml")
    notes = ("repair", "revise", "revise_patient")
    whole = (*words["again"].values(), *(words[name] for name in notes))
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
    action: re.Pattern[str]
    transcribed: re.Pattern[str]
    third_person: re.Pattern[str]
    note_to_model: Mapping[str, re.Pattern[str]]
    speaker_name: re.Pattern[str]
    markup: re.Pattern[str]
    danger: re.Pattern[str]
    asks_about_danger: re.Pattern[str]
    next_session: re.Pattern[str]
    harms: Mapping[TurnMark, re.Pattern[str]]
    denied: re.Pattern[str]
    asks: Mapping[TurnMark, str]


@cache
def _rules() -> _Rules:
    value: Mapping[str, Any] = shipped_yaml("marks.yaml")
    narration, notes = value["narration"], value["note_to_model"]
    names = "|".join(shipped_yaml("people", "names.yaml")["names"])
    return _Rules(
        leaving=one_of(value["farewell"]["leaving"]),
        polite=one_of(value["farewell"]["polite"]),
        wrong_speaker={role: one_of(own) for role, own in value["wrong_speaker"].items()},
        gesture=one_of([narration["gesture"]]),
        action=one_of([narration["action"]]),
        transcribed=one_of([narration["transcribed"]]),
        third_person=one_of([narration["third_person"], narration["opening"]]),
        note_to_model={
            role: one_of([*notes["any"], *notes.get(role, ())]) for role in ("patient", "therapist")
        },
        speaker_name=one_of([Template(value["speaker_name"]).substitute(names=names)]),
        markup=one_of(value["markup"]),
        danger=one_of(value["danger"]),
        asks_about_danger=one_of(value["asks_about_danger"]),
        next_session=one_of(value["next_session"]),
        harms={mark: one_of(own) for mark, own in value["harms"].items()},
        denied=one_of([value["harm_denied"]]),
        asks=value["asks"],
    )


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
        in_asterisks = match[1] is not None and _rules().action.match(aside) is not None
        says_gesture = in_asterisks or _rules().gesture.match(aside) is not None
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
        lines = by_sentence(turn.text)
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


@lru_cache(maxsize=8192)
def takes_leave(text: str) -> bool:
    """Whether a text says goodbye to the other person; to speak of a goodbye is none."""
    return cbt_course().is_closing(spoken_lines(text))


def _leaving_again(turns: Sequence[Turn]) -> Iterator[int]:
    """Turns that say goodbye although their side has, and the other side twice or more."""
    n_said = {"patient": 0, "therapist": 0}
    for place, turn in enumerate(turns):
        if not takes_leave(turn.text):
            continue
        other = n_said["patient" if turn.role == "therapist" else "therapist"]
        if n_said[turn.role] and other > 1:
            yield place
        n_said[turn.role] += 1


def _leaving_early(turns: Sequence[Turn]) -> Iterator[int]:
    """Goodbyes of a therapist long before the end, and of a patient in place of an answer."""
    for place, turn in enumerate(turns):
        if turn.role == "therapist":
            is_early = place < len(turns) - LEAVING - 1
        else:
            is_early = place > 0 and turns[place - 1].text.rstrip().endswith("?")
        if is_early and takes_leave(turn.text):
            yield place


def _in_another_language(turns: Sequence[Turn]) -> Iterator[int]:
    """Turns in another language, unless the session is in one."""
    found = [place for place, turn in enumerate(turns) if is_foreign(turn.text)]
    return iter(found if len(found) <= len(turns) / 2 else ())
