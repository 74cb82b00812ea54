"""Jobs that belong together, with what became of them in the database: started together, ended exactly once.

- `plan`: what a flow is made of, and its kinds: `workflow`, `chain`, `batch` · `flow`: what is seen of one
- `flows`: starts them and looks after them · `ends`: hears of the ends of jobs · `advance`: what one means for the rest
- `store`, with `models`: their rows · `add`: the way into an app
"""

from svc_infra.jobs.flows.batch import Batch
from svc_infra.jobs.flows.chain import Chain
from svc_infra.jobs.flows.flow import Flow, FlowState, FlowStep, StepState
from svc_infra.jobs.flows.flows import Flows
from svc_infra.jobs.flows.plan import Plan, Step
from svc_infra.jobs.flows.workflow import Workflow

__all__ = ["Batch", "Chain", "Flow", "FlowState", "FlowStep", "Flows", "Plan", "Step", "StepState", "Workflow"]
