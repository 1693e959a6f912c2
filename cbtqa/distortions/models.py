"""Saved labellers: a folder with a signature (`model.json`), arrays (`model.npz`) and a card.

Nothing is unpickled. An encoder's folder holds `model.json` with `kind: encoder` beside the
transformers files instead of arrays.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

import cbtqa
from cbtqa.distortions.encoder_means import EncoderColumns
from cbtqa.distortions.importers import GoldSet
from cbtqa.distortions.labellers import Labeller
from cbtqa.distortions.linear import LinearLabeller, LinearModel, rule_features
from cbtqa.distortions.taxonomy import Taxonomy, is_shipped, load_taxonomy
from cbtqa.errors import DataError
from cbtqa.files import parse_record, read_json, sha256_of, write_json, write_text
from cbtqa.manifest import now
from cbtqa.paths import make_folder, replacing
from cbtqa.records import NonEmptyText, Record
from cbtqa.report.table import Estimate, Table
from cbtqa.report.words import number

SIGNATURE_NAME, ARRAYS_NAME = "model.json", "model.npz"
_ARRAYS = ("buckets", "idf", "coefficients", "rule_coefficients", "bias", "platt", "thresholds")
_ENCODER_ARRAYS = ("mean", "spread", "coefficients")


class ModelSignature(Record):
    format_version: Literal[3] = 3
    kind: Literal["linear", "encoder"]
    name: NonEmptyText
    taxonomy: NonEmptyText
    own_taxonomy: Taxonomy | None = None
    """The taxonomy itself where it is not a shipped one, so that its file is not needed."""
    types: tuple[str, ...]
    """Ids in the order of the arrays' columns."""
    data_name: str
    data_sha256: str
    data_licence: str
    n_texts: int
    support: dict[str, int]
    """Training texts of each type."""
    settings: dict[str, Any]
    rules: tuple[str, ...] = ()
    """Features that come from the pattern file; the file itself is part of the version."""
    at_least_one: bool = False
    """Whether a text in which no type passes is given the likeliest; as the training data was."""
    arrays_sha256: str | None = None
    encoder: dict[str, str] | None = None
    """Folder or Hub id, and SHA-256 of the weights, of the encoder that a linear model reads."""
    estimate: dict[str, Any] | None = None
    """Cross-validated quality on the training data; None when it was not measured."""
    cbtqa_version: str = cbtqa.__version__
    created_at: str


def describe_model(
    kind: Literal["linear", "encoder"],
    name: str,
    gold: GoldSet,
    settings: Mapping[str, Any],
    estimate: dict[str, Any] | None,
) -> ModelSignature:
    return ModelSignature(
        kind=kind,
        name=name,
        taxonomy=gold.taxonomy.id,
        own_taxonomy=None if is_shipped(gold.taxonomy) else gold.taxonomy,
        types=gold.taxonomy.ids,
        data_name=gold.name,
        data_sha256=gold.sha256,
        data_licence=gold.licence,
        n_texts=len(gold.items),
        support=dict(zip(gold.taxonomy.ids, gold.matrix.sum(axis=0).tolist(), strict=True)),
        settings=dict(settings),
        estimate=estimate,
        created_at=now(),
    )


def save_linear(folder: Path, model: LinearModel, signature: ModelSignature) -> ModelSignature:
    """Writes the model; the signature goes last, so a folder that holds one is whole."""
    make_folder(folder)
    arrays = {name: getattr(model, name) for name in _ARRAYS}
    encoder = None
    if model.encoder:
        arrays |= {f"encoder_{name}": getattr(model.encoder, name) for name in _ENCODER_ARRAYS}
        encoder = {name: getattr(model.encoder, name) for name in ("given", "weights_sha256")}
    with replacing(folder / ARRAYS_NAME) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    arrays_sha256 = sha256_of(folder / ARRAYS_NAME)
    known = {"rules": model.rules, "at_least_one": model.at_least_one, "encoder": encoder}
    whole = signature.model_copy(update={**known, "arrays_sha256": arrays_sha256})
    write_signature(folder, whole)
    return whole


def write_signature(folder: Path, signature: ModelSignature) -> None:
    """Writes the card and the signature beside a model's other files."""
    write_text(folder / "README.md", model_card(signature))
    write_json(folder / SIGNATURE_NAME, signature)


def load_labeller(folder: Path, taxonomy: Taxonomy | None = None) -> Labeller:
    """The labeller of a folder.

    Args:
        taxonomy: when given, the one the model must have been trained for.

    Raises:
        DataError: no model there, damaged, or trained for another taxonomy.
    """
    path = folder / SIGNATURE_NAME
    if not path.is_file():
        raise DataError(
            f"holds no {SIGNATURE_NAME}: not a trained labeller",
            where=str(folder),
            hint="train one: cbtqa distortions train DATA --out FOLDER",
        )
    signature = parse_record(ModelSignature, read_json(path), str(path))
    own = signature.own_taxonomy or load_taxonomy(signature.taxonomy)
    if own.ids != signature.types:
        n = len(signature.types)
        found = f"trained for {n} types that the taxonomy {own.id} does not have in this order"
        raise DataError(found, where=f"{path}:types")
    if taxonomy is not None and taxonomy.id != own.id:
        found = f"trained for the taxonomy {own.id}, wanted {taxonomy.id}"
        hint = f"use --taxonomy {own.id}, or train on data in {taxonomy.id}"
        raise DataError(found, where=f"{path}:taxonomy", hint=hint)
    if taxonomy is not None and signature.own_taxonomy and taxonomy.sha256 != own.sha256:
        found = f"trained for another state of the taxonomy {own.id}: its file has changed since"
        hint = "give the taxonomy file that the model was trained with, or train it again"
        raise DataError(found, where=f"{path}:own_taxonomy", hint=hint)
    if signature.kind == "encoder":
        from cbtqa.distortions.encoder import EncoderLabeller

        return EncoderLabeller.load(folder, signature.name, own)
    return LinearLabeller(_read_linear(folder, signature, own))


def _read_linear(folder: Path, signature: ModelSignature, taxonomy: Taxonomy) -> LinearModel:
    path = folder / ARRAYS_NAME
    if not path.is_file() or sha256_of(path) != signature.arrays_sha256:
        raise DataError(f"missing, or not the arrays that {SIGNATURE_NAME} names", where=str(path))
    if unknown := sorted(set(signature.rules) - set(rule_features())):
        made_by = f"made by cbtqa {signature.cbtqa_version}, this is {cbtqa.__version__}"
        raise DataError(
            f"uses rules that this version does not have: {', '.join(unknown)}",
            where=str(folder / SIGNATURE_NAME),
            hint=f"{made_by}: train it again",
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in _ARRAYS}
            encoder = None
            if signature.encoder:
                columns: dict[str, Any] = {n: arrays[f"encoder_{n}"] for n in _ENCODER_ARRAYS}
                encoder = EncoderColumns(**{**signature.encoder, **columns})
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"damaged: {error}", where=str(path)) from None
    known = {name: getattr(signature, name) for name in ("name", "rules", "at_least_one")}
    return LinearModel(taxonomy=taxonomy, encoder=encoder, **known, **found)


def model_card(signature: ModelSignature) -> str:
    from jinja2 import StrictUndefined, Template

    per_type = (signature.estimate or {}).get("types", {})
    rows = [
        (name, n, Estimate(per_type.get(name, {}).get("f1"), reason="not measured"))
        for name, n in signature.support.items()
    ]
    table = Table(["type", "training texts", "F1"], rows).markdown().rstrip()
    text = files("cbtqa.distortions").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    template = Template(text, trim_blocks=True, undefined=StrictUndefined)
    estimate = signature.estimate
    card = template.render(model=signature, estimate=estimate, table=table, number=number)
    return f"{card}\n"
