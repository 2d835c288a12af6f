"""The registry of worlds: the one place that knows them all. A domain's first world goes by the domain's own name."""

from openhorizon.domains.base import Domain
from openhorizon.domains.engineering.errands import EngineeringDomain
from openhorizon.domains.engineering.tables import TablesDomain
from openhorizon.domains.instruction.dossier import DossierDomain
from openhorizon.domains.instruction.walks import InstructionDomain
from openhorizon.domains.instruction.writing import WritingDomain
from openhorizon.domains.science.bench import ScienceDomain
from openhorizon.domains.science.closed import ClosedProblems
from openhorizon.domains.science.sheets import ProblemSheets
from openhorizon.domains.scientific_agent.campaign import CampaignDomain
from openhorizon.domains.scientific_agent.molecules import MoleculesDomain
from openhorizon.domains.scientific_agent.scienceworld import ScienceWorldDomain
from openhorizon.domains.search.foldoc import FoldocDomain
from openhorizon.domains.search.hotpot import HotpotDomain
from openhorizon.domains.search.trails import SearchDomain
from openhorizon.domains.tool_calling.bfcl import BfclDomain
from openhorizon.domains.tool_calling.desk import ToolCallingDomain
from openhorizon.domains.tool_calling.services.world import ServicesDomain
from openhorizon.domains.tool_calling.tau2 import Tau2Domain

DOMAINS: dict[str, Domain] = {
    "search": SearchDomain(),
    "search/foldoc": FoldocDomain(),
    "search/hotpot": HotpotDomain(),
    "engineering": EngineeringDomain(),
    "engineering/tables": TablesDomain(),
    "science": ScienceDomain(),
    "science/problems": ProblemSheets(),
    "science/closed": ClosedProblems(),
    "instruction": InstructionDomain(),
    "instruction/dossier": DossierDomain(),
    "instruction/writing": WritingDomain(),
    "tool_calling": ToolCallingDomain(),
    "tool_calling/services": ServicesDomain(),
    "tool_calling/bfcl": BfclDomain(),
    "tool_calling/tau2": Tau2Domain(),
    "scientific_agent": CampaignDomain(),
    "scientific_agent/molecules": MoleculesDomain(),
    "scientific_agent/scienceworld": ScienceWorldDomain(),
}
