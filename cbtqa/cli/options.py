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
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from cbtqa.cli.console import say
from cbtqa.errors import UsageError
from cbtqa.manifest import MAKERS, newest_folder
from cbtqa.safety.settings import ScreenModelSettings
from cbtqa.settings import Fallback, SettingsT, flag_of, panels_of, resolve

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
ScreenModel = Annotated[
    str | None,
    typer.Option(
        "--screen-model",
        metavar="NAME|FOLDER",
        help=ScreenModelSettings.model_fields["screen_model"].description,
    ),
]


class Newest(NamedTuple):
    """A field that takes the newest finished folder of a kind when it is not given."""

    kind: str
    unless: tuple[str, ...] = ()
    """Fields that make it needless when they are given."""
    is_needless: Callable[[Mapping[str, Any]], bool] = lambda values: False
    """Whether the values given make it needless."""


FILES = {"answers": "answers.jsonl"}
"""What is taken out of a folder, where not the folder itself."""


def take_newest(kind: str, unless: Sequence[str] = ()) -> str:
    """The newest finished folder of a kind in the current folder, or its file; says which.

    Raises:
        UsageError: there is none; the hint names the command that makes one.
    """
    found = newest_folder(kind)
    if found is None:
        maker = MAKERS[kind]
        if kind == "dataset":
            from cbtqa.psyqa import bundled_sample_path

            maker = f"{maker} (of the invented questions in {bundled_sample_path()}, or your file)"
        raise UsageError(
            f"no {kind} named, and none finished in the current folder",
            hint=" or ".join([maker, *(f"give {flag_of(name)}" for name in unless)]),
        )
    path = found / FILES.get(kind, "")
    say(f"{kind}: {path}, the newest here")
    return str(path)


def settings_flags(
    model: type[SettingsT],
    *,
    positional: str | None = None,
    newest: Mapping[str, Newest] = MappingProxyType({}),
    several: Sequence[str] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Wraps a command whose first parameter takes `Resolved[model]`.

    Args:
        positional: a field that is an argument instead of a flag.
        newest: fields that nobody need give when there is something to take.
        several: fields of one value whose flags may be repeated; the command then takes a sequence
            of `Resolved[model]`, one for each combination.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        made = [
            _parameter(name, model.model_fields[name], panel, name == positional, newest.get(name))
            for name, panel in sorted(
                panels_of(model).items(), key=lambda entry: entry[0] != positional
            )
        ]
        made = [_repeatable(one) if one.name in several else one for one in made]
        config = inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None, typer.Option("--config", help="YAML file with settings.")
            ],
        )
        fallbacks = {name: _fallback(model.model_fields[name], it) for name, it in newest.items()}
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

        def run(**values: Any) -> None:
            extra = {parameter.name: values.pop(parameter.name) for parameter in own}
            file = values.pop("config")
            given = [list(dict.fromkeys(values.pop(name) or [None])) for name in several]
            found = tuple(
                resolve(
                    model,
                    file=file,
                    flags=values | dict(zip(several, one, strict=True)),
                    fallbacks=fallbacks,
                )
                for one in product(*given)
            )
            command(found if several else found[0], **extra)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.settings = model  # type: ignore[attr-defined]  # for `cbtqa doctor`
        parameters = [*made, config, *own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return wrap


def _fallback(field: FieldInfo, newest: Newest) -> Fallback:
    is_many = str(field.annotation).startswith("tuple[")

    def find(values: Mapping[str, Any]) -> str | list[str] | None:
        if newest.is_needless(values):
            return None
        path = take_newest(newest.kind, newest.unless)
        return [path] if is_many else path

    return Fallback(find, "default: newest", newest.unless)


def _parameter(
    name: str, field: FieldInfo, panel: str | None, is_positional: bool, newest: Newest | None
) -> inspect.Parameter:
    annotation = _without_none(field.annotation)
    default = field.get_default(call_default_factory=True)
    words = " ".join((field.description or "").split())
    if newest is not None:
        words += f" (default: the newest {newest.kind} here)"
    elif field.is_required():
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


def _repeatable(parameter: inspect.Parameter) -> inspect.Parameter:
    """A flag for one value as a flag that may be repeated."""
    one, option = get_args(parameter.annotation)
    many: Any = list[_without_none(one)]  # type: ignore[misc]
    return parameter.replace(annotation=Annotated[many | None, option])


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
