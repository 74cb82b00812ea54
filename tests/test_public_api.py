"""The public surface: the documented imports, and what the package and each of its rooms say that they export."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(__file__).parent.parent / "src/svc_infra"
FRONT_DOORS = [PACKAGE, *sorted(file.parent for file in PACKAGE.glob("*/__init__.py"))]

DOCUMENTED = {
    "svc_infra": [
        "SvcInfraError",
        "__version__",
        "create_app",
        "easy_service_app",
        "get_current_user",
        "get_db",
        "router",
    ],
    "svc_infra.api": ["create_app", "router"],
    "svc_infra.api.fastapi.admin": ["add_admin", "admin_router"],
    "svc_infra.api.fastapi.tenancy.context": [
        "TenantId",
        "require_tenant_id",
        "resolve_tenant_id",
        "set_tenant_resolver",
    ],
    "svc_infra.app.logging": ["setup_logging"],
    "svc_infra.cache": ["Cache", "MemoryCache", "RedisCache", "cached"],
    "svc_infra.config": ["Environment", "Secrets", "Settings"],
    "svc_infra.db": ["AsyncDatabase", "DbOps"],
    "svc_infra.db.sql.tenant": ["TenantSqlService"],
    "svc_infra.errors": ["NotFoundError", "ValidationError"],
    "svc_infra.jobs": [
        "InMemoryJobQueue",
        "JobQueue",
        "RedisJobQueue",
        "Scheduler",
        "SqlJobQueue",
        "Worker",
        "easy_jobs",
    ],
    "svc_infra.middleware": ["LoggingMiddleware", "RateLimitMiddleware", "RequestIdMiddleware"],
    "svc_infra.obs.add": ["add_observability"],
    "svc_infra.observability": ["logger", "metrics"],
    "svc_infra.security.permissions": [
        "PERMISSION_REGISTRY",
        "Identity",
        "OptionalIdentity",
        "RequireABAC",
        "RequireAnyPermission",
        "RequireAnyScope",
        "RequireFreshAuth",
        "RequirePermission",
        "RequireRoles",
        "RequireScopes",
        "RequireService",
        "RequireUser",
        "owns_resource",
        "public",
        "register_role",
    ],
    "svc_infra.security.mfa": ["Factors", "Requirement", "required_for_members"],
    "svc_infra.security.mfa.add": ["add_mfa"],
    "svc_infra.webhooks": ["WebhookDelivery", "WebhookRetry", "WebhookSignature", "verify_webhook_signature"],
}
SAME_THING = [  # one thing, importable from two places
    ("svc_infra", "svc_infra.api", "create_app"),
    ("svc_infra", "svc_infra.api", "router"),
    ("svc_infra", "svc_infra.errors", "SvcInfraError"),
    ("svc_infra.app.logging", "svc_infra.obs.logging", "setup_logging"),
    ("svc_infra.api.fastapi.tenancy.context", "svc_infra.tenancy", "set_tenant_resolver"),
]


def module_name(folder: Path) -> str:
    return ".".join(folder.relative_to(PACKAGE.parent).parts)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in DOCUMENTED.items() for name in names])
def test_every_documented_name_can_be_imported(module: str, name: str) -> None:
    assert hasattr(import_module(module), name), f"{module} has no {name}: the documentation imports it from there."


@pytest.mark.parametrize(("one", "other", "name"), SAME_THING)
def test_a_name_in_two_places_is_one_thing(one: str, other: str, name: str) -> None:
    assert getattr(import_module(one), name) is getattr(import_module(other), name)


@pytest.mark.parametrize("folder", FRONT_DOORS, ids=module_name)
def test_every_exported_name_exists(folder: Path) -> None:
    module = import_module(module_name(folder))
    missing = [name for name in exported(module) if not hasattr(module, name)]
    assert not missing, f"{folder.name}/__init__.py exports {missing}, which do not exist: take them out of __all__."


@pytest.mark.parametrize("folder", FRONT_DOORS, ids=module_name)
def test_everything_public_is_exported_once(folder: Path) -> None:
    names = exported(import_module(module_name(folder)))
    assert len(names) == len(set(names)), f"{folder.name}/__init__.py exports a name twice."
    kept_back = public_names((folder / "__init__.py").read_text()) - set(names)
    assert not kept_back, f"{folder.name}/__init__.py lacks {sorted(kept_back)} in __all__: add them or drop them."


def exported(module: ModuleType) -> list[str]:
    """What a front door exports; nothing when it only draws the map of its room."""
    return list(getattr(module, "__all__", []))


def public_names(source: str) -> set[str]:
    """What a front door defines, or imports from the package, under a public name."""
    names: set[str] = set()
    statements = list(ast.parse(source).body)
    for node in statements:
        if isinstance(node, ast.If):
            statements += node.body
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("svc_infra"):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return {name for name in names if not name.startswith("_")}


def test_a_name_that_is_kept_back_is_found() -> None:
    source = "if TYPE_CHECKING:\n    from svc_infra.errors import A as B\nclass C: ...\ndef _d(): ...\nimport e\n"
    assert public_names(source) == {"B", "C"}


def test_the_lazy_names_are_listed_before_they_are_loaded() -> None:
    import svc_infra

    assert set(svc_infra.__all__) <= set(dir(svc_infra))


def test_an_unknown_name_is_refused_like_any_other_attribute() -> None:
    import svc_infra

    with pytest.raises(AttributeError, match="module 'svc_infra' has no attribute 'easy_app'"):
        _ = svc_infra.easy_app
