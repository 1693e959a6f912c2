"""English word stems as nltk's Porter stemmer gives them, for the Latin words of Chinese answers.

    stem("running") == "run" and stem("flies") == "fli" and stem("dying") == "die"

Source: Porter, An algorithm for suffix stripping, Program 14.3 (1980), with the departures of
nltk 3.10's default mode, marked below. A word that does not end in a-z is its own stem.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from cbtqa.plain_values import parse_yaml

ENDS_IN_LETTER = re.compile(r"[a-z]\Z")


@cache
def _rules() -> dict[str, Any]:
    text = files(__package__).joinpath("porter.yaml").read_text(encoding="utf-8")
    rules: dict[str, Any] = parse_yaml(text)
    return rules


@lru_cache(1 << 14)
def stem(word: str) -> str:
    """The stem of a word in lower case; anything but a Latin word comes back as it is."""
    irregular: dict[str, str] = _rules()["irregular"]
    if word in irregular:
        return irregular[word]
    if len(word) <= 2 or not ENDS_IN_LETTER.search(word):  # nltk: short words stay
        return word
    for step in (_plural, _past, _final_y, _step_2, _step_3, _step_4, _final_e, _final_ll):
        word = step(word)
    return word


def _is_consonant(word: str) -> list[bool]:
    """Per character; y is a consonant at the start and after a vowel."""
    flags: list[bool] = []
    for character in word:
        flags.append(not flags[-1] if character == "y" and flags else character not in "aeiou")
    return flags


def _measure(word: str) -> int:
    """How often a consonant follows a vowel: Porter's m."""
    flags = _is_consonant(word)
    return sum(not before and after for before, after in pairwise(flags))


def _ends_short(word: str) -> bool:
    """Porter's *o: ends consonant, vowel, consonant but w, x, y; nltk: or is vowel, consonant."""
    flags = _is_consonant(word)
    if len(word) == 2:
        return flags == [False, True]
    return flags[-3:] == [True, False, True] and word[-1] not in "wxy"


def _plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]  # nltk: dies -> die
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def _past(word: str) -> str:
    if word.endswith("ied"):  # nltk: died -> die, spied -> spi
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        rest = word[: -len(suffix)]
        if word.endswith(suffix) and not all(_is_consonant(rest)):
            return _mend(rest)
    return word


def _mend(rest: str) -> str:
    """What is left when `ed` or `ing` went: hopp -> hop, siz -> size, fil -> file."""
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if len(rest) > 1 and rest[-1] == rest[-2] and _is_consonant(rest)[-1]:
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _ends_short(rest) else rest


def _final_y(word: str) -> str:
    # nltk: after a consonant only, and not in two-letter words (enjoy stays, happy -> happi)
    if word.endswith("y") and len(word) > 2 and _is_consonant(word[:-1])[-1]:
        return word[:-1] + "i"
    return word


def _replace(word: str, step: str) -> str:
    """The first rule whose suffix fits decides, even when its condition then fails."""
    for suffix, replacement in _rules()[step].items():
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            return f"{rest}{replacement}" if _measure(rest) > 0 else word
    return word


def _step_2(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]) > 0:  # nltk: first, then once more
        return _step_2(word[:-2])
    changed = _replace(word, "step_2")
    if changed == word and word.endswith("logi") and _measure(word[:-3]) > 0:  # nltk
        return word[:-1]
    return changed


def _step_3(word: str) -> str:
    return _replace(word, "step_3")


def _step_4(word: str) -> str:
    for suffix in _rules()["step_4"]:
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            is_cut = _measure(rest) > 1 and (suffix != "ion" or rest[-1] in "st")
            return rest if is_cut else word
    return word


def _final_e(word: str) -> str:
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_short(word[:-1])):
            return word[:-1]
    return word


def _final_ll(word: str) -> str:
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
