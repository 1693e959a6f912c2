"""PsyQA's published file and its common forks as records, whatever the file format."""

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
