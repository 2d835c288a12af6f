"""The scripts of the natural-text world: what a solver writes for a competition, and how a colleague broke it.

A ``Recipe`` is what a solver decides (columns by type, model, its settings, folds, seed); ``script`` writes it down as
a program of 60 to 70 lines that cross-validates, reports fold by fold, shows which columns the score needs and which
rows it gets most wrong, and writes submission.csv. Its last line is ``cv METRIC SCORE +- SPREAD``.

``broken`` is a script with a bug that really stops it; ``leaky`` one whose cross-validation looks at the target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CV = re.compile(r"^cv (\w+) (-?\d[\d.e+-]*) \+- (\S+)$", re.MULTILINE)
CLASSES_OF = {  # model → (module, class for labels, class for numbers)
    "linear": ("linear_model", "LogisticRegression", "Ridge"),
    "neighbours": ("neighbors", "KNeighborsClassifier", "KNeighborsRegressor"),
    "tree": ("tree", "DecisionTreeClassifier", "DecisionTreeRegressor"),
    "forest": ("ensemble", "RandomForestClassifier", "RandomForestRegressor"),
    "extra": ("ensemble", "ExtraTreesClassifier", "ExtraTreesRegressor"),
    "boosting": ("ensemble", "GradientBoostingClassifier", "GradientBoostingRegressor"),
}
WORDS_OF = {
    "linear": "a regularised linear model",
    "neighbours": "nearest neighbours",
    "tree": "a single decision tree",
    "forest": "a random forest",
    "extra": "extremely randomised trees",
    "boosting": "gradient boosting",
}
_FIXED = {  # settings that are not tuned
    "linear": {"LogisticRegression": "max_iter=2000", "Ridge": ""},
    "tree": "random_state=SEED",
    "forest": "n_estimators=40, random_state=SEED",
    "extra": "n_estimators=40, random_state=SEED",
    "boosting": "max_depth=3, random_state=SEED",
}
TUNED = {  # model → the setting that is tuned, its first value, others to try
    "LogisticRegression": ("C", "1.0", ("0.05", "0.3", "5.0", "20.0")),
    "Ridge": ("alpha", "1.0", ("0.05", "10.0", "50.0", "0.3")),
    "KNeighbors": ("n_neighbors", "15", ("5", "31", "9", "21")),
    "DecisionTree": ("max_depth", "5", ("3", "8", "4", "12")),
    "RandomForest": ("min_samples_leaf", "2", ("5", "1", "10", "3")),
    "ExtraTrees": ("min_samples_leaf", "2", ("5", "1", "10", "3")),
    "GradientBoosting": ("n_estimators", "60", ("30", "120", "90", "45")),
}
_SCORES = {  # metric → (function of sklearn.metrics, expression over truth and guess)
    "auc": ("roc_auc_score", "float(roc_auc_score(truth == POSITIVE, guess))"),
    "logloss": ("log_loss", "float(log_loss((truth == POSITIVE).astype(int), guess, labels=[0, 1]))"),
    "accuracy": ("accuracy_score", "float(accuracy_score(truth, guess))"),
    "macro_f1": ("f1_score", 'float(f1_score(truth, guess, average="macro"))'),
    "rmse": ("mean_squared_error", "float(np.sqrt(mean_squared_error(truth, guess)))"),
    "mae": ("mean_absolute_error", "float(mean_absolute_error(truth, guess))"),
}


@dataclass(frozen=True)
class Recipe:
    """What a solver decides."""

    target: str
    metric: str
    kind: str  # binary, classes or number
    positive: str
    numbers: tuple[str, ...]
    words: tuple[str, ...]
    model: str
    settings: Mapping[str, str] = field(default_factory=dict)
    folds: int = 4
    seed: int = 0

    @property
    def of(self) -> str:
        """The model's class."""
        return CLASSES_OF[self.model][2 if self.kind == "number" else 1]


def tuned(code: str) -> tuple[str, str, tuple[str, ...]]:
    """Of the model that a script fits: the setting to tune, its value there, others to try.

    Raises:
        ValueError: it has none.
    """
    for name, (setting, _, others) in TUNED.items():
        found = re.search(rf"\b{name}\w*\(.*\b{setting}=([\d.]+)", code)
        if found:
            return setting, found[1], tuple(value for value in others if value != found[1])
    raise ValueError("the script calls no model with the setting that is tuned")


def script(recipe: Recipe) -> str:
    """The whole program."""
    module = CLASSES_OF[recipe.model][0]
    metric, expression = _SCORES[recipe.metric]
    probability = recipe.metric in ("auc", "logloss")
    splitter = "KFold" if recipe.kind == "number" else "StratifiedKFold"
    read = "" if recipe.kind == "number" else ", dtype={TARGET: str}"
    lines = [
        "import numpy as np",
        "import pandas as pd",
        "from sklearn.compose import ColumnTransformer",
        f"from sklearn.{module} import {recipe.of}",
        "from sklearn.impute import SimpleImputer",
        f"from sklearn.metrics import {metric}",
        f"from sklearn.model_selection import {splitter}",
        "from sklearn.pipeline import Pipeline",
        "from sklearn.preprocessing import OneHotEncoder, StandardScaler",
        "",
        f"TARGET = {_text(recipe.target)}",
        *([f"POSITIVE = {_text(recipe.positive)}"] if recipe.kind == "binary" else []),
        f"NUMBERS = {_list(recipe.numbers)}",
        f"WORDS = {_list(recipe.words)}",
        f"FOLDS = {recipe.folds}",
        f"SEED = {recipe.seed}",
        "",
        f'train = pd.read_csv("train.csv"{read})',
        'test = pd.read_csv("test.csv")',
        "X, y = train[NUMBERS + WORDS], train[TARGET]",
        'print(f"{len(train)} rows to learn from, {len(test)} to predict, {X.shape[1]} columns")',
        "",
        'fill = SimpleImputer(strategy="median")',
        'numbers = Pipeline([("fill", fill), ("scale", StandardScaler())])',
        'code = OneHotEncoder(handle_unknown="ignore", sparse_output=False)',
        'words = Pipeline([("fill", SimpleImputer(strategy="most_frequent")), ("code", code)])',
        'columns = ColumnTransformer([("numbers", numbers, NUMBERS), ("words", words, WORDS)])',
        f'model = Pipeline([("columns", columns), ("model", {recipe.of}({_settings(recipe)}))])',
        "",
        "",
        "def predict(rows):",
        *(
            ["    at = list(model.classes_).index(POSITIVE)", "    return model.predict_proba(rows)[:, at]"]
            if probability
            else ["    return model.predict(rows)"]
        ),
        "",
        "",
        "def score(truth, guess):",
        f"    return {expression}",
        "",
        "",
        "scores, guesses = [], []",
        f"split = {splitter}(FOLDS, shuffle=True, random_state=SEED)",
        "for fold, (fit, check) in enumerate(split.split(X, y), 1):",
        "    model.fit(X.iloc[fit], y.iloc[fit])",
        "    guess = pd.Series(predict(X.iloc[check]), index=check)",
        "    scores.append(score(y.iloc[check], guess.to_numpy()))",
        "    learned = score(y.iloc[fit], predict(X.iloc[fit]))",
        "    guesses.append(guess)",
        f'    print(f"fold {{fold}}: {recipe.metric} {{scores[-1]:.5g}} on {{len(check)}} rows, '
        'on its own training rows {learned:.5g}")',
        "",
        f'print("{recipe.metric} lost in the last fold when a column is shuffled:")',
        "rng, part = np.random.default_rng(SEED), X.iloc[check]",
        "lost = {}",
        "for name in NUMBERS + WORDS:",
        "    mixed = part.assign(**{name: rng.permutation(part[name].to_numpy())})",
        "    lost[name] = abs(score(y.iloc[check], predict(mixed)) - scores[-1])",
        "for name in sorted(lost, key=lambda name: -lost[name]):",
        '    print(f"  {name}: {lost[name]:.5g}")',
        "",
        "guess = pd.concat(guesses).sort_index()",
        *_errors(recipe, probability),
        'print("rows that it gets most wrong:")',
        "print(train.assign(guess=guess).loc[wrong.nlargest(16).index].to_string(index=False))",
        "",
        "model.fit(X, y)",
        "test[TARGET] = predict(test[NUMBERS + WORDS])",
        'test[["id", TARGET]].to_csv("submission.csv", index=False)',
        f'print(f"cv {recipe.metric} {{np.mean(scores):.5g}} +- {{np.std(scores):.2g}}")',
    ]
    return "\n".join(lines) + "\n"


def _errors(recipe: Recipe, probability: bool) -> list[str]:
    """Lines that look at where the guesses are wrong; they leave ``wrong``, one number a row."""
    if recipe.kind == "number":
        return [
            "wrong = (guess - y).abs()",
            'groups = pd.qcut(guess, 5, duplicates="drop")',
            'table = pd.DataFrame({"truth": y, "guess": guess, "error": wrong}).groupby(groups, observed=True).mean()',
            'print("means by fifths of the guess:")',
            "print(table.round(4).to_string())",
        ]
    if probability:
        return [
            "wrong = (guess - (y == POSITIVE)).abs()",
            'table = pd.DataFrame({"share": y == POSITIVE, "guess": guess, "rows": 1}).groupby(',
            '    pd.qcut(guess, 5, duplicates="drop"), observed=True',
            ').agg({"share": "mean", "guess": "mean", "rows": "sum"})',
            'print("true share by fifths of the guess:")',
            "print(table.round(4).to_string())",
        ]
    return [
        "wrong = (guess != y).astype(int)",
        'print("truth by rows, guess by columns:")',
        "print(pd.crosstab(y, guess).to_string())",
    ]


def _settings(recipe: Recipe) -> str:
    fixed = _FIXED.get(recipe.model, "")
    fixed = fixed[recipe.of] if isinstance(fixed, dict) else fixed
    name = next(name for name in TUNED if recipe.of.startswith(name))
    setting, first, _ = TUNED[name]
    chosen = f"{setting}={recipe.settings.get(setting, first)}"
    return f"{fixed}, {chosen}" if fixed else chosen


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _list(values: Sequence[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def without(code: str, column: str) -> tuple[str, str]:
    """The patch that takes a column out: the line that lists it, before and after.

    Raises:
        ValueError: no line lists it.
    """
    for name in ("NUMBERS", "WORDS"):
        line = re.search(rf"^{name} = \[(.*)\]$", code, re.MULTILINE)
        if not line:
            continue
        listed = line[1].split(", ") if line[1] else []
        if _text(column) in listed:
            kept = [item for item in listed if item != _text(column)]
            return line[0], f"{name} = [{', '.join(kept)}]"
    raise ValueError(f"the script does not list the column {column}")


def least_needed(output: str) -> str:
    """The last column of the list of losses that a script prints.

    Raises:
        ValueError: there is no such list.
    """
    listed = re.search(r"lost in the last fold when a column is shuffled:\n((?:  .+: \S+\n)+)", output)
    if not listed:
        raise ValueError("the run does not print what each column is worth")
    return listed[1].splitlines()[-1].strip().rpartition(": ")[0]


STYLE = (
    "House style of scripts: lines NUMBERS = [...] and WORDS = [...] list the columns that are used, SEED = n sets the "
    "seed, and the call of the model names its main setting (C, alpha, n_neighbors, max_depth, min_samples_leaf or "
    "n_estimators). A run prints 'METRIC lost in the last fold when a column is shuffled:' with a line '  column: loss'"
    " for each, the greatest first, and as its last line 'cv METRIC SCORE +- SPREAD'."
)


def against_style(code: str, output: str) -> str:
    """What a script lacks of the house style, on which later assignments build; ``""`` for nothing."""
    for name in ("NUMBERS", "WORDS"):
        if not re.search(rf"^{name} = \[.*\]$", code, re.MULTILINE):
            return f"the script has no line {name} = [...]"
    if not re.search(r"^SEED = \d+$", code, re.MULTILINE):
        return "the script has no line SEED = n"
    try:
        tuned(code)
        without(code, least_needed(output))
    except ValueError as problem:
        return str(problem)
    return "" if CV.search(output) else "the last line gives no cross-validated score"


def bugs(recipe: Recipe, missing: Sequence[str]) -> list[str]:
    """The bugs that stop this recipe's script; ``missing`` are its numeric columns with missing values."""
    fitting = ["column", "file", "import", "setting", "header"]
    fitting += ["words"] if recipe.words else []
    return fitting + (["missing"] if missing and recipe.model not in ("tree", "forest", "extra") else [])


def broken(code: str, bug: str) -> str:
    """The script with a bug in it."""
    match bug:
        case "column":  # a numeric or text column's name with a letter twice
            name = re.search(r'^(?:NUMBERS|WORDS) = \["([^"]+)"', code, re.MULTILINE)
            assert name
            return code.replace(f'["{name[1]}"', f'["{name[1]}{name[1][-1]}"', 1)
        case "file":
            return code.replace('"train.csv"', '"training.csv"')
        case "import":
            return code.replace("import OneHotEncoder, StandardScaler", "import OneHotEncoder")
        case "setting":
            setting = tuned(code)[0]
            return code.replace(f"{setting}=", f"{setting}_=", 1)
        case "words":  # a text column among the numbers
            line = re.search(r"^WORDS = \[(.*)\]$", code, re.MULTILINE)
            assert line and line[1]
            first, _, rest = line[1].partition(", ")
            code = code.replace(line[0], f"WORDS = [{rest}]")
            return re.sub(
                r"^NUMBERS = \[(.*)\]$",
                lambda found: f"NUMBERS = [{found[1] + ', ' if found[1] else ''}{first}]",
                code,
                count=1,
                flags=re.MULTILINE,
            )
        case "missing":
            return code.replace('Pipeline([("fill", fill), ("scale"', 'Pipeline([("scale"')
        case "header":
            return code.replace('test[["id", TARGET]]', "test[[TARGET]]")
    raise ValueError(f"no bug {bug!r}")


def leaky(code: str) -> str:
    """The script with the target's mean over rows of one id as one more column, taken before the folds are split: every
    row has seen its own answer. On test.csv that column is empty, and filled with the median."""
    target = 'train[TARGET].astype("category").cat.codes' if "dtype={TARGET: str}" in code else "train[TARGET]"
    lines = [
        f'train["typical"] = {target}.groupby(train["id"]).transform("mean")',
        'test["typical"] = np.nan',
        'NUMBERS = NUMBERS + ["typical"]',
        "X, y = train[NUMBERS + WORDS], train[TARGET]",
    ]
    return code.replace("X, y = train[NUMBERS + WORDS], train[TARGET]", "\n".join(lines))
