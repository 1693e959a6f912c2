"""`croissant.json` of a published dataset: Croissant 1.1 with the fields of Croissant RAI 1.0.

Files, hashes and columns are read from the Parquet files that are published, all words from the
card beside them, so that the two cannot differ. The Hub makes a description of its own, without
hashes of splits and without the RAI fields.

Source: Croissant format specification 1.1 (2026-01-29) and Croissant RAI specification 1.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbtqa.dataset.card import notices_of, values_of_every_card
from cbtqa.dataset.report.material import say
from cbtqa.files import class_names, parquet_schema
from cbtqa.hub.cards import CONFIGS, TERMS_PATH, split_card
from cbtqa.hub.plan import PlannedFile, staged_files
from cbtqa.hub.settings import DatasetSettings
from cbtqa.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

CONFORMS_TO = ("http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0")
PARQUET = "application/x-parquet"
_OWN_TERMS = (
    *("annotation", "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty"),
    *("excludes", "extract", "field", "fileProperty", "fileObject", "fileSet", "format"),
    *("includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5", "parentField"),
    *("recordSet", "references", "regex", "readLines", "sdVersion", "separator", "source"),
    *("subField", "transform", "unArchive", "value"),
)
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{name: f"cr:{name}" for name in _OWN_TERMS},
}
"""Appendix 1 of the specification, with PROV, which it recommends for provenance."""


def croissant_of(
    card: str, staging: Path, manifest: Manifest, settings: DatasetSettings
) -> dict[str, Any]:
    """The description of the tables in a staging folder, as JSON-LD.

    The day of publishing is the day on which the run finished: the same run gives the same bytes.

    Args:
        card: `README.md` as published; its English sections become the RAI fields.
    """
    front, text = split_card(card)
    url = f"https://huggingface.co/datasets/{settings.to}"
    owner, name = settings.to.split("/")
    tables = [file for file in staged_files(staging) if file.path.endswith(".parquet")]
    of_config = {
        config: [file for file in tables if file.path.startswith(f"{config}/")]
        for config in CONFIGS
    }
    kept = {config: files for config, files in of_config.items() if files}
    sections = _english_sections(text)
    version = {"version": settings.tag} if settings.tag else {}
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS_TO),
        "name": name,
        "description": sections["description"],
        "url": url,
        "license": f"{url}/blob/main/{TERMS_PATH}",
        "creator": {"@type": "sc:Organization", "name": owner, "url": url.rpartition("/")[0]},
        "dateCreated": manifest.started_at[:10],
        "datePublished": manifest.finished_at[:10],
        **version,
        "keywords": front["tags"],
        "inLanguage": front["language"],
        "isLiveDataset": False,
        "citeAs": values_of_every_card(manifest)["citation"].strip(),
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": f"cbtqa {manifest.cbtqa_version}",
            "prov:startedAtTime": manifest.started_at,
            "prov:endedAtTime": manifest.finished_at,
        },
        **_responsible(
            sections, manifest, are_questions_found="extended" in front["source_datasets"]
        ),
        "distribution": [part for config, files in kept.items() for part in _files(config, files)],
        "recordSet": [_record_set(config, files[0]) for config, files in kept.items()],
    }


# --- words: the card's ----------------------------------------------------------------------------


def _english_sections(text: str) -> dict[str, str]:
    """The card's English half by heading; `description` is what stands before the first one."""
    english = text.rpartition(f"# {say('title').en}\n")[2]
    description, *rest = re.split(r"^## (.+)\n", english, flags=re.MULTILINE)
    found = dict(zip(rest[::2], map(str.strip, rest[1::2]), strict=True))
    return {"description": re.sub(r"^> ?", "", description.strip(), flags=re.MULTILINE), **found}


def _responsible(
    sections: dict[str, str], manifest: Manifest, *, are_questions_found: bool
) -> dict[str, Any]:
    """The RAI fields, each from the section of the card that says it."""
    notices, statistics = notices_of("en"), sections["Statistics"]
    # values that the specification recommends: answers are written by a program
    kinds = (*(["Secondary Data analysis"] if are_questions_found else []), "Software Collection")
    ratings = sections.get("Ratings by people")
    people = {"dataAnnotationProtocol": ratings, "dataAnnotationPlatform": "cbtqa rate"}
    fields: dict[str, Any] = {
        "dataCollection": sections["How it was made"],
        "dataCollectionType": kinds,
        "dataCollectionTimeFrame": (manifest.started_at, manifest.finished_at),
        "dataCollectionRawData": sections["What is in it"].split("\n\n")[1],
        **(people if ratings else {}),
        "dataAnnotationAnalysis": sections["Label quality"],
        "machineAnnotationTools": f"cbtqa {manifest.cbtqa_version}",
        "personalSensitiveInformation": (notices["content_warning"], sections["Crisis handling"]),
        "dataSocialImpact": f"{notices['made_by_program']} {notices['help']}",
        "dataBiases": re.sub(r"^\|.*\n?", "", statistics, flags=re.MULTILINE).strip(),
        "dataLimitations": re.findall(r"^- (.+)$", sections["Known limits"], re.MULTILINE),
        "dataUseCases": sections["Use"],
        "dataReleaseMaintenancePlan": sections["Access and contact"],
    }
    return {f"rai:{name}": value for name, value in fields.items()}


# --- tables: the Parquet files' -------------------------------------------------------------------


def _files(config: str, files: Sequence[PlannedFile]) -> Iterator[dict[str, Any]]:
    """Every file with its hash, and the set of them that the config's record set reads."""
    for file in files:
        yield {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path,
            "contentUrl": file.path,
            "contentSize": f"{file.n_bytes} B",
            "encodingFormat": PARQUET,
            "sha256": file.sha256,
        }
    yield {
        "@type": "cr:FileSet",
        "@id": f"{config}-files",
        "name": f"{config}-files",
        "encodingFormat": PARQUET,
        "includes": f"{config}/*.parquet",
    }


def _record_set(config: str, file: PlannedFile) -> dict[str, Any]:
    schema = parquet_schema(file.source)
    labels = class_names(schema)
    split = {
        "@type": "cr:Field",
        "@id": f"{config}/split",
        "name": "split",
        "description": "the split that the row belongs to, from the name of its file",
        "dataType": "sc:Text",
        "source": {
            "fileSet": {"@id": f"{config}-files"},
            "extract": {"fileProperty": "filename"},
            "transform": {"regex": r"^(.+)-\d+-of-\d+\.parquet$"},
        },
    }
    fields = [_field(config, (one.name,), one.type, labels.get(one.name)) for one in schema]
    return {
        "@type": "cr:RecordSet",
        "@id": config,
        "name": config,
        "field": [split, *fields],
    }


_TYPES = {"string": "sc:Text", "int64": "sc:Integer", "double": "sc:Float", "bool": "sc:Boolean"}


def _field(
    config: str, path: tuple[str, ...], kind: pa.DataType, labels: Sequence[str] | None = None
) -> dict[str, Any]:
    """A column, or a member of a column's structs, which are its sub-fields.

    Args:
        labels: names of the numbers that a class label holds.
    """
    import pyarrow.types as of

    made: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": "/".join((config, *path)),
        "name": path[-1],
    }
    if labels:
        names = ", ".join(f"{number} {name}" for number, name in enumerate(labels))
        made["description"] = f"class labels: {names}"
    if of.is_list(kind):
        made |= {"isArray": True, "arrayShape": "-1"}
        kind = kind.value_type
    if of.is_struct(kind):
        made["subField"] = [_field(config, (*path, one.name), one.type) for one in kind]
    else:
        made["dataType"] = _TYPES[str(kind)]
    inner = {"transform": {"jsonPath": ".".join(path[1:])}} if path[1:] else {}
    source = {"fileSet": {"@id": f"{config}-files"}, "extract": {"column": path[0]}, **inner}
    return {**made, "source": source}
