"""What shows that a text is a machine's raw output and no answer, turn or label: one list for all.

    find_machine_text("我听到了。<|im_end|>\\n<|im_start|>user\\n谢谢")
    # TextFault(kind='control_tokens', found='<|im_end|>', start=5)

Families of models are recognised by the shape of their marks where they have one, so that the marks
of the next family are, too. What a person may write is no fault: `<The Body Keeps the Score>`,
`[PTSD]`, a quoted dialogue. Nothing here knows what a text is for; each user decides what a fault
means there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

FaultKind = Literal[
    "control_tokens",
    "other_speaker",
    "reasoning",
    "broken_text",
    "markup",
    "placeholder",
    "repetition",
    "copied_question",
    "wrong_script",
    "wrong_language",
]
"""As the reasons of `cbtqa.records.Reason` that they become."""


class TextFault(NamedTuple):
    kind: FaultKind
    found: str
    """The characters that show it, shortened."""
    start: int
    """Where they begin; what stands before is free of such faults."""


LONGEST_SHOWN = 60

# Other forms of the marks' own characters, one for one so that places stay the same: full-width
# forms, DeepSeek's bars and low lines (`<｜begin▁of▁sentence｜>`), Kimi's triangles (`◁think▷`).
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PLAIN |= str.maketrans("│∣❘▁◁▷〈〉‹›⟨⟩\u00a0\u3000", "|||_<><><><>  ")
# a comma or a bracket for text stays what it is
for _kept in "，。！？；（）":
    _PLAIN.pop(ord(_kept), None)


def _flat(text: str) -> str:
    return text.translate(_PLAIN)


# --- control tokens -------------------------------------------------------------------------------

_OPEN, _CLOSE = r"(?:<|&lt;|\\u003c)\s?", r"\s?(?:>|&gt;|\\u003e)"
_THOUGHT = (
    r"(?:seed:|antml:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reasoning_content|reflection"
    r"|analysis|scratch_?pad|inner_?(?:thoughts?|monologue)|chain_of_thought|cot|thinking_process"
    r"|begin_of_thought|end_of_thought|思考|思考过程|推理|推理过程|分析|内心独白)"
)
_BARE_NAMES = (  # angle brackets without bars, by name; those with `_` or `:` have a shape
    r"s|bos|eos|pad|unk|mask|cls|sep|sop|eop|eod|eoh|eoa|eom|eoc|eor|eot|eosys|n|unused\d+"
    r"|nooutput|image|img|video|audio|tools?|ref|box|quad|obj|answer|final|response|assistant"
    r"|user|human|system|bot|ai|role|用户|助手|系统"
)
_NAMES = (  # never a word, whatever is left of the brackets round it
    r"im_(?:start|end|sep)|endoftext|eo[tm]_id|(?:start|end)_header_id|begin_of_text|end_of_text"
    r"|(?:start|end)_of_turn|(?:begin|end)_of_sentence|end_of_utterance|reserved_special_token"
    r"|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN|CHATBOT_TOKEN|USER_TOKEN|tool_calls?_(?:begin|end)"
    r"|begin_of_(?:image|box|solution|thought)|fim_(?:prefix|middle|suffix)"
)
_WORD = r"[A-Za-z0-9-]"
_CONTROL = re.compile(
    "|".join(
        (
            # <|im_end|>, <｜User｜>, < | end_of_sentence | >, Gemma's <|turn> and <turn|>, <|"|>
            rf"{_OPEN}\|\s?[/\w\"][\w .:/\"-]{{0,50}}?\s?\|?{_CLOSE}",
            rf"{_OPEN}/?[A-Za-z_][A-Za-z0-9_ .:-]{{0,50}}?\s?\|{_CLOSE}",
            r"<\|[A-Za-z_]\w{0,30}\|?$",  # cut inside the token
            # <reserved_106>, <start_of_turn>, <extra_id_0>, <seed:bos>, <BOS_TOKEN>, <C_Q>, <0x0A>
            rf"{_OPEN}/?(?:{_WORD}{{0,30}}[_:]{_WORD}{{1,30}}(?:[_:]{_WORD}{{0,30}}){{0,4}}){_CLOSE}",
            rf"{_OPEN}0x[0-9A-F]{{2}}{_CLOSE}",
            rf"(?i:{_OPEN}/?(?:{_BARE_NAMES})/?{_CLOSE})",
            rf"{_OPEN}/?(?:tool|function)[\w=. -]{{0,40}}{_CLOSE}",  # <tool_call>, <function=x>
            r"<<\s?/?SYS\s?>>",
            # [INST], [gMASK], [TOOL_CALLS], [UNUSED_TOKEN_146], [unused9], [control_8], [|user|]
            r"\[/?(?:INST|[gs]?MASK|CLS|SEP|PAD|UNK|BOS|EOS|BOT|EOT|IMG|SYS|USER|ASSISTANT|SYSTEM"
            r"|ARGS|PREFIX|MIDDLE|SUFFIX|DONE|end of text)\]",
            r"(?i:\[/?(?:user|assistant|system|human|bot|model)\])",
            r"\[/?[A-Za-z]{2,20}(?:_[A-Z0-9]{1,20}){1,4}\]|\[(?:unused|control_)\d{1,4}\]",
            r"\[\|\s?/?\w[\w ]{0,30}\|?\]",
            r"\[(?:Round|第)\s?\d{1,3}\s?轮?\]",
            r"\]~!?b[\[\]]|\[e~\[",  # MiniMax
            rf"(?<![A-Za-z0-9])(?:{_NAMES})(?![A-Za-z0-9])",
        )
    )
)

# --- reasoning ------------------------------------------------------------------------------------

_REASONING_MARK = re.compile(
    "|".join(
        (
            rf"{_OPEN}/?\s?\|?{_THOUGHT}\|?(?:\s[^<>]{{0,60}})?/?{_CLOSE}",
            r"\[/?THINK(?:ING)?\]",
            r"(?m:^\W{0,6}\.{0,3}done thinking\.?\W{0,4}$)"
            r"|(?m:^\W{0,4}Thinking(?:\.{3}|…)[ \t]{0,4}$)",
            # gpt-oss's channels when its marks were dropped
            r"(?:^|(?<=[\s。！？]))(?:analysis|commentary)(?=[\u4e00-\u9fff]|(?:We|The user|User) )"
            r"|assistantfinal",
            # a heading or a label of its own
            r"(?mi:^[ \t#>*【\[(（]{0,6}(?:我的|内心|模型|深度)?(?:思考过程|思维链|推理过程"
            r"|思维过程|思考步骤|内心独白|内心活动|系统提示|深度思考|内部思考|thinking process"
            r"|thought process|chain[ -]of[ -]thought|my (?:thinking|reasoning)"
            r"|internal (?:monologue|thoughts?))"
            r"[】\])） *]{0,5}(?:[:：]|$))",
            # only at the head of the text: a thought record may have a line of its own so
            r"(?i:^[ \t#>*【\[(（]{0,6}(?:思考|思路|推理|thinking|reasoning|analysis)"
            r"[】\])） *]{0,5}[:：])",
        )
    )
)
# The head of a text that speaks about its reader, or about the task, to itself.
_REASONING_HEAD = re.compile(
    r"\s{0,20}(?:(?:好的?|嗯+|首先|那么|现在|让我想想|我们?来?看看?|OK|Okay|Alright|Hmm|So)[，,。.！!\s]*)?"
    r"(?:(?:这[位个名])?(?:用户|提问者|求助者)"
    r"(?=(?:现在|目前|似乎|可能|正在?)?(?:是|说|问|提到|提出|描述|表达|感到|感觉|觉得|想|希望|需要|遇到|给"
    r"|在|的(?:问题|情况|描述|处境|感受|请求|标题|提问)))"
    r"|(?:我|我们)(?:需要|要|得|应该|应当|必须)(?:先|首先)?(?:按照|根据|遵循|以|用|写|生成|输出|给出|分析"
    r"|回复|回答)(?:一篇回复|五个|CBT|认知行为|JSON|要求|这[个位]用户|用户|提问者|步骤|指令|系统)"
    r"|(?i:(?:the|this) (?:user|asker|prompt) (?:is|was|has|wants|needs|asks?|says|feels|seems)\b"
    r"|(?:I|we) (?:need|have|should|must|will|are asked)\b[^.\n]{0,60}?\b(?:JSON"
    r"|the user(?:'s (?:message|question)| (?:with|by|in|who|is|has|wants|needs))"
    r"|as (?:a|the) (?:therapist|patient|counsell?or|assistant)"
    r"|the (?:system )?prompt|final answer)\b))"
)

# --- another speaker ------------------------------------------------------------------------------

_SPEAKERS = (
    r"用户|使用者|来访者|求助者|提问者|咨询者|患者|病人|助手|助理|咨询师|心理咨询师|治疗师|心理医生|机器人"
    r"|人工智能|系统|AI(?:助手)?|(?i:users?|humans?|clients?|patients?|assistants?|system|chatbot|bot"
    r"|therapists?|counsell?ors?|gpt|chatgpt)"
)
_LABEL = (
    rf"[#>*_【\[(（<「 \t]{{0,6}}(?:{_SPEAKERS})\s?[A-Za-z0-9]{{0,2}}[*_】\])）>」 \t]{{0,4}}[:：]"
)
_TURN = re.compile(
    "|".join(
        (
            rf"(?m:^{_LABEL})",
            # the system's own words come back
            r"^\s{0,9}你是一[名位个][^。，\n]{0,20}(?:咨询师|助手|助理|治疗师|支持者|志愿者|人工智能|模型)"
            r"[。，,；;\s]{1,2}(?=请|你要|你需要|你的任务|需要|任务|回答|下面)",
            r"^\s{0,9}You are an? (?:helpful|AI)\b[^.\n]{0,40}\bassistant\b",
            rf"(?<=[。！？!?…”」])\s{{0,3}}{_LABEL}",
            # the role that is left when the tokens round it were dropped: "user\\n谢谢"
            r"(?m:^[ \t]{0,4}(?:user|assistant|model|system|human|用户|助手|来访者|咨询师)"
            r"[ \t]{0,4}$)",
            r"(?<=[。！？”\n])[ \t]{0,3}(?:user|assistant|model)(?=\s?[\n\u4e00-\u9fff])",
            r"(?m:^[ \t]{0,4}#{2,4}[ \t]?(?:Instruction|Response|Human|User|Assistant|Input|指令"
            r"|回答|问题)\b)",
        )
    )
)
_PAIR = re.compile(r"(?m:^[ \t*]{0,4}(?:问|答|Q|A|甲|乙|问题|回答)\d{0,2}[ \t*]{0,4}[:：])")


def find_machine_text(text: str) -> TextFault | None:
    """The first thing in a text that shows a machine's raw output, or None.

    Control tokens, a turn of another speaker, or the model's own reasoning, wherever they stand. A
    speaker's label that begins the text counts, too; callers that take one off do so before.
    """
    flat = _flat(text)
    found: list[TextFault] = []
    # of marks at the same place the first kind named here counts: <think> is no control token
    if head := _REASONING_HEAD.match(flat):
        found.append(_fault("reasoning", text, head))
    searched: tuple[tuple[FaultKind, re.Pattern[str]], ...] = (
        ("reasoning", _REASONING_MARK),
        ("control_tokens", _CONTROL),
        ("other_speaker", _TURN),
    )
    for kind, pattern in searched:
        if match := pattern.search(flat):
            found.append(_fault(kind, text, match))
    pairs = list(_PAIR.finditer(flat))
    if len(pairs) > 1 and len({pair[0].strip(" \t*:：0123456789") for pair in pairs}) > 1:
        found.append(_fault("other_speaker", text, pairs[0]))
    return min(found, key=lambda fault: fault.start, default=None)


def _fault(kind: FaultKind, text: str, match: re.Match[str]) -> TextFault:
    raw = match[0]
    start = match.start() + len(raw) - len(raw.lstrip())
    return TextFault(kind, text[start : match.end()].strip()[:LONGEST_SHOWN], start)


# --- text that says nothing, or not in the language asked for -------------------------------------
# Thresholds: `scripts/bench/text_faults.py` counts how many texts of a file fall under each; the
# figures on human answers are in docs/log.md.

LOOP_LETTERS, LOOP_TIMES = 12, 3
"""A run of so many letters that occurs so often is a loop."""
GRAM = 8
LEAST_DISTINCT = 0.8
"""Of the runs of `GRAM` letters in a text of at least `LEAST_LETTERS`."""
LEAST_LETTERS = 60
SAME_PARTS = 0.8
"""Two parts that share so much of the shorter one are the same part."""
MOST_COPIED = 0.5
"""Share of an answer, or of each of several parts, that may be the question's own words."""
MOST_TRADITIONAL = 0.05
MOST_FOREIGN_RUN = 60
"""Letters in a row, blanks and marks not counted, without a Chinese one: a title is shorter."""
MOST_FOREIGN_TAIL = 25
"""The same at the end of an answer, after a whole sentence."""

_NOT_LETTERS = re.compile(r"[\W_]+")
_SAME_MARK = re.compile(r"([^\w\s])\1{39,}")
_HAN = r"\u3400-\u9fff\U00020000-\U0003ffff"
_FOREIGN_RUN = re.compile(rf"[^\W\d_{_HAN}][^{_HAN}]{{{MOST_FOREIGN_TAIL - 1},}}")
_OTHER_SCRIPT = re.compile(
    # Cyrillic, Hebrew to Arabic, Indic to Thai, of which faces are made (ಥ_ಥ); Hangul; kana, of
    # which single signs are in Chinese slang
    r"[\u0400-\u052f\u0590-\u06ff\u0900-\u0e7f]{3,}|[\u1100-\u11ff\uac00-\ud7af]{2,}"
    r"|[\u3041-\u30fa]{4,}"
)
_BROKEN = re.compile(
    "|".join(
        (
            r"[\ufffc\ufffd\ud800-\udfff\ufffe\uffff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]",
            r"锟斤拷|烫烫烫|屯屯屯|ï»¿|â€[\u0080-\u2122]",
            # UTF-8 read as Latin-1 or Windows-1252
            r"(?:[\u00c2-\u00f4][\u0080-\u00bf\u0152-\u0192\u02c6-\u2122]{1,3}){3}",
            r"[ĠĊ\u2581](?=\w)",  # pieces of a tokenizer
            r"(?:\\u[0-9a-fA-F]{4}){2}",
        )
    )
)
_HTML = (
    r"p|br|hr|div|span|b|i|u|em|strong|small|center|font|a|img|ul|ol|li|dl|dt|dd|table|t[rdh]|thead"
    r"|tbody|h[1-6]|blockquote|pre|code|sup|sub|del|ins|mark|details|summary|section|article|header"
    r"|footer|main|nav|form|input|button|label|html|head|body|title|meta|link|style|script|svg|xml"
)
_MARKUP = re.compile(
    "|".join(
        (
            rf"(?i:</?(?:{_HTML})(?:\s[\w-]+\s?=[^<>]{{0,200}})?\s?/?>)|<!--|<!DOCTYPE",
            r"&(?:nbsp|[lg]t|amp|quot|apos|#x?[0-9A-Fa-f]{2,6});",
            r"```|~~~~|\[\d{1,3}\]|【\d{1,3}†[^】\n]{0,40}】",
            r"\A\s{0,9}(?:\{[^{}]*\}|\"[^\"]*\")\s{0,9}\Z",  # a whole part as an object or a string
            r"\*\*[^*\s][^*\n]{0,29}\*\*|(?<!\w)__[^_\s][^_\n]{0,29}__(?!\w)",
            r"!?\[[^\]\n]{1,80}\]\(\w[^)\s]{1,200}\)",
            r"(?m:^\s{0,3}\|[^\n|]{1,200}\|)|(?m:^\s{0,3}#{1,6}\s)",
            r"\\(?:boxed|text|begin|frac)\{|\\[nrt](?![A-Za-z])",
            r"\{\s{0,4}[\"“][A-Za-z_]{2,40}[\"”]\s?[:：]|[\"”]\s?[,，]\s{0,4}[\"“][A-Za-z_]{2,40}[\"”]\s?[:：]",
        )
    )
)
_WHOSE = (
    r"(?:你的|您的|对方的?|来访者的?|提问者的?|用户的?|朋友的?|某个?|具体的?|此处的?|在此处?|这里)?"
)
_BLANK = (
    r"姓名|名字|称呼|昵称|电话(?:号码)?|号码|地址|日期|时间|城市|地点|学校|公司|机构|链接|邮箱"
    r"|用户|来访者|提问者|求助者|具体(?:情况|内容|事件|时间)|情况|原话|正文|内容"
)
_NO_BRACKET = r"[^\[\]{}【】<>()（）\n]{0,12}"
_PLACEHOLDER = re.compile(
    "|".join(
        (
            rf"[\[{{【]\s?{_WHOSE}(?:{_BLANK})\s?[\]}}】]|(?<!<)<\s?{_WHOSE}(?:{_BLANK})\s?>(?!>)",
            rf"[\[{{【]{_NO_BRACKET}(?:填写|填入|插入|替换|省略|待补充|此处|在此){_NO_BRACKET}[\]}}】]",
            rf"(?i:[\[{{]{_NO_BRACKET}\b(?:names?|your|insert|placeholder|fill in|date|phone|todo"
            rf"|tbd)\b{_NO_BRACKET}[\]}}])",
            rf"[(（]{_NO_BRACKET}(?:此处|[以下后]文?|内容|篇幅|部分){_NO_BRACKET}略{_NO_BRACKET}[)）]",
            r"[(（](?:略|省略|同上|待补充|待续|未完待续|姓名|你的名字|对方的名字|正文)[。.…]{0,2}[)）]",
            r"(?:此处|以下|后面)(?:内容)?省略|_{4,}|XXXX+",
            r"\$\{?[a-z_]{3,20}\}?|\{\{?\s?[a-z_]{2,20}\s?\}?\}",
        )
    )
)


def find_broken_text(text: str) -> TextFault | None:
    """Characters that were lost or read in a wrong encoding, or markup of a page."""
    for kind, pattern in _BROKEN_KINDS:
        if match := pattern.search(text):
            return _fault(kind, text, match)
    return None


_BROKEN_KINDS: tuple[tuple[FaultKind, re.Pattern[str]], ...] = (
    ("broken_text", _BROKEN),
    ("markup", _MARKUP),
    ("placeholder", _PLACEHOLDER),
)


def find_empty_words(parts: Sequence[str], question: str) -> TextFault | None:
    """What shows that an answer says nothing: it repeats itself, or the question.

    Args:
        parts: the answer's steps, or the whole answer as one part.
        question: all that the asker wrote.
    """
    bare = [_NOT_LETTERS.sub("", part) for part in parts]
    whole = "".join(bare)
    asked = set(_grams(_NOT_LETTERS.sub("", question), GRAM))
    n_copied = [_n_covered(part, asked) for part in bare]
    n_copies = sum(n > MOST_COPIED * len(part) for n, part in zip(n_copied, bare, strict=True))
    if whole and (sum(n_copied) > MOST_COPIED * len(whole) or n_copies > 1):
        share = f"{sum(n_copied) / len(whole):.0%} are the question's words"
        return TextFault("copied_question", share, 0)
    runs = _grams(whole, LOOP_LETTERS)
    if len(set(runs)) <= len(runs) + 1 - LOOP_TIMES:  # else there is nothing to count
        run, n_times = Counter(runs).most_common(1)[0]
        if n_times >= LOOP_TIMES:
            return TextFault("repetition", f"'{run}' {n_times} times", 0)
    grams = _grams(whole, GRAM)
    n_distinct = len(set(grams))
    if len(whole) >= LEAST_LETTERS and n_distinct < LEAST_DISTINCT * len(grams):
        share = f"{n_distinct / len(grams):.0%} of its runs of {GRAM} letters differ"
        return TextFault("repetition", share, 0)
    if mark := next(filter(None, map(_SAME_MARK.search, parts)), None):
        return TextFault("repetition", f"'{mark[1]}' {len(mark[0])} times", 0)
    known = [set(_grams(part, GRAM)) for part in bare]
    for place, part in enumerate(bare):
        for before in range(place):
            fewer = min(len(known[place]), len(known[before]))
            if part == bare[before] or len(known[place] & known[before]) > SAME_PARTS * fewer > 0:
                return TextFault("repetition", f"two parts are the same: {part[:20]}", 0)
    return None


def find_foreign_text(text: str) -> TextFault | None:
    """What is not simplified Chinese in an answer that should be: script, words, or its tail."""
    if match := _OTHER_SCRIPT.search(text):
        return _fault("wrong_language", text, match)
    for match in _FOREIGN_RUN.finditer(text):
        n_letters = len(_NOT_LETTERS.sub("", match[0]))
        is_tail = match.end() == len(text) and text[: match.start()].rstrip()[-1:] in "。！？…”"
        if n_letters > (MOST_FOREIGN_TAIL if is_tail else MOST_FOREIGN_RUN):
            return _fault("wrong_language", text, match)
    letters = _NOT_LETTERS.sub("", text)
    traditional = [letter for letter in letters if letter > "\u33ff" and is_traditional(letter)]
    if len(traditional) > max(3, MOST_TRADITIONAL * len(letters)):
        shown = "".join(dict.fromkeys(traditional))[:12]
        return TextFault("wrong_script", f"traditional characters: {shown}", 0)
    return None


@cache
def is_traditional(letter: str) -> bool:
    """True for what Big5 has and GB 2312 has not: forms that simplified text does not use."""
    try:
        letter.encode("gb2312")
    except UnicodeEncodeError:
        return bool(letter.encode("big5", "ignore"))
    return False


def _grams(text: str, length: int) -> list[str]:
    return [text[i : i + length] for i in range(len(text) - length + 1)]


def _n_covered(text: str, known: set[str]) -> int:
    """Letters of a text that are in one of the known runs of `GRAM` letters."""
    n, end = 0, 0
    for start, gram in enumerate(_grams(text, GRAM) if known else ()):
        if gram in known:
            n += GRAM - max(0, end - start)
            end = start + GRAM
    return n
