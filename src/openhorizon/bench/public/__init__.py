"""Benchmarks that others wrote, one file each; this is the one place that knows them all."""

from openhorizon.bench.public.bfcl import BFCL
from openhorizon.bench.public.bfcl import HELDOUT as BFCL_HELDOUT
from openhorizon.bench.public.hotpotqa import HOTPOTQA
from openhorizon.bench.public.ifbench import IFBENCH
from openhorizon.bench.public.ifeval import IFEVAL
from openhorizon.bench.public.scicode import SCICODE
from openhorizon.bench.public.scienceworld import SCIENCEWORLD
from openhorizon.bench.public.tau2 import TAU2_SCRIPTED
from openhorizon.bench.public.tau2_official import HELDOUT as TAU2_HELDOUT
from openhorizon.bench.public.tau2_official import TAU2

BENCHMARKS = {
    "bfcl": BFCL,
    "bfcl-heldout": BFCL_HELDOUT,
    "ifbench": IFBENCH,
    "ifeval": IFEVAL,
    "hotpotqa": HOTPOTQA,
    "scienceworld": SCIENCEWORLD,
    "scicode-dev": SCICODE,
    "tau2-scripted": TAU2_SCRIPTED,
    "tau2": TAU2,
    "tau2-heldout": TAU2_HELDOUT,
}
