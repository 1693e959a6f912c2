"""Files of questions and of answers through screen and checks, with a model's opinion beside them.

    check_file(CheckSettings(answers=path, guard_endpoint="vllm", guard_model="m", out=out))
    screen_texts(ScreenSettings(file=path, out=out, ...))

`AnswerCheck` is the same for answers that another verb holds, such as those of `generate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

from pydantic import Field

from cbtqa.dataset_folder import is_text, text_rows
from cbtqa.errors import DataError, UsageError
from cbtqa.files import json_line
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.chat import Fault
from cbtqa.llm.cost import Estimate, sum_estimates
from cbtqa.llm.limits import RateSettings
from cbtqa.llm.runs import AccessSettings, Run, SpendingSettings
from cbtqa.llm.second_opinion import (
    Exchange,
    GuardSettings,
    OpenOpinions,
    OpinionCounts,
    Opinions,
    ScreenEndpointSettings,
    changes,
    opinions_of,
    worse_of,
)
from cbtqa.paths import refuse_existing, replacing
from cbtqa.records import Record, Risk
from cbtqa.safety.answers import Problem, check_in_both, is_at_stake
from cbtqa.safety.encoder import ScreenEncoder, open_encoder
from cbtqa.safety.screen import Screening, ScreenLanguage, screen_each, worse_of_two
from cbtqa.safety.settings import ScreenModelSettings
from cbtqa.safety.survey import ScreenSurvey, TextRow, read_texts, screen_rows
from cbtqa.settings import Settings


class AskingSettings(SpendingSettings, RateSettings, AccessSettings):
    """How the further models of a file are asked."""


# --- questions -----------------------------------------------------------------------------------


class ScreenFileSettings(Settings):
    """What is screened, and where the grades go."""

    panel: ClassVar[str] = ""
    file: Path
    """JSONL, JSON array, CSV, TSV, Parquet or a folder of it; .txt or - (a text a line); or one
    text itself."""
    column: tuple[str, ...] = ()
    """Text column; repeat to join several. Default: the usual ones."""
    language: ScreenLanguage = "auto"
    """Whose rules read the texts; auto: both."""
    encoding: str = "utf-8"
    """Of a text file, such as gb18030."""
    out: Path | None = None
    """JSONL with grade and hits of every item. A --screen-endpoint needs it: the replies are kept
    beside it."""
    overwrite: bool = False
    """Replace the file of --out."""
    explain: int = 0
    """Show so many flagged items with their spans coloured."""


class ScreenSettings(
    ScreenFileSettings, ScreenModelSettings, ScreenEndpointSettings, AskingSettings
):
    """The settings of `cbtqa safety screen`."""


class ScreenedFile(ScreenSurvey):
    """What a screened file holds, with what a further model said of it."""

    second_opinion: dict[str, Any] | None = None
    """None where no model was asked."""
    screen_model: str | None = None
    """Name and hash of the encoder that read the texts as well; None without one."""


def screen_texts(settings: ScreenSettings, on_progress: OnProgress | None = None) -> ScreenedFile:
    """Grades every text of a file; where a model is asked, the worse grade counts.

    Raises:
        DataError: no rows, no column with text, no text at all.
        UsageError: an endpoint without `out`; `out` exists already, without `overwrite`.
        LicenceGateError: texts would go to a non-local endpoint without acknowledgement.
        EndpointError, IncompleteRunError: the asking stopped early; the same call continues.
    """
    opinions = _opinions(settings, settings.out)
    if settings.out is not None:
        refuse_existing(settings.out, overwrite=settings.overwrite or bool(settings.retry))
    rows: Iterable[TextRow] = read_texts(settings.file, settings.column, settings.encoding)
    by: dict[str, Any] = {"out": settings.out}
    is_one = is_text(settings.file)
    by["max_shown"] = max(settings.explain, int(is_one))
    by["overwrite"] = settings.overwrite or bool(settings.retry)
    model = open_encoder(settings.screen_model)
    named = {"screen_model": model.described if model else None}
    if opinions.screen is None:
        found = screen_rows(_graded(rows, settings, model), **by)
        return ScreenedFile(**dict(found), **named)
    rows = list(rows)  # a bad line shows before paying, and standard input is read but once
    counts = OpinionCounts(opinions.screen)
    with opinions.open("the texts") as opened:
        asked = opened.screen
        assert asked is not None
        own = list(_graded(rows, settings, model))
        items = [_exchange(row) for row, mine in own if _is_asked_about(row, mine)]
        asked.ask(items, n_total=len(items), on_progress=on_progress)

        def grade(row: TextRow, mine: Screening) -> Screening:
            if not _is_asked_about(row, mine):
                return mine
            verdict = asked.verdict(_exchange(row))
            worse = worse_of(mine, verdict)
            counts.add(verdict, changes(mine, worse))
            return worse

        found = screen_rows(((row, grade(row, mine)) for row, mine in own), **by)
        described = counts.described(asked.run)
        return ScreenedFile(**dict(found), second_opinion=described, **named)


def _graded(
    rows: Iterable[TextRow], settings: ScreenSettings, model: ScreenEncoder | None
) -> Iterator[tuple[TextRow, Screening]]:
    """Every row with the grades of screen and encoder."""
    return screen_each(rows, attrgetter("text"), settings.language, model)


def _is_asked_about(row: TextRow, own: Screening) -> bool:
    return not row.is_empty and own.risk != "explicit"  # nothing is worse


def estimate_screen(settings: ScreenSettings) -> Estimate:
    """What would still be sent; nothing without an endpoint."""
    opinions = _opinions(settings, settings.out)
    rows = list(read_texts(settings.file, settings.column, settings.encoding))
    if opinions.screen is None:
        return Estimate(items="texts", n_items=len(rows))
    own = _graded(rows, settings, open_encoder(settings.screen_model))
    items = [_exchange(row) for row, mine in own if _is_asked_about(row, mine)]
    found = opinions.screen.estimate(items, "texts")
    return found.model_copy(update={"items": "texts", "n_items": len(rows)})


def _exchange(row: TextRow) -> Exchange:
    return Exchange(row.id, row.text)


def _opinions(settings: Settings, out: Path | None) -> Opinions:
    """The models of a verb that writes one file, with journals named after it."""
    place = out or Path("checked.jsonl")
    opinions = opinions_of(settings, place.parent, f"{place.stem}.")
    if opinions.services and out is None:
        raise UsageError("what further models answer is kept: name a file with --out")
    return opinions


# --- answers -------------------------------------------------------------------------------------


class CheckFileSettings(Settings):
    """What is checked, and where the problems go."""

    panel: ClassVar[str] = ""
    answers: Path
    """JSONL, JSON, CSV, TSV, Parquet or a dataset folder; columns `answer_text`, `answer` or
    `text`, and `question` (with `description`) or `risk`. Or one answer itself."""
    out: Path | None = None
    """JSONL with the problems of every answer; the text is not repeated. A --guard-endpoint or
    --screen-endpoint needs it: the replies are kept beside it."""
    overwrite: bool = False
    """Replace the file of --out."""
    encoding: str = "utf-8"
    """Of a text file, such as gb18030."""


class CheckSettings(
    CheckFileSettings, ScreenModelSettings, ScreenEndpointSettings, GuardSettings, AskingSettings
):
    """The settings of `cbtqa safety check`."""


class AnswerSurvey(Record):
    """What is unsafe in a file of answers."""

    n_answers: int
    n_unsafe: int
    """Answers with a problem, whoever found it."""
    n_unsafe_by_checks: int
    n_unsafe_by_guard: int | None
    """None without a guard."""
    n_by_problem: dict[str, int]
    """Answers by problem, as rules and trained model find them; most frequent first."""
    n_by_problem_of_guard: dict[str, int]
    n_unread: int
    """Answers of which the guard gave no verdict; the checks alone decide."""
    unread: dict[str, int]
    """The same by reason."""
    guard: str | None
    second_opinion: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What each further model was asked, by role; empty where none was."""


class CheckedExchange(NamedTuple):
    """An answer to be checked."""

    exchange: Exchange
    where: str
    grades: Screening
    """Of the question."""


def with_grades(
    answers: Iterable[CheckedExchange], screen_model: str | None
) -> Iterator[CheckedExchange]:
    """The answers with all grades of their questions, at least those that are known already."""
    model, text_of = open_encoder(screen_model), attrgetter("exchange.question")
    for one, own in screen_each(answers, text_of, model=model):
        yield one._replace(grades=worse_of_two(own, one.grades))


def check_file(settings: CheckSettings, on_progress: OnProgress | None = None) -> AnswerSurvey:
    """Checks every answer of a file, with further models where they are named.

    Raises:
        DataError: no rows, no column with answers, an empty answer.
        UsageError: a guard without `out`; `out` exists already, without `overwrite`.
        LicenceGateError: texts would go to a non-local endpoint without acknowledgement.
        EndpointError, IncompleteRunError: the asking stopped early; the same call continues.
    """
    opinions = _opinions(settings, settings.out)
    if settings.out is not None:
        refuse_existing(settings.out, overwrite=settings.overwrite or bool(settings.retry))
    answers: Iterable[CheckedExchange] = _read_answers(settings)
    if opinions.services:
        answers = list(answers)  # a bad line shows before paying
    with opinions.open("the answers") as opened:
        survey = AnswerCheck(answers, opened, settings.screen_model)
        survey.ask(on_progress=on_progress)
        return survey.write(settings.out)


def estimate_check(settings: CheckSettings) -> Estimate:
    """What would still be sent to the further models; nothing without one."""
    answers = list(_read_answers(settings))
    return estimate_answers_check(answers, _opinions(settings, settings.out))


def estimate_answers_check(answers: Sequence[CheckedExchange], opinions: Opinions) -> Estimate:
    """What checking these answers would still send."""
    named = {"screen": "questions", "guard": "answers"}
    parts = [one.estimate(_asked(answers, one.role), named[one.role]) for one in opinions.each]
    return sum_estimates("answers", len(answers), 0, parts)


def _asked(answers: Iterable[CheckedExchange], role: str) -> Iterator[Exchange]:
    """What a further model is asked about: every answer, or every question not explicit already."""
    for one in answers:
        if role == "guard":
            yield one.exchange
        elif one.exchange.question.strip() and one.grades.risk != "explicit":
            yield _question_of(one)


def _question_of(one: CheckedExchange) -> Exchange:
    return one.exchange._replace(answer="")


class AnswerCheck:
    """Answers through the built-in checks and the opinions that are open."""

    def __init__(
        self, answers: Iterable[CheckedExchange], opened: OpenOpinions, screen_model: str | None
    ) -> None:
        self._answers, self._opened = answers, opened
        self._model = open_encoder(screen_model)
        self._n: Counter[str] = Counter()
        self._own: Counter[str] = Counter()
        self._guards: Counter[str] = Counter()
        self._counts = {one.by.role: OpinionCounts(one.by) for one in opened.each}

    def ask(self, *, beside: Sequence[Run] = (), on_progress: OnProgress | None = None) -> None:
        """Has the further models asked what their journals do not hold; see `Run.ask`."""
        for one in self._opened.each:
            items = list(_asked(self._answers, one.by.role))
            others = [*beside, *(other.run for other in self._opened.each if other is not one)]
            one.ask(items, n_total=len(items), beside=others, on_progress=on_progress)

    def write(self, out: Path | None) -> AnswerSurvey:
        """Checks every answer and writes a line for each; gives the counts."""
        if out is None:
            for _ in self.lines():
                pass
        else:
            with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.writelines(map(json_line, self.lines()))
        return self.survey()

    def lines(self) -> Iterator[dict[str, Any]]:
        """Id, grade of the question and problems of every answer, without its text."""
        for answer in self._answers:
            item, grades = answer.exchange, self._grades_of(answer)
            at_stake = is_at_stake(item.question, grades.route)
            own = check_in_both(item.answer, grades.route, at_stake=at_stake, model=self._model)
            line: dict[str, Any] = {"id": item.id, "where": answer.where, "risk": grades.risk}
            line["dangers"] = [danger.kind for danger in grades.dangers]
            line["problems"] = [{**asdict(problem), "by": "checks"} for problem in own]
            guards: Sequence[Problem] = ()
            if self._opened.guard is not None:
                verdict = self._opened.guard.verdict(item)
                names = () if isinstance(verdict, Fault) else [one.rule for one in verdict]
                self._counts["guard"].add(verdict, names)
                if isinstance(verdict, Fault):
                    line["guard_fault"] = verdict.reason.value
                else:
                    guards = verdict
                    line["problems"] += [{**asdict(one), "by": "guard"} for one in guards]
            self._count(own, guards)
            yield line

    def _grades_of(self, answer: CheckedExchange) -> Screening:
        """The worse grades of the question."""
        asked, item, own = self._opened.screen, _question_of(answer), answer.grades
        if asked is None or own.risk == "explicit" or not item.question.strip():
            return own
        verdict = asked.verdict(item)
        worse = worse_of(own, verdict)
        self._counts["screen"].add(verdict, changes(own, worse))
        return worse

    def _count(self, own: Sequence[Problem], guards: Sequence[Problem]) -> None:
        found = {"unsafe_by_checks": own, "unsafe_by_guard": guards, "unsafe": own or guards}
        self._n.update(name for name, problems in found.items() if problems)
        self._n["answers"] += 1
        self._own.update({problem.rule for problem in own})
        self._guards.update({problem.rule for problem in guards})

    def survey(self) -> AnswerSurvey:
        guard = self._opened.guard
        unread = self._counts["guard"].unread if guard else Counter[str]()
        return AnswerSurvey(
            n_answers=self._n["answers"],
            n_unsafe=self._n["unsafe"],
            n_unsafe_by_checks=self._n["unsafe_by_checks"],
            n_unsafe_by_guard=self._n["unsafe_by_guard"] if guard else None,
            n_by_problem=dict(self._own.most_common()),
            n_by_problem_of_guard=dict(self._guards.most_common()),
            n_unread=unread.total(),
            unread=dict(unread.most_common()),
            guard=guard.by.service.model if guard else None,
            second_opinion={
                one.by.role: self._counts[one.by.role].described(one.run)
                for one in self._opened.each
            },
        )


_ANSWERS = ("answer_text", "answer", "text")
_IDS = ("id", "question_id", "questionID")


def _read_answers(settings: CheckSettings) -> Iterator[CheckedExchange]:
    """Every answer with the grades of its question, at least the one that its row says."""
    return with_grades(_read_rows(settings), settings.screen_model)


def _read_rows(settings: CheckSettings) -> Iterator[CheckedExchange]:
    """Every answer with the grade that its row says of the question."""
    where = None
    for where, row in text_rows(settings.answers, settings.encoding):
        column = next((name for name in _ANSWERS if name in row), None)
        if column is None:
            hint = f"expected one of {', '.join(_ANSWERS)}"
            raise DataError(f"no column with answers among {sorted(row)}", where=where, hint=hint)
        answer = row[column]
        if not isinstance(answer, str) or not answer.strip():
            raise DataError("no answer in this row", where=f"{where}:{column}")
        parts = (str(row.get(name) or "").strip() for name in ("question", "description"))
        question = "\n".join(filter(None, parts))
        found = next((str(row[name]) for name in _IDS if row.get(name) is not None), where)
        given = next((grade for grade in get_args(Risk) if grade == row.get("risk")), None)
        known = Screening(given or "none", ())
        yield CheckedExchange(Exchange(found, question, answer), where, known)
    if where is None:
        raise DataError("the file holds no rows", where=str(settings.answers))
