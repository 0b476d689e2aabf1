"""Whether probabilities mean what they say, and a threshold that is fixed before the test: numbers in, numbers out.

Shapes: N slides, C classes, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats
from sklearn.linear_model import LogisticRegression

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation.classification import Floats, split_scores

LEAST_PROBABILITY = 1e-7
TEMPERATURES = (0.05, 20.0)
"""Between these a temperature is looked for."""


@dataclass(frozen=True)
class Calibration:
    """Agreement of predicted and observed frequencies.

    Attributes
    ----------
    slope
        Of observed log-odds on predicted ones; 1 is right, below 1 probabilities are too extreme.
    intercept
        Log-odds to add to all predictions so that their mean is that observed; 0 is right.
    """

    slope: float
    intercept: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Slides of similar probability.

    Attributes
    ----------
    predicted
        Their mean probability.
    observed, low, high
        Share of them that is positive, with its Wilson 95 % interval.
    slides
        How many.
    """

    predicted: float
    observed: float
    low: float
    high: float
    slides: int


def fit_temperature(probability: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    """Temperature that makes probabilities most likely (Guo et al., ICML 2017, section 4.2).

    Parameters
    ----------
    probability
        Of validation slides, shape (N, C).
    truth
        Class numbers, shape (N,).

    Returns
    -------
    float
        T of ``softmax(log p / T)``; above 1 where the model is too sure. Between 0.05 and 20: separated wholly, slides
        would ask for 0.

    Raises
    ------
    EvaluationError
        No slides, or shapes that do not match.
    """
    if probability.ndim != 2 or truth.shape != probability.shape[:1] or not len(truth):
        raise EvaluationError(
            f"truth of shape {truth.shape} and probabilities of shape {probability.shape} do not match"
        )
    logits = np.log(np.maximum(probability, LEAST_PROBABILITY))

    def loss(log_temperature: float) -> float:
        scaled = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(scaled[np.arange(len(truth)), truth].mean())

    bounds = (float(np.log(TEMPERATURES[0])), float(np.log(TEMPERATURES[1])))
    return float(np.exp(optimize.minimize_scalar(loss, bounds=bounds, method="bounded").x))


def with_temperature(probability: NDArray[np.floating], temperature: float) -> Floats:
    """``softmax(log p / T)``, shape (..., C); the order of classes stays."""
    logits = np.log(np.maximum(probability, LEAST_PROBABILITY))
    return np.asarray(special.softmax(logits / temperature, axis=-1), np.float64)


def calibration(truth: ArrayLike, score: ArrayLike) -> Calibration:
    """Calibration slope and intercept (Cox, 1958).

    Parameters
    ----------
    truth
        0 or 1, shape (N,).
    score
        Probability of 1, shape (N,).

    Raises
    ------
    EvaluationError
        As :func:`wsi_ips.evaluation.auc_with_interval`; or the classes are separated wholly: there is no slope.
    """
    positive, negative = split_scores(truth, score)
    if positive.min() > negative.max() or positive.max() < negative.min():
        raise EvaluationError("the classes are separated wholly: a calibration slope does not exist")
    labels, scores = np.asarray(truth, int), np.asarray(score, np.float64)
    log_odds = special.logit(np.clip(scores, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY))
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(log_odds[:, None], labels)

    def excess(shift: float) -> float:
        return float((special.expit(log_odds + shift) - labels).sum())

    return Calibration(float(fitted.coef_[0, 0]), float(optimize.brentq(excess, -50, 50)))


def reliability(truth: ArrayLike, score: ArrayLike, *, bins: int = 10) -> list[ReliabilityBin]:
    """Predicted against observed frequency in bins of about equally many slides.

    Parameters
    ----------
    truth, score
        As for :func:`calibration`.
    bins
        At most so many; fewer where there are fewer slides.

    Raises
    ------
    EvaluationError
        As :func:`wsi_ips.evaluation.auc_with_interval`.
    """
    split_scores(truth, score)
    labels, scores = np.asarray(truth, int), np.asarray(score, np.float64)
    order = np.argsort(scores, kind="stable")
    found = []
    for part in np.array_split(order, min(bins, len(order))):
        count, hits = len(part), int(labels[part].sum())
        interval = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
        found.append(
            ReliabilityBin(float(scores[part].mean()), hits / count, float(interval.low), float(interval.high), count)
        )
    return found


def fixed_threshold(truth: ArrayLike, score: ArrayLike) -> float:
    """Threshold of the highest balanced accuracy (Youden, 1950); take it from validation slides.

    Between neighbouring scores their middle; of several thresholds that are equally good the middle one.

    Raises
    ------
    EvaluationError
        As :func:`wsi_ips.evaluation.auc_with_interval`.
    """
    positive, negative = split_scores(truth, score)
    values = np.unique(np.concatenate([positive, negative]))
    candidates = (values[:-1] + values[1:]) / 2 if len(values) > 1 else values
    balanced = np.array([(positive >= t).mean() + (negative < t).mean() for t in candidates])
    best = np.flatnonzero(np.isclose(balanced, balanced.max()))
    return float(candidates[best[len(best) // 2]])
