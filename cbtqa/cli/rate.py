"""`cbtqa rate`: blinded rating studies, from drawing the items to the report."""

from __future__ import annotations

import typer

from cbtqa.cli.console import print_json, say
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.ratings.design import NewStudySettings, create_study
from cbtqa.ratings.sheets import write_sheets
from cbtqa.settings import Resolved

app = typer.Typer(
    name="rate",
    no_args_is_help=True,
    help="Blinded rating by people: sheets, a web form, agreement and tests.",
)


@app.command("new")
@settings_flags(NewStudySettings)
def new(resolved: Resolved[NewStudySettings], as_json: AsJson = False) -> None:
    """Make a study: the same questions for every system, blinded, assigned, in random orders.

    Example: cbtqa rate new --predictions ours=a.jsonl --predictions base=b.jsonl
    --questions psyqa.json --n 100 --raters 5 --out study
    """
    settings = resolved.values
    made = create_study(settings)
    study = made.folder.study
    sheets = write_sheets(made.folder) if settings.sheets else []
    sheets += write_sheets(made.folder, as_csv=True) if settings.csv else []
    for item in made.telling_items[:5]:
        say(f"warning: the text of {item} holds a system's name; raters may guess who wrote it")
    say(
        f"study {study.id}: {study.n_questions} of {made.n_available} questions x "
        f"{len(study.arms)} systems, {len(study.raters)} raters, {study.per_item} per item"
    )
    say(f"in {made.folder.path}, {len(sheets)} sheets; key (keep it from raters): {made.key_path}")
    if as_json:
        print_json({**made.summary(), "sheets": [path.name for path in sheets]})
