"""Multinomial logistic regression with a normal prior, for the small linear models of the package.

Source: the penalised likelihood of Bishop 2006, Pattern Recognition and Machine Learning, 4.3.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(scores: Floats) -> Floats:
    """Probabilities of the last axis from unbounded scores."""
    parts = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: Floats = parts / parts.sum(axis=-1, keepdims=True)
    return found


def fit_softmax(
    x: Any,
    truth: NDArray[np.int64],
    n_classes: int,
    *,
    ridge: float,
    max_steps: int,
    minimize: Any,
    weight: Floats | None = None,
) -> Floats:
    """Weights, shape (columns of x + 1, n_classes); the last row holds the biases.

    Args:
        x: `scipy.sparse` matrix, a row an example.
        truth: the class of each row, from 0 to n_classes - 1.
        ridge: variance of the weights' normal prior; biases have none.
        max_steps: of L-BFGS.
        minimize: `scipy.optimize.minimize`, handed in because scipy is no core dependency.
        weight: how much each row counts; 1 where it is None.
    """
    one_hot, transposed = np.eye(n_classes)[truth], x.T.tocsr()
    counts = np.ones((len(truth), 1)) if weight is None else weight[:, None]

    def loss(flat: Floats) -> tuple[float, Floats]:
        w = flat.reshape(-1, n_classes)
        score = x @ w[:-1] + w[-1]
        score -= score.max(axis=1, keepdims=True)
        log_p = score - np.log(np.exp(score).sum(axis=1, keepdims=True))
        wrong = (np.exp(log_p) - one_hot) * counts
        slope = np.vstack([transposed @ wrong + w[:-1] / ridge, wrong.sum(axis=0)])
        value = (w[:-1] ** 2).sum() / (2 * ridge) - (log_p * one_hot * counts).sum()
        return float(value), slope.ravel()

    start = np.zeros((x.shape[1] + 1) * n_classes)
    options = {"maxiter": max_steps}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    fitted: Floats = found.x.reshape(-1, n_classes)
    return fitted
