"""Every module is reached from a command or from Python's face; every public name is used; a small
file that one neighbour alone reads belongs into that neighbour."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from tests.support.sources import ROOT, nodes_of, package_files, script_files, text_of, tree_of

MIN_LINES_OF_AN_ONLY_READER = 120
MAX_DEPTH = 3
RUN_BY_OTHERS = {"cbtqa.__main__", "cbtqa.metrics.for_evaluate"}
"""`python -m cbtqa`, and what the library `evaluate` loads by its path."""


def _module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_of(path): path for path in package_files()}


def _imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Modules of the package that a file names, in functions and in lazy tables too."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from node.value.split(":")[:1]


@cache
def _reads(module: str) -> set[str]:
    return set(_imports(nodes_of(MODULES[module]))) & MODULES.keys() - {module}


def test_every_module_is_reached_from_a_command_or_from_python() -> None:
    waiting = [name for name in MODULES if name.split(".")[1:2] == ["cli"]]
    waiting += ["cbtqa.api", *RUN_BY_OTHERS]
    reached: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [*_reads(module), *([module.rpartition(".")[0]] if "." in module else [])]
    assert not (MODULES.keys() - reached), "\n".join(sorted(MODULES.keys() - reached))


def test_nothing_imports_the_face() -> None:
    readers = [name for name in MODULES if "cbtqa.api" in _reads(name)]
    assert readers == ["cbtqa"]


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not any("app." in ast.unparse(one) for one in node.decorator_list):  # a command
                yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                parts = target.elts if isinstance(target, ast.Tuple) else [target]
                yield from ((part.id, node) for part in parts if isinstance(part, ast.Name))


def _uses(nodes: Iterable[ast.AST]) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found[node.id] += 1
        elif isinstance(node, ast.Attribute):
            found[node.attr] += 1
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found[node.value.replace("-", "_")] += 1  # verbs, lazy tables, forward references
    return found


def test_every_public_name_is_used_outside_its_tests() -> None:
    uses: Counter[str] = Counter()
    for path in (*package_files(), *script_files()):
        uses.update(_uses(nodes_of(path)))
    for template in (ROOT / "cbtqa").rglob("*.j2"):
        uses.update(re.findall(r"\w+", template.read_text(encoding="utf-8")))
    unused = [
        f"{_module_of(path)}.{name}"
        for path in package_files()
        if _module_of(path) not in RUN_BY_OTHERS
        for name, node in _definitions(tree_of(path))
        if not name.startswith("_") and uses[name] <= _uses(ast.walk(node))[name]
    ]
    assert not unused, "\n".join(unused)


def test_a_small_file_has_more_than_one_reader_in_its_folder() -> None:
    readers: dict[str, set[str]] = {name: set() for name in MODULES}
    for module in MODULES:
        for read in _reads(module):
            readers[read].add(module)
    found = []
    for name, by in readers.items():
        path = MODULES[name]
        only = MODULES[next(iter(by))] if len(by) == 1 else None
        is_exempt = path.stem == "__init__" or "cli" in path.parts
        if only is None or is_exempt or only.stem == "registry" or only.parent != path.parent:
            continue
        n = text_of(path).count("\n")
        if n < MIN_LINES_OF_AN_ONLY_READER:
            found.append(f"{name}: {n} lines, read by {only.name} alone")
    assert not found, "\n".join(found)


def test_folders_are_not_deep() -> None:
    deep = [
        name for name, path in MODULES.items() if len(path.relative_to(ROOT).parts) - 1 > MAX_DEPTH
    ]
    assert not deep, "\n".join(deep)
