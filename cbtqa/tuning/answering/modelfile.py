"""The Modelfile with which Ollama serves a GGUF of ours as it was trained.

    path = write_modelfile(Path("merged"), Path("runs/tuned"), Path("cbt.gguf"))
    # ollama create cbt -f cbt.Modelfile

It carries the chat template in Ollama's own language, the system text of the training, every token
that ends an answer, and the notices. Ollama shows answers as they are: no screen, no check.
"""

from __future__ import annotations

from pathlib import Path

from cbtqa.errors import ConfigError, UsageError
from cbtqa.files import write_text
from cbtqa.records import Question
from cbtqa.safety.notices import help_text, not_a_therapist, required_notices
from cbtqa.shapes import Message
from cbtqa.tuning.answering.model import AnswerModel, open_model, prompt_form
from cbtqa.tuning.answering.settings import SpeakerSettings
from cbtqa.tuning.data.chat_format import ChatFormat
from cbtqa.tuning.data.examples import prompt_messages

_SYSTEM, _USER = "SYSTEM-TEXT-HERE", "USER-TEXT-HERE"
"""Stand in for the two texts while the chat template is read."""
_UNCHECKED = (
    "Served by Ollama, answers are shown as they are: no crisis screen, no check, no help lines.",
    "Behind all of these: cbtqa chat --endpoint ollama --model NAME",
)


def modelfile_of(gguf: Path) -> Path:
    """Where the Modelfile of a GGUF is written: beside it."""
    return gguf.with_suffix(".Modelfile")


def write_modelfile(merged: Path, adapter: Path, gguf: Path) -> Path:
    """Writes the Modelfile of a merged model beside its GGUF.

    Args:
        merged: folder of the merged model: chat template and end tokens.
        adapter: its adapter's folder: mode and system text of the training.

    Raises:
        ConfigError: the chat template cannot be told in Ollama's language.
        UsageError: there is such a file already.
    """
    path = modelfile_of(gguf)
    if path.exists():
        raise UsageError(f"{path} exists already", hint="move it away, or give another --gguf")
    model = open_model(SpeakerSettings(model=str(merged)))
    mode, system = prompt_form(SpeakerSettings(adapter=adapter))
    asked = prompt_messages(Question(id="q", question="q"), mode, system)
    own = [turn["content"] for turn in asked if turn["role"] == "system"]
    lines = [
        *(f"# {one}" for one in (not_a_therapist("en"), *_UNCHECKED, help_text("zh"))),
        f"FROM ./{gguf.name}",
        f"TEMPLATE {_quoted(go_template(model.chat))}",
        *(f"SYSTEM {_quoted(one)}" for one in own),
        *(f"PARAMETER stop {_quoted(one)}" for one in _stops(model)),
        "PARAMETER temperature 0",
        "LICENSE " + _quoted("\n".join((not_a_therapist(), *required_notices(), *_UNCHECKED))),
    ]
    write_text(path, "\n".join(lines) + "\n")
    return path


def go_template(chat: ChatFormat) -> str:
    """A chat template in Ollama's language, for a system text or none, and turns in their order.

    Source: Ollama, docs/template.md: `.System`, `.Prompt`, `.Response`; the end of a turn follows
    the response, so that earlier turns close as in training.
    """
    user: Message = {"role": "user", "content": _USER}
    plain = _branch(chat, [user])
    told = _branch(chat, [{"role": "system", "content": _SYSTEM}, user])
    both = f"{{{{ if .System }}}}{told}{{{{ else }}}}{plain}{{{{ end }}}}"
    return f"{both}{{{{ .Response }}}}{chat.tokenizer.decode(chat.end_ids)}"


def _branch(chat: ChatFormat, messages: list[Message]) -> str:
    # llama.cpp writes the token that begins a text itself
    text = chat.prompt_text(messages).removeprefix(chat.tokenizer.bos_token or "")
    for turn in messages:
        if text.count(turn["content"]) != 1:
            raise ConfigError(
                f"the chat template leaves the {turn['role']} text out, or says it twice: it "
                "cannot be told in a Modelfile",
                hint="llama-server reads the template from the GGUF: llama-server --jinja -m FILE",
            )
    if "{{" in text or "}}" in text:
        raise ConfigError("the chat template writes {{ or }}, which a Modelfile cannot hold")
    return text.replace(_SYSTEM, "{{ .System }}").replace(_USER, "{{ .Prompt }}")


def _stops(model: AnswerModel) -> list[str]:
    tokens = model.chat.tokenizer.convert_ids_to_tokens(model.stops)
    return list(dict.fromkeys(token for token in tokens if token))


def _quoted(text: str) -> str:
    """A value of a Modelfile, which knows no escapes inside three quotation marks."""
    if '"""' in text:
        raise ConfigError('a text holds three quotation marks, which a Modelfile cannot hold: """')
    return f'"""{text}"""'
