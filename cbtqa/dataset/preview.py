"""`preview_build`: a few questions through one or several prompts and models, side by side.

Each prompt and model has the journal that a real run of it into the same folder would have, so no
reply is paid twice: the folder's first journal, or a fork of it beside.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cbtqa.dataset.build import Build
from cbtqa.dataset.check import length_and_questions
from cbtqa.dataset.instruction import Item
from cbtqa.dataset.report.preview import preview_page, preview_tables
from cbtqa.dataset.run import ask_all_passes, estimate_passes, prepare
from cbtqa.dataset.settings import BuildSettings
from cbtqa.dataset.stats import sample_key
from cbtqa.dataset_folder import JOURNAL_NAME, PREVIEW_NAME
from cbtqa.errors import DataError, UsageError
from cbtqa.files import sha256_of, write_text
from cbtqa.llm.batch import OnProgress
from cbtqa.llm.cost import Estimate, sum_estimates
from cbtqa.llm.journal import Entry, own_path
from cbtqa.llm.runs import Service, open_run, refuse_foreign
from cbtqa.manifest import MANIFEST_NAME, refuse_empty
from cbtqa.prompts import load_prompt
from cbtqa.prompts.rules import Budget, load_rules
from cbtqa.psyqa import is_bundled_sample
from cbtqa.records import CbtAnswer, Danger, Record, Rejection, Risk, Usage
from cbtqa.report.table import Table
from cbtqa.settings import Resolved

MOST_URGENT = 4
"""`Grade.urgency` of an explicit question."""
Variants = Sequence[Resolved[BuildSettings]]


class AnswerFigures(Record):
    """What one question got, in figures."""

    question_id: str
    risk: Risk
    dangers: tuple[Danger, ...]
    is_accepted: bool
    reason: str | None
    """Why there is no answer."""
    faults: tuple[str, ...]
    """Reason of every faulty reply, the first attempt first; a rejection that is no fault of one
    reply, such as the same answer to another question, comes last."""
    n_attempts: int
    n_characters: int | None
    """Of the answer, without blanks; None where there is none."""
    n_questions: int | None
    is_within_budget: bool | None
    """Of what the prompt tells; None where it tells none that is known."""
    labels: tuple[str, ...]
    usage: Usage
    """Of all attempts."""
    cost: float | None


class VariantFigures(Record):
    """One prompt and model on all questions of a preview."""

    name: str
    prompt: str
    prompt_sha256: str
    model: str
    journal: str
    """Where the replies are kept and a real run finds them."""
    wants_fork: bool
    """True when the real run into this folder wants --fork."""
    n_accepted: int
    n_first_try: int
    n_asked_again: int
    """Replies that were faulty and asked again."""
    n_helped: int
    """Questions accepted after they were asked again."""
    faults: dict[str, int]
    n_within_budget: int | None
    usage: Usage
    cost: float | None
    """None where no price is known or no tokens were counted."""
    currency: str
    cost_of_all: float | None
    """Of every question of the input, at the mean of these."""
    answers: tuple[AnswerFigures, ...]


class Preview(Record):
    """What a preview found; the texts are on the page."""

    page: str
    n_in_input: int
    """Questions of the input that would be asked."""
    left_out: dict[str, int]
    """Rows of the input that would not, by reason."""
    variants: tuple[VariantFigures, ...]

    def tables(self) -> list[Table]:
        """Figures, and faults by reason where there were any; a column for each variant."""
        return preview_tables(self.variants, self.n_in_input)


@dataclass(frozen=True)
class Shown:
    """What one question got from one variant."""

    item: Item
    answer: CbtAnswer | Rejection
    replies: list[Entry]
    budget: Budget | None
    figures: AnswerFigures


def preview_build(
    variants: Variants,
    n: int,
    seed: int = 0,
    *,
    on_progress: OnProgress | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Preview:
    """Has `n` questions answered by every variant and writes the page that shows them.

    Args:
        variants: settings that differ in prompt or model.

    Raises:
        UsageError: several prompts without a model.
        IncompleteRunError: stopped early, or not one answer; otherwise as `build_dataset`.
    """
    builds = _builds(variants)
    folder = builds[0].settings.out
    if not (folder / MANIFEST_NAME).exists():
        refuse_foreign(folder / JOURNAL_NAME, "dataset")
    on_stage("choosing questions")
    left_out: Counter[str] = Counter()
    chosen, n_total = choose(_questions(builds[0], left_out), n, seed)
    if not chosen:
        raise DataError("holds no question to ask", where=str(builds[0].input_path))
    spent, found, names = Usage(), [], _names(builds)
    money = 0.0
    columns: list[list[Shown]] = []
    for name, build in zip(names, builds, strict=True):
        on_stage(f"answering with {build.teacher.system}, {name}")
        figures, shown = _ask(build, name, chosen, n_total, (spent, money), on_progress)
        spent, money = spent + figures.usage, money + (figures.cost or 0.0)
        found.append(figures)
        columns.append(shown)
    page = folder / PREVIEW_NAME
    reasons_left_out = dict(left_out.most_common())
    preview = Preview(
        page=str(page), n_in_input=n_total, left_out=reasons_left_out, variants=tuple(found)
    )
    write_text(page, preview_page(n_total, found, columns, builds[0].settings.taxonomy))
    reasons = Counter(one.reason for each in found for one in each.answers if one.reason)
    n_out = sum(one.n_accepted for one in found)
    refuse_empty(n_out, len(chosen), "questions has an answer", reasons, kept=folder)
    return preview


def estimate_preview(variants: Variants, n: int, seed: int = 0) -> Estimate:
    """What a preview would still send."""
    builds = _builds(variants)
    chosen, _ = choose(builds[0].questions(), n, seed)
    parts = []
    for name, build in zip(_names(builds), builds, strict=True):
        for part in estimate_passes(build, chosen, lambda: chosen):
            both = f"{name}, {part.name}" if part.name else name
            parts.append(part.model_copy(update={"name": both}))
    return parts[0] if len(parts) == 1 else sum_estimates("questions", len(chosen), 0, parts)


def _questions(build: Build, left_out: Counter[str]) -> Iterator[Item]:
    """The questions of the input; what is none is counted by reason."""
    for entry in build.items():
        if isinstance(entry, Rejection):
            left_out[entry.reason.value] += 1
        else:
            yield entry[0]


def choose(items: Iterable[Item], n: int, seed: int = 0) -> tuple[list[Item], int]:
    """`n` questions in the order of the input, and how many there are.

    Those with the smallest hash of seed and id: spread over the whole input, the same whatever its
    order, and a larger `n` takes the questions of a smaller one too. Of two or more, one speaks of
    danger where any does.
    """
    heap: list[tuple[int, int, Item]] = []
    danger: dict[int, tuple[int, Item]] = {}
    n_total = 0
    for item in items:
        n_total += 1
        mark = sample_key(item.question.id, f"preview {seed}")
        taken = (-mark, item.place, item)
        if len(heap) < n:
            heapq.heappush(heap, taken)
        else:
            heapq.heappushpop(heap, taken)
        # screened only where it would be the nearest one: a few hundred of a large file
        if MOST_URGENT in danger and mark >= danger[MOST_URGENT][0]:
            continue
        urgency = item.grade.urgency
        if urgency and (urgency not in danger or mark < danger[urgency][0]):
            danger[urgency] = mark, item
    chosen = [item for _, _, item in sorted(heap, key=lambda one: -one[0])]
    if danger and n > 1 and max(danger) not in {item.grade.urgency for item in chosen}:
        chosen[-1] = danger[max(danger)][1]
    return sorted(chosen, key=lambda item: item.place), n_total


def _builds(variants: Variants) -> list[Build]:
    builds = [prepare(one) for one in variants]
    if len(builds) > 1 and builds[0].settings.is_offline:
        raise UsageError("several prompts or models are compared at an --endpoint")
    return builds


def _names(builds: Sequence[Build]) -> list[str]:
    """The prompt of each as it was given, with its model where several are asked."""
    is_many = len({build.teacher.system for build in builds}) > 1
    names = []
    for build in builds:
        prompt = "template" if build.settings.is_offline else build.settings.prompt
        names.append(f"{prompt} ({build.teacher.system})" if is_many else prompt)
    return names


def _ask(
    build: Build,
    name: str,
    chosen: Sequence[Item],
    n_total: int,
    spent: tuple[Usage, float],
    on_progress: OnProgress | None,
) -> tuple[VariantFigures, list[Shown]]:
    """Has the questions answered by one variant.

    Args:
        spent: tokens and money of the variants before, which count towards a budget.
    """
    first, fingerprint = build.settings.out / JOURNAL_NAME, build.fingerprint()
    path = own_path(first, fingerprint)
    teacher, service = build.teacher, _with_spent(build.teacher.service, spent)
    is_invented = is_bundled_sample(sha256_of(build.hashed_path))
    how: dict[str, Any] = {"what": "the questions", "is_invented": is_invented}
    with (
        open_run(path, fingerprint, service, further=build.opinions.services, **how) as run,
        build.opinions.open(**how) as opened,
    ):
        ask_all_passes(build, run, opened, on_progress, chosen=chosen)
        labels = build.labels
        keys = {item.key: labels.key(item) if labels else None for item in chosen}
        labelled = dict(run.journal.outcomes(key for key in keys.values() if key))
        outcomes = dict(run.journal.outcomes(item.key for item in chosen))
        replies = {item.key: run.journal.replies(item.key) for item in chosen}
    seen, shown = set[bytes](), list[Shown]()
    for item in chosen:
        second = labelled.get(keys[item.key] or "")
        answer = build.finish(item, outcomes[item.key], second, seen)
        more = second.usage if second else Usage()
        shown.append(_shown(item, answer, replies[item.key], build.settings, service, more))
    answers = tuple(one.figures for one in shown)
    usage = sum((one.usage for one in answers), Usage())
    prompt, sha256 = next(iter(teacher.prompts.items()), ("", ""))
    price = service.charged if service else None
    cost = price.of(usage) if price and usage.n_tokens else None
    within = [one.is_within_budget for one in answers if one.is_within_budget is not None]
    figures = VariantFigures(
        name=name,
        prompt=prompt,
        prompt_sha256=sha256,
        model=teacher.system,
        journal=str(path),
        wants_fork=path != first,
        n_accepted=sum(one.is_accepted for one in answers),
        n_first_try=sum(one.is_accepted and not one.faults for one in answers),
        n_asked_again=sum(max(0, one.n_attempts - 1) for one in answers),
        n_helped=sum(one.is_accepted and one.n_attempts > 1 for one in answers),
        faults=dict(Counter(fault for one in answers for fault in one.faults).most_common()),
        n_within_budget=sum(within) if within else None,
        usage=usage,
        cost=cost,
        currency=price.currency if price else "",
        cost_of_all=cost / len(answers) * n_total if cost is not None else None,
        answers=answers,
    )
    return figures, shown


def _with_spent(service: Service | None, spent: tuple[Usage, float]) -> Service | None:
    """The service, its budget lessened by tokens and money that are gone."""
    if service is None or not service.budget:
        return service
    budget = replace(service.budget, n_tokens=spent[0].n_tokens, cost=spent[1])
    return replace(service, budget=budget)


def _shown(
    item: Item,
    answer: CbtAnswer | Rejection,
    replies: list[Entry],
    settings: BuildSettings,
    service: Service | None,
    more: Usage,
) -> Shown:
    """Counts what one question got; `more` are the tokens of labelling the question."""
    rules = None if service is None else load_prompt(settings.prompt).header.rules
    budget = load_rules(rules).budget_of(item.grade.branch) if rules else None
    usage = sum((one.reply.usage for one in replies if one.reply), more)
    price = service.charged if service else None
    given: dict[str, Any] = dict.fromkeys(("n_characters", "n_questions", "is_within_budget"))
    if isinstance(answer, CbtAnswer):
        n_characters, n_questions = length_and_questions(answer.text)
        given |= {"n_characters": n_characters, "n_questions": n_questions}
        if budget:
            low, high = budget.told
            is_long = not low <= n_characters <= high
            given["is_within_budget"] = not is_long and n_questions <= budget.questions[1]
    reason = answer.reason.value if isinstance(answer, Rejection) else None
    faults = [one.fault.reason.value for one in replies if one.fault]
    if reason and reason not in faults[-1:]:
        faults.append(reason)
    figures = AnswerFigures(
        question_id=item.question.id,
        risk=item.grade.risk,
        dangers=item.grade.dangers,
        is_accepted=isinstance(answer, CbtAnswer),
        reason=reason,
        faults=tuple(faults),
        n_attempts=len(replies),
        labels=tuple(one.id for one in answer.distortions) if isinstance(answer, CbtAnswer) else (),
        usage=usage,
        cost=price.of(usage) if price and usage.n_tokens else None,
        **given,
    )
    return Shown(item, answer, replies, budget, figures)
