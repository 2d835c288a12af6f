"""The leaderboard that a submission is placed on, and whether a competition's metric can be relied upon.

Eight baselines are fitted for real, in the sandbox, on train.csv as anybody has it, and graded on the private answers:

    constant       the mean, the most frequent class, the base rate
    one feature    a tree of three leaves on the one column that does best in cross-validation
    linear         ridge or logistic regression on all columns, scaled, one-hot where text
    neighbours     15 nearest neighbours
    tree           a decision tree, five rows a leaf
    forest         100 trees
    boosting       gradient boosting, 100 trees of depth 3
    bayes          naive Bayes; for a number, a linear model with a Huber loss

A submission's percentile is the share of baselines that it beats, a tie counting half.

A candidate is no competition where the measurement says so: *too small* (fewer than ``MIN_TEST`` private rows), *noise*
(the gain of the best baseline over the constant is less than ``CERTAIN`` standard errors, by a paired bootstrap over
the private rows), *leak* (one feature alone predicts the target all but perfectly), *repeats* (more than
``MAX_REPEATS`` of the test rows stand in train.csv, target and all). Measurements are kept (``cache.py``).
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass

from openhorizon.domains.engineering.cache import remembered
from openhorizon.domains.engineering.competitions import Competition, Key, competition
from openhorizon.domains.engineering.grading import LOWER_IS_BETTER, RESAMPLES, better, gain, standard_error
from openhorizon.domains.engineering.runner import run_python

MIN_TEST = 50
CERTAIN = 4.0
MAX_REPEATS = 0.1
PERFECT = 0.995
BASELINES = ("constant", "one feature", "linear", "neighbours", "tree", "forest", "boosting", "bayes")

# Runs in the sandbox. TARGET, KIND, METRIC and POSITIVE stand before it.
PROGRAM = """
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    GradientBoostingClassifier, GradientBoostingRegressor, RandomForestClassifier, RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import HuberRegressor, LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

train = pd.read_csv("train.csv", dtype={TARGET: str} if KIND != "number" else None)
test = pd.read_csv("test.csv")
features = [name for name in test.columns if name != "id"]
text = [name for name in features if not pd.api.types.is_numeric_dtype(train[name])]
for frame in (train, test):
    frame[text] = frame[text].astype(str)
y = train[TARGET]


def prepared(columns, model):
    words = [name for name in columns if name in text]
    numbers = [name for name in columns if name not in text]
    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    steps = [("numbers", make_pipeline(fill, StandardScaler()), numbers)]
    steps.append(("words", OneHotEncoder(handle_unknown="ignore", sparse_output=False), words))
    return make_pipeline(ColumnTransformer(steps), model)


if KIND == "number":
    models = [DummyRegressor(), DecisionTreeRegressor(max_leaf_nodes=3, random_state=0), Ridge()]
    models += [KNeighborsRegressor(15), DecisionTreeRegressor(min_samples_leaf=5, random_state=0)]
    models += [RandomForestRegressor(random_state=0), GradientBoostingRegressor(random_state=0)]
    models += [HuberRegressor(max_iter=1000)]
else:
    models = [DummyClassifier(), DecisionTreeClassifier(max_leaf_nodes=3, random_state=0)]
    models += [LogisticRegression(max_iter=2000), KNeighborsClassifier(15)]
    models += [DecisionTreeClassifier(min_samples_leaf=5, random_state=0), RandomForestClassifier(random_state=0)]
    models += [GradientBoostingClassifier(random_state=0), GaussianNB()]
best = max(features, key=lambda name: cross_val_score(prepared([name], models[1]), train[[name]], y, cv=3).mean())
out = {"id": test["id"]}
for i, model in enumerate(models):
    columns = [best] if i == 1 else features
    fitted = prepared(columns, model).fit(train[columns], y)
    if METRIC in ("auc", "logloss"):
        out[f"m{i}"] = fitted.predict_proba(test[columns])[:, list(fitted.classes_).index(POSITIVE)]
    else:
        out[f"m{i}"] = fitted.predict(test[columns])
pd.DataFrame(out).to_csv("submission.csv", index=False)
"""


@dataclass(frozen=True)
class Measured:
    """What the baselines scored in private; ``problem`` says why a candidate is no competition, or is empty."""

    problem: str
    scores: dict[str, float]
    error: float  # standard error of the gain of the best baseline over the constant

    def percentile(self, metric: str, score: float) -> int:
        """The share of baselines, in percent, that this score beats."""
        beaten = sum(1.0 if better(metric, score, other) else 0.5 * (score == other) for other in self.scores.values())
        return round(100 * beaten / len(self.scores))


@functools.lru_cache(maxsize=2000)
def measure(key: Key) -> Measured:
    """Of one competition, from the cache where it was measured before."""
    found = competition(key)
    parts = [found.public.digest, repr(found.answers), repr((key.target, found.kind, key.metric, found.positive))]
    parts += [PROGRAM, repr((MIN_TEST, CERTAIN, MAX_REPEATS, PERFECT, RESAMPLES))]
    return Measured(**remembered(parts, lambda: asdict(_measure(found))))


def _measure(found: Competition) -> Measured:
    if len(found.ids) < MIN_TEST:
        return Measured(f"too small: {len(found.ids)} private rows", {}, 0.0)
    if (repeats := _repeats(found)) > MAX_REPEATS:
        return Measured(f"repeats: {repeats:.0%} of the test rows stand in train.csv", {}, 0.0)
    key = found.key
    head = f"TARGET, KIND, METRIC, POSITIVE = {(key.target, found.kind, key.metric, found.positive)!r}\n"
    run = run_python(found.public, head + PROGRAM)
    if not run.ok or run.submission is None:
        return Measured(f"baselines failed: {run.output.splitlines()[-1] if run.output else 'no output'}", {}, 0.0)
    table = [line.split(",") for line in run.submission.splitlines()]
    predictions = {name: [row[i] for row in table[1:]] for i, name in enumerate(BASELINES, 1)}
    scores = {name: found.grade(given) for name, given in predictions.items()}
    order = sorted(scores, key=lambda name: scores[name], reverse=key.metric not in LOWER_IS_BETTER)
    first, floor = predictions[order[0]], predictions["constant"]
    error = standard_error(key.metric, found.answers, first, floor, found.positive, seed=0)
    won = gain(key.metric, scores[order[0]], scores["constant"])
    problem = ""
    if won < CERTAIN * error or not won:
        problem = f"noise: the best baseline gains {won:.4g} over a constant, with a standard error of {error:.2g}"
    elif _perfect(key.metric, scores):
        problem = "leak: one feature alone predicts the target"
    return Measured(problem, scores, error)


def _perfect(metric: str, scores: dict[str, float]) -> bool:
    one = scores["one feature"]
    if metric in LOWER_IS_BETTER:
        return one <= (1 - PERFECT) * scores["constant"]
    return one >= PERFECT


def _repeats(found: Competition) -> float:
    """The share of test rows that train.csv has with all features and the answer (ids aside)."""
    known = {line.partition(",")[2] for line in found.public.files["train.csv"].decode().splitlines()[1:]}
    rows = [line.partition(",")[2] for line in found.public.files["test.csv"].decode().splitlines()[1:]]
    return sum(f"{row},{answer}" in known for row, answer in zip(rows, found.answers, strict=True)) / len(rows)
