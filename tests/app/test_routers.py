"""The global router, which takes routes at any time, and the discovery of an application's own routers."""

from __future__ import annotations

import sys
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.testclient import TestClient

import svc_infra
import svc_infra.api
import svc_infra.app
from svc_infra.errors import ConfigurationError
from tests.app.conftest import Factory


class Order(BaseModel):
    amount: int


def test_the_global_router_takes_routes_before_and_after_an_app_is_made(make: Factory, router: APIRouter) -> None:
    @router.get("/before")
    async def before() -> str:
        return "before"

    first = make()

    @router.post("/between")
    async def between(order: Order) -> int:
        return order.amount

    second = make()

    with TestClient(first) as one, TestClient(second) as two:

        @router.get("/while-running/{number}")
        async def while_running(number: int) -> int:
            return number

        for client in (one, two):
            assert client.get("/before").json() == "before"
            assert client.post("/between", json={"amount": 3}).json() == 3
            assert client.post("/between", json={}).json()["code"] == "validation_error"
            assert client.get("/while-running/7").json() == 7
            paths = client.get("/openapi.json").json()["paths"]
            assert list(paths) == ["/before", "/between", "/while-running/{number}"]
            assert paths["/between"]["post"]["operationId"] == "post_between"


def test_routes_added_after_the_document_was_read_appear_in_it(make: Factory, router: APIRouter) -> None:
    client = TestClient(make())
    assert client.get("/openapi.json").json()["paths"] == {}

    @router.get("/late")
    async def late() -> None: ...

    operation = client.get("/openapi.json").json()["paths"]["/late"]["get"]
    assert operation["operationId"] == "get_late"
    assert "4XX" in operation["responses"]


def test_every_import_path_of_the_factory_and_the_router_is_the_same_object() -> None:
    assert svc_infra.create_app is svc_infra.api.create_app is svc_infra.app.create_app
    assert svc_infra.router is svc_infra.api.router is svc_infra.app.router


@pytest.mark.parametrize("module", [svc_infra.api, svc_infra.app])
def test_a_name_that_a_front_door_does_not_have_is_an_attribute_error(module: object) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing  # type: ignore[attr-defined]


def test_a_router_of_another_package_is_included_unchanged(make: Factory) -> None:
    async def authorised() -> None: ...

    foreign = APIRouter(prefix="/rover", tags=["rover"], dependencies=[Depends(authorised)])

    @foreign.post("/drive")
    async def drive(order: Order) -> Order:
        return order

    app = make()
    app.include_router(foreign, prefix="/v1")
    with TestClient(app) as client:
        assert client.post("/v1/rover/drive", json={"amount": 2}).json() == {"amount": 2}
        operation = client.get("/openapi.json").json()["paths"]["/v1/rover/drive"]["post"]
    assert operation["tags"] == ["rover"]
    assert operation["operationId"] == "post_v1_rover_drive"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package without modules."""
    folder = tmp_path / f"shop_{uuid4().hex}"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


def module(package: Path, name: str, *, answers: str | None = None, source: str = "") -> None:
    (package / f"{name}.py").write_text(
        source
        or f"from fastapi import APIRouter\nrouter = APIRouter()\n\n@router.get('/{{name}}')\n"
        f"async def read(name: str) -> str:\n    return {answers or name!r}\n"
    )


def test_the_routers_of_a_package_are_included_in_alphabetical_order(make: Factory, package: Path) -> None:
    for name in ("b", "a", "_hidden"):
        module(package, name)
    nested = package / "c"
    nested.mkdir()
    (nested / "__init__.py").write_text("from fastapi import APIRouter\nrouter = APIRouter(prefix='/nested')\n")
    client = TestClient(make(routers_package=package.name, docs=False))
    assert client.get("/which").json() == "a"


def test_underscored_modules_are_not_imported(make: Factory, package: Path) -> None:
    module(package, "_broken", source="raise RuntimeError")
    make(routers_package=package.name)


def test_a_module_may_use_the_global_router(make: Factory, package: Path) -> None:
    uses = "from svc_infra import router\n\n@router.get('/orders')\nasync def orders() -> str:\n    return 'orders'\n"
    module(package, "orders", source=uses)
    with TestClient(make(routers_package=package.name)) as client:
        assert client.get("/orders").json() == "orders"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("def broken(:", "SyntaxError"),
        ("routes = []", "has no APIRouter called `router`"),
        ("router = []", "has no APIRouter called `router`"),
    ],
)
def test_a_module_that_cannot_be_included_is_named(source: str, complaint: str, make: Factory, package: Path) -> None:
    module(package, "a")
    module(package, "orders", source=source)
    with pytest.raises(ConfigurationError) as raised:
        make(routers_package=package.name)
    assert f"{package.name}.orders" in str(raised.value)
    assert complaint in str(raised.value)


def test_a_package_that_is_not_there_is_named(make: Factory) -> None:
    with pytest.raises(ConfigurationError, match=r"shop\.routers could not be imported"):
        make(routers_package="shop.routers")
