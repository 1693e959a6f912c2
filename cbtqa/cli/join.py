"""`cbtqa join`."""

from __future__ import annotations

from cbtqa.cli.console import print_json, print_table, say
from cbtqa.cli.options import AsJson, settings_flags
from cbtqa.hub.join import Joined, JoinSettings
from cbtqa.hub.join import join as join_dataset
from cbtqa.settings import Resolved


@settings_flags(JoinSettings, positional="published")
def join(resolved: Resolved[JoinSettings], as_json: AsJson = False) -> None:
    """Put question text back into a text-free dataset, from your own file, checked by hash.

    Example: cbtqa join my-lab/cbt-qa --questions PsyQA_full.json --out my-dataset
    """
    joined: Joined = join_dataset(resolved.values)
    if as_json:
        print_json(joined.summary())
        return
    rows = [["joined", f"{joined.n_joined:,}"], ["no such question", f"{joined.n_missing:,}"]]
    rows += [["question reads differently", f"{joined.n_other:,}"]]
    print_table(str(joined.folder), ["", "entries"], rows)
    say(f"load it: datasets.load_dataset('{joined.folder}')")
