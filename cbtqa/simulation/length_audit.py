"""How sessions ended and how long they are, by arm: to be read before any score.

endings(sessions, arms)[0].counts           # stop reason to number
length_correlations(rows, "ctrs", "total", arms)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from cbtqa.records import Session
from cbtqa.simulation.audit import EARLY_STOPS
from cbtqa.simulation.outcomes import LENGTH
from cbtqa.simulation.results import EndingRow, HaloRow, LengthCorrelation, LengthRow
from cbtqa.simulation.session_scores import SessionScore
from cbtqa.statistics.agreement import Floats
from cbtqa.statistics.mixed_model import NORMAL_95

SHORT_TURNS = 5
POOLED, WITHIN = "pooled", "within arms"


def endings(sessions: Sequence[Session], arms: Sequence[str]) -> list[EndingRow]:
    """Stop reasons by arm."""
    rows = []
    for arm in arms:
        counts = Counter(session.stop_reason for session in sessions if session.arm == arm)
        n_early = sum(n for reason, n in counts.items() if reason in EARLY_STOPS)
        rows.append(
            EndingRow(
                arm=arm, n=counts.total(), counts=dict(sorted(counts.items())), n_early=n_early
            )
        )
    return rows


def lengths(rows: Sequence[SessionScore], arms: Sequence[str]) -> list[LengthRow]:
    """Words and turns of the therapist by arm; empty where they are not known."""
    known = {row.session_id: row for row in rows if LENGTH in row.numbers}
    found = []
    for arm in arms:
        own = [row.numbers for row in known.values() if row.arm == arm]
        if not own:
            continue
        words = float(np.mean([one[LENGTH] for one in own]))
        turns = [one["turns"] for one in own if "turns" in one]
        n_turns = sum(turns)
        found.append(
            LengthRow(
                arm=arm,
                n=len(own),
                turns=float(np.mean(turns)) if turns else None,
                words=words,
                words_per_turn=words * len(own) / n_turns if n_turns else None,
                n_short=sum(one < SHORT_TURNS for one in turns) if turns else None,
            )
        )
    return found


def length_correlations(
    rows: Sequence[SessionScore], instrument: str, total: str, arms: Sequence[str]
) -> list[LengthCorrelation]:
    """Pearson's r of therapist words and a total: pooled, within arms, and in each arm.

    Within arms, both are taken as deviations from their arm's mean.
    """
    kept = [row for row in rows if row.total(total) is not None and LENGTH in row.numbers]
    words = np.array([row.numbers[LENGTH] for row in kept])
    values = np.array([row.total(total) for row in kept], dtype=np.float64)
    of = np.array([row.arm for row in kept])
    parts = [(POOLED, words, values, 3)]
    centred_words, centred_values = words.copy(), values.copy()
    for arm in set(of.tolist()):
        own = of == arm
        centred_words[own] -= words[own].mean()
        centred_values[own] -= values[own].mean()
    parts.append((WITHIN, centred_words, centred_values, 2 + len(set(of.tolist()))))
    parts += [(arm, words[of == arm], values[of == arm], 3) for arm in arms]
    found = []
    for scope, a, b, lost in parts:
        r = _correlation(a, b)
        if r is None or len(a) <= lost:
            continue
        low, high = _fisher_interval(r, len(a) - lost)
        found.append(
            LengthCorrelation(
                instrument=instrument, total=total, scope=scope, n=len(a), r=r, low=low, high=high
            )
        )
    return found


def halo_rows(tables: Mapping[str, tuple[str, Sequence[SessionScore]]]) -> list[HaloRow]:
    """Correlation of every two instruments over sessions that have both totals.

    Args:
        tables: instrument to its headline total and its rows.
    """
    values = {
        name: {row.session_id: value for row in rows if (value := row.total(total)) is not None}
        for name, (total, rows) in tables.items()
    }
    found = []
    for first, second in combinations(values, 2):
        shared = [key for key in values[first] if key in values[second]]
        a = np.array([values[first][key] for key in shared])
        b = np.array([values[second][key] for key in shared])
        r = _correlation(a, b)
        if r is not None:
            low, high = _fisher_interval(r, len(shared) - 3)
            found.append(
                HaloRow(first=first, second=second, n=len(shared), r=r, low=low, high=high)
            )
    return found


def _correlation(a: Floats, b: Floats) -> float | None:
    if len(a) < 4 or a.std() < 1e-12 or b.std() < 1e-12:
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


def _fisher_interval(r: float, freedom: int) -> tuple[float, float]:
    """95 % interval of a correlation by Fisher's z."""
    if abs(r) >= 1 - 1e-12:
        return r, r
    half = NORMAL_95 / math.sqrt(freedom)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
