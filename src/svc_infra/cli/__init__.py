"""The command line: one file per command group.

- `app`: `svc-infra` itself, its options, and how errors are shown
- `config`, `demo`, and a group each: `audit`, `flows`, `jobs`, `schedules`, `secrets`, `sql`
- `targets`: the app that a command is about · `tables`: how answers are printed
"""

from svc_infra.cli.app import main

__all__ = ["main"]
