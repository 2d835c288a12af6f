"""The helper that stands in the short-text world's workspace as ``lab.py``: one line of code makes a model.

``fit('Tree Age Bmi')`` fits a decision tree on columns Age and Bmi, prints its cross-validated score and writes
submission.csv; ``show('Weight')`` prints which two columns go most with the target. Scores are whole numbers, so that
they are short: the accuracy per mille, or the error (RMSE) per mille of the target's standard deviation.
"""

MODELS = ("Mean", "Linear", "Tree", "Near")

LAB = '''
import difflib
import sys

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

NUMBER = {
    "Mean": lambda: DummyRegressor(),
    "Linear": lambda: LinearRegression(),
    "Tree": lambda: DecisionTreeRegressor(max_depth=4, min_samples_leaf=5, random_state=0),
    "Near": lambda: KNeighborsRegressor(9),
}
LABEL = {
    "Mean": lambda: DummyClassifier(),
    "Linear": lambda: LogisticRegression(max_iter=500),
    "Tree": lambda: DecisionTreeClassifier(max_depth=4, min_samples_leaf=5, random_state=0),
    "Near": lambda: KNeighborsClassifier(9),
}


def known(kind, word, words):
    """The word, or the end of the run where it is none of the words."""
    if word not in words:
        near = difflib.get_close_matches(word, words, 1, 0)[0]
        sys.exit(f"no {kind} {word}, change {word} to {near}")
    return word


def numbers(frame, columns):
    """Text becomes a number by its place in the alphabet; what is missing becomes the column's median."""
    out = frame[columns].copy()
    for name in columns:
        if not pd.api.types.is_numeric_dtype(out[name]):
            out[name] = out[name].astype("category").cat.codes
    return out.fillna(out.median()).fillna(0)


def fit(text):
    train, test = pd.read_csv("train.csv"), pd.read_csv("test.csv")
    target = train.columns[-1]
    columns = [name for name in test.columns if name != "id"]
    words = text.split()
    models = NUMBER if KIND == "number" else LABEL
    model = known("model", words[0], list(models)) if words else sys.exit("no model")
    chosen = [known("column", word, columns) for word in words[1:]] or columns
    both = numbers(pd.concat([train, test]), chosen)
    x, unseen = both[: len(train)], both[len(train) :]
    y = train[target] if KIND == "number" else train[target].astype(str)
    fitted = make_pipeline(StandardScaler(), models[model]())
    guess = cross_val_predict(fitted, x, y, cv=KFold(4, shuffle=True, random_state=0))
    if KIND == "number":
        print(round(1000 * float(np.sqrt(np.mean((guess - y) ** 2)) / np.std(y))))
    else:
        print(round(1000 * float(np.mean(guess == y))))
    out = pd.DataFrame({"id": test["id"], target: fitted.fit(x, y).predict(unseen)})
    out.to_csv("submission.csv", index=False)


def show(target):
    train = pd.read_csv("train.csv")
    columns = [name for name in train.columns if name not in ("id", target)]
    if known("column", target, list(train.columns)) != train.columns[-1]:
        columns = [name for name in columns if name != train.columns[-1]]
    data = numbers(train, [*columns, target])
    strength = data[columns].corrwith(data[target], method="spearman").abs().fillna(0)
    print(*strength.sort_values(ascending=False, kind="stable").index[:2])
'''


def lab(kind: str) -> bytes:
    """``lab.py`` for a target that is a number, or not."""
    return f"KIND = {kind!r}\n{LAB}".encode()


def program(code: str) -> str:
    """What is run for a node's code: it finds ``fit`` and ``show``."""
    return f"from lab import fit, show\n{code}\n"


def programs(codes: list[str]) -> str:
    """All of ``codes`` in one run, each with a namespace of its own: a dozen forks of a large interpreter saved.
    Writes a JSON list of ``[finished, output, submission]`` to submission.csv; the same
    as one run each (a test holds it)."""
    return f"CODES = {codes!r}\n{_PROGRAMS}"


_PROGRAMS = """
import contextlib
import io
import json
import os
import sys

results = []
for code in CODES:
    out, ok = io.StringIO(), True
    with contextlib.redirect_stdout(out):
        try:
            exec(f"from lab import fit, show\\n{code}", {"__name__": "__main__"})
        except SystemExit as stop:
            print(stop)
            ok = False
    submission = None
    if os.path.exists("submission.csv"):
        with open("submission.csv") as file:
            submission = file.read()
        os.remove("submission.csv")
    results.append([ok, out.getvalue().rstrip(), submission])
with open("submission.csv", "w") as file:
    json.dump(results, file)
"""
