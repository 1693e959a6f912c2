"""The frozen types that reach disk, and their invariants; text offsets are in code points."""

from __future__ import annotations

import json
from enum import StrEnum
from html import escape
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, model_validator

NonEmptyText = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Risk = Literal["none", "concern", "explicit"]
"""How strongly a text speaks of suicide or self-harm, as graded by `cbtqa.safety`."""

Danger = Literal[
    "violence",
    "sexual_abuse",
    "psychosis",
    "mania",
    "eating",
    "perinatal",
    "harm_to_others",
    "minor_at_risk",
]
"""A danger beside suicide and self-harm, which are a question's `Risk`."""

STEP_NAMES = (
    "validation_and_empathy",
    "key_thought",
    "challenge_or_reflection",
    "strategy_or_insight",
    "encouragement_and_foresight",
)
"""The five steps in the order of arXiv 2403.16008."""
_N_SHOWN = 20


class Tabular:
    """Base of results: as a dictionary, a data frame, or a table in a notebook."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The result in plain values, as JSON can hold them."""
        return dict(TypeAdapter(type(self)).dump_python(self, mode="json"))

    def to_rows(self) -> list[dict[str, Any]]:
        """The result's first list of records, or else the result itself as one row."""
        whole = self.to_dict()
        lists = [value for value in whole.values() if isinstance(value, list) and value]
        return next((rows for rows in lists if isinstance(rows[0], dict)), [whole])

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`."""
        import pandas

        return pandas.DataFrame(self.to_rows())

    def _repr_html_(self) -> str:
        rows = self.to_rows()
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines = ["".join(f"<th>{escape(name)}</th>" for name in names)]
        lines += [
            "".join(f"<td>{escape(_cell(row.get(name)))}</td>" for name in names)
            for row in rows[:_N_SHOWN]
        ]
        more = f", {_N_SHOWN} of {len(rows):,} rows" if len(rows) > _N_SHOWN else ""
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table><caption>{type(self).__name__}{more}</caption>{body}</table>"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:119]}…"


class Record(Tabular, BaseModel):
    """Base of all records: frozen, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Question(Record):
    """One question of a help seeker, in PsyQA's terms."""

    id: NonEmptyText
    """Unique within a run; PsyQA's `questionID` as text."""
    question: NonEmptyText
    """The title (PsyQA: 13-25 characters)."""
    description: str = ""
    """The longer account (PsyQA: 22-400 characters); may be empty."""
    keywords: tuple[str, ...] = ()
    """Topic tags, broad to narrow."""

    @property
    def source_text(self) -> str:
        """Title and description joined by a newline: what evidence is quoted from."""
        return f"{self.question}\n{self.description}" if self.description else self.question


class StrategySpan(Record):
    """A stretch of a human answer labelled with a support strategy."""

    start: int = Field(ge=0)
    end: int = Field(gt=0)
    type: NonEmptyText
    """PsyQA's strategy name, such as `Direct Guidance`."""


class ReferenceAnswer(Record):
    """A human answer of PsyQA."""

    question_id: NonEmptyText
    text: NonEmptyText
    strategies: tuple[StrategySpan, ...] = ()
    """Empty when the answer is not labelled."""

    @model_validator(mode="after")
    def _spans_are_ordered_and_inside(self) -> Self:
        position, n = 0, len(self.text)
        for span in self.strategies:
            if not position <= span.start < span.end <= n:
                place = f"strategy span {span.start}-{span.end} is out of order or out of range"
                raise ValueError(f"{place} for a text of {n} characters")
            position = span.end
        return self


class CbtSteps(Record):
    """The five steps of one answer. Source: arXiv 2403.16008."""

    validation_and_empathy: NonEmptyText
    key_thought: NonEmptyText
    challenge_or_reflection: NonEmptyText
    strategy_or_insight: NonEmptyText
    encouragement_and_foresight: NonEmptyText

    def joined(self) -> str:
        """The answer as one text: the five steps in order, a blank line between them."""
        return "\n\n".join(getattr(self, name) for name in STEP_NAMES)


def reads_question_only(labeller: str) -> bool:
    """True for a `DistortionLabel.labeller` whose labels no answer can change."""
    return labeller == "patterns" or labeller.startswith(("trained:", "llm:"))


class DistortionLabel(Record):
    """One cognitive distortion found in a question."""

    id: NonEmptyText
    """An id of the taxonomy in use, such as `mind_reading`."""
    evidence: str | None = None
    """Verbatim span of the question or description; None when the labeller names none."""
    labeller: NonEmptyText
    """Who assigned it: `patterns`, `trained:<name>`, `llm:<model>`, `answer`, `vote`, a person."""
    confidence: float | None = Field(default=None, ge=0, le=1)
    """0 to 1, or None when the labeller gives none."""


class Usage(Record):
    """Tokens that one or several replies cost, as the endpoint counted them."""

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)

    @property
    def n_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class Provenance(Record):
    """Where a generated text comes from. Never holds a key or a full URL."""

    model: NonEmptyText
    """Model name as sent to the endpoint, or `template`."""
    endpoint_host: str | None = None
    """Host name only; None when nothing was sent anywhere."""
    prompt_id: str | None = None
    prompt_sha256: str | None = None
    sampling: dict[str, float | int | str] = Field(default_factory=dict)
    seed: int | None = None
    usage: Usage | None = None
    finish_reason: str | None = None
    is_training_source: bool = True
    """False for the rule-based template system, whose text should not train models."""
    version: NonEmptyText
    """Version of cbtqa."""
    created_at: str | None = None
    """UTC, ISO 8601; None when the text does not depend on when it was made."""


class CbtAnswer(Record):
    """One answer in CBT structure: made by a teacher, or predicted by a tuned model."""

    question_id: NonEmptyText
    system: NonEmptyText
    """Short name of what wrote it, as in score tables."""
    text: NonEmptyText
    steps: CbtSteps | None = None
    """None when the system writes one flowing text without step boundaries."""
    distortions: tuple[DistortionLabel, ...] = ()
    risk: Risk = "none"
    """Risk graded on the question, not on the answer."""
    dangers: tuple[Danger, ...] = ()
    """Other dangers found in the question, the likeliest first."""
    is_acute: bool = False
    """Whether one of these dangers is acute."""
    is_minor: bool = False
    """Whether the asker says to be under 18."""
    provenance: Provenance

    @model_validator(mode="after")
    def _steps_rebuild_the_text(self) -> Self:
        # written before version 0.2 of the datasets, steps follow each other without a blank line
        if self.steps is not None and "".join(self.text.split("\n\n")) != "".join(
            self.steps.joined().split("\n\n")
        ):
            raise ValueError("the five steps, joined in order, are not the text")
        return self


class Reason(StrEnum):
    """Why an item was rejected."""

    BAD_ROW = "bad_row"
    """The input row does not fit the schema."""
    WRONG_DECODING = "wrong_decoding"
    """The input text was decoded in a wrong encoding and cannot be Chinese."""
    SOURCE_MISSING = "source_missing"
    """The file of questions does not hold this entry's question."""
    SOURCE_DIFFERS = "source_differs"
    """The question in the file reads differently from the one that was answered."""
    DUPLICATE_ID = "duplicate_id"
    """Another row of the input has the same id."""
    DUPLICATE_QUESTION = "duplicate_question"
    """Another row holds the same question and description."""
    CRISIS_DROPPED = "crisis_dropped"
    """Crisis items were dropped by setting."""
    REFUSAL = "refusal"
    """The model declined to answer."""
    CONTENT_FILTER = "content_filter"
    """The provider's filter blocked the request or the reply."""
    BAD_REQUEST = "bad_request"
    """The endpoint rejected this request for good, for another cause."""
    EMPTY = "empty"
    """The reply holds no text."""
    CUT = "cut"
    """The reply ended at the token limit, or in any other way that is no whole answer."""
    NOT_JSON = "not_json"
    """The reply holds no JSON object, or a damaged one."""
    MISSING_STEP = "missing_step"
    """A step is missing or empty."""
    STEP_TOO_SHORT = "step_too_short"
    STEP_TOO_LONG = "step_too_long"
    WRONG_LANGUAGE = "wrong_language"
    """The text is in another language than requested."""
    HEADINGS = "headings"
    """The text holds headings, numbering or step names."""
    STYLE = "style"
    """Emoji, another form of address, enumerating words or too many questions."""
    PROMPT_LEAK = "prompt_leak"
    """The text holds parts of the instruction."""
    ECHO = "echo"
    """The reply repeats the form that the instruction shows, not filled in."""
    CONTROL_TOKENS = "control_tokens"
    """The text spells out control tokens of a model's chat format."""
    OTHER_SPEAKER = "other_speaker"
    """The text goes on with a turn of the other side, or labels its own."""
    REASONING = "reasoning"
    """The text holds the model's own thinking about its task."""
    REPETITION = "repetition"
    """The text repeats itself: a loop, or the same step twice."""
    COPIED_QUESTION = "copied_question"
    """The text is the question's own words."""
    PLACEHOLDER = "placeholder"
    """The text holds blanks to be filled in, or leaves something out in brackets."""
    MARKUP = "markup"
    """The text holds HTML, Markdown, code or JSON."""
    BROKEN_TEXT = "broken_text"
    """Characters were lost or read in a wrong encoding."""
    WRONG_SCRIPT = "wrong_script"
    """Traditional characters where simplified ones were asked for."""
    BAD_LABEL = "bad_label"
    """A distortion outside the taxonomy, or labels against the prompt's rules for them."""
    EVIDENCE_NOT_FOUND = "evidence_not_found"
    """Quoted evidence is not in the text it should come from."""
    BAD_RATING = "bad_rating"
    """A rating is missing or outside its scale."""
    UNSAFE = "unsafe"
    """Advice against safety, or no help route on a crisis item."""
    DUPLICATE_ANSWER = "duplicate_answer"
    """The same answer was given to another question."""
    PERSONAL_DATA = "personal_data"
    """The answer holds a phone number, an account or an address."""
    OUT_OF_BUDGET = "out_of_budget"
    """The budget ended before this item."""
    ENDPOINT = "endpoint"
    """The endpoint failed on this item until the retries were used up."""


class Rejection(Record):
    """One item that did not become a record, and why."""

    item_id: str
    """Id of the item, or `row N` when it has none."""
    stage: Literal["input", "screen", "generate", "check", "label", "score", "collect"]
    reason: Reason
    detail: str = ""
    """What was found and what was expected, for a person."""
    where: str | None = None
    """`file:line:field` for rows of a file."""
    raw: str | None = None
    """The model's text or the input row, whole."""


class MetricScore(Record):
    """One number with its interval and settings."""

    metric: NonEmptyText
    system: NonEmptyText
    value: float | None
    """None when nothing could be scored; never 0 or NaN in its place."""
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    unit: NonEmptyText
    """The scale, such as `0-100` or `0-1`."""
    n_scored: int = Field(ge=0)
    n_total: int = Field(ge=0)
    signature: NonEmptyText
    """Every setting able to change the value, `key:value` joined by `|`."""
    unscored_reason: str | None = None
    interval_reason: str | None = None
    """Why a value that could have an interval has none."""
    n_left_out: int = Field(default=0, ge=0)
    """Resamples in which the metric is undefined, left out of the interval."""

    @model_validator(mode="after")
    def _counts_and_value_agree(self) -> Self:
        if self.n_scored > self.n_total:
            raise ValueError(f"n_scored {self.n_scored} is above n_total {self.n_total}")
        if self.value is None and not self.unscored_reason:
            raise ValueError("a missing value needs a reason")
        return self


TurnMark = Literal[
    "end_too_early",
    "not_accepted",
    "unsupervised",
    "unguarded",
    "cut",
    "cut_at_label",
    "loose",
    "repeated",
    "farewell_loop",
    "wrong_speaker",
    "narration",
    "note_to_model",
    "machine_text",
    "risk",
    "speaker_name",
    "markup",
    "wrong_language",
    "early_farewell",
    "next_session",
    "danger_unanswered",
    "unsafe_advice",
    "diagnosis",
    "promised_cure",
    "private_life",
]
"""How a turn came about: the end was asked before the minimum of turns; the supervisor never
accepted it; the supervisor gave no verdict; the guard gave none; it was cut; it went on to speak
for the other side and was cut there; its tags were incomplete but its answer plain.

What it says (`cbtqa.simulation.marks`): what was said before; leave-taking after the leave-taking;
the other side's words; what bodies do; something about the task instead of to the other person;
control tokens, reasoning or invented turns; a speaker's name in front; lists, headings or bold
letters; another language than the session's; leave-taking long before the end; a next session
where there is none.

What a therapist does that harms: danger left without a question or a way to help; advice against
safety; a diagnosis; a promised cure; a body, licence or life of its own.

What a further model says (`cbtqa.simulation.playing.opinions`): the patient speaks of danger."""


class Turn(Record):
    """One utterance of a therapy session."""

    role: Literal["therapist", "patient"]
    text: NonEmptyText
    """Without the reasoning."""
    reasoning: str | None = None
    """The model's thinking before it; never shown to patient, judge or rater."""
    event: str | None = None
    """Id of the note given to the patient before this turn, such as `bad_message`."""
    marks: tuple[TurnMark, ...] = ()
    complaint: str | None = None
    """The supervisor's last objection to a turn that it did not accept."""
    n_revisions: int = Field(default=0, ge=0)


StopReason = Literal[
    "ended", "max_turns", "context", "no_answer", "refused", "endpoint", "written", "imported"
]
"""The end token, the maximum of turns, the context budget, a reply without an answer, a refusal
or a provider's filter, the endpoint's failure; written whole by one model; or read from a file."""


class SessionState(Record):
    """What one session of a course passes to the next."""

    agenda: tuple[NonEmptyText, ...]
    """Plan for the next session."""
    homework: tuple[NonEmptyText, ...]
    """Set in this session, to be reviewed in the next; empty when none was set."""
    conceptualisation: NonEmptyText
    """How the patient's difficulties are understood so far."""
    mood: int | None = Field(default=None, ge=0, le=10)
    """The patient's own rating at the end, 0 (worst) to 10; None when it was not asked."""
    summary: NonEmptyText


class Session(Record):
    """One multi-turn session between a therapist and a patient.

    Roles alternate in every session that cbtqa makes; transcripts read from elsewhere need not,
    and `cbtqa simulate lint` says where they don't.
    """

    id: NonEmptyText
    """Unique within a study."""
    arm: NonEmptyText
    """Short name of the system that played the therapist."""
    profile_id: NonEmptyText
    """The patient; the grouping unit of all statistics."""
    number: int = Field(default=1, ge=1)
    """Place in a course of sessions, from 1."""
    replicate: int = Field(default=1, ge=1)
    """Repeat of the same arm and patient with another seed, from 1."""
    phase: str | None = None
    """Phase of the course, such as `assessment`; None outside a course."""
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    stop_detail: str = ""
    """For a person: the endpoint's message, the tokens counted."""
    seed: int | None = None
    """Seed shared by all arms for this patient, number and replicate."""
    state: SessionState | None = None
    """None outside a course."""
    provenance: Provenance
    """Of the therapist."""
    patient_provenance: Provenance | None = None

    @property
    def n_therapist_turns(self) -> int:
        """Turns of the therapist."""
        return sum(turn.role == "therapist" for turn in self.turns)


class ItemRating(Record):
    """One item of one instrument, given to one session by one judge in one repeat."""

    session_id: NonEmptyText
    instrument: NonEmptyText
    """Id of the instrument, such as `ctrs` or `act-fm`."""
    item: NonEmptyText
    value: int | None
    """None when the item could not be scored; never 0, 1 or the middle in its place."""
    unscored_reason: str | None = None
    evidence: str | None = None
    """Verbatim span of the transcript; None when the judge named none."""
    judge: NonEmptyText
    """Model name or blinded rater id."""
    repeat: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _either_value_or_reason(self) -> Self:
        if (self.value is None) != bool(self.unscored_reason):
            raise ValueError("an item has either a value or a reason why it has none")
        return self
