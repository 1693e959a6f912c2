"""Makes a study: draws the questions, blinds the systems, assigns the raters, writes the folder.

made = create_study(NewStudySettings(out=..., predictions=("a=a.jsonl", "b=b.jsonl")))
made.folder.study.n_items == 200
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle, product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

import cbtqa
from cbtqa.errors import UsageError
from cbtqa.files import json_line, write_jsonl
from cbtqa.manifest import describe_file, now
from cbtqa.paths import real_path
from cbtqa.ratings.rubric import Language, Rubric, load_rubric
from cbtqa.ratings.sheets import write_sheets
from cbtqa.ratings.sources import Pool, SourceAnswer, read_pool
from cbtqa.ratings.study import (
    QUESTIONS_ONLY,
    UNFINISHED,
    Item,
    Presentation,
    Study,
    StudyFolder,
    StudyKey,
    column_letters,
    require_new,
    write_key,
    write_study,
)
from cbtqa.settings import Settings

MOST_QUESTIONS = 100
MOST_ITEMS = {"answer": 200, "question": 200, "transcript": 40}
"""Questions drawn, and items each of them rated by all, by default: some hours' work; assumed."""
Stratify = Literal["none", "risk", "distortion", "risk+distortion"]


class NewStudySettings(Settings):
    """How a rating study is made."""

    out: Path = Path("cbtqa-rating")
    """Folder of the study; must be new or empty."""
    predictions: tuple[str, ...] = ()
    """PATH or NAME=PATH of one system's answers; give it once a system."""
    questions: Path | None = None
    """Questions, where the predictions do not hold their text."""
    rubric: str = "cbt-llm"
    """Shipped rubric (distortions:TAXONOMY works), or the path of your own .yaml."""
    n: int | None = Field(default=None, ge=1)
    """Questions to draw, the same for every system. Default: what makes 200 items for a rater (40
    sessions), 100 at most, or all where there are fewer."""
    raters: int = Field(default=5, ge=1, le=200)
    """Raters, named R1, R2, ..."""
    per_item: int | None = Field(default=None, ge=1)
    """Raters per question; all of them when not given."""
    repeat_share: float = Field(default=0.05, ge=0, le=0.5)
    """Share of items each rater sees a second time."""
    calibration: int = Field(default=0, ge=0)
    """Items to practise on first; the same for all, not counted."""
    stratify: Stratify = "none"
    """Draw by shares of risk, label or both."""
    seed: int = 0
    """Same inputs and seed give the same study."""
    language: Language = "zh"
    """Language of sheets and form: zh or en."""
    title: str = ""
    """Shown to raters; must not tell the systems."""
    key: Path | None = None
    """Where the key with the system names goes; default OUT.key.json."""
    sheets: bool = True
    """Write one xlsx per rater."""
    csv: bool = False
    """Write one CSV per rater as well."""

    @field_validator("title")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return " ".join(value.split())

    @property
    def rater_ids(self) -> tuple[str, ...]:
        return tuple(f"R{number}" for number in range(1, self.raters + 1))


@dataclass(frozen=True)
class NewStudy:
    folder: StudyFolder
    key_path: Path
    n_available: int
    """Questions that every system answered."""
    n_left_out: int
    """Rows that could not be used; they are in `<study>.left_out.jsonl` beside the key."""
    telling_items: tuple[str, ...]
    """Items whose text holds a system's name, so that raters may guess it."""
    sheets: tuple[Path, ...] = ()

    def summary(self) -> dict[str, Any]:
        study = self.folder.study
        fields = {"rubric", "n_questions", "n_items", "per_item", "n_calibration", "n_repeats"}
        return {
            "study": study.id,
            "n_available": self.n_available,
            **study.model_dump(include=fields),
            "n_arms": len(study.arms),
            "n_raters": len(study.raters),
            "n_presentations": len(self.folder.plan),
            "n_left_out": self.n_left_out,
            "telling_items": list(self.telling_items),
        }


def create_study(settings: NewStudySettings, *, with_sheets: bool = False) -> NewStudy:
    """Makes the study and writes its folder and its key, and the raters' sheets when asked to."""
    rubric = load_rubric(settings.rubric)
    pool = read_pool(settings.predictions, settings.questions, rubric.shows)
    available = pool.common_ids()
    n_questions = settings.n or _fitting(pool, rubric, len(available) - settings.calibration)
    n_wanted = n_questions + settings.calibration
    if n_wanted > len(available):
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in pool.answers.items())
        raise UsageError(
            f"{n_wanted} questions wanted, {len(available)} are answered by every system"
            + (f" (answers: {counts})" if counts else ""),
            hint=f"add --n {max(1, len(available) - settings.calibration)}",
        )
    if (settings.per_item or 1) > settings.raters:
        raise UsageError(f"--per-item {settings.per_item} is above --raters {settings.raters}")
    key_path = settings.key or settings.out.with_name(settings.out.name + ".key.json")
    if real_path(settings.out) in real_path(key_path).parents:
        raise UsageError(
            "the key must not lie in the study's folder: whoever holds the folder stays blind",
            hint="choose a --key outside of --out",
        )
    require_new(settings.out, key_path)

    strata = _strata(pool, available, settings.stratify)
    drawn = draw_stratified(strata, n_wanted, settings.seed)
    # letters in an order that does not follow the command line; the questions are one arm
    systems = sorted(pool.answers) or [QUESTIONS_ONLY]
    random.Random(f"arms:{settings.seed}").shuffle(systems)
    arms = {column_letters(place): system for place, system in enumerate(systems)}
    items, calibration = _make_items(pool, drawn, arms, strata, settings)
    plan = _make_plan(items, calibration, settings)
    study = _describe(settings, rubric, items, calibration, plan, tuple(arms))
    folder = write_study(settings.out, study, rubric, [*calibration, *items], plan)
    write_key(key_path, StudyKey(study_id=study.id, systems=arms))
    if pool.rejections:
        # beside the folder like the key, since these rows name the systems
        write_jsonl(key_path.with_name(f"{settings.out.name}.left_out.jsonl"), pool.rejections)
    sheets = write_sheets(folder) if with_sheets and settings.sheets else []
    sheets += write_sheets(folder, as_csv=True) if with_sheets and settings.csv else []
    (folder.path / UNFINISHED).unlink()
    telling = _telling_items([*calibration, *items], arms.values())
    return NewStudy(folder, key_path, len(available), len(pool.rejections), telling, tuple(sheets))


def _fitting(pool: Pool, rubric: Rubric, n_available: int) -> int:
    """Questions to draw when no number was given."""
    n_systems = len(pool.answers) or 1
    most = min(MOST_QUESTIONS, MOST_ITEMS[rubric.shows] // n_systems)
    return max(1, min(most, n_available))


def _strata(pool: Pool, ids: Sequence[str], by: Stratify) -> dict[str, str]:
    if by == "none":
        return dict.fromkeys(ids, "all")
    rarest = rarest_label({name: pool.questions[name].distortions for name in ids})
    kinds = {name: {"risk": pool.questions[name].risk, "distortion": rarest[name]} for name in ids}
    return {
        name: "|".join(f"{kind}:{found[kind]}" for kind in by.split("+"))
        for name, found in kinds.items()
    }


def _make_items(
    pool: Pool,
    drawn: Sequence[str],
    arms: Mapping[str, str],
    strata: Mapping[str, str],
    settings: NewStudySettings,
) -> tuple[list[Item], list[Item]]:
    """Main items (every arm of every question) and calibration items (one arm each, in turn)."""
    n_main = len(drawn) - settings.calibration
    pairs = list(product(drawn[:n_main], arms))
    practice = list(zip(drawn[n_main:], cycle(arms), strict=False))
    numbers = list(range(1, len(pairs) + len(practice) + 1))
    random.Random(f"ids:{settings.seed}").shuffle(numbers)
    width = len(str(len(numbers)))
    made = []
    for number, (name, arm) in zip(numbers, [*pairs, *practice], strict=True):
        asked = pool.questions[name]
        answer = pool.answers[arms[arm]][name] if pool.answers else SourceAnswer()
        made.append(
            Item(
                id=f"I{number:0{width}d}",
                arm=arm,
                question_id=name,
                question=asked.question,
                description=asked.description,
                answer=answer.text,
                turns=answer.turns,
                risk=asked.risk,
                stratum=strata[name],
            )
        )
    return made[: len(pairs)], made[len(pairs) :]


def _make_plan(
    items: Sequence[Item], calibration: Sequence[Item], settings: NewStudySettings
) -> list[Presentation]:
    questions = list(dict.fromkeys(item.question_id for item in items))
    raters, per_item = settings.rater_ids, settings.per_item or settings.raters
    teams = assign_raters(questions, raters, per_item, settings.seed)
    plan = []
    for rater in raters:
        own = [(i.id, i.question_id) for i in items if rater in teams[i.question_id]]
        n_repeats = round(settings.repeat_share * len(own))
        order = order_items(own, n_repeats, f"{settings.seed}:{rater}")
        seen: Counter[str] = Counter()
        sequence = [*(item.id for item in calibration), *order]
        width = max(3, len(str(len(sequence))))
        for place, item_id in enumerate(sequence, 1):
            plan.append(
                Presentation(
                    code=f"{rater}-{place:0{width}d}",
                    rater=rater,
                    order=place,
                    item_id=item_id,
                    repeat=seen[item_id],
                    phase="calibration" if place <= len(calibration) else "main",
                )
            )
            seen[item_id] += 1
    return plan


def _describe(
    settings: NewStudySettings,
    rubric: Rubric,
    items: Sequence[Item],
    calibration: Sequence[Item],
    plan: Sequence[Presentation],
    arms: tuple[str, ...],
) -> Study:
    paths = [Path(given.partition("=")[2] or given) for given in settings.predictions]
    paths += [settings.questions] if settings.questions else []
    content = "".join(json_line(record) for record in (*items, *calibration, *plan))
    # names of input files would reveal the systems: only hashes are kept
    inputs = [
        describe_file(path).model_copy(update={"name": f"input {number}"})
        for number, path in enumerate(paths, 1)
        if path.is_file()
    ]
    return Study(
        id=hashlib.sha256((rubric.sha256 + content).encode()).hexdigest()[:12],
        **settings.model_dump(include={"title", "language", "seed"}),
        rubric=rubric.versioned_id,
        rubric_sha256=rubric.sha256,
        raters=settings.rater_ids,
        arms=arms,
        per_item=settings.per_item or settings.raters,
        n_questions=len({item.question_id for item in items}),
        n_items=len(items),
        n_calibration=len(calibration),
        n_repeats=max(Counter(p.rater for p in plan if p.repeat).values(), default=0),
        stratified_by=settings.stratify,
        inputs=tuple(inputs),
        cbtqa_version=cbtqa.__version__,
        created_at=now(),
    )


def _telling_items(items: Sequence[Item], systems: Iterable[str]) -> tuple[str, ...]:
    """Items in which a system's name (three letters or more) can be read."""
    names = [name.casefold() for name in systems if len(name) >= 3]
    written = {item.id: [item.answer, *(turn.text for turn in item.turns)] for item in items}
    return tuple(
        item
        for item, texts in written.items()
        if any(name in text.casefold() for name in names for text in texts)
    )


# --- planning: every result depends on the arguments and the seed alone ---------------------------

REPEAT_GAP = 1 / 3
"""A repeated item comes at least this share of a rater's list after its first showing."""


def draw_stratified(strata: Mapping[str, str], n: int, seed: int) -> list[str]:
    """`n` ids in random order, each stratum by its share; ValueError for fewer ids than `n`."""
    if n > len(strata):
        raise ValueError(f"{n} asked for, {len(strata)} there")
    generator = random.Random(f"draw:{seed}")
    groups: dict[str, list[str]] = {}
    for name, stratum in strata.items():
        groups.setdefault(stratum, []).append(name)
    exact = {stratum: n * len(names) / len(strata) for stratum, names in groups.items()}
    quota = {stratum: int(share) for stratum, share in exact.items()}
    by_remainder = sorted(groups, key=lambda s: (quota[s] - exact[s], s))
    for stratum in by_remainder[: n - sum(quota.values())]:
        quota[stratum] += 1
    drawn = [
        name
        for stratum in sorted(groups)
        for name in generator.sample(groups[stratum], quota[stratum])
    ]
    generator.shuffle(drawn)
    return drawn


def rarest_label(labels: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each id the one of its labels that is rarest overall, or `none`."""
    counts = Counter(label for names in labels.values() for label in set(names))
    return {
        name: min(own, key=lambda label: (counts[label], label), default="none")
        for name, own in labels.items()
    }


def assign_raters(
    blocks: Sequence[str], raters: Sequence[str], per_block: int, seed: int
) -> dict[str, tuple[str, ...]]:
    """`per_block` raters for each block, as balanced incomplete blocks.

    Loads differ by at most one; how often two raters share a block is evened out by swaps that
    leave the loads as they are.
    """
    if per_block == len(raters):
        return {block: tuple(raters) for block in blocks}
    generator = random.Random(f"assign:{seed}")
    load, shared = Counter[str](), Counter[frozenset[str]]()
    teams: dict[str, set[str]] = {}
    for block in blocks:
        team: set[str] = set()
        while len(team) < per_block:
            free = [rater for rater in raters if rater not in team]
            chosen = min(
                free,
                key=lambda r: (
                    load[r],
                    sum(shared[frozenset((r, mate))] for mate in team),
                    generator.random(),
                ),
            )
            team.add(chosen)
            load[chosen] += 1
        shared.update(frozenset(pair) for pair in combinations(sorted(team), 2))
        teams[block] = team
    _even_out_pairs(teams, shared, generator)
    return {block: tuple(r for r in raters if r in teams[block]) for block in blocks}


def _even_out_pairs(
    teams: dict[str, set[str]], shared: Counter[frozenset[str]], generator: random.Random
) -> None:
    """Swaps one rater between two blocks wherever that evens the pair counts."""
    blocks = list(teams)
    for _ in range(40 * len(blocks)):
        one, other = generator.choice(blocks), generator.choice(blocks)
        only_one = sorted(teams[one] - teams[other])
        only_other = sorted(teams[other] - teams[one])
        if not only_one or not only_other:
            continue
        leaves, comes = generator.choice(only_one), generator.choice(only_other)
        change = Counter[frozenset[str]]()
        for team, out, into in ((teams[one], leaves, comes), (teams[other], comes, leaves)):
            for mate in team - {out}:
                change[frozenset((out, mate))] -= 1
                change[frozenset((into, mate))] += 1
        # the sum of squared pair counts must fall
        if sum(2 * shared[pair] * step + step * step for pair, step in change.items()) < 0:
            shared.update(change)
            teams[one] ^= {leaves, comes}
            teams[other] ^= {leaves, comes}


def order_items(items: Sequence[tuple[str, str]], n_repeats: int, seed: str) -> list[str]:
    """One rater's order of `(item id, question id)`, with `n_repeats` items coming again.

    Answers to one question do not follow each other where that can be had: side by side, raters
    compare instead of rating. Repeats are drawn from the first part and come back late.
    """
    generator = random.Random(f"order:{seed}")
    waiting = list(items)
    generator.shuffle(waiting)
    left = Counter(question for _, question in waiting)
    order: list[tuple[str, str]] = []
    while waiting:
        # the question with most answers left must not be put off, or it ends back to back
        last = order[-1][1] if order else None
        fitting = [entry for entry in waiting if entry[1] != last] or waiting
        most = max(left[question] for _, question in fitting)
        pressing = most > 1 and 2 * most >= len(waiting)
        chosen = next(e for e in fitting if not pressing or left[e[1]] == most)
        waiting.remove(chosen)
        left[chosen[1]] -= 1
        order.append(chosen)
    result = [name for name, _ in order]
    gap = max(2, round(len(result) * REPEAT_GAP))
    early = result[: max(len(result) - gap, 0)]
    for name in generator.sample(early, min(n_repeats, len(early))):
        first = result.index(name)
        result.insert(generator.randint(first + gap, len(result)), name)
    return result
