"""Tables of public benchmarks for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from openhorizon.bench.public import BENCHMARKS

NO_TOOLS = "the model's chat template shows no tools: it was told of them by the system prompt alone"


def known() -> Table:
    """All benchmarks, and why one cannot run here."""
    table = Table(title="public benchmarks", title_justify="left")
    for column in ("name", "benchmark", "split", "licence", "version"):
        table.add_column(column)
    for benchmark in BENCHMARKS.values():
        try:
            version = benchmark.version
        except ValueError as error:
            version = str(error)
        table.add_row(benchmark.name, benchmark.title, benchmark.split, benchmark.licence, version)
    return table


def result(metrics: Mapping[str, Any]) -> Group:
    """Rates with their references and the authors' figures, and below in words whatever was no rate."""
    about, model = metrics["benchmark"], metrics["model"]
    table = Table(title=f"{about['title']} ({about['version']}), {about['split']}", title_justify="left")
    for column in ("metric", "group", "n", model, "95%"):
        table.add_column(column, justify="right" if column not in ("metric", "group") else "left")
    for rate in metrics["rates"]:
        low, high = rate["ci95"]
        shown = (f"{100 * rate['value']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
        table.add_row(rate["metric"], rate["group"], str(rate["n"]), *shown)
    return Group(table, *words(metrics))


def words(metrics: Mapping[str, Any]) -> list[str]:
    """A line each."""
    counts, cost, seen, lines = metrics["counts"], metrics["cost"], metrics["contamination"], list[str]()
    if metrics["broken"]:
        broken = metrics["broken"]
        lines.append(f"BROKEN, no score: its own solution fails on {broken['failures']} task(s): {broken['tasks'][0]}")
    for name, rows in metrics["references"].items():
        lines += [f"{name}: {100 * row['value']:.1f} (n={row['n']})" for row in rows if row["group"] == "all"]
    if metrics["reported"]:
        figures = ", ".join(f"{name} {value}" for name, value in metrics["reported"]["figures"].items())
        lines.append(f"reported by the authors of Agents-A1, not measured here: {figures}")
    ended = ", ".join(f"{n} {name}" for name, n in counts["ended"].items() if n)
    lines.append(f"{counts['tasks']} tasks, {counts['judged']} judged; {ended or 'none played'}")
    lines += [f"not judged: {n}: {why}" for why, n in counts["not_judged"].items()]
    if counts["too_long"]:
        lines.append(f"prompt longer than the context: {counts['too_long']} tasks, counted as failed")
    if counts["nonsense"]:
        lines.append(
            f"replies that were none, such as one without a choice: {counts['nonsense']} tasks, counted as failed"
        )
    if counts["refused"]:
        lines.append(f"requests that the endpoint refused: {counts['refused']} tasks, counted as failed")
    if metrics["tools_shown"] is False:
        lines.append(NO_TOOLS)
    if counts["tool_calls"] or counts["unreadable_calls"]:
        lines.append(
            f"{counts['tool_calls']} calls, of which {counts['failed_calls']} were answered with an error; "
            f"{counts['unreadable_calls']} were no JSON with a name and arguments"
        )
    tokens = "" if cost["generated_tokens"] is None else (
        f", {cost['read_tokens']:,} tokens read, {cost['generated_tokens']:,} generated"
    )  # fmt: skip
    took = metrics["timing"]
    lines.append(f"{took['seconds']:,.1f} s of play, {took['seconds_a_task']:.2f} s a task{tokens}")
    if seen["checked"]:
        lines.append(
            f"contamination: {len(seen['tasks'])} of the tasks touched by {seen['touching']} of "
            f"{seen['training_tasks']} training tasks"
        )
    else:
        lines.append(f"contamination: {seen['why']}")
    return lines
