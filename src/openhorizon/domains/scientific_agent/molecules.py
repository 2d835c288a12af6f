"""Scientific agentic work, natural text (section 3): screening campaigns over hundreds of real molecules.

A campaign has a library of ``LIBRARY`` compounds with real structures and measured properties, instruments
(substructure and similarity search, rdkit descriptors, a regression that learns from the assays, Python in the
sandbox), a notebook, and an assay budget for each stage. The prompt says none of what is to be found: a stage's brief
does, when the stage before it is closed.

    read_brief         Stage 1. Find the 2 compounds with the highest measured boiling point among the library compounds
                       that contain: ester (SMARTS ...), with TPSA at least 30. You may run 6 assays ... New house rule,
                       from this stage to the end of the campaign: submit no compound that contains: nitro ...
    search_library, compute_descriptors, run_python, predict, assay ..., notebook_write, submit
    submit             Stage 1 is closed. Stage 2. Take the hit of stage 1, which is in your notebook. Find the library
                       compound that is most similar to it among those whose measured logP is at most 1.2 ...

House rules and hits are said once and needed for good: what is not noted must be found again in a long past. The
verifier compares what was submitted with the measured values of the whole pool, and asks that everything was assayed
that had to be. The answer names every best hit with its measured value: an id alone stands in the first list of
candidates, its value in an assay report only. Budgets are smaller than pools, so that what to assay must be judged; the
reference is a strategy that sees no more than a policy (``chemist``), and a stage on which it fails is never proposed.

The horizon is the number of calls of that strategy, to the last: stages are drawn and tried until they add up.
Compounds are of one split each, by hash, and predictions learn from training compounds that no library holds.

What differs from the paper: it names MatTools and MolBench as models; the campaigns, tools and rules are ours.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from openhorizon.domains.base import Answer, Domain, Environment, Expert, Split, Task, Verdict, part_of
from openhorizon.domains.corpora.molecules import UNITS
from openhorizon.domains.scientific_agent.briefs import (
    VALIDATION_PERCENT,
    Bound,
    Stage,
    Truth,
    pair_of,
    stock,
    truth,
    write_value,
)
from openhorizon.domains.scientific_agent.chemist import Chemist, expert
from openhorizon.domains.scientific_agent.instruments import GROUPS, descriptor
from openhorizon.domains.scientific_agent.laboratory import TOOLS, Laboratory

LIBRARY = 300
SHORTEST = 8  # calls that a campaign of one stage needs
LONG_STAGE = 26  # calls that one stage may take
MOST_ASSAYS = 12
SMALL = 10  # calls that leave no room for limits and house rules
BROAD = 40  # horizon from which on pools are large: long campaigns are long by what they must read, too
DRAFTS = 60  # drawn for one stage before the campaign is given up
RULE = 0.5  # chance that a stage brings a house rule
NEAR = 0.3  # chance that a later stage starts from an earlier hit
BOUNDED = ("MolWt", "HeavyAtomCount", "TPSA", "NumRotatableBonds", "FractionCSP3", "MolLogP", "RingCount")
WIDE = ("", "", "oxygen", "ring", "aromatic")
EXACT = 1e-3  # relative: what a value in an answer may be off, for those who round it
BANNED = ("nitro", "halogen", "sulfur", "nitrile", "amide", "acid", "aldehyde", "alkyne")

_NAMED = re.compile(r"(M-\d{3})[\s(:=,]+(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", re.IGNORECASE)


class MoleculesDomain(Domain):
    name = "scientific_agent"
    apart = True
    source = "molecules"
    system = (
        "You run a screening campaign over a library of organic compounds with the tools. Stages are revealed "
        "one by one: read the brief, find what it asks for within the assay budget, submit it. Keep house rules "
        "and hits in the notebook. At the end answer with the best hits and their measured values, such as "
        "Answer: M-001 354.2; M-002 -0.71."
    )
    tools = TOOLS

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        return tuple(horizon for horizon in horizons if horizon >= SHORTEST)

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """A campaign that takes ``horizon`` calls; None where no draft of a stage fitted what was left of them."""
        if horizon < SHORTEST:
            return None
        while part_of(campaign := ("campaign", str(rng.randint(10_000, 99_999))), VALIDATION_PERCENT) != split:
            pass
        library = rng.sample(stock(split), min(LIBRARY, len(stock(split))))
        task = Task(
            domain=self.name,
            id=f"molecules-{split}-{horizon}-{seed}",
            split=split,
            prompt=(
                f"Screening campaign {campaign[1]}. The library holds {len(library)} compounds, M-001 to "
                f"M-{len(library):03d}. Work off the stages one by one, starting with the brief, until all are closed; "
                "then answer with the best hit of every stage and its measured value, in the order of the stages."
            ),
            horizon=horizon,
            seed=seed,
            state={"campaign": campaign[1], "library": library, "stages": []},
            evidence=(),
            verifiers=("answer", "stages", "evidence"),
            reference="",
            entity_pairs=(campaign,),
            source=self.source,
        )
        return _Draw(rng, task).finished()

    def start(self, task: Task) -> Laboratory:
        return Laboratory(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return expert(prompt, rng, noise)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: every stage's submission is what the measured data say, all that had to be assayed was, and the
        answer names the best hits and their values in order."""
        assert isinstance(environment, Laboratory)
        rubric = {}
        for i, right in enumerate(environment.truths):
            given = environment.submitted[i] if i < len(environment.submitted) else ()
            rubric[f"stage {i + 1}"] = set(given) == set(right.hits) and given[0] == right.hits[0]
        missing = sorted(set(task.evidence) - environment.consulted())
        rubric |= {"evidence": not missing, "answer": answer is not None and _same(answer.text, task.reference)}
        wrong = next((item for item, met in rubric.items() if not met), "")
        if answer is None:
            reason = "no answer was given"
        elif wrong == "evidence":
            reason = (
                f"{len(missing)} of {len(task.evidence)} pieces of evidence were not consulted, such as {missing[0]}"
            )
        elif wrong:
            reason = f"wrong: {wrong}"
        else:
            reason = "every stage is right and rests on assays"
        return Verdict(not wrong and answer is not None, sum(rubric.values()) / len(rubric), reason, rubric)


def _same(given: str, wanted: str) -> bool:
    """Whether both name the same hits in one order, with the same values; what else is said does not count."""
    mine, right = (_NAMED.findall(text.rsplit("Answer:", 1)[-1]) for text in (given, wanted))
    return [key.upper() for key, _ in mine] == [key for key, _ in right] and all(
        math.isclose(float(a), float(b), rel_tol=EXACT) for (_, a), (_, b) in zip(mine, right, strict=True)
    )


class _Draw:
    """Builds a campaign stage by stage, carrying out each draft with the expert."""

    def __init__(self, rng: random.Random, task: Task) -> None:
        self.rng, self.task = rng, task
        self.laboratory = Laboratory(task, TOOLS)
        self.chemist = Chemist(random.Random(0), 0.0)
        self.stages: list[Stage] = []
        self.truths: list[Truth] = []

    def finished(self) -> Task | None:
        """The task with its stages, evidence and reference."""
        try:
            # Of all calls, the first reads a brief and the last reads the notebook.
            left = self.task.horizon - 2
            while left:
                cost = self._stage(left)
                if not cost:
                    return None
                left -= cost
        finally:
            self.laboratory.close()
        campaign, library = self.task.state["campaign"], self.laboratory.library
        found: list[str] = []
        evidence = [f"{campaign}/brief {i}" for i in range(1, len(self.stages) + 1)]
        pairs = list(self.task.entity_pairs)
        for stage, right in zip(self.stages, self.truths, strict=True):
            evidence += [f"{campaign}/{stage.known} of {key}" for key in right.needed]
            pairs += [pair_of(library.compounds[key].cas) for key in right.needed]
            found.append(f"{right.hits[0]} {write_value(library.value(right.hits[0], stage.known))}")
        return Task(
            **{
                **vars(self.task),
                "state": {**self.task.state, "stages": [stage.to_json() for stage in self.stages]},
                "evidence": tuple(dict.fromkeys([*evidence, f"{campaign}/end"])),
                "reference": f"Answer: {'; '.join(found)}",
                "entity_pairs": tuple(dict.fromkeys(pairs)),
            }
        )

    def _stage(self, left: int) -> int:
        """Add a stage that the expert solves; returns its calls, 0 where none was found.

        A stage either takes all calls that are left or leaves enough for another.
        """
        for _ in range(DRAFTS):
            draft = self._draft(left)
            right = self._truth(draft) if draft else None
            if draft is None or right is None:
                continue
            cost = self._try(draft, right)
            aim = left if left <= LONG_STAGE else 0
            if cost and aim and cost != aim and draft.kind == "best":
                # Assays are one call each: the budget makes up the difference, where it may.
                budget = draft.budget + aim - cost
                if draft.count < budget <= min(MOST_ASSAYS, len(right.pool) - 1):
                    self._undo()
                    draft = Stage(**{**vars(draft), "budget": budget})
                    cost = self._try(draft, right)
            if cost and (cost == left or (not aim and left - cost >= SHORTEST)):
                return cost
            if cost:
                self._undo()
        return 0

    def _truth(self, draft: Stage) -> Truth | None:
        right = truth(self.laboratory.library, [*self.stages, draft], len(self.stages) + 1, self.truths)
        enough = len(right.needed) <= draft.budget < len(right.pool)
        return right if right.clear and enough else None

    def _try(self, draft: Stage, right: Truth) -> int:
        """Carry out a draft; returns the expert's calls and keeps the stage, or 0 where it was not solved."""
        laboratory = self.laboratory
        self.before = (len(laboratory.steps), dict(laboratory.assayed), list(laboratory.notes), dict(laboratory.tables))
        laboratory.stages.append(draft)
        laboratory.truths.append(right)
        self.stages.append(draft)
        self.truths.append(right)
        working = self.chemist.stage(laboratory.execute_brief())
        action = next(working)
        calls = 0
        try:
            while True:
                calls += 1
                action = working.send(laboratory.call(action))
        except StopIteration:
            pass
        given = laboratory.submitted[-1]
        if set(given) == set(right.hits) and given[0] == right.hits[0]:
            return calls
        self._undo()
        return 0

    def _undo(self) -> None:
        laboratory = self.laboratory
        steps, laboratory.assayed, laboratory.notes, laboratory.tables = self.before
        del laboratory.steps[steps:]
        for items in (laboratory.stages, laboratory.truths, laboratory.submitted, self.stages, self.truths):
            items.pop()

    def _draft(self, left: int) -> Stage | None:
        rng = self.rng
        known = rng.choice(list(UNITS))
        bans, rules = self._rule() if left > SMALL else ((), ())
        if self.stages and rng.random() < NEAR:
            return self._near_draft(known, bans, rules)
        broad = self.task.horizon >= BROAD and left > LONG_STAGE // 2
        group = rng.choice(WIDE if broad or rng.random() < 0.2 else list(GROUPS))
        library = self.laboratory.library
        pool = library.matching(library.with_sample(known), GROUPS.get(group, ""), ())
        if len(pool) < 8:
            return None
        limits = 0 if left <= SMALL else rng.choice((1, 2)) if not group or broad else rng.choice((0, 1, 1, 2))
        bounds = tuple(bound for _ in range(limits) if (bound := self._bound(pool)))
        if len({name for name, _, _ in bounds}) < limits:
            return None
        count = rng.choice((1, 1, 2, 3))
        budget = rng.randint(count + 1, MOST_ASSAYS)
        highest = rng.random() < 0.5
        return Stage("best", known, budget, highest, count, group, bounds, bans=bans, rules=rules)

    def _near_draft(self, known: str, bans: tuple[str, ...], rules: tuple[Bound, ...]) -> Stage | None:
        """From an earlier hit to a neighbour; the limit lies between measured values of its neighbourhood."""
        rng, library = self.rng, self.laboratory.library
        origin = rng.randrange(len(self.stages)) + 1
        near = library.like(library.with_sample(known), self.truths[origin - 1].hits[0])[:20]
        values = sorted({library.value(key, known) for key, _ in near})
        if len(values) < 6:
            return None
        at = rng.randrange(1, len(values) - 1)
        limit = float(f"{(values[at] + values[at + 1]) / 2:.4g}")
        highest = at >= len(values) / 2
        return Stage(
            "near", known, rng.randint(3, MOST_ASSAYS), highest, origin=origin, limit=limit, bans=bans, rules=rules
        )

    def _rule(self) -> tuple[tuple[str, ...], tuple[Bound, ...]]:
        """A house rule that is not in force yet, or none."""
        rng = self.rng
        if rng.random() >= RULE:
            return (), ()
        banned = {group for stage in self.stages for group in stage.bans}
        bounded = {name for stage in self.stages for name, _, _ in stage.rules}
        if rng.random() < 0.6 and len(banned) < 3:
            return (rng.choice([group for group in BANNED if group not in banned]),), ()
        if len(bounded) < 2:
            name, side, limit = rng.choice(
                (("RingCount", "at most", 1.0), ("MolWt", "at most", 180.0), ("NumHDonors", "at most", 1.0))
            )
            if name not in bounded:
                return (), ((name, side, limit),)
        return (), ()

    def _bound(self, pool: Sequence[str]) -> Bound | None:
        """A limit that about two thirds of the pool meet; None where all do."""
        rng = self.rng
        name, side = rng.choice(BOUNDED), rng.choice(("at most", "at least"))
        values = sorted(descriptor(self.laboratory.library.compounds[key].smiles, name) for key in pool)
        at = rng.uniform(0.5, 0.9)
        limit = float(f"{values[int(len(values) * (at if side == 'at most' else 1 - at))]:.3g}")
        met = sum(value <= limit if side == "at most" else value >= limit for value in values)
        return (name, side, limit) if 0 < met < len(values) else None
