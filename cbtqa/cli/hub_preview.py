"""`cbtqa hub-preview`."""

from __future__ import annotations

from cbtqa.cli.console import print_json, say
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.hub.preview_run import PreviewSettings, prepare_preview
from cbtqa.settings import Resolved


@settings_flags(PreviewSettings, positional="run")
def hub_preview(resolved: Resolved[PreviewSettings], as_json: AsJson = False) -> None:
    """Write a local page of what publishing would show: card, access form, files, first rows.

    Holds no text that would not be published. Nothing is sent.

    Example: cbtqa hub-preview runs/psyqa --to my-lab/cbt-qa
    """
    settings = resolved.values
    prepared = prepare_preview(settings)
    path = prepared.write_preview(settings.out)
    for finding in prepared.findings[:10]:
        say(f"would be refused: {finding.where}: {finding.what}")
    say(f"preview: {path}")
    if as_json:
        findings = [finding._asdict() for finding in prepared.findings]
        print_json({**prepared.plan.summary(), "preview": str(path), "findings": findings})
