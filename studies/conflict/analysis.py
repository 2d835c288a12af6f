"""Full-domain SFT against SFT on one domain, at equal tokens a domain: an effect above 0 is what sharing costs.

Domains are looked at one by one, at the model's size and at four times it; whether the cost grows with the difference
in pattern is asked in science, beside a domain that works alike (search) and beside one that does not (instruction).
"""

from __future__ import annotations

from collections.abc import Callable

from openhorizon.bench.base import Record
from openhorizon.report.claims import Claim
from openhorizon.report.figures import Figure, Panel
from openhorizon.study.results import Comparison, Evidence, claim, compare, line, success

DOMAINS = ("instruction", "science", "search", "tool_calling")
MODELS = ("sft", "sft")
SIZES = {"": "P", "_4P": "4P"}


def analyse(evidence: Evidence) -> tuple[list[Claim], dict[str, Figure]]:
    """A claim a domain and size, one on the pattern, and a figure of success alone and together."""
    asked, statements = dict[str, Comparison](), dict[str, str]()
    for end, size in SIZES.items():
        for domain in DOMAINS:
            key = f"conflict/{domain}{end}"
            asked[key] = Comparison(f"{domain}{end}", f"full{end}", MODELS, _of(domain))
            statements[key] = f"At size {size}, full-domain SFT loses in {_words(domain)} against SFT on it alone."
    key = "conflict/pattern"
    asked[key] = Comparison("science_search", "science_instruction", MODELS, _of("science"))
    statements[key] = "Science is better learned beside search, which calls tools, too, than beside instruction."
    found = compare(evidence, asked)
    control = (
        "Same base, demonstrations and epochs: a domain gives as many tokens alone as among all; tasks paired; "
        f"bootstrap over seeds and tasks; Holm over {len(found)} comparisons."
    )
    claims = []
    for key, compared in found.items():
        a, b = (success(evidence.of(arm), "sft", compared.asked.keep) for arm in (compared.asked.a, compared.asked.b))
        assert a and b
        takeaway = f"{_words(compared.asked.a)} {a.value:.2f}, {_words(compared.asked.b)} {b.value:.2f}."
        claims.append(claim(evidence, key, compared, statements[key], control, "conflict", takeaway))
    return claims, {"conflict": _figure(evidence)}


def _figure(evidence: Evidence) -> Figure:
    """A panel a size: success by domain, alone and in the full domain."""
    panels = []
    for end, size in SIZES.items():
        domains = [domain for domain in DOMAINS if evidence.of(f"{domain}{end}") and evidence.of(f"full{end}")]
        alone = [
            (i + 1, success(evidence.of(f"{domain}{end}"), "sft", _of(domain))) for i, domain in enumerate(domains)
        ]
        full = [(i + 1, success(evidence.of(f"full{end}"), "sft", _of(domain))) for i, domain in enumerate(domains)]
        if domains:
            lines = (line("alone", "green", alone), line("full domain", "blue", full))
            panels.append(Panel(f"size {size}", "", lines, "points", True, ticks=[_words(name) for name in domains]))
    caption = "Success by domain of SFT on the full domain and on one alone, with 95% bootstrap intervals."
    return Figure("conflict", caption, tuple(panels))


def _of(domain: str) -> Callable[[Record], bool]:
    return lambda record: record.domain == domain


def _words(name: str) -> str:
    return name.replace("_", " ")
