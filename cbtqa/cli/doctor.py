"""`cbtqa doctor`: whether this machine is ready for what is planned, each fault with its fix.

`env` describes the machine for an issue report; this asks for faults, and ends with other than 0
where something that was asked for does not work.
"""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import sys
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from cbtqa.cli.console import cells, padded, print_json, say, show, show_content, waiting
from cbtqa.cli.env import GIB, cards_in_words, describe_environment, install_line
from cbtqa.cli.language import told, told_head
from cbtqa.cli.options import AsJson
from cbtqa.errors import CbtqaError, UsageError
from cbtqa.settings import ENVIRONMENT_PREFIX, Settings, resolve


class Need(StrEnum):
    """Extras that may be asked for; typer takes no repeated flag of literals."""

    METRICS = "metrics"
    NEURAL = "neural"
    RATE = "rate"
    TRAIN = "train"
    QLORA = "qlora"
    FLA = "fla"
    HUB = "hub"
    SIMULATE = "simulate"
    CLUSTER = "cluster"
    MODELSCOPE = "modelscope"


Status = Literal["ok", "note", "failed"]
STYLES: Mapping[Status, str] = {"ok": "green", "note": "yellow", "failed": "bold red"}
LEAST_PYTHON = (3, 11)
LEAST_GIB = 1.0
"""Free space below which a run will end in the middle."""
BACKBONE_GIB = 20.0
"""A 7B backbone in bfloat16 is 15 GB."""
CONNECT_S = 60.0
HOW_TO_START = "is the server running, and is --endpoint right?"
_NEVER_SETTINGS = ("API_KEY", "KEY_VARIABLES", "DEBUG", "FAULTS")
"""Variables that begin as settings do and are none."""


class Finding(NamedTuple):
    """What one check found."""

    name: str
    status: Status
    """note: not as it might be, and nothing that was asked for rests on it."""
    found: str
    fix: str | None = None
    """The next step; None where there is nothing to do."""
    exit_code: int = 3
    """Of the program, where this failed."""


def doctor(
    data: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Check this file of questions, too.")
    ] = None,
    agreement_until: Annotated[
        datetime.datetime | None,
        typer.Option(
            "--agreement-until",
            formats=["%Y-%m-%d"],
            metavar="DAY",
            help="Last day of your agreement on the questions, such as 2027-05-18.",
        ),
    ] = None,
    wanted: Annotated[
        list[Need] | None,
        typer.Option("--for", help="An extra that has to be here. May be repeated."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Ask this server for one word: a base URL or a preset."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Model name at the endpoint.")
    ] = None,
    allow_plain_http: Annotated[
        bool,
        typer.Option("--allow-plain-http", help="Ask a host that is not local over http://."),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--settings",
            metavar="VERB=YAML",
            help="Read settings as that verb would with --config: finetune=run.yaml, or "
            "'distortions label=labels.yaml'. May be repeated.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, and what you name, before the work begins; each fault with its fix.

    Always: Python, packages, cards, disk, fonts, browser, CBTQA_ variables. What you name (a file,
    --for, --endpoint, --settings) has to work: else the exit code is 3, 4 for data or 5 for a
    server. To describe the machine for an issue report: cbtqa env.

    [bold]Examples[/bold]

    cbtqa doctor

    cbtqa doctor PsyQA_full.json --agreement-until 2027-05-18 --for train

    cbtqa doctor --endpoint vllm --model Qwen3-32B --settings build-dataset=run.yaml
    """
    if agreement_until is not None and data is None:
        raise UsageError("--agreement-until goes with a file of questions")
    with waiting("looking"):
        findings = list(_of_the_machine(wanted or [], settings or []))
        findings += _of_data(data, agreement_until) if data else []
        if endpoint is not None:
            findings.append(_of_endpoint(endpoint, model, allow_plain_http))
    _give(findings, as_json)


def _give(findings: Sequence[Finding], as_json: bool) -> None:
    """Prints them; ends the program with the code of the first that failed."""
    failed = [one for one in findings if one.status == "failed"]
    if as_json:
        checks = [one._asdict() for one in findings]
        print_json({"is_ready": not failed, "n_failed": len(failed), "checks": checks})
    else:
        names = [told_head(one.name) for one in findings]
        column = max(map(cells, names))
        for one, name in zip(findings, names, strict=True):
            found = "see the error below" if one.status == "failed" else one.found
            line = f"{padded(told_head(one.status), 6)}  {padded(name, column)}  {told(found)}"
            show_content(line, style=STYLES[one.status])
            if one.status == "note":
                show(f"fix: {one.fix}", indent=8)
        n_notes = sum(one.status == "note" for one in findings)
        say(f"{len(findings)} checks: {len(failed)} failed, {n_notes} to know of")
    for one in failed:
        for line in one.found.splitlines():
            say(f"error: {line}", style=STYLES["failed"])
        say(f"hint: {one.fix}")
    if failed:
        raise typer.Exit(failed[0].exit_code)


def _of_the_machine(wanted: Sequence[Need], settings: Sequence[str]) -> Iterator[Finding]:
    found = describe_environment(os.environ)
    is_new = sys.version_info >= LEAST_PYTHON
    least = ".".join(map(str, LEAST_PYTHON))
    fix = None if is_new else f"install Python {least} or newer"
    yield Finding("Python", "ok" if is_new else "failed", platform.python_version(), fix)
    yield from _of_packages(found["packages"], wanted)
    yield _of_cards(found["cards"], wanted)
    yield from _of_disk(found["folders"], wanted)
    missing = ", ".join(found["fonts"]["missing_slices"])
    told = f"lacks {missing}" if missing else "Chinese, embedded in every page and chart"
    fix = "pip install --force-reinstall cbtqa" if missing else None
    yield Finding("fonts", "failed" if missing else "ok", told, fix)
    yield _of_browser()
    yield from _of_variables()
    yield from map(_of_settings, settings)


def _of_packages(
    packages: Sequence[Mapping[str, Any]], wanted: Sequence[Need]
) -> Iterator[Finding]:
    """The packages that cbtqa itself needs, then every extra."""
    if not packages:
        yield Finding("packages", "failed", "cbtqa is not installed here", "pip install .")
        return
    needs = dict.fromkeys(extra for one in packages for extra in one["extras"])
    for extra in ("", *needs):
        own = [one for one in packages if (extra in one["extras"] if extra else not one["extras"])]
        faults = [words for one in own if (words := _fault_of(one))]
        is_asked = not extra or extra in wanted or (extra == "train" and "qlora" in wanted)
        status: Status = "ok" if not faults else "failed" if is_asked else "note"
        told = "; ".join(faults) or f"{len(own)} packages"
        fix = install_line([extra] if extra else []) if faults else None
        yield Finding(f"extra {extra}" if extra else "packages", status, told, fix)


def _fault_of(package: Mapping[str, Any]) -> str | None:
    """What is wrong with an installed package; None where nothing is."""
    from packaging.specifiers import SpecifierSet

    name, version = package["name"], package["version"]
    if version is None:
        return f"{name} is not installed"
    fits = SpecifierSet(package["wanted"]).contains(version, prereleases=True)
    return None if fits else f"{name} {version}, wanted {package['wanted']}"


def _of_cards(cards: Mapping[str, Any], wanted: Sequence[Need]) -> Finding:
    has_one = bool(cards.get("cards") or cards.get("has_mps"))
    told = cards_in_words(dict(cards))
    if has_one:
        return Finding("card", "ok", told)
    if "qlora" in wanted:
        return Finding("card", "failed", told, "QLoRA needs a CUDA card; without one: --for train")
    fix = "none is needed but to tune or run models here: cbtqa finetune --dry-run says how long"
    return Finding("card", "note", told, fix)


def _of_disk(folders: Sequence[Mapping[str, Any]], wanted: Sequence[Need]) -> Iterator[Finding]:
    for one in folders:
        free = one["free_bytes"] / GIB
        holds_weights = one["what"] in ("Hugging Face cache", "converted base models")
        least = BACKBONE_GIB if holds_weights else LEAST_GIB
        is_asked = not holds_weights or bool({"train", "qlora"} & set(wanted))
        status: Status = "ok" if free >= least else "failed" if is_asked else "note"
        told = f"{free:,.1f} GiB free at {one['path']}"
        fix = None if status == "ok" else f"{least:.0f} GiB are wanted there: free some, or move it"
        if not os.access(_nearest_of(one["path"]), os.W_OK):
            status, told, fix = "failed", f"{one['path']} is not writable", "choose another folder"
        yield Finding(f"disk, {one['what']}", status, told, fix)


def _nearest_of(path: str) -> Path:
    whole = Path(path).expanduser().absolute()
    return next(one for one in (whole, *whole.parents) if one.exists())


def _of_browser() -> Finding:
    """Whatever opens a page here."""
    try:
        webbrowser.get()
    except webbrowser.Error:
        fix = "reports are single files: copy them to a machine with one; the rating form and the "
        fix += "chat page open through a tunnel: ssh -L 8765:127.0.0.1:8765 HOST"
        return Finding("browser", "note", "none on this machine", fix)
    known = ("firefox", "chromium", "chromium-browser", "google-chrome", "safari")
    return Finding("browser", "ok", next(filter(shutil.which, known), "the system's own"))


def _of_variables() -> Iterator[Finding]:
    """Every CBTQA_ variable that no command reads, such as a misspelt one."""
    given = [
        name
        for name in sorted(os.environ)
        if name.startswith(ENVIRONMENT_PREFIX) and not name.endswith("_KEY")
    ]
    given = [one for one in given if one.removeprefix(ENVIRONMENT_PREFIX) not in _NEVER_SETTINGS]
    if not given:
        return
    fields = {field.rstrip("_").upper() for one in _settings_models() for field in one.model_fields}
    for name in given:
        is_known = name.removeprefix(ENVIRONMENT_PREFIX) in fields
        told = f"{name}: {'a setting' if is_known else 'no command has such a setting'}"
        fix = None if is_known else f"unset {name}, or correct its name (docs/cli.md)"
        yield Finding("environment", "ok" if is_known else "note", told, fix)


def _settings_models() -> Iterator[type[Settings]]:
    from cbtqa.cli.main import VERBS

    for verb in VERBS:
        command = _command([verb])
        for name in ("", *getattr(command, "commands", {})):
            found = getattr(_command([verb, name] if name else [verb]).callback, "settings", None)
            if found is not None:
                yield found


def _command(words: Sequence[str]) -> Any:
    """A command of this program, None where there is no such one."""
    from cbtqa.cli.main import app

    found: Any = typer.main.get_command(app)
    for word in words:
        found = found.get_command(None, word) if hasattr(found, "get_command") else None
    return found


def _of_settings(given: str) -> Finding:
    verb, sign, path = given.partition("=")
    model = getattr(getattr(_command(verb.split()), "callback", None), "settings", None)
    name = f"settings of {verb}"
    if not sign or model is None:
        told = f"'{given}': expected VERB=YAML with a verb that takes --config"
        return Finding("settings", "failed", told, "such as --settings finetune=run.yaml", 2)
    try:
        resolve(model, file=Path(path), environ={})
    except UsageError:  # what is not in it comes from flags
        return Finding(name, "ok", f"{path}; required settings are left to the command line")
    except CbtqaError as error:
        fix = error.hint or f"cbtqa {verb} --help"
        return Finding(name, "failed", str(error), fix, error.exit_code)
    return Finding(name, "ok", path)


def _of_data(path: Path, until: datetime.datetime | None) -> Iterator[Finding]:
    from cbtqa.files import sha256_of
    from cbtqa.hub.plan import AGREEMENT_ENDED
    from cbtqa.psyqa import check_file, is_bundled_sample

    try:
        report = check_file(path)
        is_sample = path.is_file() and is_bundled_sample(sha256_of(path))
    except CbtqaError as error:
        fix = error.hint or f"cbtqa data check {path}"
        yield Finding("questions", "failed", str(error), fix, error.exit_code)
        return
    told = f"{path}: {report.n_usable:,} usable of {report.n_rows:,} rows"
    how = f"cbtqa data check {path}"
    if not report.n_usable:
        yield Finding("questions", "failed", told, how, 4)
    else:
        is_whole = not report.rejected
        yield Finding("questions", "ok" if is_whole else "note", told, None if is_whole else how)
    if not is_sample:
        yield _of_agreement(until and until.date(), AGREEMENT_ENDED)


def _of_agreement(until: datetime.date | None, printed: str) -> Finding:
    if until is None:
        told = f"no date given; the period printed in PsyQA's agreement ended on {printed}"
        fix = (
            "ask its authors whether yours was renewed, then give --agreement-until DAY; "
            "not needed where the questions are your own"
        )
        return Finding("agreement", "note", told, fix)
    if until < datetime.date.today():
        fix = "renew it with the authors before you use the questions (data/psyqa/README.md)"
        return Finding("agreement", "failed", f"ended on {until}", fix, 7)
    return Finding("agreement", "ok", f"until {until}")


def _of_endpoint(where: str, model: str | None, allows_plain_http: bool) -> Finding:
    """Asks for one word: only a whole reply shows that address, key and model are right."""
    from cbtqa.llm.chat import ChatRequest, Sampling
    from cbtqa.llm.endpoint import Endpoint
    from cbtqa.llm.transport import ask_now

    asked = {"role": "user", "content": "Answer with one word: ready"}
    request = ChatRequest([asked], sampling=Sampling(max_tokens=16))
    try:
        endpoint = Endpoint.parse(where, model or "", allows_plain_http=allows_plain_http)
        if endpoint.folder is not None:
            return Finding("endpoint", "ok", f"requests are written to {endpoint.folder}")
        reply = ask_now(endpoint, request, CONNECT_S)
    except CbtqaError as error:
        return Finding(
            "endpoint", "failed", str(error), error.hint or HOW_TO_START, error.exit_code
        )
    place = f"{endpoint.model} at {endpoint.host}"
    return Finding("endpoint", "ok", f"{place} answered in {reply.latency_s:.1f} s")
