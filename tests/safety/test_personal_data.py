"""Personal data: what is masked, and what must be left alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbtqa.safety.personal_data import find_personal_data, scrub


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("我的电话是13812345678。", "我的电话是〔手机号〕。"),
        ("打我+86 138 1234 5678", "打我〔手机号〕"),
        ("座机0755-12345678", "座机〔电话〕"),
        ("身份证11010519491231002X", "身份证〔身份证号〕"),
        ("卡号4111 1111 1111 1111", "卡号〔银行卡号〕"),
        ("邮箱xiao.ming@example.com.cn，谢谢", "邮箱〔邮箱〕，谢谢"),
        ("见https://example.com/a?b=1。", "见〔网址〕。"),
        ("加我ｑｑ：１２３４５６７８９", "加我ｑｑ：〔QQ号〕"),
        ("微信号 wxm_2001", "微信号 〔微信号〕"),
        ("vx:abcd1234", "vx:〔微信号〕"),
        ("我叫王小明，今年十九岁", "我叫〔姓名〕，今年十九岁"),
        ("男朋友叫欧阳锋。", "男朋友叫〔姓名〕。"),
        ("班主任姓李，很凶", "班主任姓〔姓〕，很凶"),
        ("我住在杭州市西湖区文三路88号2单元501室", "我住在〔地址〕"),
    ],
)
def test_what_identifies_a_person_is_masked(text: str, masked: str) -> None:
    assert scrub(text).text == masked


@pytest.mark.parametrize(
    "text",
    [
        "请拨打12356或010-82951332，紧急时拨打110、120。",
        "我2003年出生，考了580分，欠了200000元。",
        "身份证号 110105194912310021 的校验码不对",
        "4111 1111 1111 1112 不是卡号",
        "我叫他走，他不走。",
        "我叫车去医院了。",
        "他是高中生，老师是高手。",
        "我在人民路上走了3个小时。",
        "王老师对我很好。",
        "我用微信聊天，qq很久没上了。",
        "@所有人 明天开会",
    ],
)
def test_figures_help_lines_and_common_words_are_left_alone(text: str) -> None:
    assert scrub(text).text == text


def test_every_place_is_reported_with_its_span() -> None:
    text = "我叫张伟，电话13912345678"
    found = find_personal_data(text)
    assert [(place.kind, place.text) for place in found] == [
        ("name", "张伟"),
        ("phone", "13912345678"),
    ]
    assert all(text[place.start : place.end] == place.text for place in found)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("我叫王微信qq电话138123456789@.com路号 ，"), max_size=60))
def test_masking_twice_finds_nothing_new_of_numbers(text: str) -> None:
    once = scrub(text)
    assert all(text[place.start : place.end] == place.text for place in once.found)
    again = {place.kind for place in scrub(once.text).found}
    assert not again & {"phone", "id_card", "bank_card", "landline"}
