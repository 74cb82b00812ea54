"""Apps from either factory, and a global router that each test finds empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI

from svc_infra import create_app, easy_service_app
from svc_infra import router as global_router
from svc_infra.config import Environment, Settings
from svc_infra.config.settings import AppSettings

Factory = Callable[..., FastAPI]

DEFAULTS = Settings()


def settings(env: str = "local", **app: Any) -> Settings:
    """The settings of an app called shop."""
    section = AppSettings(env=Environment(env), **{"name": "shop", "release": "1.2.3", **app})
    return DEFAULTS.model_copy(update={"app": section})


@pytest.fixture(autouse=True)
def router() -> Iterator[APIRouter]:
    """The global router, whose routes are forgotten after the test."""
    kept = list(global_router.routes)
    yield global_router
    global_router.routes[:] = kept


@pytest.fixture(params=["create_app", "easy_service_app"])
def make(request: pytest.FixtureRequest) -> Factory:
    """Makes an app by one of the two factories; `env` is the environment that it runs in."""

    def make(env: str = "local", **options: Any) -> FastAPI:
        options.setdefault("settings", settings(env))
        if request.param == "create_app":
            return create_app(**options)
        return easy_service_app(**{"name": "shop", "release": "1.2.3", **options})

    return make
