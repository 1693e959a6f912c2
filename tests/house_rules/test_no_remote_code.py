"""Code and pickles from elsewhere are never run: not by a flag, not by a file of weights."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.sources import nodes_of, package_files, script_files

SOURCES = (*package_files(), *script_files())
UNSAFE_CALLS = {"pickle.load", "pickle.loads", "joblib.load", "dill.load", "torch.hub.load"}


def _calls() -> list[tuple[Path, ast.Call]]:
    return [
        (path, node) for path in SOURCES for node in nodes_of(path) if isinstance(node, ast.Call)
    ]


def _is(value: ast.expr, constant: bool) -> bool:
    return isinstance(value, ast.Constant) and value.value is constant


def test_no_call_lets_a_checkpoint_bring_its_own_code() -> None:
    for path, call in _calls():
        for keyword in call.keywords:
            if keyword.arg == "trust_remote_code":
                assert _is(keyword.value, False), f"{path}:{call.lineno}"


def test_no_dictionary_of_settings_lets_a_checkpoint_bring_its_own_code() -> None:
    for path in SOURCES:
        for node in nodes_of(path):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "trust_remote_code":
                        assert _is(value, False), f"{path}:{node.lineno}"


def test_pickled_weights_are_read_as_tensors_only() -> None:
    for path, call in _calls():
        name = ast.unparse(call.func)
        assert name not in UNSAFE_CALLS, f"{path}:{call.lineno}"
        if name == "torch.load":
            safe = [k for k in call.keywords if k.arg == "weights_only" and _is(k.value, True)]
            assert safe, f"{path}:{call.lineno}: torch.load without weights_only=True"
