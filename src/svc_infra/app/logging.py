"""`setup_logging` under its documented path."""

from svc_infra.obs.logging import setup_logging

__all__ = ["setup_logging"]
