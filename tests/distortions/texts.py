"""Invented thoughts for training and labelling: two kinds that words tell apart, and plain ones."""

from __future__ import annotations

import random

from cbtqa.distortions.importers import GoldItem, GoldSet
from cbtqa.distortions.taxonomy import load_taxonomy

_SCENES = (
    "昨天开会以后",
    "考完试回家",
    "和室友吵完架",
    "面试回来的路上",
    "给客户打完电话",
    "上完晚课",
)
_LABELING = ("我就是个废物", "觉得自己特别没用", "我真是太差劲了", "我是一个失败者")
_FORTUNE = ("以后再也不会好了", "这辈子都找不到工作了", "我看不到未来", "将来肯定会失败")
_PLAIN = ("想问问怎么安排时间", "有什么办法可以睡得早一点", "今天吃了两碗面", "打算周末去爬山")


def invented_gold(n: int = 240, seed: int = 0) -> GoldSet:
    """Texts in socialcd-12 with labeling, fortune telling, both, or nothing."""
    generator = random.Random(seed)
    items: dict[str, GoldItem] = {}
    while len(items) < n:
        types, parts = set(), [generator.choice(_SCENES)]
        kind = generator.random()
        if kind < 0.5:
            types.add("labeling")
            parts.append(generator.choice(_LABELING))
        if 0.35 < kind < 0.7:
            types.add("fortune_telling")
            parts.append(generator.choice(_FORTUNE))
        parts += generator.sample(_PLAIN, 2)
        head, *rest = parts
        generator.shuffle(rest)
        text = "，".join([head, *rest]) + generator.choice(("。", "？", "……", "！"))
        number = str(len(items) + 1)
        items.setdefault(text, GoldItem(id=number, text=text, types=frozenset(types)))
    return GoldSet("invented", load_taxonomy("socialcd-12"), tuple(items.values()), "ours", n)
