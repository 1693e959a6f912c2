"""`cbtqa compare`."""

from __future__ import annotations

from cbtqa.cli.console import print_json, print_table, say
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.cli.score import say_blocks
from cbtqa.metrics.comparison import CompareSettings, Comparison
from cbtqa.settings import Resolved


@settings_flags(CompareSettings, positional="predictions")
def compare(resolved: Resolved[CompareSettings], as_json: AsJson = False) -> None:
    """Test whether systems differ: differences with intervals, adjusted p, win rates, examples.

    Takes files of predictions with --ref, or folders made by cbtqa score --out.

    [bold]Examples[/bold]

    cbtqa compare base.jsonl tuned.jsonl --ref cbtqa-dataset --baseline base --out runs/compare

    cbtqa compare runs/scores
    """
    from cbtqa.metrics import comparison
    from cbtqa.metrics.comparison_page import COMPARISON_NAME, write_comparison
    from cbtqa.metrics.score_folder import refuse_existing

    out = resolved.values.out
    if out is not None:
        refuse_existing(out, COMPARISON_NAME)
    found = comparison.compare(resolved.values, say_blocks())
    if out is not None:
        write_comparison(out, found)
        say(f"written to {out}")
    print_json(found.model_dump(mode="json")) if as_json else _show(found)


def _show(found: Comparison) -> None:
    from cbtqa.metrics.comparison_page import missing_figures, pair_tables, tests_made
    from cbtqa.metrics.tables import label_of

    for table in pair_tables(found):
        print_table(f"{table.title}, against {found.references}", table.heads, table.rows)
    say(tests_made(found))
    for line in missing_figures(found):
        say(line)
    for title, examples in (("gains most over", found.best), ("loses most to", found.worst)):
        for one in examples[:3]:
            say(
                f"{one.system} {title} {one.baseline} at {one.id}: "
                f"{label_of(one.metric)} {one.difference:+.4f}"
            )
    for warning in found.warnings:
        say(f"warning: {warning}")
