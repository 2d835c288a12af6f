"""Benchmarks that others wrote, one file each; this is the one place that knows them all."""

from openhorizon.bench.public.bfcl import BFCL
from openhorizon.bench.public.bfcl import HELDOUT as BFCL_HELDOUT

BENCHMARKS = {
    "bfcl": BFCL,
    "bfcl-heldout": BFCL_HELDOUT,
}
