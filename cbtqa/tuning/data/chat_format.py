"""How messages become tokens: the same tokens at training and at generation.

The prompt is rendered and tokenised alone, as a server does it; the answer is tokenised alone and
closed by the end-of-turn token, so that no token spans the boundary. What a chat template writes
after an answer is found once, by a probe, and so is what it writes before one: a model that thinks
has an empty think block there, in the prompt (not learnt) or in the answer (learnt).

    chat = ChatFormat(tokenizer)
    chat.prompt_ids([[{"role": "user", "content": "..."}]]), chat.answer_ids(["..."])
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cbtqa.errors import ConfigError
from cbtqa.shapes import Message
from cbtqa.tuning.settings import Thinking

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_PROBE_QUESTION, _PROBE_ANSWER = "问题", "回答"
_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates are told to let a model think: Qwen, GLM, Hunyuan; DeepSeek."""
_OPEN, _CLOSE = "<think>", "</think>"
_EMPTY_BLOCK = re.compile(rf"(?:{_OPEN})?\s*{_CLOSE}\s*")
_SET = "{{%- if {0} is not defined %}}{{%- set {0} = {1} %}}{{%- endif %}}"
_USE = r"\b{0}\b\s*(?:is|==|and|or|else|\)|-?%\}}|-?\}}\}})"
_WAS_SET = re.compile(
    r"\{%- if ([a-z_]+) is not defined %\}\{%- set \1 = (?:true|false) %\}\{%- endif %\}"
)


def set_thinking(template: str, thinking: Thinking) -> str:
    """A chat template whose switch stands as wanted where nobody sets it; `keep`: as it is."""
    if thinking == "keep":
        return template
    bare = _WAS_SET.sub("", template)
    value = "true" if thinking == "on" else "false"
    code = re.sub(r"\{#.*?#\}", "", bare, flags=re.DOTALL)
    names = (name for name in _SWITCHES if re.search(_USE.format(name), code))
    return "".join(_SET.format(name, value) for name in names) + bare


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
        self.lead = ""
        """What an answer without reasoning begins with: an empty think block, or its end."""
        self.end_text = self._find_end(end_of_turn)
        known = tokenizer.get_vocab().get(self.end_text)
        self.end_ids = self._batch([self.end_text])[0] if known is None else [known]
        # Qwen's tokenizer names its end of text as the unknown token, too: what the vocabulary
        # has under this very text is known
        is_unknown = known is None and self.end_ids[:1] == [tokenizer.unk_token_id]
        if len(self.end_ids) != 1 or is_unknown:
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
        return [[*ids, *self.end_ids] for ids in self._batch([self._told(one) for one in answers])]

    def _told(self, answer: str) -> str:
        """The answer as the model is to write it after the prompt."""
        if _CLOSE not in answer:
            return self.lead + answer
        return answer.lstrip().removeprefix(_OPEN) if self._opens_block else answer

    def refuse_unknown(self, rows: Iterable[ArrayLike], n_rows: int) -> None:
        """Raises ConfigError where tokens are none of the `n_rows` that the embedding has."""
        import numpy as np  # here: what only lists names loads none

        largest = max((int(np.max(row)) for row in rows if np.size(row)), default=0)
        if largest >= n_rows:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise ConfigError(
                f"the tokenizer gives '{token}' the number {largest:,}, the model's embedding has "
                f"{n_rows:,} rows",
                hint="tokenizer and weights do not belong together: tokens were added to one alone",
            )

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
        self._opens_block = prompt.rstrip().endswith(_OPEN)
        self.takes_reasoning = not prompt.rstrip().endswith(_CLOSE)
        """False where the prompt ends with an empty think block."""
        before, _, rest = whole.partition(_PROBE_ANSWER)
        block = before.removeprefix(prompt)
        without_opening = prompt.rstrip().removesuffix(_OPEN)
        if self._opens_block and before == without_opening:
            self.lead = f"\n{_CLOSE}\n\n"  # the template leaves reasoning out of earlier answers
        elif before.startswith(prompt) and (not block or _EMPTY_BLOCK.fullmatch(block)):
            self.lead = block
        else:
            raise ConfigError(
                "the chat template writes an answer otherwise than it asks for one: "
                f"{whole!r} does not begin with {prompt + _PROBE_ANSWER!r}",
                hint="--chat-format names a template of ours: chatml, chatml-no-think, llama3, ...",
            )
        return given or rest.strip() or str(self.tokenizer.eos_token or "")
