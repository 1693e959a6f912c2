"""Command-line flags made from a settings model, so that no knob is declared twice.

    @settings_flags(BuildSettings)
    def build_dataset(resolved: Resolved[BuildSettings], as_json: AsJson = False) -> None: ...

Every field of the model becomes `--field-name` with the field's docstring as help and its
default shown; `--config FILE` reads a YAML file; the command receives the merged result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo

from cbtqa.settings import Settings, SettingsT, flag_of, resolve

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def settings_flags(
    model: type[SettingsT], *, positional: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Wraps a command whose first parameter takes `Resolved[model]`.

    Args:
        positional: a field that is an argument instead of a flag.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        made = [
            _parameter(name, field, name == positional)
            for name, field in model.model_fields.items()
        ]
        config = inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None, typer.Option("--config", help="YAML file with settings.")
            ],
        )
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

        def run(**values: Any) -> None:
            extra = {parameter.name: values.pop(parameter.name) for parameter in own}
            file = values.pop("config")
            command(resolve(model, file=file, flags=values), **extra)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        parameters = [*made, config, *own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return wrap


def _parameter(name: str, field: FieldInfo, is_positional: bool) -> inspect.Parameter:
    annotation = _without_none(field.annotation)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = field.get_default(call_default_factory=True)
    words = " ".join((field.description or "").split())
    if field.is_required():
        words += " (required)"
    elif default not in (None, "", (), False):
        words += f" (default: {default})"
    panel = str(extra["panel"]) if "panel" in extra else None
    if is_positional:
        option: Any = typer.Argument(help=words, show_default=False)
    else:
        flag = flag_of(name)
        if annotation is bool and default is True:
            flag += f"/--no-{flag[2:]}"
        option = typer.Option(flag, help=words, show_default=False, rich_help_panel=panel)
    if str(annotation).startswith("tuple["):
        annotation = list[get_args(annotation)[0]]  # type: ignore[misc]
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation | None, option],
    )


def _without_none(annotation: Any) -> Any:
    kept = [part for part in get_args(annotation) if part is not NoneType]
    if len(kept) == 1 and NoneType in get_args(annotation):
        return kept[0]
    return annotation


__all__ = ["AsJson", "Settings", "settings_flags"]
