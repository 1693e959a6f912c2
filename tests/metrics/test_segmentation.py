"""Words are jieba's, whichever segmenter cuts them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cbtqa.metrics.base import Signature
from cbtqa.metrics.text.segmentation import (
    PythonSegmenter,
    RustSegmenter,
    jieba_tables,
    rust_segmenter,
    words_signature,
)
from tests.metrics.conftest import random_texts


def texts() -> list[str]:
    """Random characters, random dictionary words, random rare characters."""
    rng = random.Random(3)
    words = list(jieba_tables().counts)
    by_word = ["".join(rng.choices(words, k=rng.randrange(20))) for _ in range(1_000)]
    rare = [
        "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(rng.randrange(40)))
        for _ in range(500)
    ]
    return ["", "\r\n", *random_texts(3_000, 1), *by_word, *rare]


@pytest.fixture(scope="module")
def expected(jieba_cut: Any) -> list[list[str]]:
    return [jieba_cut(text) for text in texts()]


def test_the_python_segmenter_cuts_as_jieba_does(expected: list[list[str]]) -> None:
    segmenter = PythonSegmenter(jieba_tables())
    assert [segmenter.cut(text) for text in texts()] == expected


def test_the_rust_segmenter_with_its_fall_back_cuts_as_jieba_does(
    expected: list[list[str]],
) -> None:
    segmenter = rust_segmenter()
    assert [segmenter.cut(text) for text in texts()] == expected


def test_the_fall_back_is_needed_and_used(jieba_cut: Any) -> None:
    """rjieba alone cuts this mixed run otherwise than jieba."""
    from rjieba import Jieba

    for text in ("2.Dearfriend，Non-identification", "1.2.3", "3.5kg", "全国常在每直播"):
        assert Jieba().cut(text) != jieba_cut(text)
        assert RustSegmenter(Jieba()).cut(text) == jieba_cut(text)


def test_a_word_added_to_the_global_jieba_changes_nothing_here() -> None:
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import jieba, logging; jieba.setLogLevel(logging.ERROR)\n"
        "jieba.add_word('我很好呀'); jieba.del_word('压力')\n"
        "from cbtqa.metrics.text.segmentation import PythonSegmenter, rust_segmenter\n"
        "from cbtqa.metrics.text.segmentation import jieba_tables\n"
        "for s in (PythonSegmenter(jieba_tables()), rust_segmenter()):\n"
        "    print(s.cut('我很好呀压力'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["['我', '很', '好', '呀', '压力']"] * 2


def test_no_file_is_written_or_read_in_the_temporary_folder(tmp_path: Path) -> None:
    """jieba itself would leave, and next time load, `jieba.cache` there."""
    program = (
        "from cbtqa.metrics.text.segmentation import PythonSegmenter\n"
        "from cbtqa.metrics.text.segmentation import jieba_tables\n"
        "PythonSegmenter(jieba_tables()).cut('你好，3.5分')\n"
    )
    subprocess.run([sys.executable, "-c", program], env={"TMPDIR": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []


def test_the_signature_names_version_and_dictionary() -> None:
    fields = dict(Signature.of(words_signature()).fields)
    assert fields["tok"] == "jieba-0.42.1+hmm"
    assert len(fields["dict"]) == 12
