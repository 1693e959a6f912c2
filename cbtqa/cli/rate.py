"""`cbtqa rate`: blinded rating studies, from drawing the items to the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cbtqa.cli.console import give, print_json, say
from cbtqa.cli.help import CommandGroup
from cbtqa.cli.language import current
from cbtqa.cli.options import AsJson, Newest, settings_flags
from cbtqa.judging.training_rows import JudgeForm, JudgeRowSettings
from cbtqa.ratings.design import NewStudySettings, create_study
from cbtqa.ratings.store import Store
from cbtqa.ratings.study import StudyFolder, newest_study, open_study
from cbtqa.report.table import Table
from cbtqa.settings import Resolved, refuse_ignored

if TYPE_CHECKING:
    from cbtqa.ratings.collect import Collected

app = CommandGroup(
    name="rate",
    help="Blinded rating by people: sheets, a web form, agreement and tests.",
)
Replace = Annotated[
    bool, typer.Option("--replace", help="Where store and file differ, take the file's.")
]
StudyPath = Annotated[
    Path, typer.Argument(metavar="STUDY", help="Folder that cbtqa rate new made.")
]
StudyHere = Annotated[
    Path | None,
    typer.Argument(metavar="STUDY", help="Folder of the study (default: the newest study here)."),
]


def open_both(path: Path | None) -> tuple[StudyFolder, Store]:
    """A study and its store; the newest in the current folder where none is named."""
    if path is None:
        path = newest_study()
        say(f"study: {path}, the newest here")
    folder = open_study(path)
    return folder, Store(folder.store_path, folder.study.id)


@app.command("new")
@settings_flags(
    NewStudySettings,
    newest={
        "predictions": Newest("answers", unless=("questions",)),
        "questions": Newest("dataset", unless=("predictions",)),
    },
)
def new(resolved: Resolved[NewStudySettings], as_json: AsJson = False) -> None:
    """Make a study: the same questions for every system, blinded, assigned, in random orders.

    Example: cbtqa rate new --predictions ours=a.jsonl --predictions base=b.jsonl
    --questions psyqa.json --n 100 --raters 5 --out study
    """
    settings = resolved.values
    made = create_study(settings, with_sheets=True)
    study, sheets = made.folder.study, made.sheets
    for item in made.telling_items[:5]:
        say(f"warning: the text of {item} holds a system's name; raters may guess who wrote it")
    size = f"{study.n_questions} of {made.n_available} questions x {len(study.arms)} systems"
    say(f"study {study.id}: {size}, {len(study.raters)} raters, {study.per_item} per item")
    say(f"in {made.folder.path}, {len(sheets)} sheets; key (keep it from raters): {made.key_path}")
    say_next(made.folder, has_sheets=bool(sheets))
    if as_json:
        print_json({**made.summary(), "sheets": [path.name for path in sheets]})


def say_next(folder: StudyFolder, *, has_sheets: bool) -> None:
    """How much each rater has to do, and by which commands it goes on."""
    loads = [len(folder.shown_to(rater)) for rater in folder.study.raters]
    each = f"{min(loads)}" if min(loads) == max(loads) else f"{min(loads)} to {max(loads)}"
    say(f"each rater has {each} items")
    say(f"next: cbtqa rate serve {folder.path}")
    if has_sheets:
        say(f"or send {folder.sheets_path} out, then: cbtqa rate collect {folder.path} FILLED.xlsx")


@app.command("collect")
def collect(
    study: StudyPath,
    sheets: Annotated[
        list[Path], typer.Argument(metavar="SHEETS...", help="Filled .xlsx or .csv files.")
    ],
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Take filled sheets back; every refused cell is named, good cells are kept (exit 4 if any).

    Example: cbtqa rate collect study returned/R1.xlsx returned/R2.xlsx
    """
    from cbtqa.ratings.collect import collect as collect_sheets

    folder, store = open_both(study)
    with store:
        collected = collect_sheets(folder, store, sheets, replace=replace)
    show_collected(folder, collected, as_json)


def show_collected(folder: StudyFolder, collected: Collected, as_json: bool) -> None:
    """Every refusal on stderr, the counts on stdout; ends the program with 4 after a refusal."""
    for rejection in collected.rejections:
        say(f"refused: {rejection.where}: {rejection.detail}")
    give(as_json, collected.summary(), collected.table(), title=f"Study {folder.study.id}")
    if collected.rejections:
        raise typer.Exit(4)


@app.command("serve")
def serve(
    study: StudyHere = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8765,
    lan: Annotated[
        bool, typer.Option("--lan", help="Listen to the local network too, without encryption.")
    ] = False,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Another host name raters use, such as a tunnel's."),
    ] = None,
    new_link: Annotated[
        list[str] | None,
        typer.Option("--new-link", help="Replace this rater's link; the old one stops working."),
    ] = None,
) -> None:
    """Serve the web form to raters until Ctrl-C; each gets a personal link.

    Example: cbtqa rate serve study --port 8765
    """
    from cbtqa.ratings.web.app import create_app
    from cbtqa.web.server import LOOPBACK, allowed_hosts, lan_address
    from cbtqa.web.server import serve as run_server

    folder, store = open_both(study)
    address = lan_address() if lan else LOOPBACK
    names = [*(name or []), address]
    if lan:
        say(f"warning: open to the local network at {address}; links and texts travel unencrypted.")
        say("         An SSH tunnel or the sheets are safer on a network you do not control.")
    with store:
        for rater, link in issue_links(folder, store, new_link or []).items():
            say(f"{rater}: http://{(name or [address])[0]}:{port}/r/{link}")
        say_served(folder, store, f"{address}:{port}")
        form = create_app(folder, store, allowed_hosts(port, names))
        run_server(form, host="0.0.0.0" if lan else LOOPBACK, port=port)


def say_served(folder: StudyFolder, store: Store, address: str) -> None:
    """Where the form is, and what cannot go on beside it."""
    if store.drive:
        say(
            f"{folder.path} is on a network drive ({store.drive}): while the form is served, other "
            "commands on this study are refused; on a local disk they are not."
        )
    say(f"serving study {folder.study.id} on {address}; stop with Ctrl-C")


def issue_links(folder: StudyFolder, store: Store, replaced: list[str]) -> dict[str, str]:
    """New tokens for raters who have none, and for those whose link is to be replaced."""
    from cbtqa.errors import UsageError

    unknown = sorted(set(replaced) - set(folder.study.raters))
    if unknown:
        raise UsageError(f"no rater {unknown[0]} in this study")
    linked = store.linked_raters()
    wanted = [r for r in folder.study.raters if r not in linked or r in replaced]
    if len(wanted) < len(folder.study.raters):
        say("links given out earlier still work; --new-link R1 makes a new one")
    return {rater: store.issue_link(rater) for rater in wanted}


@app.command("status")
def status(study: StudyHere = None, as_json: AsJson = False) -> None:
    """Show who has done how much, and agreement so far (not for steering the ratings).

    Example: cbtqa rate status study
    """
    from cbtqa.ratings.analysis import study_status

    folder, store = open_both(study)
    with store:
        progress = study_status(folder, store)
    give(as_json, progress, *progress.tables())


@app.command("report")
def report(
    study: StudyHere = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the report; default STUDY/report.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write scores, tests, agreement, a datasheet and a methods text; HTML page and JSON.

    Example: cbtqa rate report study
    """
    from cbtqa.ratings.page import score_tables, write_report

    folder, store = open_both(study)
    target = out or folder.path / "report"
    with store:
        found = write_report(folder, store, target)
    say(f"{found.n_done} of {found.n_shown} presentations done; report: {target / 'report.html'}")
    if flagged := {one.rater: one.check for one in found.checks if one.is_flagged}:
        named = ", ".join(f"{rater} ({check})" for rater, check in flagged.items())
        say(f"ask these raters whether they read: {named}; the report's section on raters has more")
    if found.is_blind:
        say("systems are letters still; to name them: cbtqa rate unblind STUDY --key KEY --by NAME")
    give(as_json, found, *score_tables(folder, found))


@app.command("unblind")
def unblind(
    study: StudyPath,
    key: Annotated[Path, typer.Option("--key", help="The key file that `rate new` wrote.")],
    by: Annotated[str, typer.Option("--by", help="Who unblinds; goes into the study's log.")],
    as_json: AsJson = False,
) -> None:
    """Bring the system names into the study; logged, with a hash of the ratings so far.

    Example: cbtqa rate unblind study --key study.key.json --by "Li Hua"
    """
    from cbtqa.ratings.answers import digest_ratings, make_ratings
    from cbtqa.ratings.study import unblind as unblind_study

    folder, store = open_both(study)
    with store:
        ratings = make_ratings(folder, store.answers())
    rated = [rating for rating in ratings if rating.value is not None]
    digest = digest_ratings(ratings)
    systems = unblind_study(folder, key, by, len(rated), digest).systems
    say(f"unblinded by {by} on {len(rated)} ratings (sha256 {digest[:12]}); logged")
    found = {"systems": systems, "n_ratings": len(rated), "ratings_sha256": digest}
    give(as_json, found, Table(["arm", "system"], list(systems.items()), "Systems"))


@app.command("export")
@settings_flags(JudgeRowSettings)
def export(
    resolved: Resolved[JudgeRowSettings],
    study: StudyPath,
    to: Annotated[
        Literal["label-studio", "potato", "ratings", "judge-sft"],
        typer.Option(
            "--to",
            "--for",
            help="label-studio or potato (a study to rate there), ratings, or judge-sft (rows to "
            "tune a judge on).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    as_json: AsJson = False,
) -> None:
    """Hand the study to another rating tool, or the ratings to another program or a judge.

    Example: cbtqa rate export study --to label-studio --out ls

    Rows for cbtqa finetune: cbtqa rate export study --for judge-sft --out rows
    """
    from cbtqa.ratings.exchange import export_label_studio, export_potato, export_ratings

    folder, store = open_both(study)
    with store:
        if to == "judge-sft":
            _export_judge_rows(folder, store, out, resolved, as_json)
            return
        refuse_ignored(resolved, (), f"--to {to}")
        if to == "ratings":
            paths = export_ratings(folder, store, out)
        else:
            paths = (export_label_studio if to == "label-studio" else export_potato)(folder, out)
    say(f"{len(paths)} files in {out}")
    if as_json:
        print_json({"files": [path.relative_to(out).as_posix() for path in paths]})


def _export_judge_rows(
    folder: StudyFolder,
    store: Store,
    out: Path,
    resolved: Resolved[JudgeRowSettings],
    as_json: bool,
) -> None:
    from cbtqa.judging.training_rows import answer_form, export_judge_rows
    from cbtqa.simulation.judging.task import session_form

    prompt = resolved.values.prompt
    form: JudgeForm[Any] = (
        session_form(folder.rubric, prompt)
        if folder.rubric.shows == "transcript"
        else answer_form(folder.rubric, prompt)
    )
    found = export_judge_rows(folder, store, form, out, resolved)
    counted = {"rows": found.n_rows, "evidence": found.evidence, "left out": found.left_out}
    rows = [(kind, name, n) for kind, counts in counted.items() for name, n in counts.items()]
    give(as_json, found, Table(["what", "", "n"], rows, "Rows to tune a judge on"))
    more = f"--max-length {found.max_length} --out runs/judge"
    say(f"next: cbtqa finetune {out} --backbone qwen2.5 {more}")


@app.command("import")
def import_(
    study: StudyPath,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILES...", help="Label Studio's JSON exports.")
    ],
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Take ratings made in Label Studio back (JSON export); exit 4 when anything was refused.

    Example: cbtqa rate import study project-1.json
    """
    from cbtqa.ratings.exchange import import_label_studio

    folder, store = open_both(study)
    with store:
        collected = import_label_studio(folder, store, files, replace=replace)
    show_collected(folder, collected, as_json)


@app.command("rubrics")
def rubrics(as_json: AsJson = False) -> None:
    """List the shipped rubrics.

    Example: cbtqa rate rubrics
    """
    from cbtqa.ratings.rubric import shipped_rubrics

    shipped = shipped_rubrics()
    rows = [
        (name, len(r.criteria), r.scale_text(), r.shows, r.title.first(current()))
        for name, r in shipped.items()
    ]
    table = Table(["id", "criteria", "scale", "shows", "title"], rows, "Rubrics")
    give(as_json, {name: rubric.model_dump(mode="json") for name, rubric in shipped.items()}, table)
