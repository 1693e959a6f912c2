"""What counts as a machine's raw output, and what a person may write."""

from __future__ import annotations

import pytest

from cbtqa.text_faults import find_broken_text, find_machine_text

BEFORE = "听起来你这阵子过得很不容易。"

TOKENS = [
    "<|im_end|>",
    "<|im_start|>user",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|endoftext|>",
    "</s>",
    "<s>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<｜User｜>",
    "<｜end▁of▁sentence｜>",
    "< | begin▁of▁sentence | >",
    "<｜hy_Assistant｜>",
    "<|turn>",
    "<turn|>",
    "<end_of_turn>",
    "<reserved_106>",
    "<C_Q>",
    "<|CHATBOT_TOKEN|>",
    "<EOS_TOKEN>",
    "[gMASK]",
    "<sop>",
    "<eoh>",
    "[UNUSED_TOKEN_146]",
    "[unused9]",
    "[|endofturn|]",
    "]~b]user",
    "[e~[",
    "<tool_call>",
    "<function=lookup>",
    "[TOOL_CALLS]",
    "<|vision_start|>",
    "<image>",
    "<|channel|>final",
    "<extra_id_0>",
    "<0x0A>",
    "&lt;|im_end|&gt;",
    "＜｜im_end｜＞",
    "<用户>",
    "im_end",
    "<|im_e",
    "[assistant]",
    "<AI>",
]
REASONING = [
    "<think>用户睡不好</think>",
    "</think>",
    "<thinking>",
    "</reasoning>",
    "<seed:think>",
    "◁think▷",
    "[THINK]",
    "<思考>",
    "\n思考过程：先共情。",
    "\n**思考过程**\n先共情。",
    "\n【推理过程】\n先共情。",
    "\n...done thinking.\n",
    "\nThinking Process:\n1. Empathise.",
]
SYSTEM_WORDS = ["你是一名心理咨询师。请回答：睡不着怎么办？", "You are a helpful assistant. Hi"]
REASONING_HEADS = [
    "好的，用户说自己睡不好，我需要先共情。",
    "嗯，用户提到失眠，先看描述。",
    "首先，我需要按照CBT的五个步骤来写。",
    "Okay, the user is asking about sleep.",
    "We need to produce JSON with five keys.",
    "思路：先共情，再提问。",
]
TURNS = [
    "\n用户：谢谢你，我会试试的。",
    "用户：谢谢你。助手：不客气。",
    "\n来访者：我还是睡不着。",
    "\n**咨询师**：我们慢慢来。",
    "\nUser: thanks",
    "\nuser\n谢谢你",
    "assistant你好",
    "\n### Response:\n好的",
    "\n来访者A：谢谢",
    "\n---\n用户\n谢谢",
    "\n问：我该怎么办？\n答：慢慢来。",
]
NATURAL = [
    "我读过 <The Body Keeps the Score>，也许你会喜欢。",
    "这在书里叫 [PTSD]，不过先不急着下结论。",
    "你可以对自己说：“用户体验部的同事也会出错。”",
    "首先，抱抱你。我需要先说一句，你已经很努力了。",
    "提问者你好，求助者这个词也许太重了。",
    "想一想：系统脱敏是怎么一回事？",
    "问题：他为什么不回消息？你能想到几种解释？",
    "咨询师会对你说：“慢慢来。”",
    "妈妈说：“你怎么又这样？”你说：“我累了。”",
    "<第二章：我不是我的想法>这一节也许对你有用，还有<时间简史：插图版>。",
    "1<2，而 3>2；(>_<||| )，<3",
    "你是一位了不起的咨询师，也是会累的人。",
    "Thoughts: I am no good. Feelings: sad.",
    "We should think about the user group I manage. The client was angry.",
    '"想法不等于事实"，把它写在纸上，再写下"我在努力"',
    "Let me think about what you said. We need to create a plan together.",
]


@pytest.mark.parametrize("token", TOKENS)
def test_a_control_token_of_any_family_is_found_where_it_begins(token: str) -> None:
    found = find_machine_text(BEFORE + token)
    assert found is not None
    assert (found.kind, found.start) == ("control_tokens", len(BEFORE))


@pytest.mark.parametrize("thought", REASONING)
def test_reasoning_is_found_at_the_head_and_in_the_middle(thought: str) -> None:
    for text in (BEFORE + thought, thought + BEFORE):
        found = find_machine_text(text)
        assert found is not None
        assert found.kind == "reasoning"


@pytest.mark.parametrize("head", REASONING_HEADS)
def test_a_text_that_begins_by_speaking_about_its_task_is_reasoning(head: str) -> None:
    found = find_machine_text(head)
    assert found is not None
    assert (found.kind, found.start) == ("reasoning", 0)


@pytest.mark.parametrize("words", SYSTEM_WORDS)
def test_an_instruction_that_comes_back_is_no_answer(words: str) -> None:
    found = find_machine_text(words)
    assert found is not None and found.kind == "other_speaker"


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_of_another_speaker_is_found_with_what_stands_before_left_clean(turn: str) -> None:
    found = find_machine_text(BEFORE + turn)
    assert found is not None
    assert found.kind == "other_speaker"
    assert find_machine_text((BEFORE + turn)[: found.start]) is None


@pytest.mark.parametrize("text", NATURAL)
def test_what_a_person_may_write_is_no_fault(text: str) -> None:
    assert find_machine_text(text) is None
    assert find_broken_text(text) is None
