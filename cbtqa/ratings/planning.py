"""Who rates what, in which order: seeded draws, balanced assignment, orders, repeats.

Everything here depends on its arguments and the seed alone, so a study can be made again.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

REPEAT_GAP = 1 / 3
"""A repeated item comes at least this share of a rater's list after its first showing."""


def draw_stratified(strata: Mapping[str, str], n: int, seed: int) -> list[str]:
    """Draws `n` ids, each stratum by its share (largest remainder), in random order.

    Args:
        strata: id to the name of its stratum.

    Raises:
        ValueError: fewer ids than asked for.
    """
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
    """For each id the one of its labels that is rarest overall, or `none`.

    A question with several labels can stand in one stratum only; the rarest gains most from it.
    """
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

    Raises:
        ValueError: more raters per block than raters.
    """
    if not 1 <= per_block <= len(raters):
        raise ValueError(f"{per_block} raters per item, but {len(raters)} raters")
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
        gain = _swap_gain(teams[one] - {leaves}, teams[other] - {comes}, leaves, comes, shared)
        if gain > 0:
            for team, out, into in ((teams[one], leaves, comes), (teams[other], comes, leaves)):
                team.remove(out)
                for mate in team:
                    shared[frozenset((out, mate))] -= 1
                    shared[frozenset((into, mate))] += 1
                team.add(into)


def _swap_gain(
    rest_one: set[str],
    rest_other: set[str],
    leaves: str,
    comes: str,
    shared: Counter[frozenset[str]],
) -> int:
    """Fall of the sum of squared pair counts if the two raters change places."""
    change = Counter[frozenset[str]]()
    for rest, out, into in ((rest_one, leaves, comes), (rest_other, comes, leaves)):
        for mate in rest:
            change[frozenset((out, mate))] -= 1
            change[frozenset((into, mate))] += 1
    return -sum(2 * shared[pair] * step + step * step for pair, step in change.items())


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
    names = [name for name, _ in order]
    return _insert_repeats(names, n_repeats, generator)


def _insert_repeats(names: list[str], n_repeats: int, generator: random.Random) -> list[str]:
    gap = max(2, round(len(names) * REPEAT_GAP))
    early = names[: max(len(names) - gap, 0)]
    chosen = generator.sample(early, min(n_repeats, len(early)))
    result = list(names)
    for name in chosen:
        first = result.index(name)
        result.insert(generator.randint(first + gap, len(result)), name)
    return result
