"""From the share of texts that a labeller marks to the share that has a distortion.

    found = prevalence(22_327, 12_136, labeller, sensitivity, specificity)
    found.share, found.corrected           # 0.544, 0.248
    found.sentence().en                    # the words of terminal, report and card

A labelled share is no prevalence: a labeller with specificity .58 marks four in ten texts that have
no distortion. The correction needs the labeller's sensitivity and specificity as an evaluation
measured them, and assumes that it errs here as it did there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product

from cbtqa.distortions.evaluate import EvaluationReport, Share, paper_evaluation
from cbtqa.distortions.f1 import FEWEST
from cbtqa.papers import source_of
from cbtqa.records import Record
from cbtqa.report.page import Phrase
from cbtqa.report.words import count, number, share
from cbtqa.statistics.intervals import share_interval, t_quantile

NO_EVALUATION = Phrase(zh="没有给出标注者的评估", en="no evaluation of the labeller was given")

OTHER_ERRORS = Phrase(
    zh="按评估的误差不可能有这样的占比，标注者在这里的误差必定不同",
    en="the evaluated errors cannot give such a share: the labeller errs differently here",
)


class Corrected(Record):
    """What share truly has a distortion, by a labeller's known errors."""

    value: float
    low: float
    high: float
    is_truncated: bool
    """The estimate lay outside 0 to 1 and was moved to the nearer end."""


class Prevalence(Record):
    """Share of the entries that carry a distortion label, and what it says of distortions."""

    n: int
    n_labelled: int
    share: float | None
    """Labelled share; None without entries."""
    low: float | None
    """Wilson's interval: entries are drawn from more of their kind."""
    high: float | None
    corrected: Corrected | None
    reason: Phrase | None
    """Why it is not corrected."""
    labeller: str | None = None
    evaluated_on: str | None = None
    """The texts of the evaluation, such as `cogdis`."""
    n_evaluated: int | None = None
    sensitivity: Share | None = None
    specificity: Share | None = None

    def sentence(self) -> Phrase:
        """The same words wherever the share is shown."""
        if self.share is None:
            return Phrase(zh="没有条目。", en="There are no entries.")
        labelled = Phrase(
            zh="带标签的占比（有扭曲标签的条目），不是真实比例："
            f"{_shown(self, self.share, 'zh')}。",
            en="Labelled share (entries with a distortion label), not prevalence: "
            f"{_shown(self, self.share, 'en')}.",
        )
        if self.corrected is None:
            why = self.reason or NO_EVALUATION
            return Phrase(
                zh=f"{labelled.zh}未校正：{why.zh}。",
                en=f"{labelled.en} Not corrected for the labeller's errors: {why.en}.",
            )
        return Phrase(
            zh=f"{labelled.zh}{self._corrected_words('zh')}",
            en=f"{labelled.en} {self._corrected_words('en')}",
        )

    def _corrected_words(self, lang: str) -> str:
        assert self.corrected and self.sensitivity and self.specificity
        found = self.corrected
        shown = _shown(found, found.value, lang)
        right, none = number(self.sensitivity.value), number(self.specificity.value)
        if lang == "zh":
            moved = "；估计值超出 0 至 1，已取端点" if found.is_truncated else ""
            texts = f"{self.evaluated_on}，{count(self.n_evaluated)} 条文本"
            errors = f"{texts}：灵敏度 {right}，特异度 {none}"
            known = f"{self.labeller} 的已知误差（{errors}）"
            return f"按 {known}校正（假定在这里误差相同）：{shown}{moved}。"
        moved = "; the estimate lay outside 0 to 1 and was cut there" if found.is_truncated else ""
        texts = f"{self.evaluated_on}, {count(self.n_evaluated)} texts"
        errors = f"{texts}: sensitivity {right}, specificity {none}"
        known = f"the errors of {self.labeller} ({errors})"
        return f"Corrected for {known}, if they are the same here: {shown}{moved}."


def _shown(ends: Corrected | Prevalence, value: float, lang: str) -> str:
    low, high = share(ends.low), share(ends.high)
    if lang == "zh":
        return f"{share(value)}（95% 区间 {low} 至 {high}）"
    return f"{share(value)} (95% interval {low} to {high})"


def labelled_share(
    n: int,
    n_labelled: int,
    labellers: Mapping[str, int],
    evaluation: EvaluationReport | None = None,
) -> Prevalence:
    """Corrected where the evaluation measured the labeller that gave the labels.

    Args:
        labellers: labels by the name of who gave them.
    """
    if evaluation is None:
        return prevalence(n, n_labelled, reason=NO_EVALUATION)
    if len(labellers) != 1:
        names = ", ".join(labellers) or "-"
        zh = f"标签不是由同一个标注者给出的（{names}）"
        return prevalence(n, n_labelled, reason=Phrase(zh=zh, en=f"labels by not one: {names}"))
    (labeller,) = labellers
    system = evaluation.systems.get(labeller)
    if system is None:
        measured = ", ".join(evaluation.systems)
        return prevalence(
            n,
            n_labelled,
            reason=Phrase(
                zh=f"评估的是 {measured}，标签由 {labeller} 给出",
                en=f"the evaluation is of {measured}, the labels are by {labeller}",
            ),
        )
    return prevalence(
        n,
        n_labelled,
        labeller=labeller,
        evaluated_on=evaluation.file or evaluation.data,
        n_evaluated=evaluation.n_texts,
        sensitivity=system.sensitivity,
        specificity=system.specificity,
    )


def prevalence(
    n: int,
    n_labelled: int,
    *,
    labeller: str | None = None,
    evaluated_on: str | None = None,
    n_evaluated: int | None = None,
    sensitivity: Share | None = None,
    specificity: Share | None = None,
    reason: Phrase | None = None,
) -> Prevalence:
    """The labelled share with its interval, corrected unless there is a reason against it."""
    of_labels = share_interval(n_labelled, n)
    corrected = None
    if reason is None and n:
        reason = _why_not(sensitivity, specificity)
        if reason is None and sensitivity and specificity:
            corrected = correct_share(n_labelled, n, sensitivity, specificity)
            reason = None if corrected else OTHER_ERRORS
    return Prevalence(
        n=n,
        n_labelled=n_labelled,
        share=n_labelled / n if n else None,
        low=of_labels.low,
        high=of_labels.high,
        corrected=corrected,
        reason=reason,
        labeller=labeller,
        evaluated_on=evaluated_on,
        n_evaluated=n_evaluated,
        sensitivity=sensitivity,
        specificity=specificity,
    )


def _why_not(sensitivity: Share | None, specificity: Share | None) -> Phrase | None:
    """Why these errors correct nothing."""
    if sensitivity is None or specificity is None:
        zh = "评估里没有灵敏度和特异度（只含一类文本，或出自旧版本）"
        return Phrase(zh=zh, en="the evaluation holds no sensitivity or no specificity")
    fewest = min(sensitivity.n_effective, specificity.n_effective)
    if min(sensitivity.n, specificity.n) < FEWEST or fewest < 1:
        few = f"{sensitivity.n} / {specificity.n}"
        return Phrase(
            zh=f"评估的文本太少（有 / 无扭曲：{few}）",
            en=f"too few evaluated texts with / without a distortion: {few}",
        )
    # the lower end of sensitivity + specificity - 1, by the distances of both lower ends
    ends = [(one.value, one.low or 0.0) for one in (sensitivity, specificity)]
    above_chance = sum(value for value, _ in ends) - 1
    if above_chance <= math.hypot(*(value - low for value, low in ends)):
        total = number(above_chance + 1)
        return Phrase(
            zh=f"评估未能表明标注者好于随机（灵敏度 + 特异度 = {total}）",
            en=f"the labeller is not shown to be better than chance (sensitivity + specificity "
            f"{total})",
        )
    return None


def correct_share(
    n_labelled: int, n: int, sensitivity: Share, specificity: Share
) -> Corrected | None:
    """Rogan and Gladen's estimate, with an interval that carries both samples.

    Random are the entries and the evaluated texts with and without a distortion. None where the
    whole interval lies outside 0 to 1: with these errors so few or so many labels cannot be.

    Source: Rogan and Gladen 1978; interval: Lang and Reiczigel, Preventive Veterinary Medicine
    113 (2014), 13-22.
    """
    z = t_quantile(math.inf)
    raw = (n_labelled / n + specificity.value - 1) / (sensitivity.value + specificity.value - 1)
    p, n_p = (n_labelled + z**2 / 2) / (n + z**2), n + z**2
    (right, n_right), (none, n_none) = (
        ((one.value * one.n_effective + 1) / (one.n_effective + 2), one.n_effective + 2)
        for one in (sensitivity, specificity)
    )
    above_chance = right + none - 1
    middle = (p + none - 1) / above_chance
    of_right, of_none = right * (1 - right) / n_right, none * (1 - none) / n_none
    variance = p * (1 - p) / n_p + of_right * middle**2 + of_none * (1 - middle) ** 2
    shift = 2 * z**2 * (middle * of_right - (1 - middle) * of_none)
    half = z * math.sqrt(variance) / above_chance
    ends = middle + shift - half, middle + shift + half
    if ends[0] >= 1 or ends[1] <= 0:
        return None
    value, low, high = (min(1.0, max(0.0, one)) for one in (raw, *ends))
    return Corrected(
        value=value, low=min(low, value), high=max(high, value), is_truncated=raw != value
    )


@cache
def published_prevalence(n: int, n_labelled: int) -> Prevalence:
    """The labelled share of arXiv 2403.16008, corrected by that paper's own Table 3.

    Its figures are rounded: the estimate is that of the middle one of all tables that round to
    them, and the interval reaches from the lowest to the highest end of them all.
    """
    found = [
        prevalence(
            n,
            n_labelled,
            labeller="CBT-LLM",
            evaluated_on=source_of("cbt-llm", "distortions"),
            n_evaluated=int(paper_evaluation()["n"]),
            sensitivity=sensitivity,
            specificity=specificity,
        )
        for sensitivity, specificity in _published_tables()
    ]
    ends = [one.corrected for one in found if one.corrected]
    middle = sorted(found, key=lambda one: one.corrected.value if one.corrected else 1.0)
    chosen = middle[len(middle) // 2]
    assert chosen.corrected is not None, "a labeller that is better than chance"
    hull = {"low": min(one.low for one in ends), "high": max(one.high for one in ends)}
    return chosen.model_copy(update={"corrected": chosen.corrected.model_copy(update=hull)})


def _published_tables() -> Iterator[tuple[Share, Share]]:
    """Sensitivity and specificity of every table of counts that rounds to the paper's figures."""
    paper = paper_evaluation()
    n, close = int(paper["n"]), 0.005
    fewest, most = (n * (1 - paper["accuracy"] + one) for one in (-close, close))
    for n_with, wrong in product(range(1, n), range(math.ceil(fewest), math.floor(most) + 1)):
        for missed in range(n_with + 1):
            hits = n_with - missed
            if abs(hits / n_with - paper["recall"]) > close:
                continue
            if abs(2 * hits / (2 * hits + wrong) - paper["f1"]) <= close:
                n_without = n - n_with
                yield _share(hits, n_with), _share(n_without - wrong + missed, n_without)


def _share(hits: int, n: int) -> Share:
    low, high, reason, _ = share_interval(hits, n)
    return Share(value=hits / n, low=low, high=high, reason=reason, n=n, n_effective=n)
