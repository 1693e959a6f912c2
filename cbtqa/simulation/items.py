"""Items of one instrument over a study: profile by arm, use of the scale, homogeneity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cbtqa.records import ItemRating
from cbtqa.simulation.instruments import Instrument
from cbtqa.simulation.results import ItemProfile, ItemUse
from cbtqa.simulation.session_scores import SessionScore


def cronbach_alpha(instrument: Instrument, rows: Sequence[SessionScore]) -> float | None:
    """How far the items of the headline total move together; None when that is undefined."""
    items = [criterion.id for criterion, _ in instrument.rubric.parts_of(instrument.headline)]
    table = [[row.values.get(item) for item in items] for row in rows]
    full = np.array([line for line in table if None not in line], dtype=np.float64)
    if len(full) < 3 or len(items) < 2:
        return None
    whole = full.sum(axis=1).var(ddof=1)
    if whole <= 0:
        return None
    return float(len(items) / (len(items) - 1) * (1 - full.var(axis=0, ddof=1).sum() / whole))


def item_profiles(
    instrument: Instrument, rows: Sequence[SessionScore], arms: Sequence[str]
) -> Iterator[ItemProfile]:
    """Means of every item and area by arm."""
    for item in instrument.items:
        means = {
            arm: _mean(row.values.get(item.id) for row in rows if row.arm == arm) for arm in arms
        }
        yield ItemProfile(
            item=item.id,
            name=item.name.to("en"),
            name_zh=item.name.to("zh"),
            is_area=False,
            low=item.low,
            high=item.high,
            means=means,
        )
    titles = {section.id: section.title for section in instrument.rubric.sections}
    if len(titles) < 2:
        return
    for area in instrument.areas({}):
        means = {
            arm: _mean(row.total(area.total) for row in rows if row.arm == arm) for arm in arms
        }
        yield ItemProfile(
            item=area.total,
            name=titles[area.total].to("en"),
            name_zh=titles[area.total].to("zh"),
            is_area=True,
            low=area.low,
            high=area.high,
            means=means,
        )


def _mean(values: Iterable[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


def item_use(
    instrument: Instrument, rows: Sequence[SessionScore], ratings: Sequence[ItemRating] | None
) -> Iterator[ItemUse]:
    """How often each point was given.

    Args:
        ratings: single ratings, where they are known; else the rows' values count, each to the
            nearest point.
    """
    counts: dict[str, Counter[int]] = {item.id: Counter() for item in instrument.items}
    unscored: dict[str, Counter[str]] = {item.id: Counter() for item in instrument.items}
    if ratings is not None:
        for one in ratings:
            if one.value is not None:
                counts[one.item][one.value] += 1
            else:
                unscored[one.item][str(one.unscored_reason).partition(":")[0]] += 1
    else:
        for row in rows:
            for name, value in row.values.items():
                if value is not None:
                    counts[name][round(value)] += 1
                else:
                    unscored[name]["missing"] += 1
    for item in instrument.items:
        yield ItemUse(
            item=item.id,
            name=item.name.to("en"),
            counts={point: counts[item.id][point] for point in item.points},
            unscored=dict(unscored[item.id]),
        )
