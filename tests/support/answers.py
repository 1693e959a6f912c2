"""Invented CBT answers, as a model behind an endpoint would send them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.support.endpoint import Seen

_STEPS = {
    "validation_and_empathy": "读到这里，能感到你这段日子过得很不容易，愿意写下来本身就需要勇气。",
    "key_thought": "你写下的那句话里，好像藏着一个很重的判断，它让一件事变成了对整个人的评价，也让你更难受。",
    "challenge_or_reflection": "如果换成一位好朋友遇到同样的事，你会怎么看待他？有没有一些事实没有被算进去？",
    "strategy_or_insight": "可以先用三行字写下发生了什么、想到了什么、还有什么别的可能，再挑一件小事去试一试。",
    "encouragement_and_foresight": "慢慢来，这只是一个开始，需要的时候也可以找信任的人或专业的咨询师聊一聊。",
}
CRISIS_HELP = (
    "如果此刻很难熬，请联系身边信任的人，也可以拨打全国心理援助热线12356，紧急时拨打110或120。"
)


def steps(mark: str = "", *, with_help: bool = False, **changed: Any) -> dict[str, Any]:
    """Five good steps and no distortions; `mark` makes the text differ between questions."""
    value: dict[str, Any] = {**_STEPS, "distortions": []}
    value["key_thought"] += f"这一点我记成第{mark}号心事，想和你一起看一看。" if mark else ""
    if with_help:
        value["validation_and_empathy"] = CRISIS_HELP + value["validation_and_empathy"]
    return {**value, **changed}


def mark_of(seen: Seen) -> str:
    """A short mark that depends on the question asked, and on nothing else."""
    text = [m["content"] for m in seen.body["messages"] if m["role"] == "user"][0]
    return str(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))


def good_answer(seen: Seen) -> str:
    """A good JSON answer to whatever was asked, with a help route, so that it fits any risk."""
    return json.dumps(steps(mark_of(seen), with_help=True), ensure_ascii=False)
