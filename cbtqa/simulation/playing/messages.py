"""What each player is shown, and what its reply holds. The same functions serve runs and training.

    view = SessionView(study, arm, profile)
    view.therapist_messages(turns)      # when played and, unchanged, in training rows
    read_therapist(reply, "cot")        # Spoken, or the Fault

The patient always speaks first, so that every view is system, user, assistant, user, ...
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from string import Template
from typing import Any, Literal

from cbtqa.files import sha256_of
from cbtqa.llm.chat import Fault, Message, Reply
from cbtqa.llm.cost import MESSAGE_TOKENS, estimate_tokens
from cbtqa.prompts import Prompt, load_prompt
from cbtqa.records import Provenance, Reason, Session, SessionState, StopReason, Turn, TurnMark
from cbtqa.simulation.draws import seed_of
from cbtqa.simulation.marks import is_data, marked, repeats_note
from cbtqa.simulation.playing.course import cbt_course
from cbtqa.simulation.playing.events import load_events
from cbtqa.simulation.profiles import Profile
from cbtqa.simulation.study import Arm, ReasoningForm, StudySettings, shipped_yaml
from cbtqa.text_faults import find_machine_text

UNSPOKEN = ("price_in", "price_out", "key_env")
"""Settings of a player that change no word."""


@cache
def wording() -> Any:
    return shipped_yaml("wording.yaml")


def filled(sentence: str, **values: object) -> str:
    """A sentence of wording.yaml with its holes filled once."""
    return Template(sentence).substitute({key: str(value) for key, value in values.items()})


def end_token() -> str:
    """What a therapist writes to end the session."""
    return str(wording()["end_token"])


@dataclass(frozen=True)
class SessionView:
    """One session as its players see it, with what the session before handed over."""

    study: StudySettings
    arm: Arm
    profile: Profile
    number: int = 1
    replicate: int = 1
    state: SessionState | None = None
    """Of the session before; None in the first."""

    @property
    def course(self) -> str:
        """`arm/patient/repeat`, which all sessions of a course share."""
        return f"{self.arm.name}/{self.profile.id}/r{self.replicate}"

    @property
    def id(self) -> str:
        """The session's id within its study."""
        return f"{self.arm.name}/{self.profile.id}/s{self.number}/r{self.replicate}"

    @cached_property
    def seed(self) -> int:
        """The same in every arm."""
        return seed_of("session", self.study.seed, self.profile.id, self.number, self.replicate)

    def key(self, part: str, revision: int = 0) -> str:
        """Key of one question in the journal."""
        return f"{self.id}|{self.fingerprint}|{part}|v{revision}"

    def session(
        self,
        turns: Sequence[Turn],
        stop: tuple[StopReason, str],
        provenance: Provenance,
        **more: Any,
    ) -> Session:
        """The record of this session; `stop` is the reason and its detail."""
        session = Session(
            id=self.id,
            arm=self.arm.name,
            profile_id=self.profile.id,
            number=self.number,
            replicate=self.replicate,
            phase=self.phase,
            turns=tuple(turns),
            stop_reason=stop[0],
            stop_detail=stop[1],
            seed=self.seed,
            provenance=provenance,
            **more,
        )
        return marked(session)

    @cached_property
    def therapist_prompt(self) -> Prompt:
        return load_prompt(self.study.therapist_prompt(self.arm))

    @cached_property
    def patient_prompt(self) -> Prompt:
        return self.shipped_prompt(self.study.patient_prompt)

    @property
    def guard_prompt(self) -> Prompt:
        """What a guard is asked about a turn; version 1 was made for whole sessions alone."""
        name = self.study.shipped_prompt("session_guard")
        return load_prompt("session_guard.v2" if name == "session_guard.v1" else name)

    def shipped_prompt(self, name: str) -> Prompt:
        """A prompt in the version that the study plays with."""
        return load_prompt(self.study.shipped_prompt(name))

    @property
    def phase(self) -> str | None:
        """Phase of the course; None for a single session or an approach without a course."""
        is_single = self.study.sessions == 1 and not self.study.written
        if is_single or self.study.approach != "cbt":
            return None
        course = cbt_course()
        return course.phase_of(self.number).id if self.number <= course.n_sessions else None

    def therapist_messages(self, turns: Sequence[Turn]) -> list[Message]:
        """The therapist's view after these turns; the last of them is the patient's."""
        offered = self._offered(turns)
        messages: list[Message] = [*self.therapist_prompt.fill(offered)]
        for turn in turns[1:]:
            if turn.role == "patient":
                messages.append({"role": "user", "content": turn.text})
            else:
                has_reasoning = self.arm.history == "answers_and_reasoning"
                form: ReasoningForm = self.arm.reasoning if has_reasoning else "plain"
                messages.append({"role": "assistant", "content": turn_content(turn, form)})
        # after the therapist's own words it is a whole session to learn from, all its messages
        is_whole = bool(turns) and turns[-1].role == "therapist"
        note = None if is_whole else self.turn_note(turns)
        return messages if note is None else _with_note(messages, note)

    def turn_note(self, turns: Sequence[Turn]) -> str | None:
        """What the therapist alone is told beside the newest message; None in older prompts."""
        return self.therapist_prompt.fill_note(self._offered(turns))

    def _offered(self, turns: Sequence[Turn]) -> dict[str, str]:
        """What a therapist's prompt may name."""
        number = sum(turn.role == "therapist" for turn in turns) + 1
        is_whole = bool(turns) and turns[-1].role == "therapist"
        keys = ("gender", "age", "occupation", "issue", "severity")
        facts = ", ".join(one for key in keys for one in self.profile.attributes.get(key, ()))
        limits = self.study.turns
        ending = wording()["ending"]["allowed" if self.study.end_token else "never"]
        return {
            "intake": filled(wording()["intake"], name=self.profile.name, facts=facts or "-"),
            "course": self._course("therapist"),
            "message": f"1 to {number - 1}" if is_whole else str(number),
            "most": str(limits.max),
            "last": f"number {limits.max}" if is_whole else _yes(number >= limits.max),
            "format": wording()["format"][self.arm.reasoning],
            "ending": filled(ending, most=limits.max, least=limits.min, token=end_token()),
            "opening": turns[0].text if turns else "",
        }

    def patient_messages(self, turns: Sequence[Turn], event_note: str | None) -> list[Message]:
        """The patient's view; the note of an event ends the last message only."""
        head = self.patient_prompt.render(
            name=self.profile.name,
            narrative=self.profile.narrative,
            manner=self.profile.behaviour,
            course=self._course("patient"),
            opening=wording()["opening"],
        )
        roles = {"patient": "assistant", "therapist": "user"}
        said = [{"role": roles[turn.role], "content": turn.text} for turn in turns]
        messages: list[Message] = [*head, *_newest(said, self.study.patient_sees)]
        if event_note:
            messages = _with_note(messages, filled(wording()["event"], note=event_note))
        return messages

    def _course(self, side: str) -> str:
        texts = wording()["course"]
        if self.study.sessions == 1:
            return str(texts[f"single_{side}"])
        if self.state is None:
            return str(texts[f"{side}_first"])
        if side == "patient":
            return filled(texts["patient_later"], number=self.number, summary=self.state.summary)
        phase = ""
        if self.phase is not None:
            goals = cbt_course().phase_of(self.number).goals
            phase = filled(texts["phase_goals"], phase=self.phase, goals=goals)
        return filled(
            texts["therapist_later"],
            number=self.number,
            phase=phase,
            agenda="; ".join(self.state.agenda) or "-",
            homework="; ".join(self.state.homework) or "none",
            conceptualisation=self.state.conceptualisation,
            summary=self.state.summary,
        )

    def fitting(self, messages: list[Message]) -> list[Message] | None:
        """The therapist's messages within the context budget, with room for the reply.

        None when it does not fit and the study does not drop old exchanges.
        """
        room = self.study.context_tokens - self.arm.therapist.max_tokens
        while tokens_of(messages) > room:
            if self.study.when_full == "stop" or len(messages) <= 4:
                return None
            # the oldest exchange goes; the system message and the newest words stay
            messages = [messages[0], *messages[3:]]
        return messages

    @property
    def prompts(self) -> list[Prompt]:
        """Every prompt file that a session of this kind is made with."""
        study = self.study
        if study.written:
            return [self.shipped_prompt("course_part")]
        names = ["session_supervisor"] if study.supervisor else []
        names += ["session_patient_check"] if study.validator else []
        names += ["session_summary"] if study.summariser and study.sessions > 1 else []
        guard = [self.guard_prompt] if study.guard else []
        return [
            *(self.therapist_prompt, self.patient_prompt),
            *(*map(self.shipped_prompt, names), *guard),
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Everything that shapes this patient's sessions in this arm, as a short hash.

        Left out is what changes no word said: prices, factors, instruments, judges, how often a
        faulty reply is asked again, and how many sessions, repeats, arms and patients there are
        beside these.
        """
        study = self.study.model_dump(
            mode="json",
            exclude={
                *("id", "title", "factor", "arms", "patients", "sessions", "replicates"),
                *("attempts", "instruments", "judges", "pairs", "deviations"),
                "prompt_version",  # the prompts' hashes tell it
            },
        )
        is_course = self.study.sessions > 1
        events = load_events(self.study.events.set) if self.study.events.probability else {}
        players = (self.arm.therapist, self.study.patient)
        texts = dict(wording())
        if not self.study.repairs:  # then nothing is asked that was not asked before there were any
            study.pop("repairs")
            texts.pop("repair")
        if self.study.guard is None:  # likewise
            study.pop("guard")
        parts = {
            "study": study,
            "course": cbt_course().model_dump(mode="json") if is_course else None,
            "arm": self.arm.model_dump(mode="json", exclude={"levels", "training", "observed"}),
            "profile": self.profile.model_dump(mode="json"),
            "prompts": [prompt.sha256 for prompt in self.prompts],
            "events": {key: event.note for key, event in events.items()},
            "adapters": [adapter_mark(player.adapter) for player in players],
            "wording": texts,
            # a session's events are drawn without replacement
            **({"events_drawn": "each once"} if events else {}),
        }
        text = json.dumps(_without_prices(parts), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan_courses(study: StudySettings, profiles: Sequence[Profile]) -> list[SessionView]:
    """The first session of every course, in the order in which sessions are written."""
    return [
        SessionView(study, arm, profile, replicate=replicate)
        for arm in study.arms
        for profile in profiles
        for replicate in range(1, study.replicates + 1)
    ]


@cache
def adapter_mark(folder: Path | None) -> str | None:
    """Hash of an adapter's weights: trained anew in the same folder, it is another player."""
    found = sorted(folder.glob("adapter_model.*")) if folder is not None else []
    return sha256_of(found[0]) if found else None


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _without_prices(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_prices(one) for key, one in value.items() if key not in UNSPOKEN}
    return [_without_prices(one) for one in value] if isinstance(value, list) else value


def _newest(messages: list[dict[str, str]], most: int | None) -> list[dict[str, str]]:
    """The last `most` messages, cut so that the first of them is the patient's own."""
    if most is None or len(messages) <= most:
        return messages
    kept = messages[-most:]
    return kept if kept[0]["role"] == "assistant" else kept[1:]


def tokens_of(messages: Sequence[Message]) -> int:
    """Estimated tokens of a view, by the same count for every arm."""
    return sum(estimate_tokens(message["content"]) + MESSAGE_TOKENS for message in messages)


def turn_content(turn: Turn, form: ReasoningForm, *, ends: bool = False) -> str:
    """A therapist turn as the model writes it: the target of training, and its own history.

    Args:
        ends: whether the end token follows.
    """
    said = f"{turn.text}\n{end_token()}" if ends else turn.text
    if form == "plain":
        return said
    return f"<thinking>\n{turn.reasoning or ''}\n</thinking>\n<answer>\n{said}\n</answer>"


# --- replies -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoken:
    """The spoken words of a reply."""

    text: str
    """Empty only when all that was said is the end token."""
    reasoning: str | None = None
    marks: tuple[TurnMark, ...] = ()
    asks_to_end: bool = False


_END = re.compile(r"</?\s*end_session\s*/?\s*>", re.IGNORECASE)
_THINKING = re.compile(r"<think(?:ing)?>(.*?)</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_OPEN_ANSWER = re.compile(r"<answer>(.*)", re.DOTALL | re.IGNORECASE)
_TAGS = re.compile(r"</?(?:think(?:ing)?|answer)>", re.IGNORECASE)
_LABEL = re.compile(r"^\s*\**(therapist|patient|client|counsell?or)\**\s*:\s*", re.IGNORECASE)
_FOREIGN = {
    "therapist": re.compile(r"\n\s*\**(?:patient|client|user)\**\s*:", re.IGNORECASE),
    "patient": re.compile(r"\n\s*\**(?:therapist|counsell?or|assistant)\**\s*:", re.IGNORECASE),
}
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


def read_therapist(reply: Reply, form: ReasoningForm) -> Spoken | Fault:
    """The spoken words of a therapist's reply, its reasoning apart."""
    text, marks = reply.text, list[TurnMark]()
    reasoning = [reply.reasoning] if reply.reasoning else []
    reasoning += [found.strip() for found in _THINKING.findall(text)]
    asks_to_end = _END.search(text) is not None
    text = _THINKING.sub("", _END.sub("", text))
    answers = _ANSWER.findall(text)
    if answers:
        text = "\n".join(map(str.strip, answers))
    elif opened := _OPEN_ANSWER.search(text):
        text = opened[1]
        marks.append("loose")
    elif form == "cot":
        if not reasoning:
            return Fault(Reason.EMPTY, "no <thinking> and no <answer> block")
        marks.append("loose")
    if _TAGS.search(text):
        return Fault(Reason.EMPTY, "an open <thinking> block and no answer")
    spoken = _spoken(text, "therapist", marks)
    if isinstance(spoken, Fault) and not asks_to_end:
        return spoken
    said, kept = ("", ()) if isinstance(spoken, Fault) else (spoken.text, spoken.marks)
    return Spoken(said, "\n".join(reasoning) or None, kept, asks_to_end)


def read_patient(reply: Reply) -> Spoken | Fault:
    """The spoken words of a patient's reply; a patient cannot end the session."""
    return _spoken(_END.sub("", _THINKING.sub("", reply.text)), "patient", [])


def _spoken(text: str, role: str, marks: list[TurnMark]) -> Spoken | Fault:
    """Words without a speaker's name before them, and without the other side's words after."""
    text = _LABEL.sub("", text.strip())
    if other := _FOREIGN[role].search(text):
        text = text[: other.start()]
        marks.append("cut_at_label")
    text = text.strip()
    if not text:
        return Fault(Reason.EMPTY, "no spoken words")
    return fault_of_words(text) or Spoken(text, marks=tuple(marks))


def fault_of_words(text: str, private: Sequence[str] = ()) -> Fault | None:
    """Why words can be nobody's turn: machine text, or a note that only their speaker was given.

    This is the one door into a session: what does not pass here is not said.
    """
    if found := find_machine_text(text):
        return Fault(Reason(found.kind), f"the reply holds {found.found!r}")
    if is_data(text):
        return Fault(Reason.MARKUP, "the reply is an object of a program, no words")
    if repeats_note(text, private):
        return Fault(Reason.PROMPT_LEAK, "the reply repeats a note that was no part of the session")
    return None


def whole_sentences(text: str) -> str:
    """A cut text up to its last whole sentence; as it is when it holds none."""
    ends = list(_SENTENCE_END.finditer(text))
    return text[: ends[-1].end()] if ends else text


def with_complaint(messages: Sequence[Message], said: str, complaint: str) -> list[Message]:
    """The messages with a rejected draft and the reason, for the next try of this player alone."""
    if not said:
        return _with_note(messages, complaint)
    draft = {"role": "assistant", "content": said}
    return [*messages, draft, {"role": "user", "content": complaint}]


def _with_note(messages: Sequence[Message], note: str) -> list[Message]:
    last = messages[-1]
    return [*messages[:-1], {"role": last["role"], "content": f"{last['content']}\n\n{note}"}]


def object_schema(**fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with just these fields."""
    shape: dict[str, Any] = {"type": "object", "properties": fields, "required": list(fields)}
    return shape | {"additionalProperties": False}


Part = Literal[
    "therapist", "patient", "supervisor", "validator", "guard", "summariser", "course_part"
]


@dataclass(frozen=True)
class TurnContext:
    """Where in a session a player is asked: what the built-in rules answer from."""

    part: Part
    view: SessionView
    turns: tuple[Turn, ...]
    seed: int
    """Of this very question, without the arm."""
    turn: int = 1
    """Counts the turns of this role, from 1; the part of a written session, from 1."""
    event: str | None = None
    draft: str = ""
    """What a supervisor or validator is to judge."""
    revision: int = 0
    """How often this turn was rejected before."""

    @property
    def key(self) -> str:
        """Key of the question in the journal."""
        return self.view.key(f"{self.part}{self.turn}", self.revision)
