"""Where requests go, as whom, and which places count as local."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cbtqa.errors import (
    BadResponseError,
    ConfigError,
    EndpointAuthError,
    EndpointError,
    EndpointTimeoutError,
    RateLimitError,
)
from cbtqa.llm.chat import ChatRequest, Sampling, split_reasoning
from cbtqa.llm.endpoint import AddressError, Endpoint, check_key_variable, is_local, preset_file
from cbtqa.llm.protocol import (
    RequestRefusedError,
    duration_s,
    error_of,
    parse_completion,
    reply_of,
    request_body,
    retry_after_s,
)
from cbtqa.llm.runs import EndpointSettings
from cbtqa.llm.transport import open_transport
from cbtqa.records import Reason
from cbtqa.secrets import masked
from cbtqa.settings import resolve
from tests.support.endpoint import completion

WANTED = {
    *("openai", "deepseek", "dashscope", "zhipu", "moonshot", "siliconflow"),
    *("vllm", "ollama", "llama.cpp", "transformers-serve"),
}


def test_the_presets_are_complete_and_consistent() -> None:
    presets = preset_file().presets
    assert set(presets) == WANTED
    for name in presets:
        made = Endpoint.parse(name, "m", environ={presets[name].key_env: "k"})
        assert made.is_local == (name in ("vllm", "ollama", "llama.cpp", "transformers-serve"))
        assert made.is_local or made.base_url.startswith("https://")


def test_the_key_comes_from_the_presets_variable_and_is_never_shown() -> None:
    made = Endpoint.parse("deepseek", "deepseek-chat", environ={"DEEPSEEK_API_KEY": " s3cret\n"})
    assert made.headers()["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(made) + str(made)


def test_a_providers_key_goes_to_that_provider_only() -> None:
    environ = {"OPENAI_API_KEY": "s3cret"}
    with pytest.raises(EndpointAuthError, match="no key"):
        Endpoint.parse("https://llm.example/v1", "m", environ=environ).check_key()
    same_host = Endpoint.parse("https://api.openai.com/v1/", "m", environ=environ)
    assert same_host.key == "s3cret" and same_host.max_tokens_field == "max_completion_tokens"
    local = Endpoint.parse("http://127.0.0.1:8000/v1", "m", environ=environ)
    assert local.key is None and "Authorization" not in local.headers()


def test_a_missing_key_names_its_variable() -> None:
    endpoint = Endpoint.parse("dashscope", "qwen-plus", environ={})
    with pytest.raises(EndpointAuthError) as missing:
        open_transport(endpoint, 1)
    assert "DASHSCOPE_API_KEY" in str(missing.value.hint)


@pytest.mark.parametrize(
    "words",
    [
        "opanai",
        "ftp://host/v1",
        "http://",
        "http://host:99999/v1",
        "https://user:s3cret@host/v1",
        "https://s3cret@host/v1",
        "https://host/v1?key=s3cret",
        "https://host/v1#s3cret",
        "user:s3cret@host/v1",
        "http://[::1/v1",
        "http://s3cret@[::1/v1?s3cret",
        "http:／／host/v1",
        "http://host／v1?key=s3cret",
        "http://a host/v1",
        "http://anna:s3cret@host／v1",
        "http:／／anna:s3cret@host/v1",
        "http:／／anna:s3cret＠host/v1？s3cret",
        "opanai?key=s3cret",
    ],
)
def test_what_is_no_endpoint_is_refused_without_repeating_secrets(words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Endpoint.parse(words, "m", environ={"CBTQA_API_KEY": "k"})
    assert "s3cret" not in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize("words", ["http://[::1/v1", "http:／／host/v1", "opanai", "ftp://host"])
def test_words_that_are_no_address_are_a_mistake_of_the_command(words: str) -> None:
    with pytest.raises(AddressError) as refused:
        Endpoint.parse(words, "m", environ={})
    assert refused.value.exit_code == 2


def test_a_remote_host_is_asked_over_plain_http_only_when_that_is_allowed() -> None:
    environ = {"CBTQA_API_KEY": "k"}
    plain = Endpoint.parse("http://93.184.216.34/v1", "m", environ=environ)
    with pytest.raises(ConfigError, match="is not local") as refused:
        plain.check_key()
    assert "--allow-plain-http" in str(refused.value.hint)
    replace(plain, allows_plain_http=True).check_key()
    for address in ("https://93.184.216.34/v1", "http://127.0.0.1:1/v1"):
        Endpoint.parse(address, "m", environ=environ).check_key()


def test_the_acknowledgement_is_said_by_the_command_itself(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("acknowledge_disclosure: true\nallow_plain_http: true\n")
    environ = {"CBTQA_ACKNOWLEDGE_DISCLOSURE": "true"}
    quiet = resolve(EndpointSettings, file=file, environ=environ)
    assert not quiet.values.acknowledge_disclosure and quiet.values.allow_plain_http
    assert "CBTQA_ACKNOWLEDGE_DISCLOSURE" in quiet.origins["acknowledge_disclosure"]
    said = resolve(EndpointSettings, file=file, flags={"acknowledge_disclosure": True})
    assert said.values.acknowledge_disclosure


def test_what_an_address_carried_is_masked_from_then_on() -> None:
    with pytest.raises(ConfigError):
        Endpoint.parse("https://anna-maria:pass%2Fw0rd@host/v1?token=t0ken-t0ken", "m", environ={})
    for secret in ("anna-maria", "pass%2Fw0rd", "pass/w0rd", "t0ken-t0ken"):
        assert masked(f"<{secret}>") == "<[key]>"


@pytest.mark.parametrize("value", ["two words", "密钥密钥密钥密钥", "sk-a\r\nX-Other: b"])
def test_what_cannot_be_sent_as_a_key_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(ConfigError, match="CBTQA_API_KEY holds no key") as refused:
        Endpoint.parse("http://127.0.0.1:1/v1", "m", environ={"CBTQA_API_KEY": value})
    assert value not in str(refused.value)


def test_a_file_may_name_variables_for_keys_only() -> None:
    own = {"CBTQA_KEY_VARIABLES": "LAB_TOKEN, OTHER"}
    for name in [*(one.key_env for one in preset_file().presets.values()), "MY_API_KEY"]:
        check_key_variable(name, {})
    check_key_variable("LAB_TOKEN", own)
    for name in ("HOME", "AWS_SECRET_ACCESS_KEY", "LAB_TOKEN", "my_api_key"):
        with pytest.raises(ConfigError, match=f"'{name}' is no variable for a key"):
            check_key_variable(name, {})
    with pytest.raises(ConfigError, match="LAB"):
        check_key_variable("LAB", own)


def test_a_pasted_full_address_is_understood() -> None:
    made = Endpoint.parse("http://127.0.0.1:1/v1/chat/completions", "m", environ={})
    assert made.base_url == "http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000/v1", True),
        ("http://LOCALHOST./v1", True),
        ("http://api.localhost/v1", False),
        ("http://127.1.2.3/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://[::ffff:127.0.0.1]/v1", True),
        ("http://[fe80::1%25eth0]/v1", True),
        ("http://10.1.2.3/v1", True),
        ("http://172.16.0.1/v1", True),
        ("http://172.32.0.1/v1", False),
        ("http://192.168.1.5:11434/v1", True),
        ("http://gpu.local:8000/v1", False),
        ("http://[::1/v1", False),
        ("http://0.0.0.0:8000/v1", True),
        ("http://100.64.0.1/v1", False),
        ("http://8.8.8.8/v1", False),
        ("http://[2001:4860:4860::8888]/v1", False),
        ("http://192.0.2.1/v1", False),
        ("https://api.openai.com/v1", False),
        ("https://localhost.example.com/v1", False),
        ("https://127.0.0.1.nip.io/v1", False),
        ("https://local/v1", False),
        ("not a url", False),
    ],
)
def test_only_this_machine_and_private_addresses_are_local(
    url: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such_name(*_: Any, **__: Any) -> Any:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    assert is_local(url) is expected


@pytest.mark.parametrize(
    ("host", "addresses", "expected"),
    [
        ("gpu-box", ["10.0.0.7"], True),
        ("gpu-box", ["10.0.0.7", "93.184.216.34"], False),
        ("host.docker.internal", ["192.168.65.2"], True),
        ("gpu.local", ["192.168.1.9"], True),
        ("gpu.local", ["93.184.216.34"], False),
        ("api.localhost", ["127.0.0.1"], True),
        ("api.localhost", ["93.184.216.34"], False),
        ("innocent.example", ["127.0.0.1"], False),
    ],
)
def test_a_name_is_local_by_its_kind_and_its_addresses(
    host: str, addresses: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert is_local(f"http://{host}:8000/v1") is expected


# --- the protocol --------------------------------------------------------------------------------


def test_a_body_holds_what_was_set_and_nothing_else() -> None:
    where = Endpoint("http://127.0.0.1/v1", "m")
    plain = ChatRequest([{"role": "user", "content": "你好"}])
    assert request_body(plain, where, "json_schema", 1) == {
        "model": "m",
        "messages": [{"role": "user", "content": "你好"}],
    }
    sampling = Sampling(temperature=0, max_tokens=9, seed=1, stop=("。",), extra={"top_k": 5})
    loose = ChatRequest(plain.messages, {"type": "object", "properties": {"a": {}}}, "x", sampling)
    body = request_body(loose, where, "json_schema", 2)
    assert (body["temperature"], body["max_tokens"], body["seed"], body["top_k"]) == (0, 9, 2, 5)
    assert body["stop"] == ["。"] and "top_p" not in body
    assert body["response_format"]["json_schema"]["strict"] is False
    assert request_body(loose, where, "json_object", 1)["response_format"] == {
        "type": "json_object"
    }
    assert "response_format" not in request_body(loose, where, "text", 1)
    assert sampling.described() == {
        "temperature": 0.0,
        "max_tokens": 9,
        "seed": 1,
        "stop": "'。'",
        "top_k": 5,
    }


def test_strict_is_asked_for_only_where_the_schema_keeps_its_rules() -> None:
    where = Endpoint("http://127.0.0.1/v1", "m")
    inner = {"type": "object", "properties": {"b": {}}, "required": ["b"]}
    for schema, expected in (
        (inner | {"additionalProperties": False}, True),
        (inner, False),
        ({"type": "array", "items": inner}, False),
    ):
        body = request_body(ChatRequest([], schema), where, "json_schema", 1)
        assert body["response_format"]["json_schema"]["strict"] is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("好", ("好", None)),
        ("<think>一\n</think>\n\n好", ("好", "一")),
        ("<think>一</think><think>二</think>好", ("好", "一\n二")),
        ("一</think>好", ("好", "一")),
        ("<think>一", ("", "一")),
        ("<Thinking>一</thinking>好", ("好", "一")),
        ("<reasoning>一</reasoning>好", ("好", "一")),
        ("[THINK]一[/THINK]好", ("好", "一")),
        ("◁think▷一◁/think▷好", ("好", "一")),
        ("<seed:think>一</seed:think>好", ("好", "一")),
        ("我 think 好", ("我 think 好", None)),
        ('{"a": "<think>不是</think>"}', ('{"a": "<think>不是</think>"}', None)),
    ],
)
def test_reasoning_is_cut_from_the_head_only(text: str, expected: tuple[str, str | None]) -> None:
    assert split_reasoning(text) == expected


def test_a_reply_keeps_reasoning_usage_and_odd_content() -> None:
    parts = completion(None)
    parts["choices"][0]["message"]["content"] = [{"type": "text", "text": "好"}, {"text": "的"}]
    parts["choices"][0]["message"]["reasoning_content"] = "想"
    reply = reply_of(parts, 0.5)
    assert (reply.text, reply.reasoning, reply.usage.prompt_tokens) == ("好的", "想", 100)
    no_usage = completion("好") | {"usage": None}
    assert reply_of(no_usage, 0.5).usage.completion_tokens == 0
    broken = json.dumps(completion("好\ud83d"))
    assert parse_completion(broken.encode(), 0).text == "好\ufffd"


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"choices": []}', b'{"choices": [{}]}'])
def test_what_is_not_the_protocol_may_be_tried_again(body: bytes) -> None:
    with pytest.raises(BadResponseError) as refused:
        parse_completion(body, 0)
    assert refused.value.is_retryable


@pytest.mark.parametrize(
    ("status", "body", "kind", "is_retryable"),
    [
        (401, "Incorrect API key: sk-s3cret", EndpointAuthError, False),
        (403, "country not supported", EndpointAuthError, False),
        (404, "no model", EndpointError, False),
        (408, "", EndpointTimeoutError, True),
        (429, "slow down", RateLimitError, True),
        (429, '{"code": "insufficient_quota"}', EndpointError, False),
        (500, "", BadResponseError, True),
        (503, "", RateLimitError, True),
        (529, "", RateLimitError, True),
    ],
)
def test_an_http_error_tells_its_kind(
    status: int, body: str, kind: type[EndpointError], is_retryable: bool
) -> None:
    error = error_of(status, {}, body)
    assert type(error) is kind and error.is_retryable is is_retryable
    assert "s3cret" not in str(error)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, '{"error": {"code": "content_filter"}}', Reason.CONTENT_FILTER),
        (400, '{"error": {"message": "Content Exists Risk"}}', Reason.CONTENT_FILTER),
        (400, '{"error": {"code": "1301", "message": "不安全内容"}}', Reason.CONTENT_FILTER),
        (403, '{"error": {"code": "data_inspection_failed"}}', Reason.CONTENT_FILTER),
        (400, "maximum context length", Reason.BAD_REQUEST),
        (413, "too large", Reason.BAD_REQUEST),
    ],
)
def test_a_refusal_of_one_request_tells_its_reason(status: int, body: str, reason: Reason) -> None:
    error = error_of(status, {}, body)
    assert isinstance(error, RequestRefusedError) and error.fault.reason is reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("30", 30), ("1.5s", 1.5), ("12ms", 0.012), ("6m0s", 360), ("1h2m3s", 3723)),
        *(("2d", 172800), ("", None), ("soon", None), ("5x", None), ("-1", None), ("s", None)),
    ],
)
def test_durations_of_rate_limit_headers(text: str, expected: float | None) -> None:
    assert duration_s(text) == (None if expected is None else pytest.approx(expected))


def test_the_wait_asked_for_is_read_in_all_its_forms() -> None:
    assert retry_after_s({"retry-after-ms": "250", "Retry-After": "9"}) == 0.25
    assert retry_after_s({"Retry-After": "9"}) == 9
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert (retry_after_s({"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}) or 0) > 1e9
    assert retry_after_s({"Retry-After": "later"}) is None
    assert retry_after_s({}) is None
