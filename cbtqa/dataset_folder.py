"""The dataset's Parquet columns, and how an answer becomes a row and a row an answer again.

Flat columns: the Hub's viewer, pandas and `datasets` show them as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cbtqa.records import (
    STEP_NAMES,
    CbtAnswer,
    CbtSteps,
    DistortionLabel,
    Provenance,
    Question,
    ReferenceAnswer,
    Usage,
)

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "validation", "test", "crisis")


def answer_schema() -> pa.Schema:
    """Columns of the splits, in order."""
    import pyarrow as pa

    label = pa.struct(
        [
            ("id", pa.string()),
            ("evidence", pa.string()),
            ("labeller", pa.string()),
            ("confidence", pa.float64()),
        ]
    )
    return pa.schema(
        [
            ("id", pa.string()),
            ("question", pa.string()),
            ("description", pa.string()),
            ("keywords", pa.list_(pa.string())),
            ("answer", pa.string()),
            *((name, pa.string()) for name in STEP_NAMES),
            ("distortions", pa.list_(label)),
            ("has_distortion", pa.bool_()),
            ("risk", pa.string()),
            ("system", pa.string()),
            ("is_training_source", pa.bool_()),
            ("model", pa.string()),
            ("endpoint_host", pa.string()),
            ("prompt_id", pa.string()),
            ("prompt_sha256", pa.string()),
            ("seed", pa.int64()),
            ("sampling", pa.string()),
            ("prompt_tokens", pa.int64()),
            ("completion_tokens", pa.int64()),
            ("finish_reason", pa.string()),
            ("cbtqa_version", pa.string()),
            ("created_at", pa.string()),
        ]
    )


def human_schema() -> pa.Schema:
    """Columns of the human answers, in order."""
    import pyarrow as pa

    span = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("type", pa.string())])
    return pa.schema(
        [("question_id", pa.string()), ("text", pa.string()), ("strategies", pa.list_(span))]
    )


def human_row(answer: ReferenceAnswer) -> dict[str, Any]:
    """One human answer as a row of `human_schema`."""
    return answer.model_dump()


def answer_row(question: Question, answer: CbtAnswer) -> dict[str, Any]:
    """One question with its answer as a row of `answer_schema`."""
    steps = {name: getattr(answer.steps, name, None) for name in STEP_NAMES}
    made = answer.provenance
    return {
        "id": question.id,
        "question": question.question,
        "description": question.description,
        "keywords": question.keywords,
        "answer": answer.text,
        **steps,
        "distortions": [
            {
                "id": label.id,
                "evidence": label.evidence,
                "labeller": label.labeller,
                "confidence": label.confidence,
            }
            for label in answer.distortions
        ],
        "has_distortion": bool(answer.distortions),
        "risk": answer.risk,
        "system": answer.system,
        "is_training_source": made.is_training_source,
        "model": made.model,
        "endpoint_host": made.endpoint_host,
        "prompt_id": made.prompt_id,
        "prompt_sha256": made.prompt_sha256,
        "seed": made.seed,
        "sampling": json.dumps(made.sampling, sort_keys=True) if made.sampling else None,
        "prompt_tokens": made.usage.prompt_tokens if made.usage else None,
        "completion_tokens": made.usage.completion_tokens if made.usage else None,
        "finish_reason": made.finish_reason,
        "cbtqa_version": made.version,
        "created_at": made.created_at,
    }


def answer_of(row: Mapping[str, Any]) -> CbtAnswer:
    """The answer that `answer_row` wrote."""
    has_steps = row[STEP_NAMES[0]] is not None
    usage = None
    if row["prompt_tokens"] is not None:
        usage = Usage(
            prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"]
        )
    return CbtAnswer(
        question_id=row["id"],
        system=row["system"],
        text=row["answer"],
        steps=CbtSteps(**{name: row[name] for name in STEP_NAMES}) if has_steps else None,
        distortions=tuple(DistortionLabel(**label) for label in row["distortions"]),
        risk=row["risk"],
        provenance=Provenance(
            model=row["model"],
            endpoint_host=row["endpoint_host"],
            prompt_id=row["prompt_id"],
            prompt_sha256=row["prompt_sha256"],
            sampling=json.loads(row["sampling"]) if row["sampling"] else {},
            seed=row["seed"],
            usage=usage,
            finish_reason=row["finish_reason"],
            is_training_source=row["is_training_source"],
            version=row["cbtqa_version"],
            created_at=row["created_at"],
        ),
    )


def question_of(row: Mapping[str, Any]) -> Question:
    """The question that `answer_row` wrote."""
    return Question(
        id=row["id"],
        question=row["question"],
        description=row["description"],
        keywords=tuple(row["keywords"]),
    )
