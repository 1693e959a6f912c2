"""`LICENSE.md` of a dataset: the terms, from the notices that every card and page shows."""

from __future__ import annotations

from pathlib import Path

from cbtqa.files import write_text
from cbtqa.hub.rendering import render
from cbtqa.safety.notices import required_notices, usage_terms

TERMS_PATH = "LICENSE.md"
TERMS_NAME = "cbtqa-research-only"


def write_terms(staging: Path) -> None:
    """Writes the terms into the staging folder."""
    values = {
        "terms": {"zh": usage_terms("zh"), "en": usage_terms("en")},
        "required": {"zh": required_notices("zh"), "en": required_notices("en")},
    }
    write_text(staging / TERMS_PATH, render("terms.md", values))
