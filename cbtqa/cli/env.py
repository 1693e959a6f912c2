"""`cbtqa env`: what an issue report needs to say about the machine, and never a key's value."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cbtqa
from cbtqa.cli.console import print_facts, print_json, print_table, terminal_width
from cbtqa.cli.options import AsJson

GIB = 2**30
_NO_USERS_EXTRA = ("all", "docs", "doors", "test", "server-test", "real-test")
_ASK_TORCH = """
import json, torch
n = torch.cuda.device_count() if torch.cuda.is_available() else 0
cards = [torch.cuda.get_device_properties(i) for i in range(n)]
print(json.dumps({
    "built_for": torch.version.cuda or torch.version.hip,
    "cards": [{"name": card.name, "bytes": card.total_memory} for card in cards],
    "has_mps": torch.backends.mps.is_available(),
}))
"""
TORCH_SECONDS = 60


def env(as_json: AsJson = False) -> None:
    """Versions, cards, fonts, encodings, keys present or not, cache folders, free disk.

    What an issue report needs; the value of a key is never printed, and your home folder reads ~.

    Example: cbtqa env --json
    """
    found = describe_environment(os.environ)
    print_json(found) if as_json else _show(found)


def describe_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """All of it, as `--json` prints it."""
    return {
        "cbtqa": cbtqa.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": _packages(),
        "cards": _cards(),
        "fonts": _fonts(),
        "terminal": _terminal(environ),
        "keys": _keys(environ),
        "settings": sorted(n for n in environ if n.startswith("CBTQA_") and "KEY" not in n),
        "folders": _folders(environ),
    }


def _packages() -> list[dict[str, Any]]:
    """Every dependency and those of the extras; none where cbtqa itself is not installed."""
    wanted: dict[str, dict[str, Any]] = {}
    try:
        lines = requires("cbtqa") or []
    except PackageNotFoundError:  # a source tree on the path, not installed
        return []
    for line in lines:
        name, spec = re.fullmatch(r"([\w.-]+)[^;<>=!~]*([^;]*).*", line, re.S).groups()  # type: ignore[union-attr]
        extra = re.search(r"extra == ['\"]([\w-]+)", line)
        if name == "cbtqa" or (extra and extra[1] in _NO_USERS_EXTRA):
            continue
        one = wanted.setdefault(name, {"name": name, "wanted": spec.strip(), "extras": []})
        one["extras"] += [extra[1]] if extra else []
    return [{**one, "version": _version(name)} for name, one in wanted.items()]


def _version(name: str) -> str | None:
    try:
        return installed_version(name)
    except PackageNotFoundError:
        return None


def _cards() -> dict[str, Any]:
    """What torch sees; asked in a process of its own, since broken drivers end theirs.

    torch takes seconds to import: it is asked only where something hints at a card.
    """
    if find_spec("torch") is None:
        return {"why_none": "torch is not installed"}
    has_driver = shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists()
    if not (has_driver or Path("/dev/kfd").exists() or sys.platform == "darwin"):
        return {"why_none": "no driver of a card was found"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=TORCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"why_none": f"torch gave no answer within {TORCH_SECONDS} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"why_none": f"torch does not load: {last}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _fonts() -> dict[str, Any]:
    """The Chinese font that pages and charts carry with them."""
    from importlib.resources import files

    from cbtqa.report.page import font_slices

    folder = files("cbtqa.report") / "fonts"
    missing = [name for name in font_slices() if not (folder / f"{name}.woff2").is_file()]
    characters = frozenset().union(*font_slices().values())
    return {"embedded_characters": len(characters), "missing_slices": missing}


def _terminal(environ: Mapping[str, str]) -> dict[str, Any]:
    names = ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8", "TERM", "NO_COLOR")
    return {
        "stdout": sys.stdout.encoding,
        "stderr": sys.stderr.encoding,
        "files": sys.getfilesystemencoding(),
        "is_terminal": sys.stdout.isatty(),
        "columns": terminal_width(sys.stdout),
        "variables": {name: environ[name] for name in names if name in environ},
    }


def _keys(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """By endpoint: the variable its key is read from, and whether that is set. Never the value."""
    from cbtqa.llm.endpoint import OWN_KEY, preset_file

    variables = {name: preset.key_env for name, preset in preset_file().presets.items()}
    variables |= {"any URL": OWN_KEY, "Hugging Face Hub": "HF_TOKEN"}
    return {
        name: {"variable": variable, "is_set": bool(environ.get(variable, "").strip())}
        for name, variable in variables.items()
    }


def _folders(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Where things are kept, and the free bytes there."""
    from cbtqa.tuning.weights.cache import cache_folder

    hub = Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places = {
        "current folder": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
        "Hugging Face cache": Path(environ.get("HF_HUB_CACHE") or hub / "hub"),
    }
    places["converted base models"] = cache_folder()
    if environ.get("TIKTOKEN_CACHE_DIR"):
        places["tiktoken cache"] = Path(environ["TIKTOKEN_CACHE_DIR"])
    return [
        {
            "what": what,
            "path": _without_home(path),
            "exists": path.exists(),
            "free_bytes": shutil.disk_usage(_nearest(path)).free,
        }
        for what, path in places.items()
    ]


def _nearest(path: Path) -> Path:
    """The folder, or the closest one above it that exists."""
    return next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())


def _without_home(path: Path) -> str:
    home = Path.home()
    return str("~" / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def _show(found: dict[str, Any]) -> None:
    terminal, fonts = found["terminal"], found["fonts"]
    missing = "".join(f", {one} missing" for one in fonts["missing_slices"])
    facts = {
        "Python": found["python"],
        "system": f"{found['system']}, {found['cpus']} CPUs",
        "cards": cards_in_words(found["cards"]),
        "fonts": f"{fonts['embedded_characters']:,} characters, in pages and charts{missing}",
        "encodings": f"stdout {terminal['stdout']}, file names {terminal['files']}",
        "terminal": f"{terminal['columns']} columns" if terminal["is_terminal"] else "none",
        "locale": " ".join(f"{name}={value}" for name, value in terminal["variables"].items()),
        "settings": ", ".join(found["settings"]) or "no CBTQA_ variable is set",
    }
    print_facts(f"cbtqa {found['cbtqa']}", list(facts.items()))
    rows = [
        [one["name"], one["version"] or "not installed", one["wanted"], ", ".join(one["extras"])]
        for one in found["packages"]
    ]
    print_table("Packages", ["package", "version", "wanted", "extras"], rows)
    absent = [one for one in found["packages"] if one["version"] is None]
    print_facts("Not installed", [(one["name"], install_line(one["extras"])) for one in absent])
    keys = [
        [name, key["variable"], "set" if key["is_set"] else "not set"]
        for name, key in found["keys"].items()
    ]
    print_table("Keys (their values are never printed)", ["endpoint", "variable", ""], keys)
    folders = []
    for one in found["folders"]:
        path = one["path"] + ("" if one["exists"] else " (not made yet)")
        folders.append((one["what"], f"{path}, {one['free_bytes'] / GIB:,.1f} GiB free"))
    print_facts("Folders", folders)


def cards_in_words(cards: dict[str, Any]) -> str:
    """The cards of `describe_environment`, or why there is none."""
    if "why_none" in cards:
        return f"none: {cards['why_none']}"
    shown = [f"{card['name']} ({card['bytes'] / GIB:.0f} GiB)" for card in cards["cards"]]
    shown += ["Apple MPS"] if cards["has_mps"] else []
    return (", ".join(shown) or "none that torch can use") + f"; torch for {cards['built_for']}"


def install_line(extras: list[str]) -> str:
    """The command that installs what one of the extras, or cbtqa itself, needs."""
    return f"pip install 'cbtqa[{extras[0]}]'" if extras else "pip install cbtqa"
