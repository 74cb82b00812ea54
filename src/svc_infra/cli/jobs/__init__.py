"""`svc-infra jobs ...`: running an app's jobs in processes of their own, and looking after them.

- `commands`: all of them · `run`, `supervisor`: one process, or several and one that watches them
- `dead_letter`: jobs that ran out of attempts
"""

from svc_infra.cli.jobs.commands import app

__all__ = ["app"]
