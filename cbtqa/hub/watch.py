"""What the user's own files add to the check: protected text, names, notes for the card."""

from __future__ import annotations

from pathlib import Path

from cbtqa.errors import DataError
from cbtqa.files import open_text
from cbtqa.hub.client import saved_token
from cbtqa.hub.scan import Watch, places_of, secrets_of_environment
from cbtqa.hub.settings import PublishSettings
from cbtqa.hub.source_text import ANSWER_RUN, SourceIndex
from cbtqa.psyqa import SourceItem, parse_columns, read_questions


def read_notes(path: Path | None) -> str | None:
    """The user's own part of the card.

    Raises:
        DataError: no such file, or not UTF-8.
    """
    if path is None:
        return None
    with open_text(path) as stream:
        return stream.read().strip()


def protected_text(settings: PublishSettings) -> SourceIndex:
    """The texts of `--source`: questions, descriptions and human answers.

    Raises:
        DataError: the file cannot be read, or holds no usable question.
    """
    index = SourceIndex()
    if settings.source is None:
        return index
    columns = parse_columns(settings.column)
    for item in read_questions(
        settings.source, encoding=settings.encoding, columns=columns, with_answers=True
    ):
        if isinstance(item, SourceItem):
            index.add(item.question.question)
            index.add(item.question.description)
            for answer in item.answers:
                index.add(answer.text, ANSWER_RUN)
    if not index:
        raise DataError("no question in it to compare with", where=str(settings.source))
    return index


def watch_for(settings: PublishSettings, index: SourceIndex) -> Watch:
    """Everything this publication must not contain."""
    names: tuple[str, ...] = ()
    if settings.names is not None:
        with open_text(settings.names) as stream:
            names = tuple(name for line in stream if (name := line.strip()))
    token = saved_token()
    secrets = (*secrets_of_environment(), *([token] if token else []))
    return Watch(index, names, secrets, places_of(settings.run))
