"""What an outcome is predicted from: ridge regression, groups held out, features shuffled.

    found = permutation_importance(scores, {"arm": arm_columns, "age": age}, patients)
    found.r2                  # of rows whose patient the model has not seen
    found.features[0].loss    # how much of it goes when this feature is shuffled

Whole groups (patients) are held out, since rows of one patient are alike. A feature is all its
columns together; one that is the same in all rows of a group is shuffled between groups, any other
within groups. The penalty is chosen within the training groups alone.

Source: Breiman 2001, Machine Learning 45, for importance by permutation; arXiv 2509.09712 took it
from a random forest, so that figures differ from its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from cbtqa.records import NonEmptyText, Record
from cbtqa.statistics.resampling import DEFAULT_SEED, Floats

Ints = npt.NDArray[np.int64]
N_FOLDS = 5
N_SHUFFLES = 10
PENALTIES = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""By the number of rows, of columns in units of their spread."""


class Feature(Record):
    """One feature of a prediction."""

    name: NonEmptyText
    loss: float
    """Share of the variance (R2) that is lost when it is shuffled: mean over folds and shuffles."""
    least: float
    """Of the folds' means."""
    most: float


class Prediction(Record):
    """How well an outcome is predicted in groups that the model has not seen."""

    r2: float
    """Of all held-out rows; below 0 the model is worse than the mean."""
    mae: float
    """Mean absolute error, in points of the outcome."""
    n: int
    n_groups: int
    features: tuple[Feature, ...]
    """The heaviest first."""


def permutation_importance(
    y: Floats, columns: Mapping[str, Floats], groups: Sequence[str], *, seed: int = DEFAULT_SEED
) -> Prediction:
    """The prediction of `y`, and what each feature is worth in it.

    Args:
        y: outcome, shape (n,).
        columns: feature to its columns, shape (n, any).
        groups: of each row, such as the patient; two for each fold at least.

    Raises:
        ValueError: fewer groups than two a fold, or an outcome without variation.
    """
    names, member = np.unique(np.array(groups), return_inverse=True)
    if len(names) < 2 * N_FOLDS:
        raise ValueError(f"{len(names)} groups, fewer than {2 * N_FOLDS}")
    whole = float(((y - y.mean()) ** 2).sum())
    if whole <= 0:
        raise ValueError("the outcome does not vary")
    generator = np.random.default_rng(seed)
    fold_of = generator.permutation(np.arange(len(names)) % N_FOLDS)[member]
    place = _places(columns)
    x = np.column_stack(list(columns.values())).astype(np.float64)
    predicted = np.empty_like(y, dtype=np.float64)
    losses: dict[str, list[float]] = {name: [] for name in columns}
    for fold in range(N_FOLDS):
        held = fold_of == fold
        model = _Ridge(x[~held], y[~held], member[~held])
        predicted[held] = model.predict(x[held])
        right = float(((y[held] - predicted[held]) ** 2).sum())
        spread = float(((y[held] - y[held].mean()) ** 2).sum())
        for name, own in place.items():
            wrong = [
                float(((y[held] - model.predict(some)) ** 2).sum())
                for some in _shuffled(x[held], own, member[held], generator)
            ]
            losses[name].append((float(np.mean(wrong)) - right) / spread if spread > 0 else 0.0)
    features = [
        Feature(name=name, loss=float(np.mean(own)), least=min(own), most=max(own))
        for name, own in losses.items()
    ]
    return Prediction(
        r2=1 - float(((y - predicted) ** 2).sum()) / whole,
        mae=float(np.abs(y - predicted).mean()),
        n=len(y),
        n_groups=len(names),
        features=tuple(sorted(features, key=lambda one: -one.loss)),
    )


def _places(columns: Mapping[str, Floats]) -> dict[str, slice]:
    ends = np.cumsum([np.atleast_2d(own.T).shape[0] for own in columns.values()])
    starts = [0, *ends[:-1].tolist()]
    return {name: slice(a, int(b)) for name, a, b in zip(columns, starts, ends, strict=True)}


def _shuffled(
    x: Floats, own: slice, member: Ints, generator: np.random.Generator
) -> Iterator[Floats]:
    """The rows with the feature's columns shuffled, `N_SHUFFLES` times."""
    names, first, group = np.unique(member, return_index=True, return_inverse=True)
    is_of_group = bool((x[:, own] == x[first][group][:, own]).all())
    for _ in range(N_SHUFFLES):
        some = x.copy()
        if is_of_group:
            some[:, own] = x[first][generator.permutation(len(names))[group]][:, own]
        else:
            by_group = np.argsort(group, kind="stable")
            mixed = np.lexsort((generator.random(len(x)), group))
            some[np.ix_(by_group, np.arange(x.shape[1])[own])] = x[mixed][:, own]
        yield some


class _Ridge:
    """Least squares with a penalty on the size of the effects."""

    def __init__(self, x: Floats, y: Floats, member: Ints) -> None:
        fold_of = np.unique(member, return_inverse=True)[1] % N_FOLDS
        errors = []
        for penalty in PENALTIES:
            error = 0.0
            for fold in range(N_FOLDS):
                held = fold_of == fold
                self._fit(x[~held], y[~held], penalty)
                error += float(((y[held] - self.predict(x[held])) ** 2).sum())
            errors.append(error)
        self._fit(x, y, PENALTIES[int(np.argmin(errors))])

    def _fit(self, x: Floats, y: Floats, penalty: float) -> None:
        self._centre, spread = x.mean(axis=0), x.std(axis=0)
        self._spread = np.where(spread > 0, spread, 1.0)
        self._mean = float(y.mean())
        z = (x - self._centre) / self._spread
        inner = z.T @ z + penalty * len(z) * np.eye(z.shape[1])
        self._effects = np.linalg.solve(inner, z.T @ (y - self._mean))

    def predict(self, x: Floats) -> Floats:
        z = (x - self._centre) / self._spread
        return np.asarray(self._mean + z @ self._effects, dtype=np.float64)
