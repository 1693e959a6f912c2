"""The page of `cbtqa judge`: `report` computes, `cbtqa.report` draws, this joins them.

judge_page(report, rubric, answers, ratings, "zh")      # one self-contained HTML document
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cbtqa.judging.agreement import middle_of
from cbtqa.judging.answers import Answers, JudgeRating
from cbtqa.judging.report import JudgeReport, agreement_table, difference_table, score_table
from cbtqa.metrics.base import maker
from cbtqa.metrics.page import Side
from cbtqa.ratings.rubric import Criterion, Rubric
from cbtqa.records import Question
from cbtqa.report.charts import Interval, Levels, interval_chart, stacked_bars
from cbtqa.report.page import Head, Lang, Phrase, load_wording, render_page
from cbtqa.report.svg import SERIES
from cbtqa.report.words import count, estimate, number
from cbtqa.safety.notices import help_text

N_WORST, N_BEST, N_DIFFERENT = 5, 3, 5
"""Answers of each system shown with the judge's reasons; questions shown side by side."""


def judge_page(
    report: JudgeReport,
    rubric: Rubric,
    answers: Answers,
    ratings: Sequence[JudgeRating],
    lang: Lang = "zh",
) -> str:
    """The report as HTML; texts of questions, answers and judge are escaped."""
    words = load_wording("cbtqa.judging", "page.yaml")
    lede = words["lede"].fill(
        judge=report.judge_name,
        rubric=report.rubric,
        n_systems=len(report.answers),
        n_questions=count(len(answers.questions)),
        n_answers=count(sum(one.n_answered for one in report.answers)),
        n_repeats=report.n_repeats,
    )
    kind = "rules." if report.is_by_rules else ""
    made_by = words["footer"].fill(by=maker())
    footer = Phrase(
        zh=f"{made_by.zh} {help_text('zh', 'page')}", en=f"{made_by.en} {help_text('en', 'page')}"
    )
    return render_page(
        "cbtqa.judging",
        "judge.html.j2",
        Head(words[f"{kind}title"], words[f"{kind}kicker"], lede, footer, lang),
        words=words,
        report=report,
        parts=_Parts(report, rubric, answers, ratings, words, lang),
    )


@dataclass(frozen=True)
class _Example:
    """One answer with what the judge says of it."""

    question: Question
    text: str
    verdicts: Sequence[tuple[Phrase, str, str, str]]
    """Criterion, mean rating, reason and evidence."""


class _Parts:
    """Tables, charts and examples of one report."""

    def __init__(
        self,
        report: JudgeReport,
        rubric: Rubric,
        answers: Answers,
        ratings: Sequence[JudgeRating],
        words: dict[str, Phrase],
        lang: Lang,
    ) -> None:
        self._report, self._criteria, self._answers = report, rubric.scales, answers
        self._words, self._lang = words, lang
        self._ratings: dict[tuple[str, str], dict[str, list[JudgeRating]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for one in ratings:
            self._ratings[one.system, one.question_id][one.criterion].append(one)
        names = {one.id: _both(one.name) for one in self._criteria}
        self.scores = score_table(report, names)
        self.differences = difference_table(report, names)
        self.agreement = agreement_table(report, names)

    def facts(self) -> list[tuple[str, Phrase]]:
        found, words = self._report.answers, self._words
        return [
            (count(sum(one.n_answered for one in found)), words["facts.answers"]),
            (count(len(self._answers.questions)), words["facts.questions"]),
            (count(sum(one.n_without_text for one in found)), words["facts.unanswered"]),
            (count(len(self._report.alarms)), words["facts.alarms"]),
        ]

    def alarms(self) -> list[Phrase]:
        both = zip(self._report.alarms_zh, self._report.alarms, strict=True)
        return [Phrase(zh=zh, en=en) for zh, en in both]

    def score_charts(self) -> Iterator[tuple[Markup, Phrase]]:
        """Means with intervals, and how often each point was given, criterion by criterion."""
        for criterion in self._criteria:
            name = criterion.name
            yield self._means(criterion), self._words["scores.means"].fill(name=_both(name))
            if len(criterion.points) <= len(SERIES):
                yield self._points(criterion), self._words["scores.points"].fill(name=_both(name))

    def _means(self, criterion: Criterion) -> Markup:
        corrected = {
            one.system: one.corrected
            for one in self._report.corrections
            if one.criterion == criterion.id and one.corrected
        }
        missing = self._words["scores.none"].first(self._lang)
        rows = []
        for one in self._report.scores:
            if one.metric != f"judge_{criterion.id}":
                continue
            rows.append(Interval(one.system, one.value, one.low, one.high, missing))
            if held := corrected.get(one.system):
                label = f"{one.system} · {self._words['scores.corrected'].first(self._lang)}"
                rows.append(Interval(label, held.value, held.low, held.high))
        described = "; ".join(
            f"{row.label} {estimate(row.value, row.low, row.high)}" for row in rows
        )
        return interval_chart(
            rows,
            title=criterion.name.first(self._lang),
            description=described,
            low=criterion.low,
            high=criterion.high,
        )

    def _points(self, criterion: Criterion) -> Markup:
        rows = [
            Levels(one.system, tuple(one.points.values()))
            for one in self._report.use
            if one.criterion == criterion.id
        ]
        described = "; ".join(f"{row.label} {row.counts}" for row in rows)
        levels = [str(point) for point in criterion.points]
        title = criterion.name.first(self._lang)
        return stacked_bars(rows, levels, title=title, description=described)

    def difference_chart(self) -> Markup:
        names = {one.id: one.name.first(self._lang) for one in self._criteria}
        rows = [
            Interval(
                f"{one.second} − {one.first} · {names[one.criterion]}",
                *(one.difference, one.low, one.high),
                self._words["scores.none"].first(self._lang),
            )
            for one in self._report.differences
        ]
        described = "; ".join(
            f"{row.label} {estimate(row.value, row.low, row.high)}" for row in rows
        )
        title = self._words["differences.title"].first(self._lang)
        ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
        # 0, no difference, is always on the axis
        low, high = min([0.0, *ends]), max([0.0, *ends])
        return interval_chart(rows, title=title, description=described, low=low, high=high)

    def examples(self) -> Iterator[tuple[Phrase, list[_Example]]]:
        """The worst and the best answers of each system, none of them twice."""
        for system in self._answers.systems:
            ranked = sorted(
                (rank, place)
                for place, question in enumerate(self._answers.questions)
                if (rank := self._rank(system.system, question.id)) is not None
            )
            worst = ranked[:N_WORST]
            best = ranked[len(worst) :][-N_BEST:][::-1]
            for key, part in (("answers.worst", worst), ("answers.best", best)):
                if part:
                    title = self._words[key].fill(system=system.system)
                    yield title, [self._example(system.system, place) for _, place in part]

    def most_different(self) -> list[tuple[Question, str, list[Side]]]:
        """The questions on which the systems' mean ratings are furthest apart, side by side."""
        names = [one.system for one in self._answers.systems]
        found = []
        for place, question in enumerate(self._answers.questions):
            ranks = [self._rank(name, question.id) for name in names]
            means = [rank[1] for rank in ranks if rank is not None]
            if len(means) == len(names) > 1 and max(means) > min(means):
                found.append((min(means) - max(means), place, ranks))
        shown = []
        for spread, place, ranks in sorted(found, key=lambda one: one[:2])[:N_DIFFERENT]:
            sides = [
                Side(one.system, item.text if (item := one.items[place]) else "", _share(rank))
                for one, rank in zip(self._answers.systems, ranks, strict=True)
            ]
            shown.append((self._answers.questions[place], number(-spread), sides))
        return shown

    def _rank(self, system: str, question_id: str) -> tuple[float, float] | None:
        """Lowest and mean rating of an answer, each criterion from 0 to 1; None without any."""
        shares = []
        for criterion in self._criteria:
            values = self._values(system, question_id, criterion)
            if values:
                share = (sum(values) / len(values) - criterion.low) / (
                    criterion.high - criterion.low
                )
                shares.append(1 - share if criterion.reversed else share)
        return (min(shares), sum(shares) / len(shares)) if shares else None

    def _values(self, system: str, question_id: str, criterion: Criterion) -> list[int]:
        rated = self._ratings[system, question_id][criterion.id]
        return [one.value for one in rated if one.value is not None]

    def _example(self, system: str, place: int) -> _Example:
        question = self._answers.questions[place]
        item = next(one for one in self._answers.systems if one.system == system).items[place]
        verdicts = []
        for criterion in self._criteria:
            values = self._values(system, question.id, criterion)
            rated = self._ratings[system, question.id][criterion.id]
            shown = next((one for one in rated if values and one.value == middle_of(values)), None)
            mean = self._words["answers.unscored"].first(self._lang)
            if values:
                mean = f"{number(sum(values) / len(values))} / {criterion.high}"
            note, evidence = (shown.note, shown.evidence or "") if shown else ("", "")
            verdicts.append((_both(criterion.name), mean, note, evidence))
        return _Example(question, item.text if item else "", verdicts)


def _share(rank: tuple[float, float] | None) -> str:
    """The mean over criteria, each from 0 to 1."""
    return number(rank[1] if rank else None)


def _both(name: Phrase) -> Phrase:
    """In both languages, where one is empty the other one."""
    return Phrase(zh=name.first("zh"), en=name.first("en"))
