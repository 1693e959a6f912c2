"""Draws texts for annotation: seeded, and stratified so that rare types come along."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cbtqa.distortions.evaluate import count_types
from cbtqa.distortions.labelling import SourceText, read_texts
from cbtqa.distortions.patterns import PatternLabeller
from cbtqa.distortions.taxonomy import Taxonomy, load_taxonomy
from cbtqa.files import write_jsonl
from cbtqa.records import Record
from cbtqa.settings import Settings


class AnnotateSettings(Settings):
    """What `cbtqa distortions annotate` can be told."""

    input: Path = Field(description="Questions or texts, as for `label`.")
    out: Path = Field(Path("annotation"), description="Folder of the study; must be new.")
    n: int = Field(500, ge=1, description="Texts to draw. Source: 500 in arXiv 2403.16008.")
    raters: int = Field(2, ge=1, description="Annotators.")
    taxonomy: str = Field("burns-10", description="Taxonomy to annotate in.")
    seed: int = Field(0, description="Seed of the draw.")
    encoding: str = Field("utf-8", description="Encoding of a text file, such as gb18030.")


class DrawnSample(Record):
    """Texts drawn for annotation, on disk."""

    path: Path
    n: int
    strata: dict[str, tuple[int, int]]
    """Stratum to texts there and texts drawn."""

    def rows(self) -> list[list[str]]:
        """For a table."""
        return [[name, str(there), str(drawn)] for name, (there, drawn) in self.strata.items()]

    def summary(self) -> dict[str, Any]:
        """For `--json`."""
        strata = {name: {"texts": there, "drawn": n} for name, (there, n) in self.strata.items()}
        return {"sample": str(self.path), "n": self.n, "strata": strata}


def draw_for_annotation(settings: AnnotateSettings) -> DrawnSample:
    """Draws texts in proportion to what the patterns say of them, so that rare types come along.

    The stratum of a text is its rarest type by patterns, or `none`; every stratum that has texts
    gives at least one. Annotators do not see the stratum.
    """
    texts = list(read_texts(settings.input, settings.encoding))
    strata = stratify(texts, load_taxonomy(settings.taxonomy))
    wanted = allot(
        {name: len(members) for name, members in strata.items()}, min(settings.n, len(texts))
    )
    generator = random.Random(settings.seed)
    drawn = [text for name in strata for text in generator.sample(strata[name], wanted[name])]
    generator.shuffle(drawn)
    path = settings.out.with_name(f"{settings.out.name}.sample.jsonl")
    write_jsonl(path, ({"id": item.id, "question": item.text} for item in drawn))
    return DrawnSample(
        path=path,
        n=len(drawn),
        strata={name: (len(strata[name]), wanted[name]) for name in strata},
    )


def stratify(texts: Sequence[SourceText], taxonomy: Taxonomy) -> dict[str, list[SourceText]]:
    """Texts by their rarest type according to the patterns; `none` for the rest; sorted."""
    labels = PatternLabeller(taxonomy).label_many(item.text for item in texts)
    frequency = count_types(labels)
    strata: dict[str, list[SourceText]] = {}
    for item, row in zip(texts, labels, strict=True):
        rarest = min(
            (label.id for label in row), key=lambda kind: (frequency[kind], kind), default="none"
        )
        strata.setdefault(rarest, []).append(item)
    return dict(sorted(strata.items()))


def allot(sizes: Mapping[str, int], n: int) -> dict[str, int]:
    """How many to draw from each stratum: in proportion, at least one, none above its size.

    Largest remainders, ties by name. With fewer places than strata the largest strata get one.
    """
    if n < len(sizes):
        largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:n]
        return {name: int(name in largest) for name in sizes}
    total = sum(sizes.values())
    shares = {name: n * size / total for name, size in sizes.items()}
    given = {name: max(1, int(share)) for name, share in shares.items()}
    by_remainder = sorted(sizes, key=lambda name: (int(shares[name]) - shares[name], name))
    while sum(given.values()) < n:
        for name in by_remainder:
            if sum(given.values()) < n and given[name] < sizes[name]:
                given[name] += 1
    while sum(given.values()) > n:
        given[max(given, key=lambda name: (given[name], name))] -= 1
    return given
