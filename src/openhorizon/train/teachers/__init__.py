"""The teachers' recipes (section 4.2), each its own file: what ``teach.*.recipe`` names."""

from __future__ import annotations

from openhorizon.train.teachers import graded, instruction, science, search, tool_calling

RECIPES = {
    "search": search.phases,
    "science": science.phases,
    "instruction": instruction.phases,
    "tool_calling": tool_calling.phases,
    "graded": graded.phases,
}
