"""Lexical metrics against the programs whose values they promise."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from cbtqa.errors import DataError
from cbtqa.metrics.base import Metric
from cbtqa.metrics.evaluation import score_lists
from cbtqa.metrics.lexical import Bleu, Chrf, Meteor, Rouge
from cbtqa.metrics.text.porter import stem
from cbtqa.metrics.text.texts import Item, Reading, Texts
from tests.metrics.conftest import random_pairs

CORPUS = [
    (Bleu("zh"), "bleu_zh"),
    (Bleu("char"), "bleu_char"),
    (Bleu("jieba"), "bleu_jieba_none"),
    (Chrf(), "chrf2"),
    (Meteor("jieba"), "meteor_jieba_mean"),
    (Meteor("char"), "meteor_char_mean"),
]
PER_CASE = [
    (Bleu("zh"), "bleu_zh_effective_order"),
    (Bleu("jieba"), "bleu_jieba_effective_order"),
    (Chrf(), "chrf2"),
    (Meteor("jieba"), "meteor_jieba"),
    (Meteor("char"), "meteor_char"),
    *(
        (Rouge(kind, tokens), f"rouge{kind.upper()}_f_{tokens}")  # type: ignore[arg-type]
        for kind in ("1", "2", "l")
        for tokens in ("jieba", "char")
    ),
]


class NoWordNet:
    """Knows no synonym, as nltk's WordNet knows none in Chinese."""

    @staticmethod
    def synsets(_word: str) -> list[str]:
        return []


def read(predictions: list[str], references: list[str]) -> tuple[Texts, Texts]:
    """Both sides, read in one numbering."""
    reading = Reading()
    return (
        Texts([Item(text) for text in predictions], reading),
        Texts([Item(text) for text in references], reading),
    )


@pytest.mark.parametrize("system", ["a", "b"])
@pytest.mark.parametrize(("metric", "key"), CORPUS, ids=lambda value: getattr(value, "name", value))
def test_corpus_scores_are_the_golden_ones(
    golden: dict[str, Any], system: str, metric: Metric, key: str
) -> None:
    ours, theirs = read(golden["inputs"][system], golden["inputs"]["ref"])
    expected = golden[system]["corpus"][key]
    expected = expected["score"] if isinstance(expected, dict) else expected
    assert metric.from_sums(metric.statistics(ours, theirs).sum(0)) == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("system", ["a", "b"])
@pytest.mark.parametrize(
    ("metric", "key"), PER_CASE, ids=lambda value: getattr(value, "name", value)
)
def test_each_pair_scores_as_the_golden_one(
    golden: dict[str, Any], system: str, metric: Metric, key: str
) -> None:
    ours, theirs = read(golden["inputs"][system], golden["inputs"]["ref"])
    scores = metric.per_pair(metric.statistics(ours, theirs))
    expected = golden[system]["per_case"][key]
    assert scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "reference", "bleu", "chrf", "meteor"),
    [
        ("", "你好", 0, 0, 0),
        ("你好", "", 0, 0, 0),
        ("好", "好", 100, 100, 0.5),
        ("我很好", "我很好", 100, 100, 0.981481),
        ("“好”——", "“好”——", 100, 100, 0.996),
        ("我很开心😊", "我很开心😊", 100, 100, 0.992188),
        ("𠮷野家", "𠮷野家", 100, 100, 0.9375),
    ],
)
def test_edge_cases(
    prediction: str, reference: str, bleu: float, chrf: float, meteor: float
) -> None:
    ours, theirs = read([prediction], [reference])
    found = [m.per_pair(m.statistics(ours, theirs))[0] for m in (Bleu(), Chrf(), Meteor())]
    assert found == pytest.approx([bleu, chrf, meteor], abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "theirs"),
    [
        (Bleu("zh"), lambda: BLEU(tokenize="zh")),
        (Bleu("char"), lambda: BLEU(tokenize="char")),
        (Chrf(), CHRF),
    ],
    ids=["bleu_zh", "bleu_char", "chrf2"],
)
def test_statistics_equal_sacrebleu_row_by_row_on_random_text(
    metric: Metric, theirs: Callable[[], Any]
) -> None:
    predictions, references = random_pairs(2_000, seed=5)
    expected = theirs()._extract_corpus_statistics(predictions, [references])
    found = metric.statistics(*read(predictions, references))
    assert np.array_equal(found, np.array(expected))


def several_references(n_pairs: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Predictions, each with one to four references, some of them equal or empty."""
    rng = random.Random(seed)
    predictions, first = random_pairs(n_pairs, seed)
    others = [random_pairs(n_pairs, seed)[0], random_pairs(n_pairs, seed + 1)[1], first]
    columns = [first, *others]
    return predictions, [
        [columns[place][row] for place in range(rng.randint(1, 4))] for row in range(n_pairs)
    ]


def columns_of(references: list[list[str]]) -> list[list[str | None]]:
    """As sacrebleu takes them: the first of each prediction, then the second ..."""
    return [list(column) for column in zip_longest(*references)]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("bleu_zh", lambda: BLEU(tokenize="zh")),
        ("bleu_char", lambda: BLEU(tokenize="char")),
        ("chrf2", CHRF),
    ],
)
def test_several_references_score_as_sacrebleu_has_it(name: str, theirs: Callable[[], Any]) -> None:
    predictions, references = several_references(300, seed=21)
    for first in range(0, 300, 20):
        part = slice(first, first + 20)
        expected = theirs().corpus_score(predictions[part], columns_of(references[part])).score
        found = score_lists(name, predictions[part], references[part])
        assert found.value == pytest.approx(expected, rel=1e-12), first
        assert "|nrefs:var|" in found.signature
    twice = [[group[0], group[-1]] for group in references]
    assert "|nrefs:2|" in score_lists(name, predictions, twice).signature


def test_meteor_and_rouge_take_the_best_of_several_references() -> None:
    meteor = pytest.importorskip("nltk.translate.meteor_score")
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    predictions, references = several_references(200, seed=22)

    def words(text: str) -> list[str]:
        return [word for word in text if not word.isspace()]

    class Characters:
        tokenize = staticmethod(words)

    scorer = rouge_scorer.RougeScorer(["rouge2", "rougeL"], tokenizer=Characters())
    pairs = list(zip(predictions, references, strict=True))
    rouge = [scorer.score_multi(group, text) for text, group in pairs]
    expected = {
        "meteor_char": [
            meteor.meteor_score([words(r) for r in group], words(text), wordnet=NoWordNet())
            for text, group in pairs
        ],
        "rouge_2_char": [scores["rouge2"].fmeasure for scores in rouge],
        "rouge_l_char": [scores["rougeL"].fmeasure for scores in rouge],
    }
    for name, values in expected.items():
        found = score_lists(name, predictions, references).value
        assert found == pytest.approx(np.mean(values), rel=1e-12), name


def test_one_reference_in_a_list_scores_as_without_the_list() -> None:
    predictions, references = random_pairs(50, seed=23)
    for name in ("bleu_jieba", "chrf2", "length_ratio", "distinct_2"):
        plain = score_lists(name, predictions, references)
        assert score_lists(name, predictions, [[text] for text in references]) == plain


def test_of_several_references_the_closest_in_length_makes_the_ratio() -> None:
    texts = ["我很好。"], [["我们都很好！", "我很好呀！", ""]]
    assert score_lists("length_ratio", *texts).value == pytest.approx(4 / 5)
    assert score_lists("length", *texts).value == 4
    assert score_lists("length_ratio", ["好"], [["", ""]]).value is None


def test_an_empty_list_of_references_is_refused() -> None:
    with pytest.raises(DataError, match="reference 1 is an empty list"):
        score_lists("bleu_zh", ["好", "好"], [["好"], []])


def test_bleu_on_words_equals_sacrebleu_on_jieba_joined_text(jieba_cut: Any) -> None:
    predictions, references = random_pairs(1_000, seed=6)
    bleu = BLEU(tokenize="none", force=True)
    expected = bleu._extract_corpus_statistics(
        [" ".join(jieba_cut(text)) for text in predictions],
        [[" ".join(jieba_cut(text)) for text in references]],
    )
    found = Bleu("jieba").statistics(*read(predictions, references))
    assert np.array_equal(found, np.array(expected))


def test_scores_equal_sacrebleu_down_to_degenerate_corpora() -> None:
    """Short and unmatched texts, where smoothing and missing orders decide."""
    predictions, references = random_pairs(400, seed=8)
    predictions += ["好", "你好", "啊", "", "我很"]
    references += ["好", "你坏", "噢", "我", ""]
    corpus, single = BLEU(tokenize="zh"), BLEU(tokenize="zh", effective_order=True)
    metric = Bleu("zh")
    statistics = metric.statistics(*read(predictions, references))
    for size in (1, 2, 5):
        for first in range(0, len(predictions) - size, size):
            part = slice(first, first + size)
            expected = corpus.corpus_score(predictions[part], [references[part]]).score
            assert metric.from_sums(statistics[part].sum(0)) == pytest.approx(expected, abs=1e-9)
    each = [
        single.sentence_score(p, [r]).score for p, r in zip(predictions, references, strict=True)
    ]
    assert metric.per_pair(statistics) == pytest.approx(each, abs=1e-9)


@pytest.mark.parametrize("tokens", ["jieba", "char"])
def test_meteor_equals_nltk_on_random_text(jieba_cut: Any, tokens: str) -> None:
    meteor = pytest.importorskip("nltk.translate.meteor_score")
    predictions, references = random_pairs(1_500, seed=9)
    cut = jieba_cut if tokens == "jieba" else list

    def words(text: str) -> list[str]:
        return [word for word in cut(text) if not word.isspace()]

    expected = [
        meteor.meteor_score([words(r)], words(p), wordnet=NoWordNet())
        for p, r in zip(predictions, references, strict=True)
    ]
    found = Meteor(tokens).values(*read(predictions, references))  # type: ignore[arg-type]
    assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize("tokens", ["jieba", "char"])
def test_rouge_equals_rouge_score_given_the_same_tokens(jieba_cut: Any, tokens: str) -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    predictions, references = random_pairs(500, seed=10)

    class Tokens:
        @staticmethod
        def tokenize(text: str) -> list[str]:
            cut = jieba_cut(text) if tokens == "jieba" else list(text)
            return [word for word in cut if not word.isspace()]

    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Tokens())
    expected = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    sides = read(predictions, references)
    for kind in ("1", "2", "l"):
        found = Rouge(kind, tokens).values(*sides)  # type: ignore[arg-type]
        theirs = [scores[f"rouge{kind.upper()}"].fmeasure for scores in expected]
        assert np.abs(found - theirs).max() < 1e-12


def test_stems_equal_nltk() -> None:
    porter = pytest.importorskip("nltk.stem.porter")
    parts = [
        "a",
        "re",
        "con",
        "hop",
        "fil",
        "run",
        "sky",
        "y",
        "happ",
        "logi",
        "troubl",
        "tann",
        "fall",
        "siz",
        "nation",
        "oper",
        "i",
        "o",
        "我",
        "卡拉",
        "cry",
    ]
    endings = [
        "ed",
        "ing",
        "s",
        "es",
        "ies",
        "ied",
        "eed",
        "y",
        "alli",
        "logi",
        "ational",
        "tional",
        "ation",
        "bli",
        "abli",
        "ization",
        "ness",
        "ful",
        "fulli",
        "icate",
        "ement",
        "ion",
        "tion",
        "sion",
        "er",
        "e",
        "ll",
        "al",
        "ance",
        "ive",
        "izer",
        "eli",
        "ousli",
        "ator",
        "iti",
        "ate",
    ]
    words = [a + b + c for a in parts for b in ["", *endings] for c in ["", *endings]]
    words += ["dying", "news", "flies", "", "a", "be", "agreed", "feed", "hoping", "sized"]
    reference = porter.PorterStemmer()
    assert [word for word in words if stem(word) != reference.stem(word)] == []


def test_the_paper_scale_is_a_hundredth_and_says_so(golden: dict[str, Any]) -> None:
    sides = read(golden["inputs"]["a"], golden["inputs"]["ref"])
    percent, share = Bleu("jieba"), Bleu("jieba", is_percent=False)
    statistics = percent.statistics(*sides).sum(0)
    assert share.from_sums(statistics) * 100 == pytest.approx(percent.from_sums(statistics))
    assert (percent.unit, share.unit) == ("0-100", "0-1")
    assert str(percent.signature()) != str(share.signature())
