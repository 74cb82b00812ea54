"""`python -m svc_infra.cli`: the same as `svc-infra`."""

from svc_infra.cli import main

main()
