"""`cbtqa simulate analyse`: a judged study, or a table of scores, to a report.

report, folder = run_analysis(resolved)
report.instruments[0].outcomes[0].omnibus.p

analysis/
  report.html       one self-contained page
  analysis.json     every figure of the page
  scores.csv        one row per session, instrument and total
  contrasts.csv     pairs of arms
  wins.csv          pairs of arms: with how many patients each is ahead
  groups.csv        pairs of arms within groups of patients
  methods.md        a paragraph for a paper
  manifest.json     written last
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cbtqa.errors import DataError, UsageError
from cbtqa.files import write_json, write_text
from cbtqa.judging.correction import HumanSample, sample_of
from cbtqa.manifest import MANIFEST_NAME, describe_file, new_manifest, now, write_manifest
from cbtqa.paths import make_folder
from cbtqa.records import ItemRating, Session
from cbtqa.report.table import Table
from cbtqa.settings import Resolved
from cbtqa.simulation.analysis.agreement import agreement_rows, corrected_rows
from cbtqa.simulation.analysis.alarms import (
    all_alarms,
    endings,
    halo_rows,
    length_correlations,
    length_test,
    lengths,
    mark_rows,
)
from cbtqa.simulation.analysis.group_tables import groups_file, wins_file
from cbtqa.simulation.analysis.groups import explore
from cbtqa.simulation.analysis.outcomes import (
    alpha_within_arms,
    analyse_outcome,
    cronbach_alpha,
    item_profiles,
    item_use,
    missing_totals,
    regress,
    top_shares,
)
from cbtqa.simulation.analysis.page import analysis_page, methods_text
from cbtqa.simulation.analysis.results import (
    AgreementRow,
    AnalysisReport,
    CorrectedRow,
    InstrumentResult,
)
from cbtqa.simulation.analysis.score_tables import ArmPattern, read_table, read_traits
from cbtqa.simulation.analysis.scores import (
    Judged,
    SessionScore,
    read_judged,
    read_people,
    score_sessions,
)
from cbtqa.simulation.analysis.settings import AnalysisSettings, split_names
from cbtqa.simulation.instruments import SAFETY, Instrument
from cbtqa.simulation.judging.run import JUDGED
from cbtqa.simulation.judging.task import RULES
from cbtqa.simulation.profiles import read_profiles
from cbtqa.simulation.sessions import PROFILES_NAME, StudyFolder, read_transcripts

ANALYSIS = "analysis"
PAGE_NAME, JSON_NAME = "report.html", "analysis.json"
SCORES_NAME, CONTRASTS_NAME, METHODS_NAME = "scores.csv", "contrasts.csv", "methods.md"
WINS_NAME, GROUPS_NAME = "wins.csv", "groups.csv"


@dataclass(frozen=True)
class Scored:
    """One instrument's rows; from a study, with the ratings behind them."""

    instrument: Instrument
    rows: tuple[SessionScore, ...]
    judged: Judged | None = None
    people: tuple[ItemRating, ...] = ()
    sample: HumanSample | None = None
    """How the sessions that people rated were drawn, where it is known."""


@dataclass(frozen=True)
class Material:
    title: str
    source: str
    scored: tuple[Scored, ...]
    arms: tuple[str, ...]
    sessions: tuple[Session, ...] = ()
    notes: tuple[str, ...] = ()
    """Alarms from reading."""
    reading: tuple[str, ...] = ()
    """Of a table: which column was taken for what."""
    pattern: ArmPattern | None = None
    """What told the arms' factors."""


def analyse(resolved: Resolved[AnalysisSettings]) -> tuple[AnalysisReport, Material]:
    """The report, and the rows behind it.

    Raises:
        DataError: a file that is not what it should be, or arms with different patients.
        UsageError: an instrument, term or level that the data do not have.
    """
    settings = resolved.values
    is_study = settings.source.is_dir() or settings.judged is not None
    material = _from_study(settings) if is_study else _from_table(settings)
    material = replace(material, arms=_ordered(material.arms, settings.baseline))
    material = _with_equal_patients(material, settings.common_patients)
    settings, material = _with_known_terms(settings, material)
    results, correlations = [], []
    agreement: list[AgreementRow] = []
    corrected: list[CorrectedRow] = []
    for scored in material.scored:
        results.append(_analyse_one(scored, material.arms, settings))
        for total in scored.instrument.rubric.totals:
            correlations += length_correlations(
                scored.rows, scored.instrument.id, total.id, material.arms
            )
        if scored.judged is not None:
            agreement += agreement_rows(scored.judged, scored.people, material.sessions)
            corrected += corrected_rows(
                scored.judged, scored.people, material.sessions, material.arms, scored.sample
            )
    headlines = {
        one.instrument.id: (one.instrument.headline.id, one.rows)
        for one in material.scored
        if one.instrument.id != SAFETY
    }
    first = material.scored[0].rows
    n_patients = len({row.patient for row in first})
    report = AnalysisReport(
        title=settings.title or material.title,
        source=material.source,
        reading=material.reading,
        arms=material.arms,
        n_sessions=len({row.session_id for row in first}),
        n_patients=n_patients,
        is_rules=any(RULES in result.judges for result in results),
        instruments=tuple(results),
        endings=tuple(endings(material.sessions, material.arms)) if material.sessions else (),
        marks=tuple(mark_rows(material.sessions, material.arms)),
        lengths=tuple(lengths(first, material.arms)),
        length_test=length_test(first, material.arms),
        correlations=tuple(correlations),
        halo=tuple(halo_rows(headlines)),
        agreement=tuple(agreement),
        corrected=tuple(corrected),
        alarms=(),
        methods="",
    )
    judged = [scored.judged for scored in material.scored]
    alarms = tuple(all_alarms(report, judged, material.notes))
    report = report.model_copy(update={"alarms": alarms})
    return report.model_copy(update={"methods": methods_text(report, settings).en}), material


def _ordered(arms: tuple[str, ...], baseline: str | None) -> tuple[str, ...]:
    """The baseline first."""
    if baseline is None:
        return arms
    if baseline not in arms:
        raise UsageError(f"no arm '{baseline}'", hint=f"arms: {', '.join(arms)}")
    return (baseline, *(arm for arm in arms if arm != baseline))


def _from_table(settings: AnalysisSettings) -> Material:
    if settings.human:
        raise UsageError("--human needs a judged study: a table does not name its sessions")
    table = read_table(settings.source, settings, settings.instrument)
    scored = tuple(Scored(instrument, rows) for instrument, rows in table.scores)
    arms = tuple(dict.fromkeys(row.arm for row in scored[0].rows))
    name = settings.source.name
    return Material(name, name, scored, arms, reading=table.reading, pattern=table.pattern)


def _with_known_terms(
    settings: AnalysisSettings, material: Material
) -> tuple[AnalysisSettings, Material]:
    """With the model of terms of the study whose names the arms have, unless a flag named one."""
    pattern, rows = material.pattern, material.scored[0].rows
    if settings.terms is not None or pattern is None:
        return settings, material
    terms = list(split_names(pattern.terms))
    if len({row.number for row in rows}) < 2:
        terms = [term for term in terms if term != "z(session)"]
    levels = {f"{name}={level}" for row in rows for name, level in row.factors.items()}
    reference = tuple(one for one in pattern.reference if one in levels)
    known = settings.model_copy(
        update={"terms": ",".join(terms), "reference": settings.reference or reference}
    )
    try:
        regress(rows, material.scored[0].instrument, known)
    except UsageError as error:
        note = f"model of terms: none ({error})"
        return settings, replace(material, reading=(*material.reading, note))
    note = f"model of terms: {known.terms}, {' '.join(known.reference)} as its intercept"
    return known, replace(material, reading=(*material.reading, note))


def _from_study(settings: AnalysisSettings) -> Material:
    folder = StudyFolder(settings.source)
    study = folder.study() if settings.source.is_dir() else None
    sessions = tuple(read_transcripts(settings.source))
    judged = read_judged(settings.judged or settings.source / JUDGED)
    unknown = [name for name in settings.instrument if name not in judged]
    if unknown:
        raise UsageError(
            f"nobody has judged on '{unknown[0]}'", hint=f"judged: {', '.join(judged)}"
        )
    if settings.instrument:
        judged = {name: judged[name] for name in settings.instrument}
    people: dict[str, list[ItemRating]] = {name: [] for name in judged}
    samples: dict[str, HumanSample | None] = {}
    for path in settings.human:
        instruments = [one.instrument for one in judged.values()]
        rated, ratings = read_people(path, instruments, sessions)
        people[rated] += ratings
        drawn_from = folder.sessions_path if settings.source.is_dir() else settings.source
        sample = settings.human_sample or sample_of(path, [drawn_from])
        samples[rated] = sample if samples.get(rated, sample) == sample else None
    levels = {arm.name: arm.levels for arm in study.arms} if study else {}
    traits = _traits(settings, sessions)
    scored = [
        Scored(
            one.instrument,
            score_sessions(one, sessions, levels, traits),
            one,
            tuple(people[name]),
            samples.get(name),
        )
        for name, one in judged.items()
    ]
    found = tuple(dict.fromkeys(session.arm for session in sessions))
    declared = tuple(arm.name for arm in study.arms) if study else ()
    arms = tuple(arm for arm in declared if arm in found) or found
    notes = tuple(note for one in judged.values() for note in _gaps(one, sessions))
    title = (study.title or study.id) if study else settings.source.name
    return Material(title, settings.source.name, tuple(scored), arms, sessions, notes)


def _traits(settings: AnalysisSettings, sessions: Sequence[Session]) -> dict[str, dict[str, str]]:
    """Patient to attributes: of `--patients`, else those of one value in the study's profiles."""
    if settings.patients is not None:
        return read_traits(settings.patients, list(dict.fromkeys(s.profile_id for s in sessions)))
    path = settings.source / PROFILES_NAME
    found: dict[str, dict[str, str]] = {}
    for profile in read_profiles(path) if path.is_file() else ():
        own = {name: one[0] for name, one in profile.attributes.items() if len(one) == 1}
        found[profile.id] = own | ({"archetype": profile.archetype} if profile.archetype else {})
    return found


def _gaps(judged: Judged, sessions: Sequence[Session]) -> Iterable[str]:
    """Judges that have not ended, and sessions that no judge was given."""
    name = judged.instrument.id
    for folder in judged.unfinished:
        yield f"{name}: the judge {folder} has not ended and is left out"
    for judge, ratings in judged.ratings.items():
        known = {one.session_id for one in ratings}
        n_lacking = sum(session.id not in known for session in sessions)
        if n_lacking:
            yield (
                f"{name}: {judge} was not given {n_lacking} of {len(sessions)} sessions; "
                "cbtqa simulate judge continues"
            )


def _with_equal_patients(material: Material, is_common: bool) -> Material:
    """Arms are compared on the same patients, or not at all."""
    patients = {
        arm: {row.patient for one in material.scored for row in one.rows if row.arm == arm}
        for arm in material.arms
    }
    every = set.union(*patients.values())
    shared = set.intersection(*patients.values())
    if every == shared:
        return material
    lacking = {arm: sorted(every - own) for arm, own in patients.items() if every - own}
    arm, names = next(iter(lacking.items()))
    if not is_common or len(shared) < 2:
        raise DataError(
            f"arms have different patients: {arm} lacks {', '.join(names[:3])}"
            f"{' and more' if len(names) > 3 else ''}; {len(shared)} patients are in every arm",
            hint="finish the study, or add --common-patients to compare on those that all have",
        )
    scored = tuple(
        replace(one, rows=tuple(row for row in one.rows if row.patient in shared))
        for one in material.scored
    )
    sessions = tuple(s for s in material.sessions if s.profile_id in shared)
    note = f"{len(every - shared)} patients are left out: not every arm has them"
    return replace(material, scored=scored, sessions=sessions, notes=(*material.notes, note))


def _analyse_one(
    scored: Scored, arms: Sequence[str], settings: AnalysisSettings
) -> InstrumentResult:
    instrument, rows = scored.instrument, scored.rows
    ratings = scored.judged.all_ratings() if scored.judged else None
    alpha, alpha_low = alpha_within_arms(instrument, rows) or (None, None)
    return InstrumentResult(
        instrument=instrument.id,
        title=instrument.rubric.title.to("en"),
        title_zh=instrument.rubric.title.to("zh"),
        scale=instrument.scale,
        source=instrument.rubric.source,
        judges=tuple(scored.judged.ratings) if scored.judged else (),
        n_sessions=len(rows),
        alpha=cronbach_alpha(instrument, rows),
        alpha_within=alpha,
        alpha_within_low=alpha_low,
        outcomes=tuple(
            analyse_outcome(rows, instrument, total, arms, settings)
            for total in instrument.rubric.totals
        ),
        regression=regress(rows, instrument, settings) if split_names(settings.terms) else None,
        profile=tuple(item_profiles(instrument, rows, arms)),
        use=tuple(item_use(instrument, rows, ratings)),
        top=tuple(top_shares(instrument, rows, ratings, arms)),
        missing=tuple(missing_totals(instrument, rows)),
        exploration=explore(rows, instrument.headline.id, arms, settings),
    )


def run_analysis(resolved: Resolved[AnalysisSettings]) -> tuple[AnalysisReport, Path | None]:
    """Analyses and writes the folder; gives the report and the folder.

    A table without `out` is analysed, and no folder is written.

    Raises:
        DataError: there is no such source.
        UsageError: as `analyse`, or there can be no such folder as `out`.
    """
    started, settings = now(), resolved.values
    if not settings.source.exists():
        raise DataError(
            "no such study or table", where=str(settings.source), hint="cbtqa simulate run"
        )
    out = settings.out or (settings.source / ANALYSIS if settings.source.is_dir() else None)
    if out is not None:
        make_folder(out)
    report, material = analyse(resolved)
    if out is None:
        return report, None
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    methods = methods_text(report, settings)
    tables = {
        SCORES_NAME: _score_table(material),
        CONTRASTS_NAME: _contrast_table(report),
        WINS_NAME: wins_file(report),
        GROUPS_NAME: groups_file(report),
    }
    write_json(out / JSON_NAME, report)
    for name, table in tables.items():
        write_text(out / name, table.csv())
    write_text(out / METHODS_NAME, f"{methods.en}\n\n{methods.zh}\n")
    write_text(out / PAGE_NAME, analysis_page(report, methods, settings.lang))
    names = (JSON_NAME, *tables, METHODS_NAME, PAGE_NAME)
    read = (settings.source, settings.patients, *settings.human)
    manifest = new_manifest(
        "session-analysis",
        resolved,
        started,
        inputs=tuple(describe_file(path) for path in read if path is not None and path.is_file()),
        counts={"n_sessions": report.n_sessions, "n_alarms": len(report.alarms)},
        files=tuple(describe_file(out / name, out) for name in names),
    )
    write_manifest(out, manifest)
    return report, out


def _score_table(material: Material) -> Table:
    heads = ("session", "arm", "patient", "number", "instrument", "total", "value")
    rows = [
        (
            *(row.session_id, row.arm, row.patient, row.number, one.instrument, one.total),
            *(one.value, one.low, one.high, one.least, one.most, one.reason),
        )
        for scored in material.scored
        for row in scored.rows
        for one in row.totals
    ]
    return Table([*heads, "low", "high", "least", "most", "reason"], rows)


def _contrast_table(report: AnalysisReport) -> Table:
    """Pairs of arms on patients, and beside them the z of the published model."""
    heads = ("instrument", "total", "first", "second", "difference", "se", "df", "t", "p")
    more = ("p_adjusted", "low", "high", "d", "p_own_error", "p_adjusted_common_error")
    published = ("difference", "se", "z", "p", "p_adjusted")
    rows = []
    for outcome in (outcome for result in report.instruments for outcome in result.outcomes):
        old = {(one.first, one.second): one for one in outcome.published.contrasts}
        for one in outcome.comparison.contrasts:
            theirs = old.get((one.first, one.second))
            rows.append(
                (
                    *(outcome.instrument, outcome.total),
                    *(getattr(one, name) for name in (*heads[2:], *more)),
                    *(getattr(theirs, name) if theirs else None for name in published),
                )
            )
    return Table([*heads, *more, *(f"published_{name}" for name in published)], rows)
