"""What keeps a reply from being an answer: nothing in it, cut off, or the prompt itself in it.

No more than that: whether an answer is good, safe or in five steps is for scores to say, and a
score over only the good ones would mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from cbtqa.errors import ConfigError
from cbtqa.llm.chat import Fault, Reply, fault_of_reply
from cbtqa.records import Reason
from cbtqa.tuning.asked import AskedItem
from cbtqa.tuning.chat_format import ChatFormat

LEAK_CHARS = 14
"""So many characters in a row of the system text count as a leak. assumed; as in `dataset.check`"""
LEAST_MARK = 4
"""Characters that a turn's mark must have to be looked for: `:` alone stands in many answers."""


@dataclass(frozen=True)
class AnswerChecks:
    """The checks of one run."""

    turn_mark: str = ""
    """What the chat format writes before a user's turn, such as a line `Human:`: a model that
    writes it talks to itself. Empty where it is not known, at an endpoint."""

    def fault_of(self, item: AskedItem, reply: Reply) -> Fault | None:
        """What is wrong with a reply, or None."""
        return fault_of_reply(reply) or self.leak_in(item, reply.text)

    def leak_in(self, item: AskedItem, text: str) -> Fault | None:
        """PROMPT_LEAK when parts of the prompt stand in a text."""
        if len(self.turn_mark.strip()) >= LEAST_MARK and self.turn_mark in text:
            mark = self.turn_mark.strip()
            return Fault(Reason.PROMPT_LEAK, f"goes on with a turn of the user: {mark}")
        for turn in item.messages:
            system = turn["content"] if turn["role"] == "system" else ""
            for start in range(len(system) - LEAK_CHARS + 1):
                part = system[start : start + LEAK_CHARS]
                if part in text:
                    return Fault(Reason.PROMPT_LEAK, f"repeats its instruction: {part}")
        return None


def turn_mark_of(chat: ChatFormat) -> str:
    """What stands between an answer and the user's next question; special tokens left out, as
    they are in decoded answers. Empty for a template that takes one question only."""
    first, answer, second = "问题一", "回答一", "问题二"
    turns = [("user", first), ("assistant", answer), ("user", second)]
    try:
        text = chat.prompt_text([{"role": role, "content": said} for role, said in turns])
    except (ConfigError, ValueError, TypeError):
        return ""
    between = text.partition(answer)[2].partition(second)[0]
    for token in (chat.end_text, *chat.tokenizer.all_special_tokens):
        between = between.replace(token, "")
    return between.rstrip(" ")
