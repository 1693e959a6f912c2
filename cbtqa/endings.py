"""How a reply ended: whole, cut, or stopped by a filter. One table for every module.

    ending_of("stop")                                  # Ending.WHOLE
    ending_of({"type": "stop", "matched": 151645})     # Ending.WHOLE, as SGLang writes it
    ending_of("insufficient_system_resource")          # Ending.CUT
    ending_of("sensitive")                             # Ending.CONTENT_FILTER

Only endings that are known to be good are whole. Providers invent new words for bad endings every
year; a word that is not listed here is no whole answer, and the word itself is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

MOST_LETTERS = 80
"""Of a finish reason that is kept; a longer one is no word of a protocol."""


class Ending(StrEnum):
    """What a finish reason says about the text before it."""

    WHOLE = "whole"
    CUT = "cut"
    """The text breaks off: the token limit, an error, a time-out, or an ending nobody knows."""
    CONTENT_FILTER = "content_filter"
    """The provider's filter stopped it."""


_ENDINGS = {
    # OpenAI, and with it DeepSeek, DashScope, Zhipu, Moonshot, SiliconFlow, MiniMax, Ark, vLLM,
    # SGLang, llama.cpp, Ollama, LMDeploy, OpenRouter: https://platform.openai.com/docs/api-reference/chat/object
    # Gemini's STOP is the same word: https://ai.google.dev/api/generate-content#FinishReason
    "stop": Ending.WHOLE,
    # https://docs.together.ai/reference/chat-completions-1
    "eos": Ending.WHOLE,
    # https://huggingface.co/docs/text-generation-inference, FinishReason
    "eos_token": Ending.WHOLE,
    # the same page, and https://docs.claude.com/en/api/handling-stop-reasons
    "stop_sequence": Ending.WHOLE,
    "end_turn": Ending.WHOLE,
    # https://docs.cohere.com/reference/chat
    "complete": Ending.WHOLE,
    # https://platform.openai.com/docs/api-reference/responses/object, through gateways
    "completed": Ending.WHOLE,
    # https://cloud.baidu.com/doc/WENXINWORKSHOP: neither cut nor replaced
    "normal": Ending.WHOLE,
    # OpenAI, Azure OpenAI, DeepSeek, Moonshot, Ark, Qianfan, Baichuan
    "content_filter": Ending.CONTENT_FILTER,
    # https://docs.bigmodel.cn/api-reference; https://cloud.tencent.com/document/product/1729/105701
    "sensitive": Ending.CONTENT_FILTER,
    # https://ai.google.dev/api/generate-content#FinishReason
    "safety": Ending.CONTENT_FILTER,
    "recitation": Ending.CONTENT_FILTER,
    "blocklist": Ending.CONTENT_FILTER,
    "prohibited_content": Ending.CONTENT_FILTER,
    "spii": Ending.CONTENT_FILTER,
    "model_armor": Ending.CONTENT_FILTER,
    # https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
    "content_filtered": Ending.CONTENT_FILTER,
    "guardrail_intervened": Ending.CONTENT_FILTER,
    # https://docs.claude.com/en/api/handling-stop-reasons: its classifiers stopped the text
    "refusal": Ending.CONTENT_FILTER,
    # https://docs.cohere.com/v1/reference/chat
    "error_toxic": Ending.CONTENT_FILTER,
}


def ending_of(reason: object) -> Ending:
    """How a reply ended by its finish reason, in whatever type a server or a file holds it.

    None and an empty text say nothing; a body that arrived to its end is then taken for whole.
    """
    word = reason_text(reason)
    if word is None:
        return Ending.WHOLE
    return _ENDINGS.get(word.lower().replace("-", "_"), Ending.CUT)


def reason_text(reason: object) -> str | None:
    """A finish reason as the text that is kept; None where nothing is said.

    SGLang's native form is an object with a `type`. Any other type is no word, and named only: its
    text may be endless, or too deep to write.
    """
    if isinstance(reason, Mapping) and isinstance(reason.get("type"), str):
        reason = reason["type"]
    if reason is None:
        return None
    text = reason if isinstance(reason, str) else f"({type(reason).__name__})"
    return text.strip()[:MOST_LETTERS] or None
