"""Admin routes and acting as users: the documented import path."""

from svc_infra.admin.add import add_admin
from svc_infra.admin.http import admin_router

__all__ = ["add_admin", "admin_router"]
