"""The registry of worlds: the one place that knows them all. A domain's first world goes by the domain's own name."""

from openhorizon.domains.base import Domain
from openhorizon.domains.instruction.dossier import DossierDomain
from openhorizon.domains.instruction.walks import InstructionDomain
from openhorizon.domains.instruction.writing import WritingDomain
from openhorizon.domains.science.sheets import ScienceDomain
from openhorizon.domains.search.trails import SearchDomain
from openhorizon.domains.tool_calling.desk import ToolCallingDomain

DOMAINS: dict[str, Domain] = {
    "search": SearchDomain(),
    "tool_calling": ToolCallingDomain(),
    "science": ScienceDomain(),
    "instruction": InstructionDomain(),
    "instruction/dossier": DossierDomain(),
    "instruction/writing": WritingDomain(),
}
