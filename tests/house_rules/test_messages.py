"""What commands say has a Chinese translation, and the catalogue holds nothing else."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pydantic_core
import pytest
import typer
import yaml

from cbtqa.report.catalogue import SEVERITIES, catalogue, literals_of
from tests.support.messages import (
    has_words,
    normal,
    package_files,
    required,
    texts_of,
    untranslated,
)
from tests.support.sources import ROOT

pytestmark = pytest.mark.xdist_group("messages")  # what is found in the sources, they share
CATALOGUE = ROOT / "cbtqa/report/zh"
CJK = re.compile("[\u4e00-\u9fff]")


def _entries() -> list[tuple[str, str, str, str]]:
    """File, section, key and Chinese of every entry."""
    files = {path.name: yaml.safe_load(path.read_bytes()) for path in CATALOGUE.glob("*.yaml")}
    return [
        (name, section, key, zh)
        for name, sections in sorted(files.items())
        for section, entries in sections.items()
        for key, zh in entries.items()
    ]


def test_every_message_has_a_translation() -> None:
    missing = {path.name: untranslated(path) for path in package_files()}
    assert not {name: texts for name, texts in missing.items() if texts}, "none in cbtqa/report/zh"


def test_the_messages_are_found_at_all() -> None:
    found = {text for path in package_files() for text in required(path)}
    assert len(found) > 1500
    # an error, a hint, a sum of texts, a head, a stage, something that is said
    assert found >= {
        "no such command: {}; {}",
        "did you mean: cbtqa {}",
        "questions in",
        "checking and writing",
        "this needs the Python module '{}', which is not installed",
        "{}: fits on no kind; divided by FSDP it fits on {n} x {}",
    }


def _texts_of_libraries() -> str:
    """What typer, pydantic and the system say, and the YAML files of the package."""
    sources = Path(typer.__file__).parent.rglob("*.py")
    texts = [path.read_text(encoding="utf-8") for path in sources]
    texts += map(os.strerror, errno.errorcode)
    kinds = re.findall(r"'(\w+)'", str(pydantic_core.core_schema.ErrorType))
    for kind in kinds:
        context = {"error": "e", "expected": "e", "pattern": "e", "min_length": 1, "max_length": 1}
        context |= dict.fromkeys(("gt", "ge", "lt", "le", "actual_length"), 1)
        context |= {"field_type": "Tuple"}
        try:
            texts.append(pydantic_core.PydanticKnownError(kind, context).message_template)
        except (TypeError, KeyError):
            continue  # a kind with other values, which no setting of ours can raise
    return "\n".join(texts)


def test_the_catalogue_holds_no_message_that_nobody_says() -> None:
    found = {normal(one) for path in package_files() for one in (*texts_of(path), *required(path))}
    shipped = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "cbtqa").rglob("*.yaml")
        if path.parent != CATALOGUE
    )
    foreign = _texts_of_libraries()
    stale = []
    for name, _, key, _ in _entries():
        plain = normal(key).replace("{{", "{").replace("}}", "}")
        known = {normal(key), f" ({key})", f"{key}: {{}}", f"n_{key}", plain, f"{key}: "}
        known.add(normal(key).replace("{", "{{").replace("}", "}}"))
        if known & found or key in shipped or key in SEVERITIES:
            continue
        # typer and pydantic put their messages together out of parts
        if name == "libraries.yaml" and all(word in foreign for word in re.findall("[a-z]+", key)):
            continue
        stale.append((name, key))
    assert not stale


def test_a_translation_is_chinese_and_holds_every_value() -> None:
    for _, section, key, zh in _entries():
        n_holes = len(literals_of(key)) - 1
        numbers = re.findall(r"\{(\d*)\}", zh.replace("{{", "").replace("}}", ""))
        held = {int(number) if number else place for place, number in enumerate(numbers)}
        assert held == set(range(n_holes)), f"{key}: a value is lost, or there is none for it"
        if (has_words(key) or section != "messages") and zh not in SAME and not COMMAND.match(key):
            assert CJK.search(zh) or not re.search("[a-z]{4}", key), f"{key}: {zh}"
        assert not re.search(r"[\u4e00-\u9fff] ?[,;:?!](?=[ \u4e00-\u9fff]|$)", zh), f"{key}: {zh}"


SAME = {"Python", "token", "Hugging Face Hub", "Apple MPS", "{}"}
"""Names that are alike in both languages."""
COMMAND = re.compile("(export|hf|pip) ")


def test_no_key_fits_every_sentence() -> None:
    """Nothing but letters of its own, words of the catalogue or numbers may hold a key together."""
    known = catalogue()
    for text in (
        "the quick brown fox is not what it seems to be",
        "look at this, then: give up or go on; nothing else of it was left",
        "the model wants to rest on all that it was given",
    ):
        assert known.find(text) is None
