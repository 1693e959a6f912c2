"""The Python files of the package and of its scripts, read and parsed once for all house rules."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def text_of(path: Path) -> str:
    """What the file holds."""
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    """The file's syntax tree, which nobody may change."""
    return ast.parse(text_of(path))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Every node of the file: a walk costs as much as parsing."""
    return tuple(ast.walk(tree_of(path)))


@cache
def package_files() -> tuple[Path, ...]:
    """Every module of the package."""
    return tuple(sorted((ROOT / "cbtqa").rglob("*.py")))


@cache
def script_files() -> tuple[Path, ...]:
    """Every script in Python, whatever its name ends in."""
    return tuple(
        path
        for path in sorted((ROOT / "scripts").rglob("*"))
        if path.is_file()
        and (path.suffix == ".py" or path.read_bytes().startswith(b"#!/usr/bin/env python"))
    )
