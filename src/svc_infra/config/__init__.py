"""Settings, secrets and the environment: the only room that reads environment variables.

- `environment`: which of local, dev, test and prod this process runs in
- `settings`: one frozen section per room, read from the environment and `.env`
- `secrets`: values that are never printed and have no default outside local and test
"""

from svc_infra.config.environment import Environment
from svc_infra.config.secrets import Secrets
from svc_infra.config.settings import Settings

__all__ = ["Environment", "Secrets", "Settings"]
