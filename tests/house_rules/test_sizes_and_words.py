"""Rules of the house that can be counted: sizes, banned words, prints, broad excepts."""

from __future__ import annotations

import ast
import re
import subprocess

from tests.support.sources import ROOT, nodes_of, package_files, text_of, tree_of

MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 60
BANNED_MODULE_NAMES = {"utils", "helpers", "common", "manager", "misc"}


def test_every_module_fits_in_the_head() -> None:
    found = []
    for path in package_files():
        name = str(path.relative_to(ROOT))
        if path.stem in BANNED_MODULE_NAMES:
            found.append(f"{name}: a banned name")
        if (n_lines := text_of(path).count("\n")) > MAX_MODULE_LINES:
            found.append(f"{name}: {n_lines} lines")
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
    assert not found, "\n".join(found)


def test_every_module_says_what_it_owns_and_catches_only_what_it_means() -> None:
    found = []
    for path in package_files():
        name, lines = str(path.relative_to(ROOT)), text_of(path).splitlines()
        if tree_of(path).body and not ast.get_docstring(tree_of(path)):
            found.append(f"{name}: no module docstring")
        for node in nodes_of(path):
            if isinstance(node, ast.ExceptHandler):
                is_broad = getattr(node.type, "id", None) in (None, "Exception", "BaseException")
                is_passed_on = any(isinstance(part, ast.Raise) for part in ast.walk(node))
                has_reason = "noqa: BLE001 - " in lines[node.lineno - 1]
                is_tuple = isinstance(node.type, ast.Tuple | ast.Attribute)
                if is_broad and not (is_tuple or is_passed_on or has_reason):
                    found.append(f"{name}:{node.lineno}: catches all")
    assert not found, "\n".join(found)


def test_no_tracked_text_holds_a_machine_path_or_a_leftover() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    marks = re.compile(r"\b(?:TODO|FIXME|XXX)\b|(?<![\w.])/(?:home|root|work|opt)/\w+")
    found = []
    for name in files:
        path = ROOT / name
        if name.startswith("tests/house_rules/") or path.suffix in (
            ".woff2",
            ".png",
            ".parquet",
            ".npz",
        ):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if marks.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)
