"""Scores of a system and differences of two, as `score` and `compare` give them.

Every trial draws questions from a population whose score is known. For BLEU, chrF and METEOR that
is the score of 4,000 invented answers taken together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from cbtqa.metrics.answers import DistortionAgreement, Length
from cbtqa.metrics.base import Floats, Metric
from cbtqa.metrics.comparison import CompareSettings, PairComparison, compare_pairs
from cbtqa.metrics.contenders import Contender
from cbtqa.metrics.evaluation import Resampling, SystemScores, scores_of
from cbtqa.metrics.lexical import Bleu, Chrf, Meteor
from cbtqa.metrics.pairs import Predictions, References
from cbtqa.metrics.structure import StepsInOrder, StructureComplete
from cbtqa.metrics.text.texts import Item, Reading, Texts
from cbtqa.records import MetricScore
from cbtqa.statistics.resampling import FEWEST_FOR_BOOTSTRAP
from tests.coverage.cases import COVERAGE, Case, Generator

POPULATION = 4_000
SOUNDS = "我你想法睡眠压力朋友工作家人担心难过呼吸散步日记证据计划今天可以试着觉得慢慢来"
WIDE = (COVERAGE[0], 1.0)
ROUGH_UP = (0.91, 1.0)
LEVEL = (0.025, 0.075)
METEOR = Meteor("char")
FEW_VALUES = "few values can occur: the interval errs on the wide side"
Rows = Sequence[Floats]
"""Statistics of a metric: of one system, or of a baseline and a system."""
ONE_TRIAL = CompareSettings(trials=1, bootstrap=1)
"""For intervals, which need none."""
TESTED = {test: CompareSettings(test=test, trials=499, bootstrap=499) for test in ("ar", "bs")}


def scored(metric: Metric, rows: Rows, clusters: Sequence[int] | None = None) -> list[MetricScore]:
    """Scores of the systems with these statistics, as `score` makes them."""
    evaluated, references = _evaluated(metric, rows, clusters)
    return scores_of(evaluated, [metric], references, Resampling(1, 1))


def compared(
    metric: Metric,
    rows: Rows,
    clusters: Sequence[int] | None = None,
    settings: CompareSettings = ONE_TRIAL,
) -> PairComparison:
    """Two systems with these statistics, as `compare` compares them."""
    evaluated, references = _evaluated(metric, rows, clusters)
    reported = scores_of(evaluated, [metric], references, Resampling(0, 1))
    first, second = (
        Contender(Predictions(one.system, references.items, {}), one, references, {of.metric: of})
        for one, of in zip(evaluated, reported, strict=True)
    )
    return compare_pairs([metric], [(first, second)], settings)[0]


def _evaluated(
    metric: Metric, rows: Rows, clusters: Sequence[int] | None
) -> tuple[list[SystemScores], References]:
    n = len(rows[0])
    ids = tuple(map(str, range(n)))
    references = References(
        "invented",
        ids,
        ids if clusters is None else tuple(map(str, clusters)),
        (Item(""),) * n,
    )
    evaluated = [
        SystemScores(name, np.arange(n), {metric.name: one}, {}, {metric.name: "none"})
        for name, one in zip(("baseline", "system"), rows, strict=False)
    ]
    return evaluated, references


def holds(one: MetricScore | PairComparison, truth: float) -> bool | None:
    return None if one.low is None or one.high is None else one.low <= truth <= one.high


# --- populations ---------------------------------------------------------------------------------


@cache
def answers(metric: Metric) -> tuple[Floats, Floats]:
    """Statistics of two systems that answer `POPULATION` questions with 20 to 150 characters."""
    rng = np.random.default_rng(7)
    letters = np.array(list(SOUNDS))

    def damaged(text: Floats, share: float) -> str:
        changed = rng.random(len(text)) < share
        return "".join(np.where(changed, rng.choice(letters, len(text)), text))

    wholes = [rng.choice(letters, rng.integers(20, 151)) for _ in range(POPULATION)]
    texts = ["".join(whole) for whole in wholes]
    shares = rng.beta(8, 8, POPULATION)  # some questions are easier, for both systems
    systems = [
        [damaged(whole, share) for whole, share in zip(wholes, shares + more, strict=True)]
        for more in (0.0, 0.05)
    ]
    reading = Reading()
    theirs = Texts([Item(text) for text in texts], reading)
    first, second = (
        metric.statistics(Texts([Item(text) for text in system], reading), theirs)
        for system in systems
    )
    return first, second


def values(of_pairs: Floats) -> Floats:
    """Statistics of a metric that is the mean of its pairs."""
    return np.stack([of_pairs, np.ones_like(of_pairs)], axis=1)


# --- trials --------------------------------------------------------------------------------------


def _score_of_text(rng: Generator, metric: Metric, n: int) -> bool | None:
    rows, _ = answers(metric)
    (one,) = scored(metric, [rows[rng.integers(0, POPULATION, n)]])
    return holds(one, float(metric.from_sums(rows.sum(0))))


def _difference_of_text(rng: Generator, metric: Metric, n: int) -> bool | None:
    rows = answers(metric)
    drawn = rng.integers(0, POPULATION, n)
    first, second = (float(metric.from_sums(one.sum(0))) for one in rows)
    return holds(compared(metric, [one[drawn] for one in rows]), second - first)


def _text_called_different(rng: Generator, metric: Metric, n: int) -> bool | None:
    """Each question's two answers are dealt to the systems by a coin: the systems are equal."""
    rows = np.stack(answers(metric))[:, rng.integers(0, POPULATION, n)]
    coins = rng.integers(0, 2, n)
    dealt = [rows[coins, np.arange(n)], rows[1 - coins, np.arange(n)]]
    p = compared(metric, dealt, settings=TESTED["ar"]).p
    return None if p is None else p <= 0.05


def _mean(
    rng: Generator, metric: Metric, n: int, draw: Callable[..., Floats], truth: float
) -> bool | None:
    (one,) = scored(metric, [values(draw(rng, n))])
    return holds(one, truth)


def _clusters(rng: Generator, n: int, sizes: str) -> Floats:
    """The question of each row: three rows each, 1 to 20, or 3 and once 30."""
    counts = {"3 each": np.full(n, 3), "1-20": rng.integers(1, 21, n), "3, one 30": np.full(n, 3)}
    if sizes == "3, one 30":
        counts[sizes][0] = 30
    return np.repeat(np.arange(n), counts[sizes])


def _clustered_score(rng: Generator, n: int, sizes: str) -> bool | None:
    question = _clusters(rng, n, sizes)
    scores = 0.3 + rng.normal(0, 0.06, n)[question] + rng.normal(0, 0.05, len(question))
    (one,) = scored(METEOR, [values(scores)], question.tolist())
    return holds(one, 0.3)


def _clustered_pair(
    rng: Generator, n: int, sizes: str, settings: CompareSettings = ONE_TRIAL
) -> PairComparison:
    """Two equal systems; on one question all answers of a system are good or bad together."""
    question = _clusters(rng, n, sizes)
    n_rows = len(question)
    easy = rng.normal(0, 0.06, n)[question]
    rows = [
        values(0.3 + easy + rng.normal(0, 0.06, n)[question] + rng.normal(0, 0.05, n_rows))
        for _ in range(2)
    ]
    return compared(METEOR, rows, question.tolist(), settings)


def _clustered_difference(rng: Generator, n: int, sizes: str) -> bool | None:
    return holds(_clustered_pair(rng, n, sizes), 0)


def _clusters_called_different(rng: Generator, n: int, sizes: str) -> bool | None:
    p = _clustered_pair(rng, n, sizes, TESTED["ar"]).p
    return None if p is None else p <= 0.05


def _skewed(rng: Generator, n: int) -> Floats:
    return rng.beta(0.5, 3, n)


def _lengths(rng: Generator, n: int) -> Floats:
    return 300 * rng.lognormal(0, 0.4, n)


def _steps(rng: Generator, n: int) -> Floats:
    return rng.choice([0.6, 0.8, 1.0], n, p=[0.05, 0.1, 0.85])


def _share(rng: Generator, n: int, share: float) -> bool | None:
    (one,) = scored(StructureComplete(), [values((rng.random(n) < share).astype(np.float64))])
    return holds(one, share)


def _f1_rows(rng: Generator, n: int) -> Floats:
    """Two labels on average; four in five are found, and now and then one too many."""
    true = rng.poisson(2, n)
    found, wrong = rng.binomial(true, 0.8), rng.poisson(0.5, n)
    return np.stack([found, wrong, true - found, np.ones(n)], axis=1).astype(np.float64)


F1 = 2 * 1.6 / (2 * 1.6 + 0.4 + 0.5)


def _f1(rng: Generator, n: int) -> bool | None:
    (one,) = scored(DistortionAgreement(), [_f1_rows(rng, n)])
    return holds(one, F1)


def _f1_difference(rng: Generator, n: int) -> bool | None:
    return holds(compared(DistortionAgreement(), [_f1_rows(rng, n), _f1_rows(rng, n)]), 0)


def _share_difference(rng: Generator, n: int, share: float) -> bool | None:
    luck = rng.random(n)  # the same questions are hard for both
    rows = [values(((luck + rng.random(n)) / 2 < one).astype(np.float64)) for one in (share, 0.5)]
    truth = 0.5 - (2 * share**2 if share < 0.5 else 1 - 2 * (1 - share) ** 2)
    return holds(compared(StructureComplete(), rows), truth)


def _win_rate(rng: Generator, n: int, advantage: float) -> bool | None:
    """Of normal gains, a fifth of them ties."""
    gains = np.where(rng.random(n) < 0.2, 0.0, rng.normal(advantage, 1, n))
    one = compared(Length(), [values(np.full(n, 50.0)), values(50 + gains)])
    assert one.win_low is not None and one.win_high is not None
    wins = {0.0: 0.5, 1.0: 0.8 * 0.8413447 + 0.1}[advantage]
    return one.win_low <= wins <= one.win_high


def _called_different(rng: Generator, n: int, test: str, spread: str) -> bool | None:
    easy = rng.normal(size=n)
    noise = rng.normal(size=(2, n)) if spread == "normal" else rng.exponential(size=(2, n))
    p = compared(Length(), [values(50 + easy + one) for one in noise], settings=TESTED[test]).p
    return None if p is None else p <= 0.05


TEXT = (Bleu("zh"), Chrf(), METEOR)

CLUSTERS = ("3 each", "1-20", "3, one 30")


def case(
    name: str,
    room: str,
    trial: Callable[..., bool | None],
    n_trials: int,
    allowed: tuple[float, float] = COVERAGE,
    note: str = "",
    **told: Any,
) -> Case:
    return Case(name, room, partial(trial, **told), n_trials, allowed, note=note)


ROUGH = (0.91, 0.99)
ROUGHLY = "few trials; scripts/bench/coverage.py runs more"
DF_LOW = "one question in three holds the rows: degrees of freedom err on the low side"
CASES = [
    *(
        case(
            f"{m.label} of {n} answers",
            "score",
            _score_of_text,
            500,
            (0.93, 0.98),
            "on three answers the interval errs on the wide side",
            metric=m,
            n=n,
        )
        for m in TEXT[:2]
        for n in (3, 10)
    ),
    case("METEOR of 30 answers", "score", _score_of_text, 1_000, metric=METEOR, n=30),
    *(
        case(
            f"skewed mean of {n} pairs",
            "score",
            _mean,
            1_000,
            metric=METEOR,
            n=n,
            draw=_skewed,
            truth=1 / 7,
        )
        for n in (5, 30)
    ),
    case(
        "length of 10 answers",
        "score",
        _mean,
        1_000,
        metric=Length(),
        n=10,
        draw=_lengths,
        truth=300 * float(np.exp(0.08)),
    ),
    *(
        case(
            f"CBT steps of {n} answers near the ceiling",
            "score",
            _mean,
            400,
            WIDE,
            FEW_VALUES,
            metric=StepsInOrder(),
            n=n,
            draw=_steps,
            truth=0.96,
        )
        for n in (5, 30)
    ),
    *(
        case(
            f"share {share} of {n} answers",
            "score",
            _share,
            300,
            ROUGH_UP,
            FEW_VALUES,
            n=n,
            share=share,
        )
        for share in (0.5, 0.9)
        for n in (5, 30)
    ),
    case("label F1 of 10 answers", "score", _f1, 300, WIDE, FEW_VALUES, n=10),
    *(
        case(
            f"mean of {n} questions with rows {sizes}",
            "score",
            _clustered_score,
            700,
            WIDE if "30" in sizes else COVERAGE,
            DF_LOW if "30" in sizes else "",
            n=n,
            sizes=sizes,
        )
        for sizes, n in zip(CLUSTERS, (6, 10, 10), strict=True)
    ),
    *(
        case(
            f"chrF2 difference on {n} questions",
            "compare",
            _difference_of_text,
            300,
            ROUGH,
            ROUGHLY,
            metric=TEXT[1],
            n=n,
        )
        for n in (5, 30)
    ),
    *(
        case(
            f"difference on {n} questions with rows {sizes}",
            "compare",
            _clustered_difference,
            500,
            ROUGH_UP if "30" in sizes else ROUGH,
            DF_LOW if "30" in sizes else ROUGHLY,
            n=n,
            sizes=sizes,
        )
        for sizes, n in zip(CLUSTERS, (6, 20, 10), strict=True)
    ),
    *(
        case(
            f"difference of shares {share} and .5 on {n}",
            "compare",
            _share_difference,
            300,
            ROUGH_UP,
            FEW_VALUES,
            n=n,
            share=share,
        )
        for share, n in ((0.5, 30), (0.9, 10))
    ),
    case(
        "label F1 difference on 10 questions", "compare", _f1_difference, 500, ROUGH, ROUGHLY, n=10
    ),
    *(
        case(
            f"win rate {name} on {n} questions",
            "compare",
            _win_rate,
            300,
            ROUGH_UP,
            FEW_VALUES,
            n=n,
            advantage=advantage,
        )
        for name, advantage, n in ((".5", 0.0, 10), (".77", 1.0, 30))
    ),
    case(
        "chrF2, equal systems, 10 questions",
        "compare",
        _text_called_different,
        400,
        LEVEL,
        ROUGHLY,
        metric=TEXT[1],
        n=10,
    ),
    *(
        case(
            f"equal systems, {n} questions with rows {sizes}",
            "compare",
            _clusters_called_different,
            600,
            LEVEL,
            ROUGHLY,
            n=n,
            sizes=sizes,
        )
        for sizes, n in (("3 each", 20), ("1-20", 10))
    ),
    *(
        case(
            f"equal systems, {spread}, --test {test} on {n}",
            "compare",
            _called_different,
            600,
            LEVEL,
            ROUGHLY,
            n=n,
            test=test,
            spread=spread,
        )
        for spread, test, n in (
            ("normal", "ar", 10),
            ("skewed", "ar", 30),
            ("skewed", "bs", FEWEST_FOR_BOOTSTRAP),
        )
    ),
]
