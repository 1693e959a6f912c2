"""The access form of a repository, as the Hub's front matter wants it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, Literal

from cbtqa.files import parse_yaml
from cbtqa.hub.settings import Gate
from cbtqa.records import NonEmptyText, Record


class GateField(Record):
    """One line of the form."""

    zh: NonEmptyText
    en: NonEmptyText
    type: Literal["text", "checkbox", "country", "date_picker", "select"] = "select"
    options: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What the form shows, both languages."""
        return f"{self.zh} {self.en}"


class GateForm(Record):
    """The whole form."""

    heading: NonEmptyText
    button: NonEmptyText
    prompt: NonEmptyText
    description: NonEmptyText
    fields: tuple[GateField, ...]


@cache
def load_gate() -> GateForm:
    """The shipped form."""
    text = files("cbtqa.hub").joinpath("gate.yaml").read_text(encoding="utf-8")
    return GateForm.model_validate(parse_yaml(text))


def gate_front_matter(gate: Gate) -> dict[str, Any]:
    """The `extra_gated_*` keys; empty when nobody is asked anything."""
    if gate == "none":
        return {}
    form = load_gate()
    return {
        "extra_gated_heading": form.heading,
        "extra_gated_prompt": form.prompt,
        "extra_gated_description": form.description,
        "extra_gated_button_content": form.button,
        "extra_gated_fields": {
            field.label: {"type": "select", "options": list(field.options)}
            if field.type == "select"
            else field.type
            for field in form.fields
        },
    }
