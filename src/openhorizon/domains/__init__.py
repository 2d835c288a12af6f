"""The registry of domains: the one place that knows them all."""

from openhorizon.domains.base import Domain
from openhorizon.domains.instruction import InstructionDomain
from openhorizon.domains.search import SearchDomain
from openhorizon.domains.tool_calling import ToolCallingDomain

DOMAINS: dict[str, Domain] = {
    "search": SearchDomain(),
    "tool_calling": ToolCallingDomain(),
    "instruction": InstructionDomain(),
}
