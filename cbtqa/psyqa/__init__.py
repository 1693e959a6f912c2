"""PsyQA's published file and its common forks as records, whatever the file format.

for row in read_questions(Path("PsyQA_full.json"), with_answers=True):
    match row:
        case SourceItem(question, answers): ...
        case Rejection(reason=reason, where=where): ...
"""

from cbtqa.psyqa.questions import (
    ALIASES,
    MAX_CHARS,
    SourceItem,
    bundled_sample_path,
    is_bundled_sample,
    parse_columns,
    read_questions,
)
from cbtqa.psyqa.report import DataReport, check_file

__all__ = [
    "ALIASES",
    "MAX_CHARS",
    "DataReport",
    "SourceItem",
    "bundled_sample_path",
    "check_file",
    "is_bundled_sample",
    "parse_columns",
    "read_questions",
]
