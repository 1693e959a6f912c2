"""Chinese mental-health question answering in the structure of cognitive behavioural therapy.

    import cbtqa

    data = cbtqa.build_dataset("PsyQA_full.json", endpoint="vllm", model="Qwen3-32B")
    scores = cbtqa.score({"base": ["..."], "tuned": ["..."]}, references=["..."])
    scores.to_pandas()

The functions are the verbs of the command line, with the flags as keywords (`docs/python.md`). The
nouns are the records that reach disk. Research software, never a therapist. `docs/architecture.md`
draws the rooms of this package.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "EVALUATE_MODULE",
    "CbtAnswer",
    "CbtSteps",
    "CbtqaError",
    "DatasetFolder",
    "DistortionLabel",
    "MetricScore",
    "Question",
    "Rejection",
    "__version__",
    "build_dataset",
    "check_answer",
    "compare",
    "convert",
    "export",
    "finetune",
    "generate",
    "join",
    "judge",
    "label",
    "load",
    "merge",
    "publish",
    "report",
    "reproduce",
    "score",
    "screen",
]
_NOUNS = {
    **dict.fromkeys(("CbtAnswer", "CbtSteps", "DistortionLabel", "Question"), "cbtqa.records"),
    **dict.fromkeys(("MetricScore", "Rejection"), "cbtqa.records"),
    "DatasetFolder": "cbtqa.dataset_folder",
    "CbtqaError": "cbtqa.errors",
    "EVALUATE_MODULE": "cbtqa.metrics.evaluation",
}
"""Name to its module, taken from there at its first use; the verbs are in `cbtqa.api`."""

if TYPE_CHECKING:
    from cbtqa.api import (
        build_dataset,
        check_answer,
        compare,
        convert,
        export,
        finetune,
        generate,
        join,
        judge,
        label,
        load,
        merge,
        publish,
        report,
        reproduce,
        score,
        screen,
    )
    from cbtqa.dataset_folder import DatasetFolder
    from cbtqa.errors import CbtqaError
    from cbtqa.metrics.evaluation import EVALUATE_MODULE
    from cbtqa.records import (
        CbtAnswer,
        CbtSteps,
        DistortionLabel,
        MetricScore,
        Question,
        Rejection,
    )


class VerbRoom(ModuleType):
    """The module of a room whose name is a verb's: called, it does what the verb does.

    Python binds a room to its name here as soon as anything imports it, over the function.
    """

    def __call__(self, *given: Any, **settings: Any) -> Any:
        verb = getattr(import_module("cbtqa.api"), self.__name__.rpartition(".")[2])
        return verb(*given, **settings)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cbtqa' has no attribute '{name}'")
    return getattr(import_module(_NOUNS.get(name, "cbtqa.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
