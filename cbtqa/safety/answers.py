"""Checks an answer: no advice against safety, and a help route in a crisis.

    check_answer("你可以停药，谁也别说。", "none")
    # (Problem(rule="stop_medication", ...), Problem(rule="secrecy", ...))

Advice against safety is found by rule files of the screen's format (`rules/answers.*.yaml`) and by
a trained model that reads every sentence; help lines are compared with `hotlines.yaml`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from cbtqa.files import shipped_yaml
from cbtqa.records import Risk
from cbtqa.safety.encoder import AnswerHead, Opinion, ScreenEncoder
from cbtqa.safety.matching import find
from cbtqa.safety.normalise import fold, language_of
from cbtqa.safety.notices import Locale, LocaleLines, load_hotlines
from cbtqa.safety.rules import load_rules
from cbtqa.safety.sentence_model import Floats, read_windows, shipped_model, trimmed

_SENTENCE = re.compile(r"[^。!?;\n]+")
_BY_HELP_LINE = ("unknown_number", "round_the_clock_promise", "no_help_route")
"""Rules that go by the help lines of one country."""
_DIGIT = re.compile(r"[0-9]")  # of folded text, where every other form of a digit is plain


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in an answer that must not reach a reader."""

    rule: str
    """By the rules `stop_medication`, `refuse_help`, `secrecy`, `endorse_death`,
    `self_harm_method`, `diagnosis`, `own_medicine`, `shaming`, `round_the_clock_promise`,
    `unknown_number`, `no_help_route`; by the model a class of `HARMS`."""
    start: int
    end: int
    """Span in the answer; empty and at its end when something is missing."""
    text: str
    detail: str
    """What is wrong, for a person or for a re-ask."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}" + (f" ('{self.text}')" if self.text else "")


@dataclass(frozen=True, slots=True)
class _NamedNumber:
    digits: str
    start: int
    end: int
    is_advised: bool


HARMS = {
    "medicine": "advises on medicine against the doctor's order",
    "diagnosis": "gives a diagnosis",
    "dose_harmless": "calls a dose or a mixture harmless",
    "death_as_choice": "speaks of dying as a choice or a relief",
    "help_useless": "calls help lines, hospitals or the police useless or harmful",
    "blaming": "blames the person",
    "secrecy": "advises keeping danger secret",
    "romance_or_self": "courts the person or claims a private life of its own",
    "harmful_coping": "advises a way to cope that does harm",
    "claimed_licence": "claims to be a professional",
    "promise_cure": "promises a cure",
    "minimising": "makes little of a danger",
}
"""Classes of the model, in the order of its table, after `safe`."""
UNSAFE: dict[Locale, float] = {"zh": 0.25, "en": 0.28}
"""Probability of all classes together from which a sentence is unsafe, by language of the answer;
of 103 long human answers 15 are flagged at the Chinese one."""
SURELY_UNSAFE = 0.90
"""From which it is when an answer is asked again for it: a teacher's good answer must not be
refused."""
UNSAFE_AT_STAKE: dict[Locale, float] = {"zh": 0.17, "en": 0.21}
SURELY_UNSAFE_AT_STAKE = 0.75
"""The same where the question speaks of danger or of medicine: "that will pass by itself" is then
another sentence than after a missed bus."""
UNSAFE_BY_BOTH: dict[Locale, float] = {"zh": 0.60, "en": 0.60}
UNSAFE_BY_BOTH_AT_STAKE: dict[Locale, float] = {"zh": 0.50, "en": 0.50}
"""The limits of the probability by both models, where an encoder reads the answer as well."""
USUAL_STRETCHES = 6
"""Stretches of an answer of the corpus, nine in ten have no more. Among more there is a chance
finding sooner, so the odds from which `UNSAFE` holds grow in proportion."""
_MEDICINE = re.compile(
    "药|剂量|处方|舍曲林|西汀|文拉法辛|度洛西汀|西酞普兰|锂盐|碳酸锂|奥氮平|喹硫平|利培酮|阿立哌唑"
    "|丙戊酸|拉莫三嗪|唑仑|西泮|安定|思诺思|唑吡坦|褪黑素|百忧解"
    r"|\b(?:pills?|tablets?|medic\w+|meds|drugs?|dos(?:e|age)s?|antidepressants?|prescri\w+"
    r"|lithium|sertraline|\w+oxetine|\w+talopram|\w+azepam|\w+apine|risperidone|melatonin"
    r"|tylenol|paracetamol|ibuprofen|insulin)\b"
)
"""Of folded text."""
_DETAILS = {
    "stop_medication": "advises stopping medication without a doctor",
    "refuse_help": "advises against doctors, counselling or help lines",
    "secrecy": "advises keeping it secret or bearing it alone",
    "endorse_death": "agrees that death would help, or encourages it",
    "self_harm_method": "encourages self-harm or names a way",
    "diagnosis": "gives a diagnosis",
    "own_medicine": "names a medicine to take",
    "shaming": "shames the person",
}


def is_at_stake(question: str, route: Risk) -> bool:
    """Whether a question speaks of danger or of medicine, so that its answer is read strictly.

    Args:
        route: `Screening.route` of the question.
    """
    return route != "none" or _MEDICINE.search(fold(question)) is not None


def check_answer(
    answer_text: str,
    risk: Risk,
    locale: Locale = "zh",
    *,
    unsafe_from: float | None = None,
    at_stake: bool = False,
    model: ScreenEncoder | None = None,
) -> tuple[Problem, ...]:
    """Everything unsafe in an answer, in order of appearance; empty when it may pass.

    Args:
        risk: the grade of the *question*. `explicit` demands a number of the dated hotline file
            (or an emergency number); `concern` any route to people who can help; `none` no route.
            Everything else is checked for all three.
        unsafe_from: probability from which the model's finding is a problem; None is `UNSAFE`, a
            little more for long answers.
        at_stake: whether the question is one of `is_at_stake`: then the limits are lower.
        model: an encoder that reads the answer as well; both models are weighed together.
    """
    second = _second(answer_text, model)
    return _check(answer_text, risk, locale, unsafe_from, at_stake, second)


class _Second(NamedTuple):
    """What an encoder says of the sentences of an answer, and how it is weighed."""

    opinion: Opinion
    head: AnswerHead


def _second(answer_text: str, model: ScreenEncoder | None) -> _Second | None:
    if model is None:
        return None
    (opinion,) = model.read_answers([answer_text])
    return _Second(opinion, model.tuned.answers) if opinion.windows else None


def _check(
    answer_text: str,
    risk: Risk,
    locale: Locale,
    unsafe_from: float | None,
    at_stake: bool,
    second: _Second | None,
) -> tuple[Problem, ...]:
    folded = fold(answer_text)
    lines = load_hotlines().locales[locale]
    numbers = list(_numbers(folded, locale))
    problems = [
        *_advice_against_safety(answer_text, folded, locale, unsafe_from, at_stake, second),
        *_unknown_numbers(answer_text, numbers, lines),
        *_promises(answer_text, folded, numbers, lines, locale),
    ]
    end = len(answer_text)
    if missing := _missing_route(folded, numbers, lines, risk, locale):
        problems.append(Problem("no_help_route", end, end, "", missing))
    return tuple(sorted(problems, key=lambda problem: problem.start))


def check_in_both(
    answer_text: str, risk: Risk, *, at_stake: bool = False, model: ScreenEncoder | None = None
) -> tuple[Problem, ...]:
    """As `check_answer`, for an answer in either language or both.

    Advice against safety is looked for in both; help lines and their promises are those of the
    answer's own language.

    Args:
        at_stake: as in `check_answer`.
        model: as in `check_answer`.
    """
    own, second = language_of(answer_text), _second(answer_text, model)
    other: Locale = "en" if own == "zh" else "zh"
    found = _check(answer_text, risk, own, None, at_stake, second)
    foreign = (
        one
        for one in _check(answer_text, "none", other, None, at_stake, second)
        # both read every sentence: one place is one problem
        if one.rule not in _BY_HELP_LINE
        and not any(a.start < one.end and one.start < a.end for a in found)
    )
    return (*found, *foreign)


def _advice_against_safety(
    text: str,
    folded: str,
    locale: Locale,
    unsafe_from: float | None,
    at_stake: bool,
    second: _Second | None,
) -> Iterator[Problem]:
    found = find(load_rules(locale, "answers"), text, folded)
    told = [place for place in found if place.case.risk != "none"]
    for place in told:
        rule, start, end = place.case.rule.split(".")[0], place.start, place.end
        yield Problem(rule, start, end, text[start:end], _DETAILS[rule])
    windows = read_windows(folded, found)
    if told or not windows:
        return
    scores = shipped_model("answers").scores(windows)[0].copy()
    for row, window in enumerate(windows):
        if any(
            place.case.rule.startswith("diagnosis")
            and window.start <= place.start
            and place.end <= window.end
            for place in found
        ):
            # a rule read it as denied, asked or reported, which n-grams hardly tell from stated
            scores[row] = _as_safe(scores[row : row + 1], "diagnosis")
    language, limits = language_of(text), (UNSAFE, UNSAFE_AT_STAKE)
    unsafe = 1 - scores[:, 0].min()
    if second is not None:
        of_sentences, limits = second.opinion.scores[0], (UNSAFE_BY_BOTH, UNSAFE_BY_BOTH_AT_STAKE)
        if not at_stake:
            # of an ordinary question it takes every word on life and letting go for one on death
            of_sentences = _as_safe(of_sentences, "death_as_choice")
        unsafe = second.head.weigh(unsafe, 1 - of_sentences[:, 0].min(), language)
        windows, scores = second.opinion.windows, of_sentences
    if unsafe >= _limit(limits, language, len(windows), unsafe_from, at_stake):
        worst = int(scores[:, 0].argmin())
        kind = tuple(HARMS)[int(scores[worst, 1:].argmax())]
        start, end = trimmed(text, windows[worst])
        yield Problem(kind, start, end, text[start:end], HARMS[kind])


def _as_safe(scores: Floats, kind: str) -> Floats:
    """The scores of stretches with what speaks for one class of harm counted as safe."""
    column, found = 1 + tuple(HARMS).index(kind), scores.copy()
    found[:, 0] += found[:, column]
    found[:, column] = 0
    return found


def _limit(
    limits: tuple[Mapping[Locale, float], Mapping[Locale, float]],
    language: Locale,
    n_windows: int,
    unsafe_from: float | None,
    at_stake: bool,
) -> float:
    """Probability from which the worst of so many stretches is a problem.

    Args:
        limits: of an answer to any question, and where it is at stake.
    """
    if unsafe_from is not None:
        is_surely = at_stake and unsafe_from == SURELY_UNSAFE
        return SURELY_UNSAFE_AT_STAKE if is_surely else unsafe_from
    limit = limits[at_stake][language]
    odds = limit / (1 - limit) * max(1.0, n_windows / USUAL_STRETCHES)
    return odds / (1 + odds)


def _numbers(folded: str, locale: Locale) -> Iterator[_NamedNumber]:
    if not _DIGIT.search(folded):  # as in most answers
        return
    wording = _wording(locale)
    spans = {match.span() for match in wording["number"].finditer(folded)}
    spans |= {match.span(1) for match in wording["number_after_cue"].finditer(folded)}
    spans |= {match.span() for match in wording["known"].finditer(folded)}
    for start, end in sorted(spans):
        if any(a <= start and end <= b and (a, b) != (start, end) for a, b in spans):
            continue
        is_advised = not wording["number_denied"].search(folded[max(0, start - 20) : start])
        digits = "".join(_DIGIT.findall(folded[start:end]))
        yield _NamedNumber(digits, start, end, is_advised)


def _unknown_numbers(
    text: str, numbers: list[_NamedNumber], lines: LocaleLines
) -> Iterator[Problem]:
    detail = "names a number that is not in the dated hotline file"
    for number in numbers:
        if number.digits not in lines.numbers:
            start, end = number.start, number.end
            yield Problem("unknown_number", start, end, text[start:end], detail)


def _promises(
    text: str, folded: str, numbers: list[_NamedNumber], lines: LocaleLines, locale: Locale
) -> Iterator[Problem]:
    """Promises of a line at any hour, unless the nearest line keeps it according to the file.

    Only 18 hours a day are guaranteed for 12356: at night the promise may ring into nothing.
    """
    if not numbers:
        return
    wording = _wording(locale)
    limited = {
        "".join(_DIGIT.findall(line.number)) for line in lines.lines if not line.is_round_the_clock
    }
    for sentence in _SENTENCE.finditer(folded):
        inside = [n for n in numbers if sentence.start() <= n.start < sentence.end()]
        if not inside and wording["line"].search(sentence[0]):  # "the line" is the one named last
            inside = [n for n in numbers if n.start < sentence.start()][-1:]
        for promise in wording["round_the_clock"].finditer(sentence[0]) if inside else ():
            start = sentence.start() + promise.start()
            end = sentence.start() + promise.end()
            nearest = min(inside, key=lambda n: max(n.start - end, (start - n.end) * 0.5))
            before = folded[sentence.start() : start]
            if nearest.digits in limited and not wording["round_the_clock_denied"].search(before):
                detail = f"promises {nearest.digits} at any hour, which is not guaranteed"
                yield Problem("round_the_clock_promise", start, end, text[start:end], detail)


def _missing_route(
    folded: str, numbers: list[_NamedNumber], lines: LocaleLines, risk: Risk, locale: Locale
) -> str | None:
    is_named = any(one.digits in lines.crisis_numbers and one.is_advised for one in numbers)
    if risk == "none" or is_named:
        return None
    if risk == "explicit":
        return "answers explicit intent without a help line or emergency number"
    if _wording(locale)["soft_route"].search(folded):
        return None
    return "answers a concern without naming anyone who can help"


@cache
def _wording(locale: Locale) -> dict[str, re.Pattern[str]]:
    """The regexes of `rules/help_routes.yaml`, and `known` for the numbers of the hotline file."""
    entry = shipped_yaml(__package__, "rules/help_routes.yaml")[locale]
    numbers = load_hotlines().locales[locale].numbers
    # 116 123 and (800) 799-7233 as well; in short numbers a mark would make 110 of the figure 11.0
    marks = {number: "[-. ()]{0,2}" if len(number) > 5 else "-?" for number in numbers}
    known = "|".join(marks[one].join(one) for one in sorted(numbers, key=len, reverse=True))
    known = rf"(?<![\d.-])(?:{known})(?![\d-]|{entry['counted']})"
    return {name: re.compile(pattern) for name, pattern in {**entry, "known": known}.items()}
