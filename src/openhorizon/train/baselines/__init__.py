"""What distillation is held against, each its own file: targets of stage ``baseline``."""

from __future__ import annotations

from openhorizon.train.baselines import arithmetic, average, best_teacher, continued, mixed_grpo, seqkd

BASELINES = {
    "continued": continued.run,
    "seqkd": seqkd.run,
    "average": average.run,
    "arithmetic": arithmetic.run,
    "mixed_grpo": mixed_grpo.run,
    "best_teacher": best_teacher.run,
}
