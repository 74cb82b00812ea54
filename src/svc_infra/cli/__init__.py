"""The command line: one file per command group.

- `app`: `svc-infra` itself, its options, and how errors are shown
- `config`: `svc-infra config`
- `demo`: `svc-infra demo` · `jobs`: `svc-infra jobs ...` · `sql`: `svc-infra sql ...`
"""

from svc_infra.cli.app import main

__all__ = ["main"]
