"""Command-line flags made from a settings model, so that no knob is declared twice.

    @settings_flags(BuildSettings)
    def build_dataset(resolved: Resolved[BuildSettings], as_json: AsJson = False) -> None: ...

Every field of the model becomes `--field-name` with the field's docstring as help and its
default shown, in the help panel of the class that declares it; `--config FILE` reads a YAML file;
the command receives the merged result.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from cbtqa.errors import UsageError
from cbtqa.settings import SettingsT, flag_of, panels_of, resolve

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
            _parameter(name, model.model_fields[name], panel, name == positional)
            for name, panel in sorted(
                panels_of(model).items(), key=lambda entry: entry[0] != positional
            )
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


def _parameter(
    name: str, field: FieldInfo, panel: str | None, is_positional: bool
) -> inspect.Parameter:
    annotation = _without_none(field.annotation)
    default = field.get_default(call_default_factory=True)
    words = " ".join((field.description or "").split())
    if field.is_required():
        words += " (required)"
    elif default not in (None, "", (), False, {}):
        words += f" (default: {default})"
    if is_positional:
        option: Any = typer.Argument(help=words, show_default=False)
    else:
        flag = flag_of(name)
        if annotation is bool and default is True:
            flag += f"/--no-{flag[2:]}"
        given: dict[str, Any] = {}
        if get_origin(annotation) is dict:
            annotation, given = str, {"parser": _json_object, "metavar": "JSON"}
        option = typer.Option(flag, help=words, show_default=False, rich_help_panel=panel, **given)
    if get_origin(annotation) is tuple:
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


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise typer.BadParameter("expected a JSON object, such as '{\"enable_thinking\": false}'")
    return value


def refuse_doubled_flags(command: Any) -> None:
    """Makes a command, and all below a group, refuse a flag for one value that is given twice.

    The parser itself would keep the last value and drop the others without a word.
    """
    for child in getattr(command, "commands", {}).values():
        refuse_doubled_flags(child)
    make_parser = command.make_parser

    def make_strict_parser(context: Any) -> Any:
        parser = make_parser(context)
        parse = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            values, rest, order = parse(args=args)
            for parameter, n in Counter(order).items():
                if n > 1 and not parameter.multiple and not parameter.count:
                    raise UsageError(
                        f"{parameter.opts[0]} given twice", hint=f"{context.command_path} --help"
                    )
            return values, rest, order

        parser.parse_args = parse_args
        return parser

    command.make_parser = make_strict_parser
