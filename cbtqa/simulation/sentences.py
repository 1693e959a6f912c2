"""What a turn shows beyond its words: a label, a scene, a life of one's own, an illness named.

    own_life("I lost my brother at that age.")             # "my brother"
    names_illness("That is borderline.", "I feel empty.")  # "borderline"

Lists of words find what is said in usual words. Here a feature is looked for: a program owns
nothing, so that "my" of a therapist is followed by few words; an illness that the patient did not
name is a diagnosis; a turn that begins with a name and a colon is labelled. The words of the
features are in marks.yaml; figures are in docs/log.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from cbtqa.simulation.study import shipped_yaml

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|‘[^’]*’|(?<!\w)'[^']*'(?!\w)")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]*]*\s+|(?<=[。！？])\s*|\n+")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_LABEL = re.compile(r"^\W*((?:[A-Z][\w'’.-]*\.? ?){1,3})(?:\([^)\n]*\))?\s*[:：]\W*\s+\S")
_OWNED = re.compile(r"\bmy (?:own |old |late |first |best |dear |other |little )*([a-z]+)", re.I)
_BEGINS_WITH_I = re.compile(
    r"^(?:\w+,? ){0,3}?i (?:also |once |never |too |myself |really |even |just |still )*"
    r"([a-z]+)(?!['\w])",
    re.IGNORECASE,
)
_IS_A = re.compile(
    r"\bi(?:'m| am) (?:just |only |also |still |actually |really |myself )*an? ([a-z]+ ?[a-z]*)",
    re.IGNORECASE,
)
_YOU = re.compile(r"\byou(?:r|rs|'\w+)?\b", re.IGNORECASE)


def words_of(text: str) -> tuple[str, ...]:
    """Lower-case words, without punctuation."""
    return tuple(_WORD.findall(text.lower().replace("’", "'")))


def without_quotes(text: str) -> str:
    """A text without what stands in quotation marks."""
    return _QUOTED.sub(" ", text)


def by_sentence(text: str) -> str:
    """A text with every sentence on a line of its own, with straight apostrophes."""
    return _SENTENCE.sub("\n", text.replace("’", "'").strip())


def spoken_lines(text: str) -> str:
    """A text without quoted words, every sentence on a line of its own."""
    return by_sentence(without_quotes(text))


def one_of(patterns: Iterable[str]) -> re.Pattern[str]:
    """A pattern for any of these, without regard to case."""
    return re.compile("|".join(f"(?:{one})" for one in patterns), re.IGNORECASE | re.MULTILINE)


class _Features(NamedTuple):
    english: frozenset[str]
    foreign: frozenset[str]
    no_label: frozenset[str]
    owned: frozenset[str]
    done: frozenset[str]
    said: frozenset[str]
    is_a: frozenset[str]
    reported: re.Pattern[str]
    illness: re.Pattern[str]
    illness_family: tuple[re.Pattern[str], ...]
    not_diagnosed: re.Pattern[str]
    scene_opening: re.Pattern[str]
    scene_quote: re.Pattern[str]


@cache
def _features() -> _Features:
    value: Mapping[str, Any] = shipped_yaml("marks.yaml")["features"]
    return _Features(
        english=frozenset(value["english"].split()),
        foreign=frozenset(value["foreign"].split()),
        no_label=frozenset(value["no_label"].split()),
        owned=frozenset(value["owned"].split()),
        done=frozenset(value["done"].split()),
        said=frozenset(value["said"].split()),
        is_a=frozenset(value["is_a"].split()),
        reported=one_of([value["reported"]]),
        illness=one_of(value["illness"]),
        illness_family=tuple(one_of([one]) for one in value["illness_family"]),
        not_diagnosed=one_of([value["not_diagnosed"]]),
        scene_opening=one_of([value["scene_opening"]]),
        scene_quote=one_of([value["scene_quote"]]),
    )


def label_of(text: str) -> str | None:
    """A speaker's name that stands before the words, such as `Walter:` or `Dr. Hill (softly):`."""
    match = _LABEL.match(text)
    if match is None:
        return None
    words = words_of(match[1])
    is_word = any(word in _features().no_label for word in words)
    return None if is_word or not words else match[1].strip()


def own_life(lines: str) -> str | None:
    """Words by which a program claims a life of its own, in sentences of its own; None without.

    A sentence counts where nothing is reported before them and it is no question.
    """
    known = _features()
    for line in lines.splitlines():
        if line.rstrip().endswith("?"):
            continue
        for match in _OWNED.finditer(line):
            if match[1].lower() not in known.owned and not known.reported.search(
                line[: match.start()]
            ):
                return match[0]
        for match in _IS_A.finditer(line):
            named = words_of(match[1])
            if not known.is_a.intersection(named) and not known.reported.search(
                line[: match.start()]
            ):
                return match[0]
        told = _BEGINS_WITH_I.match(line)
        if told is not None and not _YOU.search(line) and _tells_a_past(told[1].lower()):
            return told[0]
    return None


def _tells_a_past(verb: str) -> bool:
    """Whether a verb tells what somebody did or went through, and not what was said here."""
    known = _features()
    is_regular = len(verb) > 4 and verb.endswith("ed") and verb not in known.said
    return is_regular or verb in known.done


def names_illness(lines: str, said_before: Sequence[str]) -> str | None:
    """An illness that a therapist names and the patient has not, as a statement; None without.

    Args:
        said_before: the patient's turns so far.
    """
    known = _features()
    for match in known.illness.finditer(lines):
        start = lines.rfind("\n", 0, match.start()) + 1
        end = lines.find("\n", match.end())
        sentence = lines[start : end if end >= 0 else None]
        if sentence.rstrip().endswith("?") or known.not_diagnosed.search(sentence):
            continue
        family = next((one for one in known.illness_family if one.search(match[0])), None)
        pattern = family or re.compile(re.escape(match[0]), re.IGNORECASE)
        if not any(pattern.search(text) for text in said_before):
            return match[0]
    return None


def tells_a_scene(text: str) -> bool:
    """Whether a turn tells from outside what its speaker does, as a story with quoted speech."""
    flat = text.replace("’", "'").strip()
    return bool(_features().scene_opening.search(flat) or _features().scene_quote.search(flat))


FEWEST_OTHER_LETTERS, FEWEST_ACCENTED = 2, 2
"""Letters of another script, and words with letters that English has not, from which a sentence may
be in another language; assumed."""
FEWEST_FOREIGN = 8
"""Words from which a text is known to be in another language by its little words."""
ENGLISH_SHARE = 1 / 12
"""Share of little English words below which it is; English turns of this length have a third."""
_OTHER_LETTERS = re.compile(r"[\u0370-\u1dff\u2c00-\ud7ff\uf900-\ufdff\uff66-\uffdc]")


@lru_cache(maxsize=8192)
def is_foreign(text: str) -> bool:
    """Whether a text, or a sentence in it, is not in English; what is quoted does not count."""
    plain = without_quotes(text)
    said = (plain, *by_sentence(plain).splitlines())
    return any(map(_by_letters, said)) or any(map(_by_little_words, said))


def _by_letters(text: str) -> bool:
    """Whether most letters are of another script, or several words of another Latin alphabet."""
    letters = [one for one in text if one.isalpha()]
    n_other = sum(_OTHER_LETTERS.match(one) is not None for one in letters)
    if n_other >= FEWEST_OTHER_LETTERS and n_other > len(letters) / 2:
        return True
    words = words_of(text)
    n_accented = sum(not word.isascii() for word in set(words))
    n_english = sum(word in _features().english for word in words)
    return n_accented >= FEWEST_ACCENTED and n_english < len(words) / 8


def _by_little_words(text: str) -> bool:
    words, known = words_of(text), _features()
    n_english = sum(word in known.english for word in words)
    foreign = [word for word in words if word in known.foreign]
    is_long = len(words) >= FEWEST_FOREIGN and len(set(foreign)) > 1
    return is_long and n_english < ENGLISH_SHARE * len(words) and len(foreign) > n_english
