"""Operations: what an orchestrator asks of a running service.

- `readiness`: whether every part of the app can do its work now
- `http`: the probes `/_ops/live`, `/_ops/startup`, `/_ops/ready` · `add`: `add_probes`
"""

from svc_infra.ops.add import add_probes

__all__ = ["add_probes"]
