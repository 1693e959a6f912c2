"""Scores of a system and differences of two, as `score` and `compare` give them.

Every trial draws questions from a population whose score is known. For BLEU, chrF and METEOR that
is the score of 4,000 invented answers taken together.
"""

from __future__ import annotations

import math
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
from tests.coverage.cases import COVERAGE, TYPE_I, Case, Generator, Shown, Tier, shown

POPULATION = 4_000
SOUNDS = "我你想法睡眠压力朋友工作家人担心难过呼吸散步日记证据计划今天可以试着觉得慢慢来"
METEOR = Meteor("char")
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


def score(one: MetricScore, truth: float) -> Shown | None:
    return shown(one.value, one.low, one.high, truth)


def difference(one: PairComparison, truth: float) -> Shown | None:
    return shown(one.difference, one.low, one.high, truth)


# --- populations ---------------------------------------------------------------------------------


@cache
def answers(metric: Metric, easy: float = 8.0) -> tuple[Floats, Floats]:
    """Statistics of two systems that answer `POPULATION` questions with 20 to 150 characters.

    Args:
        easy: the smaller, the more questions differ; 4 gives shares of copied characters from .1
            to .9.
    """
    rng = np.random.default_rng(7)
    letters = np.array(list(SOUNDS))

    def damaged(text: Floats, share: float) -> str:
        changed = rng.random(len(text)) < share
        return "".join(np.where(changed, rng.choice(letters, len(text)), text))

    wholes = [rng.choice(letters, rng.integers(20, 151)) for _ in range(POPULATION)]
    texts = ["".join(whole) for whole in wholes]
    shares = rng.beta(easy, easy, POPULATION)  # some questions are easier, for both systems
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


def _score_of_text(rng: Generator, metric: Metric, n: int, easy: float = 8.0) -> Shown | None:
    rows, _ = answers(metric, easy)
    (one,) = scored(metric, [rows[rng.integers(0, POPULATION, n)]])
    return score(one, float(metric.from_sums(rows.sum(0))))


def _difference_of_text(rng: Generator, metric: Metric, n: int) -> Shown | None:
    rows = answers(metric)
    drawn = rng.integers(0, POPULATION, n)
    first, second = (float(metric.from_sums(one.sum(0))) for one in rows)
    return difference(compared(metric, [one[drawn] for one in rows]), second - first)


def _text_called_different(rng: Generator, metric: Metric, n: int) -> bool | None:
    """Each question's two answers are dealt to the systems by a coin: the systems are equal."""
    rows = np.stack(answers(metric))[:, rng.integers(0, POPULATION, n)]
    coins = rng.integers(0, 2, n)
    dealt = [rows[coins, np.arange(n)], rows[1 - coins, np.arange(n)]]
    p = compared(metric, dealt, settings=TESTED["ar"]).p
    return None if p is None else p <= 0.05


def _mean(
    rng: Generator, metric: Metric, n: int, draw: Callable[..., Floats], truth: float
) -> Shown | None:
    (one,) = scored(metric, [values(draw(rng, n))])
    return score(one, truth)


def _clusters(rng: Generator, n: int, sizes: str) -> Floats:
    """The question of each row: three rows each, 1 to 20, or 3 and once 30."""
    counts = {"3 each": np.full(n, 3), "1-20": rng.integers(1, 21, n), "3, one 30": np.full(n, 3)}
    if sizes == "3, one 30":
        counts[sizes][0] = 30
    return np.repeat(np.arange(n), counts[sizes])


def _clustered_score(rng: Generator, n: int, sizes: str) -> Shown | None:
    question = _clusters(rng, n, sizes)
    scores = 0.3 + rng.normal(0, 0.06, n)[question] + rng.normal(0, 0.05, len(question))
    (one,) = scored(METEOR, [values(scores)], question.tolist())
    return score(one, 0.3)


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


def _clustered_difference(rng: Generator, n: int, sizes: str) -> Shown | None:
    return difference(_clustered_pair(rng, n, sizes), 0)


def _clusters_called_different(rng: Generator, n: int, sizes: str) -> bool | None:
    p = _clustered_pair(rng, n, sizes, TESTED["ar"]).p
    return None if p is None else p <= 0.05


def _skewed(rng: Generator, n: int) -> Floats:
    return rng.beta(0.5, 3, n)


def _lengths(rng: Generator, n: int) -> Floats:
    return 300 * rng.lognormal(0, 0.4, n)


def _steps(rng: Generator, n: int) -> Floats:
    return rng.choice([0.6, 0.8, 1.0], n, p=[0.05, 0.1, 0.85])


def _share(rng: Generator, n: int, share: float) -> Shown | None:
    (one,) = scored(StructureComplete(), [values((rng.random(n) < share).astype(np.float64))])
    return score(one, share)


def _f1_rows(rng: Generator, n: int) -> Floats:
    """Two labels on average; four in five are found, and now and then one too many."""
    true = rng.poisson(2, n)
    found, wrong = rng.binomial(true, 0.8), rng.poisson(0.5, n)
    return np.stack([found, wrong, true - found, np.ones(n)], axis=1).astype(np.float64)


F1 = 2 * 1.6 / (2 * 1.6 + 0.4 + 0.5)


def _f1(rng: Generator, n: int) -> Shown | None:
    (one,) = scored(DistortionAgreement(), [_f1_rows(rng, n)])
    return score(one, F1)


def _f1_difference(rng: Generator, n: int) -> Shown | None:
    return difference(compared(DistortionAgreement(), [_f1_rows(rng, n), _f1_rows(rng, n)]), 0)


def _share_difference(rng: Generator, n: int, share: float) -> Shown | None:
    luck = rng.random(n)  # the same questions are hard for both
    rows = [values(((luck + rng.random(n)) / 2 < one).astype(np.float64)) for one in (share, 0.5)]
    truth = 0.5 - (2 * share**2 if share < 0.5 else 1 - 2 * (1 - share) ** 2)
    return difference(compared(StructureComplete(), rows), truth)


def _win_rate(rng: Generator, n: int, advantage: float) -> Shown | None:
    """Of normal gains, a fifth of them ties."""
    gains = np.where(rng.random(n) < 0.2, 0.0, rng.normal(advantage, 1, n))
    one = compared(Length(), [values(np.full(n, 50.0)), values(50 + gains)])
    wins = {0.0: 0.5, 1.0: 0.8 * 0.8413447 + 0.1}[advantage]
    return shown(one.win_rate, one.win_low, one.win_high, wins)


def _called_different(rng: Generator, n: int, test: str, spread: str) -> bool | None:
    easy = rng.normal(size=n)
    noise = rng.normal(size=(2, n)) if spread == "normal" else rng.exponential(size=(2, n))
    p = compared(Length(), [values(50 + easy + one) for one in noise], settings=TESTED[test]).p
    return None if p is None else p <= 0.05


def _of_gains(gains: Floats, settings: CompareSettings = ONE_TRIAL) -> PairComparison:
    even = np.full(len(gains), 50.0)
    return compared(Length(), [values(even), values(even + gains)], settings=settings)


def _spread_difference(rng: Generator, n: int, spread: str) -> Shown | None:
    gains = rng.exponential(size=n) - 1 if spread == "skewed" else rng.standard_t(3, size=n)
    return difference(_of_gains(gains), 0.0)


def _one_sided_skew(rng: Generator, n: int) -> bool | None:
    p = _of_gains(rng.exponential(size=n) - 1, TESTED["ar"]).p
    return None if p is None else p <= 0.05


TEXT = (Bleu("zh"), Chrf())

CLUSTERS = ("3 each", "1-20", "3, one 30")
Told = tuple[tuple[float, float], float, str]
"""What is allowed, the greatest width, and why it is not nominal."""
NOMINAL: Told = (COVERAGE, math.inf, "")
FEW_VALUES: Told = ((COVERAGE[0], 1.0), 1.4, "few values can occur: errs on the wide side")
STEPS: Told = ((COVERAGE[0], 1.0), 2.6, "nearly all values at one end: errs on the wide side")
THREE: Told = ((COVERAGE[0], 0.99), 2.5, "on three answers the interval errs on the wide side")
DF_LOW: Told = (
    (COVERAGE[0], 1.0),
    2.2,
    "one question holds two thirds of the rows: degrees of freedom err on the low side",
)
UNEVEN: Told = ((0.9, 0.95), 2.2, "copied and free answers mixed: a little too narrow")
ONE_TAIL: Told = ((0.9, 0.95), 1.4, "exponential gains of few questions: a little too narrow")
SKEWED: Told = (
    (0.06, 0.12),
    math.inf,
    "skewed differences: either system cannot have given either",
)


def case(
    name: str,
    room: str,
    trial: Callable[..., Shown | bool | None],
    told: Told = NOMINAL,
    tier: Tier = "bench",
    n_trials: int = 500,
    **given: Any,
) -> Case:
    allowed, widest, note = told
    return Case(
        name, room, partial(trial, **given), n_trials, allowed, note=note, widest=widest, tier=tier
    )


SCORES = [
    case("BLEU zh of 3 answers", "score", _score_of_text, THREE, "suite", metric=TEXT[0], n=3),
    case("BLEU zh of 10 answers", "score", _score_of_text, tier="suite", metric=TEXT[0], n=10),
    case("chrF2 of 3 answers", "score", _score_of_text, THREE, "suite", metric=TEXT[1], n=3),
    case("chrF2 of 10 answers", "score", _score_of_text, tier="suite", metric=TEXT[1], n=10),
    *(
        case(
            f"chrF2 of {n} answers, copied ones among them",
            "score",
            _score_of_text,
            UNEVEN,
            "suite" if n == 10 else "bench",
            metric=TEXT[1],
            n=n,
            easy=4.0,
        )
        for n in (3, 5, 10)
    ),
    case("METEOR of 30 answers", "score", _score_of_text, metric=METEOR, n=30),
    *(
        case(
            f"skewed mean of {n} pairs",
            "score",
            _mean,
            tier="suite" if n == 5 else "bench",
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
        tier="suite",
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
            STEPS,
            "suite" if n == 5 else "bench",
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
            FEW_VALUES,
            "suite" if n == 5 else "bench",
            n=n,
            share=share,
        )
        for share in (0.5, 0.9)
        for n in (5, 30)
    ),
    case("label F1 of 10 answers", "score", _f1, FEW_VALUES, "suite", n=10),
    *(
        case(
            f"mean of {n} questions with rows {sizes}",
            "score",
            _clustered_score,
            DF_LOW if "30" in sizes else NOMINAL,
            "suite",
            n=n,
            sizes=sizes,
        )
        for sizes, n in zip(CLUSTERS, (6, 10, 10), strict=True)
    ),
]
DIFFERENCES = [
    *(
        case(
            f"chrF2 difference on {n} questions",
            "compare",
            _difference_of_text,
            tier="suite" if n == 5 else "bench",
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
            DF_LOW if "30" in sizes else NOMINAL,
            "suite" if sizes == "3 each" else "bench",
            n=n,
            sizes=sizes,
        )
        for sizes, n in zip(CLUSTERS, (6, 20, 10), strict=True)
    ),
    *(
        case(
            f"{spread} difference on {n} questions",
            "compare",
            _spread_difference,
            ONE_TAIL if (spread, n) == ("skewed", 10) else NOMINAL,
            "suite" if n == 10 else "bench",
            n=n,
            spread=spread,
        )
        for spread in ("skewed", "heavy-tailed")
        for n in (10, 30)
    ),
    *(
        case(
            f"difference of shares {share} and .5 on {n}",
            "compare",
            _share_difference,
            FEW_VALUES,
            n=n,
            share=share,
        )
        for share, n in ((0.5, 30), (0.9, 10))
    ),
    case("label F1 difference on 10 questions", "compare", _f1_difference, FEW_VALUES, n=10),
    *(
        case(
            f"win rate {name} on {n} questions",
            "compare",
            _win_rate,
            FEW_VALUES,
            n=n,
            advantage=advantage,
        )
        for name, advantage, n in ((".5", 0.0, 10), (".77", 1.0, 30))
    ),
]
LEVEL: Told = (TYPE_I, math.inf, "")
CASES = [
    *SCORES,
    *DIFFERENCES,
    case(
        "chrF2, equal systems, 10 questions",
        "compare",
        _text_called_different,
        LEVEL,
        metric=TEXT[1],
        n=10,
    ),
    *(
        case(
            f"equal systems, {n} questions with rows {sizes}",
            "compare",
            _clusters_called_different,
            LEVEL,
            "suite" if sizes == "3 each" else "bench",
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
            told,
            "suite" if n != 30 else "bench",
            n=n,
            test=test,
            spread=spread,
        )
        for spread, test, n, told in (
            ("normal", "ar", 10, LEVEL),
            ("skewed", "ar", 30, LEVEL),
            ("skewed", "bs", FEWEST_FOR_BOOTSTRAP, LEVEL),
        )
    ),
    case(
        "mean difference 0, exponential, --test ar on 10",
        "compare",
        _one_sided_skew,
        SKEWED,
        "suite",
        n=10,
    ),
]
