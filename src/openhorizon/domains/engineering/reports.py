"""``analyze``: a look at data or at a node that is apart from the tree and changes nothing in it.

In the paper an isolated sub-agent does this. Here an ``Analyst`` is a function of (what is asked, competition, tree)
that gives a report; ``local_analyst`` is one without a model, and an endpoint that looks for itself can take its place
(``TablesDomain(analyst)``). It works in a workspace of its own and is handed copies.

Asked about a file it describes the columns and the target. Asked about a node it runs the node's code once more on a
target whose values were dealt out to other rows: nothing is left to be learned then, so a cross-validation that still
scores well has looked at the answers.
"""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable

from openhorizon.domains.engineering.competitions import Competition
from openhorizon.domains.engineering.grading import PROBABILITIES, grade
from openhorizon.domains.engineering.runner import bundle, run_python
from openhorizon.domains.engineering.scripts import CV
from openhorizon.domains.engineering.tree import Tree, TreeError

Analyst = Callable[[str, Competition, Tree], str]

_TABLE = """
import pandas as pd

data = pd.read_csv(FILE, dtype={TARGET: str} if LABELS else None)
print(f"{FILE}: {len(data)} rows, {data.shape[1]} columns")
for name in data.columns.drop("id"):
    column = data[name]
    head = f"{name}: {int(column.isna().sum())} missing, {column.nunique()} values"
    if pd.api.types.is_numeric_dtype(column):
        low, mid, high = column.quantile([0.1, 0.5, 0.9])
        print(f"{head}, mean {column.mean():.4g}, sd {column.std():.4g}, 10% {low:.4g}, 50% {mid:.4g}, 90% {high:.4g}, "
              f"from {column.min():.4g} to {column.max():.4g}")
    else:
        common = column.value_counts().sort_index().sort_values(ascending=False, kind="stable").head(4)
        print(f"{head}, most often " + ", ".join(f"{value} ({count})" for value, count in common.items()))
missing = [name for name in data.columns if data[name].isna().any()]
print(f"columns with missing values: {', '.join(missing) or 'none'}")
if TARGET in data:
    numbers = data.drop(columns="id").select_dtypes("number")
    if LABELS:
        counts = data[TARGET].value_counts().sort_index().sort_values(kind="stable")
        print(f"rarest class: {counts.index[0]} with {counts.iloc[0]} rows")
        print("means by class:")
        print(numbers.groupby(data[TARGET]).mean().T.round(4).to_string())
    else:
        print(f"mean of the target: {data[TARGET].mean():.5g}")
        strength = numbers.drop(columns=TARGET).corrwith(data[TARGET]).dropna()
        print("correlation with the target:")
        for name, value in strength.sort_values(key=abs, ascending=False, kind="stable").items():
            print(f"  {name}: {value:.3f}")
"""


def local_analyst(about: str, competition: Competition, tree: Tree) -> str:
    """Raises TreeError where it is asked about nothing that is there."""
    node = re.search(r"\bn\d+\b", about)
    if node:
        return _node_report(node[0], competition, tree)
    file = next((name for name in sorted(competition.public.files) if name in about), None)
    if file is None:
        raise TreeError("name a file (train.csv, test.csv) or a node to be looked at")
    labels = competition.kind != "number"
    head = f"FILE, TARGET, LABELS = {(file, competition.key.target, labels)!r}\n"
    return run_python(competition.public, head + _TABLE).output


def _node_report(key: str, competition: Competition, tree: Tree) -> str:
    node = tree.get(key)
    if not node.score:
        raise TreeError(f"{key} has no score yet")
    rows = list(csv.reader(io.StringIO(competition.public.files["train.csv"].decode())))
    dealt = [row[-1] for row in rows[1:]]
    random.Random(len(rows)).shuffle(dealt)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [rows[0], *([*row[:-1], value] for row, value in zip(rows[1:], dealt, strict=True))]
    )
    run = run_python(bundle({**competition.public.files, "train.csv": out.getvalue().encode()}), node.code)
    found = CV.search(run.output)
    if not run.ok or found is None:
        raise TreeError(f"{key} does not run on a copy of the data")
    lines = [
        f"{key} was run once more, in a workspace of its own, on the same rows with the target's values dealt out to "
        "other rows.",
        f"{competition.key.metric} as logged: {node.score}",
        f"{competition.key.metric} on the dealt-out target: {found[2]}",
        f"{competition.key.metric} of a constant on it: {_constant(competition, dealt):.5g}",
        "What it printed on the dealt-out target:",
        *run.output.splitlines()[:12],
    ]
    return "\n".join(lines)


def _constant(competition: Competition, values: list[str]) -> float:
    if competition.key.metric in PROBABILITIES:
        guess = str(values.count(competition.positive) / len(values))
    elif competition.classes:
        guess = competition.classes[0]
    else:
        guess = str(sum(map(float, values)) / len(values))
    return grade(competition.key.metric, values, [guess] * len(values), competition.positive)
