"""`cbtqa publish`: datasets and models to the Hugging Face Hub, private first."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cbtqa.cli.console import give, live_progress, print_json, say
from cbtqa.cli.help import CommandGroup
from cbtqa.cli.options import AsJson, Newest, settings_flags
from cbtqa.hub.join import Joined, JoinSettings
from cbtqa.hub.join import join as join_dataset
from cbtqa.hub.publish import PreviewSettings, prepare_preview
from cbtqa.hub.settings import DatasetSettings, ModelSettings
from cbtqa.report.table import Table
from cbtqa.settings import Resolved

if TYPE_CHECKING:
    from cbtqa.hub.publish import Prepared


app = CommandGroup(
    name="publish",
    help="Publish to the Hugging Face Hub: scanned, private and gated until `publish release`.",
)
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be sent; no network, no token needed."),
]


@app.command("dataset")
@settings_flags(DatasetSettings, positional="run", newest={"run": Newest("dataset")})
def dataset(
    resolved: Resolved[DatasetSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Publish a built dataset: ids, hashes, generated answers and labels, without question text.

    Everything is written to RUN/publish first, scanned, and only then uploaded: to a private
    repository, tagged and read back. The same command continues after a break.

    With --guard-endpoint a model reads every answer first; what it finds unsafe is not published.

    Example: cbtqa publish dataset runs/psyqa --to my-lab/cbt-qa --dry-run
    """
    from cbtqa.hub.publish import prepare_dataset

    settings = resolved.values
    with live_progress() as progress:
        prepared = prepare_dataset(settings, progress.update, asks=not dry_run)
    if dry_run and settings.guard_endpoint:
        say(f"not asked in a dry run: the guard {settings.guard_model}, about every answer")
    _finish(prepared, dry_run, as_json)


@app.command("model")
@settings_flags(ModelSettings, positional="run", newest={"run": Newest("adapter")})
def model(
    resolved: Resolved[ModelSettings], dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Publish an adapter, or merged weights, with a card that says what they are and are not.

    Example: cbtqa publish model --to my-lab/cbt-adapter --scores runs/scores
    """
    from cbtqa.hub.publish import prepare_model

    _finish(prepare_model(resolved.values), dry_run, as_json)


@app.command("release")
def release(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="What to make public.")],
    kind: Annotated[
        Literal["dataset", "model"] | None,
        typer.Option("--type", help="Needed when a dataset and a model have this name."),
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", help="The name once more, instead of typing it when asked."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a published repository public, after checking it again and typing out its name.

    Example: cbtqa publish release my-lab/cbt-qa
    """
    from cbtqa.hub.release import check_release
    from cbtqa.hub.release import release as make_public

    checked = check_release(repository, kind)
    for name, value in checked.summary().items():
        say(f"{name}: {'-' if value is None else value}")
    if confirm is None:
        say(f"Everybody will be able to see it. Type {repository} to make it public.")
        confirm = str(typer.prompt("name", err=True))
    url = make_public(checked, confirm)
    say(f"public now: {url}")
    if as_json:
        print_json({**checked.summary(), "visibility": "public"})


def _finish(prepared: Prepared, dry_run: bool, as_json: bool) -> None:
    """Shows the plan, then publishes it unless that is all that was asked for."""
    from cbtqa.hub.publish import publish
    from cbtqa.hub.scan import refuse_findings

    plan = prepared.plan
    say(f"{plan.kind} {plan.repo_id}: private, gate {plan.gate}, {len(plan.files)} files")
    for file in plan.files:
        say(f"  {file.n_bytes:>14,}  {file.path}")
    for path, why in plan.left_out:
        say(f"  stays behind: {path} ({why})")
    for remark in plan.remarks:
        say(f"  note: {remark}")
    say(f"preview: {prepared.write_preview()}")
    refuse_findings(prepared.findings)
    if dry_run:
        say("dry run: nothing was sent")
        print_json(prepared.to_dict()) if as_json else print(plan.card)
        return
    done = publish(
        prepared, with_bars=sys.stderr.isatty(), on_stage=lambda what: say(f"{what} ...")
    )
    rows = [["commit", done.commit], ["tag", done.tag], ["sent", f"{done.n_sent} files"]]
    rows += [["there already", f"{done.n_kept} files"], ["address", done.url]]
    title = "Published, private" if done.is_private else "Published, public"
    found = {**plan.summary(), **done.to_dict(), "sent": True}
    give(as_json, found, Table(["", ""], rows, title))
    if done.is_private:
        say(f"to make it public: cbtqa publish release {plan.repo_id}")


@settings_flags(JoinSettings, positional="published")
def join(resolved: Resolved[JoinSettings], as_json: AsJson = False) -> None:
    """Put question text back into a text-free dataset, from your own file, checked by hash.

    Example: cbtqa join my-lab/cbt-qa --questions PsyQA_full.json --out my-dataset
    """
    joined: Joined = join_dataset(resolved.values)
    rows = [("joined", joined.n_joined), ("no such question", joined.n_missing)]
    rows += [("question reads differently", joined.n_other)]
    give(as_json, joined.to_dict(), Table(["", "entries"], rows, str(joined.folder)))
    say(f"load it: datasets.load_dataset('{joined.folder}')")


@settings_flags(PreviewSettings, positional="run")
def hub_preview(resolved: Resolved[PreviewSettings], as_json: AsJson = False) -> None:
    """Write a local page of what publishing would show: card, access form, files, first rows.

    Holds no text that would not be published. Nothing is sent.

    Example: cbtqa hub-preview runs/psyqa --to my-lab/cbt-qa
    """
    settings = resolved.values
    prepared = prepare_preview(settings)
    path = prepared.write_preview(settings.out, overwrite=settings.overwrite)
    for finding in prepared.findings[:10]:
        say(f"would be refused: {finding.where}: {finding.what}")
    say(f"preview: {path}")
    if as_json:
        findings = [finding._asdict() for finding in prepared.findings]
        print_json({**prepared.plan.summary(), "preview": str(path), "findings": findings})
