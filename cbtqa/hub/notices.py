"""The notices that every card carries, gathered for the templates."""

from __future__ import annotations

from typing import Any

from cbtqa.dataset.report.material import say
from cbtqa.report.wording import Lang
from cbtqa.safety.hotlines import help_text
from cbtqa.safety.notices import content_warning, not_a_therapist, required_notices, usage_terms


def notices_of(lang: Lang) -> dict[str, Any]:
    """Notices, help routes and terms in one language."""
    terms = usage_terms(lang)
    return {
        "made_by_program": say("notice.made_by_program").first(lang),
        "not_a_therapist": not_a_therapist(lang),
        "content_warning": content_warning(lang),
        "help": help_text(lang),
        "intended": terms.intended,
        "forbidden": terms.forbidden,
        "required": required_notices(lang),
    }
