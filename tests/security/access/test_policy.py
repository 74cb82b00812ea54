from __future__ import annotations

import pytest

from svc_infra.errors import ConfigurationError
from svc_infra.security.access import ORGANIZATION_PERMISSIONS, PERMISSION_REGISTRY, Policy, policy_of
from svc_infra.security.add import add_auth_users
from svc_infra.security.permissions import register_role
from svc_infra.wiring import wiring_of
from tests.security.access.test_routes import an_app


def test_the_built_in_roles_permit_what_the_guide_says() -> None:
    admin = ["user.read", "user.write", "billing.read", "billing.write", "security.session.list"]
    admin += ["security.session.revoke", "admin.impersonate"]
    assert {
        "admin": set(admin),
        "auditor": {"user.read", "billing.read", "audit.read"},
        "support": {"user.read", "billing.read"},
    } == PERMISSION_REGISTRY


def test_a_role_of_an_app_is_that_apps_alone_before_or_after_it_has_accounts() -> None:
    one, other = an_app(), an_app()
    register_role(one, "editor", ["post.write"])
    add_auth_users(one, roles={"editor": ["post.read"], "admin": ["post.delete"]})
    register_role(one, "editor", ["post.delete"])
    assert policy_of(wiring_of(one)).permissions(["editor"]) == {"post.write", "post.read", "post.delete"}
    assert "post.delete" in policy_of(wiring_of(one)).permissions(["admin"])
    assert policy_of(wiring_of(other)).permissions(["editor"]) == set()
    assert "post.delete" not in PERMISSION_REGISTRY["admin"]


def test_a_members_role_and_an_accounts_role_of_one_name_are_two() -> None:
    policy = Policy({"editor": ["post.write"]})
    policy.add("editor", ["page.write"], in_organizations=True)
    assert policy.permissions(["editor"]) == {"post.write"}
    assert policy.organization_permissions("editor") == {"page.write"}
    assert policy.organization_permissions("admin") == ORGANIZATION_PERMISSIONS["admin"]
    assert not policy.permissions(["admin"]) & policy.organization_permissions("admin")
    assert policy.organization_permissions(None) == policy.organization_permissions("nobody") == set()


def test_nobody_in_an_organization_is_above_its_owner() -> None:
    policy = Policy()
    policy.add("treasurer", ["invoice.pay"], in_organizations=True)
    for role in policy.organization_roles:
        assert policy.organization_permissions(role) <= policy.organization_permissions("owner")


@pytest.mark.parametrize("permission", ["", "read", "User.read", "user.", ".read", "user..read", "user read", "a.b\n"])
def test_a_misspelled_permission_is_refused(permission: str) -> None:
    with pytest.raises(ConfigurationError, match="is no permission"):
        Policy({"editor": [permission]})


def test_a_misspelled_role_or_a_text_for_a_list_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="names no role"):
        Policy({"An Editor": ["post.write"]})
    with pytest.raises(ConfigurationError, match="give a list"):
        Policy({"editor": "post.write"})


async def test_a_role_cannot_be_registered_while_the_app_runs() -> None:
    app = an_app()
    async with app.router.lifespan_context(app):
        with pytest.raises(ConfigurationError, match="after the app started"):
            register_role(app, "editor", ["post.write"])
