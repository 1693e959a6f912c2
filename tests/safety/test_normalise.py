"""Folding keeps offsets; squeezing keeps a way back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.safety.normalise import Offsets, fold, squeeze, traditional_to_simplified


@settings(deadline=None)
@given(st.text(max_size=80))
def test_folding_never_changes_the_length(text: str) -> None:
    assert len(fold(text)) == len(text)


@settings(deadline=None)
@given(
    st.text(alphabet=st.sampled_from("我想死 　*.&nbsp;\u200b🌸自杀ab-…\n，"), max_size=60),
    st.sampled_from(["zh", "en"]),
    st.booleans(),
)
def test_every_squeezed_character_is_found_again_in_the_original(
    text: str, language: str, keep_pauses: bool
) -> None:
    folded = fold(text)
    squeezed = squeeze(folded, language, keep_pauses=keep_pauses)  # type: ignore[arg-type]
    offsets = Offsets(folded, language, keep_pauses=keep_pauses)  # type: ignore[arg-type]
    for position, char in enumerate(squeezed):
        original = folded[offsets.original(position)]
        assert original == char or (original == " " and char == ",")


def test_look_alikes_become_plain_characters() -> None:
    assert fold("ＡⓑＣ，殺⾃🔪") == "abc,杀自杀"
    assert squeeze(fold("自 *殺&nbsp;\u200b了"), "zh") == "自杀了"


def test_pauses_become_commas_but_split_words_are_joined() -> None:
    assert squeeze("他走了 我想死 了", "zh", keep_pauses=True) == "他走了,我想死了"


def test_no_simplified_form_is_itself_folded_further() -> None:
    table = traditional_to_simplified()
    assert not set(table.values()) & set(table)
