"""Copies of a question as they occur: edited, reworded, cut, reordered, in the other script."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cbtqa.dataset.near_duplicates
from cbtqa.files import parse_yaml

SYNONYMS = dict(
    pair.split("/")
    for pair in """
    妈妈/母亲 爸爸/父亲 爸妈/父母 老公/丈夫 老婆/妻子 孩子/小孩 男朋友/男友 女朋友/女友 朋友/好友 同学/同窗
    家里人/家人 家里/家中 老师/教师 领导/上司 同事/搭档 自己/本人 别人/他人 大家/所有人 人们/众人
    难过/伤心 害怕/恐惧 开心/高兴 快乐/愉快 生气/发火 痛苦/难受 焦虑/不安 烦躁/心烦 紧张/慌张 孤独/寂寞
    委屈/憋屈 失望/灰心 绝望/心死 后悔/懊悔 担心/忧虑 讨厌/厌恶 喜欢/喜爱 羡慕/眼红 自卑/不自信 内向/不外向
    敏感/多心 压力/负担 崩溃/垮掉 失眠/睡不着 抑郁/消沉 无聊/没劲 累/疲惫 哭/流泪 吵架/争吵 骂/责骂 分手/分开
    怎么办/如何是好 怎么/如何 为什么/为何 什么/啥 请问/想问 帮助/帮忙 解决/处理 应该/该 觉得/感觉 认为/以为
    知道/清楚 明白/懂得 希望/盼望 想要/想得到 愿意/乐意 需要/要 可以/能够 可能/也许 一直/始终 总是/老是 经常/时常
    有时候/有时 现在/目前 以前/从前 后来/之后 最近/近来 突然/忽然 马上/立刻 每天/天天 已经/早已 刚刚/刚才
    非常/十分 特别/格外 很多/许多 一点/一些 几乎/差不多 完全/彻底 真的/确实 其实/事实上 但是/可是 不过/只是
    因为/由于 所以/因此 如果/假如 虽然/尽管 而且/并且 或者/还是 然后/接着 学习/念书 考试/测验 成绩/分数
    工作/上班 毕业/离校 学校/校园 大学/高校 医生/大夫 生活/日子 事情/事 问题/困扰 方法/办法 原因/缘故
    关系/交情 感情/情感 性格/脾气 心情/情绪 想法/念头 说话/讲话 聊天/闲聊 告诉/跟我说 见面/碰面 离开/走开
    开始/起初 结束/完结 改变/改掉 努力/用功 放弃/不干 坚持/撑住 影响/干扰 拒绝/回绝 控制/克制 发现/察觉
    时间/时候 认真/专心 漂亮/好看 聪明/机灵 重要/要紧 奇怪/古怪 正常/平常 严重/厉害 简单/容易 困难/不易
    """.split()
)
"""Everyday words, each with another one of about the same meaning."""
_WORD = re.compile("|".join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True)))
_END = re.compile(r"(?<=[。！？!?；;\n])")
PREFIX = "老师您好，我是第一次在这里提问，也不知道说得清不清楚，希望有人能看到我的问题，谢谢。"

Change = Callable[[str, random.Random], str]


def edited(letters: Sequence[str], rate: float) -> Change:
    """Substitutes, deletes and inserts: `rate` times the characters of the text, at least none."""

    def change(text: str, draw: random.Random) -> str:
        chars = list(text)
        for _ in range(round(len(text) * rate)):
            kind = draw.choice("sdi")
            if kind == "i" or not chars:
                chars.insert(draw.randrange(len(chars) + 1), draw.choice(letters))
                continue
            at = draw.randrange(len(chars))
            chars[at : at + 1] = [draw.choice(letters)] if kind == "s" else []
        return "".join(chars)

    return change


def reworded(share: float) -> Change:
    """Replaces words by synonyms: each occurrence with a probability of `share`."""

    def change(text: str, draw: random.Random) -> str:
        def other(found: re.Match[str]) -> str:
            return SYNONYMS[found[0]] if draw.random() < share else found[0]

        return _WORD.sub(other, text)

    return change


def _shuffled(text: str, draw: random.Random) -> str:
    parts = [part for part in _END.split(text) if part]
    draw.shuffle(parts)
    return "".join(parts)


def _cut(share: float) -> Change:
    return lambda text, draw: text[: max(1, round(len(text) * share))]


def _traditional(text: str, draw: random.Random) -> str:
    """One traditional form of each character that has any."""
    folder = Path(cbtqa.dataset.near_duplicates.__file__).parent
    pairs = parse_yaml((folder / "simplified.yaml").read_text("utf-8"))["pairs"].split()
    return text.translate({ord(pair[1]): pair[0] for pair in reversed(pairs)})


def _retyped(text: str, draw: random.Random) -> str:
    """Half-width marks, full-width letters and digits, spaces here and there."""
    text = text.translate(str.maketrans("，。！？：；（）", ",.!?:;()"))
    text = "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalnum() else c for c in text)
    return "".join(c + " " * (draw.random() < 0.05) for c in text)


def _other_numbers(text: str, draw: random.Random) -> str:
    digits = "零一二三四五六七八九"
    text = re.sub(r"\d", lambda found: str(draw.randrange(10)), text)
    return re.sub(f"[{digits[2:]}十]", lambda found: draw.choice(digits[2:]), text)


def kinds(letters: Sequence[str]) -> dict[str, Change]:
    """Every kind of copy, by a name for tables.

    Args:
        letters: what an edit puts in: the characters of the file, as often as they occur there.
    """
    rates = {f"{rate:.0%} of the characters edited": rate for rate in (0.02, 0.05, 0.08, 0.12, 0.2)}
    return {
        "the same text": lambda text, draw: text,
        **{name: edited(letters, rate) for name, rate in rates.items()},
        "half of the words replaced by synonyms": reworded(0.5),
        "all words replaced by synonyms": reworded(1),
        "traditional characters": _traditional,
        "other width, marks and spaces": _retyped,
        "other numbers": _other_numbers,
        "sentences in another order": _shuffled,
        "a greeting of 41 characters before it": lambda text, draw: PREFIX + text,
        "the first half alone": _cut(0.5),
        "the first third alone": _cut(1 / 3),
    }
