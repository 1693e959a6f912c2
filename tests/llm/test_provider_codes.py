"""What providers' codes and words mean, whatever the status beside them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cbtqa.errors import EndpointAuthError, EndpointError, RateLimitError
from cbtqa.files import shipped_yaml
from cbtqa.llm.endpoint import Endpoint
from cbtqa.llm.protocol import RequestRefusedError, error_of, reply_of
from cbtqa.records import Reason
from cbtqa.secrets import MASK, remember

DASHSCOPE = Endpoint("https://dashscope.aliyuncs.com/compatible-mode/v1", "qwen-plus")


def _error(code: Any, message: str = "", **more: Any) -> str:
    return json.dumps({"error": {"code": code, "message": message, **more}}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, _error(403, 'requires moderation. Your input was flagged for "self-harm"')),
        (400, _error("content_filter", "The response was filtered")),
        (400, _error(None, "filtered", innererror={"code": "ResponsibleAIPolicyViolation"})),
        (400, _error("OutputTextSensitiveContentDetected.PolicyViolation")),
        (400, _error("InputTextRiskDetection")),
        (500, _error("1301", "系统检测到输入或生成内容可能包含不安全或敏感内容")),
        (400, _error(1301)),
        (400, _error("data_inspection_failed")),
        (400, _error(None, "Content Exists Risk")),
        (400, _error(None, "considered high risk", type="content_filter")),
        (400, _error("provider_error", 'Provider said: {"code": "1301", "message": "?"}')),
        (422, _error(None, "触发敏感词，请修改后重试")),
        (451, _error(None, "censorship_blocked")),
        (200, json.dumps({"base_resp": {"status_code": 1027, "status_msg": "?"}})),
    ],
)
def test_moderation_of_one_text_is_a_matter_of_that_item(status: int, body: str) -> None:
    error = error_of(status, {}, body)
    assert isinstance(error, RequestRefusedError) and error.reason is Reason.CONTENT_FILTER


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, _error("1113", "您的账户已欠费，请充值后重试。")),
        (429, _error("", "余额不足或无可用资源包,请充值。")),
        (429, _error("insufficient_quota")),
        (429, _error("credit_balance_exhausted", "x", type="insufficient_quota")),
        (400, _error("Arrearage", "make sure your account is in good standing.")),
        (403, _error("AllocationQuota.FreeTierOnly", "The free tier has been exhausted")),
        (403, _error("AccountOverdueError")),
        (
            403,
            json.dumps({"code": 30001, "message": "Sorry, your account balance is insufficient"}),
        ),
        (402, ""),
        (403, _error(403, "Key limit exceeded (total limit)")),
        (500, _error("insufficient_user_quota", "用户额度不足")),
        (200, json.dumps({"base_resp": {"status_code": 1008, "status_msg": "?"}})),
        (401, _error("FailedOperation.ResourcePackExhausted")),
    ],
)
def test_no_money_stops_the_run_with_the_servers_words(status: int, body: str) -> None:
    error = error_of(status, {}, body)
    assert type(error) is EndpointError and not error.is_retryable
    assert "credit" in str(error.hint)
    assert body[:40] in str(error)


def test_the_throttle_of_dashscope_in_words_of_money_waits() -> None:
    words = "You exceeded your current quota, please check your plan and billing details."
    body = _error("insufficient_quota", words, type="insufficient_quota")
    assert isinstance(error_of(429, {}, body, DASHSCOPE), RateLimitError)
    quoted = _error("insufficient_quota", f"{words} (Throttling.AllocationQuota)")
    assert isinstance(error_of(429, {}, quoted), RateLimitError), "through a gateway"
    free = _error("AllocationQuota", "Free allocated quota exceeded. (Throttling.AllocationQuota)")
    assert type(error_of(429, {}, free, DASHSCOPE)) is EndpointError


def test_a_body_that_repeats_the_question_is_not_misread() -> None:
    question = (
        "我欠费了，余额不足，觉得自己很敏感，内容安全吗？content_filter insufficient_quota 1113"
    )
    said = [{"type": "missing", "loc": ["body", "n"], "msg": "Field required", "input": question}]
    bodies = [
        json.dumps({"detail": said}, ensure_ascii=False),
        json.dumps({"error": {"message": "bad"}, "messages": [{"content": question}]}),
        _error(400, "bad request", request_id="a1113b1301"),
    ]
    for body in bodies:
        error = error_of(400, {}, body)
        assert isinstance(error, RequestRefusedError) and error.reason is Reason.BAD_REQUEST


def test_one_number_means_what_its_provider_says() -> None:
    minimax = {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}
    with pytest.raises(RateLimitError):
        reply_of(minimax, 0)
    assert not isinstance(error_of(401, {}, _error("1002", "token")), RateLimitError)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_told_in_the_servers_words_without_any_piece_of_it(status: int) -> None:
    key = "sk-invented-Q7f3mZp9Lk2Wv8Rt"
    remember(key)
    where = Endpoint("https://api.deepseek.com/v1", "m", key, key_env="DEEPSEEK_API_KEY")
    said = [f"key {key}", f"sk-inv{'*' * 9}v8Rt", f"{key[:14]}...", f"ends with {key[-8:]}"]
    for words in said:
        error = error_of(status, {}, _error("x", f"Your region or {words} is refused"), where)
        shown = str(error)
        assert isinstance(error, EndpointAuthError) and "Your region or" in shown
        assert MASK in shown and not any(key[n : n + 6] in shown for n in range(len(key) - 5))
        assert "v8Rt" not in shown and "DEEPSEEK_API_KEY" in str(error.hint)


def test_every_line_of_the_table_decides_something_and_names_its_source() -> None:
    seen = set()
    for line in shipped_yaml("cbtqa.llm", "provider_codes.yaml"):
        assert set(line) - {"means", "source"}, line
        assert line["source"].startswith("https://") or line["source"] == "common"
        told = tuple(line.get(name) for name in ("code", "words", "at", "host", "status"))
        assert told not in seen, line
        seen.add(told)
