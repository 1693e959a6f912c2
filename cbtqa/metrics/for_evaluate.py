"""Every metric of cbtqa for Hugging Face `evaluate`. Loaded by path, never by the package itself.

    from cbtqa import EVALUATE_MODULE
    bleu = evaluate.load(EVALUATE_MODULE, "bleu_zh")
    bleu.compute(predictions=["我很好。"], references=["我很好！"])
    bleu.compute(predictions=["我很好。"], references=[["我很好！", "我好。"]])

The second argument is the metric's name, as on the command line. Never write
`evaluate.load("bleu")` for Chinese: that metric takes a Chinese sentence for one word.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from cbtqa.errors import ConfigError
from cbtqa.metrics.evaluation import score_lists
from cbtqa.metrics.neural.weights import NeuralSettings
from cbtqa.metrics.registry import known_metrics


class CbtqaMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """One metric, named by the configuration."""

    def _info(self) -> Any:
        if self.config_name not in known_metrics():
            raise ConfigError(
                f"no metric '{self.config_name}'",
                hint="evaluate.load(path, NAME) with one of: " + ", ".join(known_metrics()),
            )
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=f"{self.config_name} of cbtqa, for Chinese text",
            citation="",
            inputs_description="predictions: list of str; references: list of str, or of lists",
            features=[
                datasets.Features({"predictions": text, "references": references})
                for references in (text, datasets.Sequence(text))
            ],
        )

    def _compute(
        self, predictions: list[str], references: list[str] | list[list[str]], **neural: Any
    ) -> dict[str, Any]:
        """The score under the metric's name, with unit, counts and signature.

        Args:
            neural: fields of `NeuralSettings`, such as `bertscore_model`.
        """
        name = self.config_name
        score = score_lists(name, predictions, references, NeuralSettings(**neural))
        return {
            name: score.value,
            f"{name}_unit": score.unit,
            f"{name}_n_scored": score.n_scored,
            f"{name}_signature": score.signature,
        }
