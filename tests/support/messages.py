"""The texts of the source that reach the console, as templates: keys of the message catalogue.

`scripts/untranslated` prints those that the catalogue does not hold.

A template is the text with `{}` where a value stands, and `{n}` where that value is a number.
Doors are the errors, hints, what is said and shown, tables and stages; behind a name or a call
stands what the same module gives it. `texts_of` holds every text of the source instead: a key of
the catalogue that is in neither is stale.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from cbtqa.report.catalogue import catalogue
from tests.support.sources import nodes_of, package_files, tree_of

SAYING = frozenset({"say", "show", "waiting", "stage", "on_stage", "warning", "info", "notice"})
"""Functions whose first argument is said."""
LOGGING = frozenset({"warning", "info"})
TABLES = frozenset({"Table", "Column", "print_table", "print_facts", "show_table", "give"})
FINDINGS = frozenset({"Finding"})
HELP = frozenset({"Option", "Argument", "CommandGroup", "VERBS", "EXIT_CODES"})
"""What declares help texts."""
NO_MESSAGES = frozenset(
    {
        "Answer with one word: ready",  # what a server is asked
        "black on yellow",  # styles
        "bold green",
        "bold red",
        "bold white on red",
        "bold yellow",
        "dim underline",
        "default: newest",  # an origin in the manifest
        " (default: the newest {} here)",  # in help texts alone
        " (default: {})",
        "{} (default: the newest {} here) (required) (default: {})",
        "(Example): (cbtqa .*)",
        "(cbtqa|pip|hf|git|export|python) |--",
        "df",  # names of statistics
        "se",
        "{} in {}",  # made of values alone
        "  {}: {}, refs:{}",
        "{} {} of {}: {} ({})",
        "{} {} {} at {}: {}",
    }
)
"""Texts that look like messages and are none, or have no words of their own."""
KEYWORDS = frozenset({"hint", "fix", "note", "title", "told", "stopped"})
NUMERIC = re.compile(r"[-+,]*\d*[,_]?(\.\d+)?[,dfg%]?")
MOST_CHOICES = 4
"""Texts of one name that are tried."""
DEPTH = 4
"""How far a text is followed through names and functions."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def error_names() -> frozenset[str]:
    """Names of the classes below CbtqaError."""
    bases: dict[str, set[str]] = {}
    for path in package_files():
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {_name(base) for base in node.bases}
    found = {"CbtqaError"}
    while more := {name for name, own in bases.items() if own & found} - found:
        found |= more
    return frozenset(found)


def _name(node: ast.AST) -> str:
    return str(getattr(node, "attr", getattr(node, "id", "")))


class Module:
    """One file: its functions, its constants, and the templates behind an expression."""

    def __init__(self, path: Path) -> None:
        self.path, nodes = path, nodes_of(path)
        self.functions = {n.name: n for n in nodes if isinstance(n, Function)}
        self.constants = dict(_assigned(tree_of(path).body))
        self.within: dict[ast.AST, Function] = {}
        for function in (n for n in nodes if isinstance(n, Function)):
            for node in _nodes_within(function):
                self.within[node] = function  # the innermost is met last

    def behind(self, node: ast.AST | None, place: ast.AST, depth: int = DEPTH) -> Iterator[str]:
        """Templates that an expression may be, and the texts inside its holes."""
        if depth < 0 or node is None:
            return
        match node:
            case ast.Constant(value=str(text)):
                yield _escaped(text)
            case ast.JoinedStr() | ast.BinOp(op=ast.Add()):
                yield from _joined(node)
                for hole in _holes(node):
                    yield from self.behind(hole, place, depth - 1)
            case ast.IfExp(body=body, orelse=other):
                yield from self.behind(body, place, depth)
                yield from self.behind(other, place, depth)
            case ast.BoolOp(values=values) | ast.List(elts=values) | ast.Tuple(elts=values):
                for value in values:
                    yield from self.behind(value, place, depth)
            case ast.Dict(values=values):
                for value in values:
                    yield from self.behind(value, place, depth)
            case ast.Subscript(value=value) | ast.Starred(value=value):
                yield from self.behind(value, place, depth)
            case ast.GeneratorExp(elt=value) | ast.ListComp(elt=value):
                yield from self.behind(value, place, depth)
            case ast.NamedExpr(value=value) | ast.Await(value=value):
                yield from self.behind(value, place, depth)
            case ast.Name(id=name):
                yield from self._behind_name(name, place, depth - 1)
            case ast.Call():
                yield from self._behind_call(node, place, depth - 1)

    def _behind_name(self, name: str, place: ast.AST, depth: int) -> Iterator[str]:
        if sums := [text for text in self._sums(name, place) if not text.endswith(" ")]:
            yield from sums
            return
        for value in self._local(name, place) or [self.constants.get(name)]:
            yield from self.behind(value, place, depth)

    def _local(self, name: str, place: ast.AST) -> list[ast.AST]:
        function = self.within.get(place)
        local = _assigned_within(function) if function else []
        return [value for target, value in local if target == name]

    def _sums(self, name: str, place: ast.AST) -> Iterator[str]:
        """What `name = ...; name += ...` add up to."""
        function = self.within.get(place)
        nodes = list(_nodes_within(function)) if function else []
        steps = [
            node
            for node in nodes
            if (isinstance(node, ast.Assign) and _name(node.targets[0]) == name)
            or (isinstance(node, ast.AugAssign) and _name(node.target) == name)
        ]
        total = ""
        for step in sorted(steps, key=lambda node: node.lineno):
            (text, *_) = _joined(step.value)
            if isinstance(step, ast.AugAssign):
                total += text
                yield total
            else:
                total = text

    def inlined(self) -> Iterator[str]:
        """Whole texts, where a name in a hole stands for texts of the same function."""
        for node in nodes_of(self.path):
            if isinstance(node, ast.JoinedStr):
                wholes = [""]
                for value in node.values:
                    parts = [_part(value)]
                    inner = value.value if isinstance(value, ast.FormattedValue) else None
                    if isinstance(inner, ast.Name):
                        own = [t for v in self._local(inner.id, node) for t in _texts(v)]
                        parts += own[:MOST_CHOICES]
                    elif isinstance(inner, ast.IfExp):
                        parts += _texts(inner)
                    wholes = [whole + part for whole in wholes for part in parts]
                    wholes = wholes[: MOST_CHOICES**3]
                yield from wholes
        yield from self._all_sums()

    def _all_sums(self) -> Iterator[str]:
        """The whole sums of every function."""
        for function in self.functions.values():
            for name in {name for name, _ in _assigned_within(function)}:
                found = list(self._sums(name, function.body[0]))
                for index, text in enumerate(found):
                    if not any(one.startswith(text) for one in found[index + 1 :]):
                        yield text

    def _behind_call(self, call: ast.Call, place: ast.AST, depth: int) -> Iterator[str]:
        name = _name(call.func)
        if name in ("join", "get") and isinstance(call.func, ast.Attribute):
            for value in (call.func.value if name == "get" else None, *call.args):
                yield from self.behind(value, place, depth)
        elif name in self.functions:
            function = self.functions[name]
            for node in _nodes_within(function):
                if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
                    yield from self.behind(node.value, node, depth)

    def at_doors(self) -> Iterator[str]:
        """Templates that leave this file for the console."""
        for node in nodes_of(self.path):
            if not isinstance(node, ast.Call):
                continue
            is_logged = _name(node.func) in LOGGING
            for value in _doors(node):
                for text in self.behind(value, node):
                    yield re.sub("%[sdg]", "{}", text) if is_logged else text

    def heads(self) -> Iterator[str]:
        """Columns and titles of tables, single words included."""
        for node in nodes_of(self.path):
            if isinstance(node, ast.Call) and _name(node.func) in TABLES:
                for value in (*node.args[:1], *node.args[2:]):
                    yield from self.behind(value, node)

    def prose(self) -> Iterator[str]:
        """Every text of a file but docstrings and what only `--help` shows."""
        left_out: set[ast.AST] = set()
        for node in nodes_of(self.path):
            is_help = isinstance(node, ast.Call) and _name(node.func) in HELP
            is_constant = isinstance(node, ast.Assign) and _name(node.targets[0]) in HELP
            if isinstance(node, ast.AugAssign) and _is_text(node.value):
                left_out.add(node.value)  # a part of what `_sums` gives
            if is_help or is_constant or isinstance(node, ast.Expr | ast.BinOp | ast.JoinedStr):
                own = ast.walk(node) if is_help or is_constant else ast.iter_child_nodes(node)
                texts = (one for one in own if not isinstance(one, ast.Call) or is_help)
                left_out.update(texts)
        for node in nodes_of(self.path):
            if node not in left_out and isinstance(node, ast.Constant | ast.JoinedStr):
                texts = _joined(node) if isinstance(node, ast.JoinedStr) else _text_of(node)
                yield from (one for one in texts if not one.endswith(" "))
        yield from (one for one in self._all_sums() if not one.endswith(" "))


def _text_of(node: ast.Constant) -> list[str]:
    return [_escaped(node.value)] if isinstance(node.value, str) else []


def _doors(call: ast.Call) -> Iterator[ast.AST]:
    """The arguments of a call that people read."""
    name = _name(call.func)
    if name in error_names() or name in SAYING or name == "BadParameter":
        yield from call.args[:1]
    elif name == "__init__" and isinstance(call.func, ast.Attribute):
        if isinstance(call.func.value, ast.Call) and _name(call.func.value.func) == "super":
            yield from call.args[:1]
    elif name in TABLES or name in FINDINGS:
        yield from call.args
    yield from (one.value for one in call.keywords if one.arg in KEYWORDS)


def _assigned(nodes: Iterable[ast.AST]) -> list[tuple[str, ast.AST]]:
    """Names and what is assigned to them."""
    found: list[tuple[str, ast.AST]] = []
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found.append((name, value))
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                found += [(_name(one), value) for one, value in zip(names, values, strict=False)]
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.IfExp() as value):
                for side in (value.body, value.orelse):
                    if isinstance(side, ast.Tuple):
                        pairs = zip(names, side.elts, strict=False)
                        found += [(_name(one), own) for one, own in pairs]
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found.append((name, value))
            case ast.AugAssign(target=ast.Name(id=name), value=value):
                found.append((name, value))
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                found.append((name, value))
    return found


@cache
def _nodes_within(function: Function) -> tuple[ast.AST, ...]:
    """A function's nodes: it is asked about once for every name in it."""
    return tuple(ast.walk(function))


@cache
def _assigned_within(function: Function) -> list[tuple[str, ast.AST]]:
    return _assigned(_nodes_within(function))


def _texts(node: ast.AST) -> list[str]:
    """The texts that an expression may be, if it is made of texts alone."""
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body), *_texts(node.orelse)]
    return _joined(node) if _is_text(node) else []


def _escaped(text: str) -> str:
    """A plain text as a template; what `format` fills with a number is a hole."""
    parts = re.split(r"\{:[^}]*\}", text)
    return "{n}".join(part.replace("{", "{{").replace("}", "}}") for part in parts)


def _joined(node: ast.AST) -> list[str]:
    """The template of an f-string or a sum of texts."""
    match node:
        case ast.Constant(value=str(text)):
            return [_escaped(text)]
        case ast.JoinedStr(values=values):
            return ["".join(_part(value) for value in values)]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return [a + b for a in _joined(left) for b in _joined(right)]
        case ast.IfExp(body=body, orelse=other) if _is_text(body) and _is_text(other):
            return ["{}"]
    return ["{}"]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str)


def _part(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return _escaped(str(node.value))
    assert isinstance(node, ast.FormattedValue)
    return "{n}" if _is_number(node) else "{}"


def _is_number(node: ast.FormattedValue) -> bool:
    spec = node.format_spec
    if isinstance(spec, ast.JoinedStr) and len(spec.values) == 1:
        text = str(getattr(spec.values[0], "value", ""))
        if text and NUMERIC.fullmatch(text):
            return True
    value = node.value
    name = _name(value.func) if isinstance(value, ast.Call) else _name(value)
    return name in ("len", "count", "size_of") or name.startswith("n_")


def _holes(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.JoinedStr(values=values):
            for value in values:
                if isinstance(value, ast.FormattedValue) and not _is_number(value):
                    yield value.value
        case ast.BinOp(left=left, right=right):
            for side in (left, right):
                if isinstance(side, ast.BinOp | ast.JoinedStr):
                    yield from _holes(side)
                elif not isinstance(side, ast.Constant):
                    yield side


_CODE = re.compile(
    r"cbtqa( [a-z-]+)?( (new|run|judge|lint|check|status|report|unblind|label|train|resume)\b)?"
    r"|pip install( --[\w-]+)* [\w.\[\]'-]*|https?:\S+|--[\w-]+( [\w./=-]+)?"
    r"|\S*[\w\0][_./=\\-]\S*|\S*[_./=\\-][\w\0]\S*|`[^`]*`|'[^' ]*'"
)
"""Commands, flags, paths and names of the code: the same in every language."""
_LABEL = re.compile("^(error|hint|warning|note|fix): ")
"""What the console puts before a message, and translates by itself."""
_SOURCE = re.compile(r"\\|\nimport ")
"""Of regular expressions and programs."""
_WORD = re.compile(r"(?<![\w\0])[A-Za-z]?[a-z]{2,}(?![\w\0])")


def has_words(template: str) -> bool:
    """Whether something is left to translate without commands, flags and names of the code."""
    literal = re.sub(r"\{n?\}", "\0", template)
    return " " in literal.strip() and bool(_WORD.search(_CODE.sub(" ", literal)))


def is_head(text: str) -> bool:
    """Whether a text is a column's head or a table's title in words."""
    return has_words(text) or bool(re.fullmatch(r"[A-Z]?[a-z]{2,}", text))


@cache
def required(path: Path) -> tuple[str, ...]:
    """Templates at the doors of a file, each once."""
    module = Module(path)
    found = {one for one in module.at_doors() if has_words(one)}
    found |= {one for one in module.heads() if is_head(one)}
    if path.parent.name == "cli":
        found |= {one for one in module.prose() if has_words(one)}
    found = {_LABEL.sub("", one) for one in found - NO_MESSAGES if not _SOURCE.search(one)}
    return tuple(sorted(found - {"{}"}))


@cache
def texts_of(path: Path) -> frozenset[str]:
    """Every text of a file as a template, doors or not."""
    found: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.JoinedStr | ast.BinOp) or _is_text(node):
            found.update(_joined(node))
    return frozenset(_LABEL.sub("", one) for one in found | set(Module(path).inlined()))


def normal(key: str) -> str:
    """A key or template with all holes alike: the catalogue may hold a value to less than any."""
    return re.sub(r"\{[ntw]?\}", "{}", key)


@cache
def _keys() -> frozenset[str]:
    """The keys of the catalogue with all holes alike, and what it does to `word: message`."""
    known = catalogue()
    labels = (f"{word}: {{}}" for word in known.words)
    return frozenset({*map(normal, known.keys()), *labels})


def untranslated(path: Path) -> list[str]:
    """Templates at the doors of a file that the catalogue does not hold."""
    return [
        one
        for one in required(path)
        if not {normal(one), one.strip(), _unescaped(one).strip()} & _keys()
    ]


def _unescaped(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}")
