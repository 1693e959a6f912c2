"""How messages become tokens: the same tokens at training and at generation.

The prompt is rendered and tokenised alone, as a server does it; the answer is tokenised alone and
closed by the end-of-turn token, so that no token spans the boundary. What a chat template writes
after an answer is found once, by a probe.

    chat = ChatFormat(tokenizer)
    chat.prompt_ids([[{"role": "user", "content": "..."}]]), chat.answer_ids(["..."])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cbtqa.errors import ConfigError
from cbtqa.shapes import Message

_PROBE_QUESTION, _PROBE_ANSWER = "问题", "回答"


class ChatFormat:
    """A tokenizer with its chat template.

    Args:
        tokenizer: a transformers tokenizer.
        template: Jinja text; None for the tokenizer's own.
        end_of_turn: token that closes an answer; None to find it by the template.

    Raises:
        ConfigError: no template, or one that does not render an answer as prompt + answer + end.
    """

    def __init__(
        self, tokenizer: Any, template: str | None = None, *, end_of_turn: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._template = template
        if template is None and not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "the tokenizer has no chat template",
                hint="--chat-format names one: cbt-llm-card, chatml, llama3, ...",
            )
        self.end_text = self._find_end(end_of_turn)
        known = tokenizer.get_vocab().get(self.end_text)
        self.end_ids = self._batch([self.end_text])[0] if known is None else [known]
        if len(self.end_ids) != 1 or self.end_ids[0] == tokenizer.unk_token_id:
            raise ConfigError(
                f"the end of turn {self.end_text!r} is {len(self.end_ids)} tokens, expected one: a "
                "model could not learn to stop",
                hint="--chat-format names a template whose end token the vocabulary has",
            )
        self._special_tokens = [token for token in tokenizer.all_special_tokens if len(token) > 2]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The prompt up to where the answer begins."""
        text: str = self.tokenizer.apply_chat_template(
            list(messages),
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return text

    def prompt_ids(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Tokens of each prompt."""
        return self._batch([self.prompt_text(messages) for messages in prompts])

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Tokens of each answer, with the end of turn."""
        return [[*ids, *self.end_ids] for ids in self._batch(list(answers))]

    def holds_special_token(self, text: str) -> bool:
        """True when a text spells out a special token, which would then end a turn or open one."""
        return any(token in text for token in self._special_tokens)

    def _batch(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return found

    def _find_end(self, given: str | None) -> str:
        """The text after an answer; whitespace after it belongs to the next turn."""
        user = {"role": "user", "content": _PROBE_QUESTION}
        prompt = self.prompt_text([user])
        whole: str = self.tokenizer.apply_chat_template(
            [user, {"role": "assistant", "content": _PROBE_ANSWER}],
            chat_template=self._template,
            tokenize=False,
        )
        if not whole.startswith(prompt + _PROBE_ANSWER):
            raise ConfigError(
                "the chat template writes an answer otherwise than it asks for one: "
                f"{whole!r} does not begin with {prompt + _PROBE_ANSWER!r}",
                hint="--chat-format names a template of ours: chatml, chatml-no-think, llama3, ...",
            )
        rest = whole[len(prompt + _PROBE_ANSWER) :].strip()
        return given or rest or str(self.tokenizer.eos_token or "")
