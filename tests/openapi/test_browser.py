"""The pages in a real browser, under their own content security policy and with every other address out of reach."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from pydantic import BaseModel

from svc_infra import create_app
from tests.app.conftest import settings
from tests.app.serving import served

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")


class Item(BaseModel):
    name: str


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = create_app(settings=settings())

    @app.post("/items", tags=["items"])
    async def create(item: Item) -> Item:
        return item

    @app.get("/items", tags=["items"])
    async def read() -> list[str]:
        return ["a cup"]

    with served(app) as (_, client):
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """A page that fails the test when a script of it fails or a request leaves the app."""
    failures: list[str] = []
    page = browser.new_page(color_scheme="dark")
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("requestfinished", lambda request: None if inside(request.url, url) else failures.append(request.url))
    yield page
    page.close()
    assert failures == []


def inside(address: str, url: str) -> bool:
    return address.startswith((url, "data:", "blob:"))


def test_swagger_ui_tries_an_operation(page: Page, url: str) -> None:
    page.goto(f"{url}/docs")
    page.locator("#operations-items-get_items").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table").get_by_text("a cup").wait_for()
    assert page.locator("html.dark-mode").count() == 1


def test_redoc_shows_and_searches_the_operations(page: Page, url: str) -> None:
    page.goto(f"{url}/redoc")
    page.get_by_role("heading", name="Create").wait_for()
    page.get_by_placeholder("Search").fill("create")
    page.get_by_role("menuitem").filter(has_text="Create").first.wait_for()
    assert page.locator("body").evaluate("body => getComputedStyle(body).margin") == "0px"


def test_our_own_pages_follow_the_colours_of_the_reader(page: Page, url: str) -> None:
    page.goto(url)
    assert page.title() == "shop"
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(15, 20, 25)"
    page.emulate_media(color_scheme="light")
    assert page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == "rgb(255, 255, 255)"
    page.get_by_role("link", name="Problems").click()
    page.get_by_role("link", name="rate_limited").click()
    page.get_by_role("heading", name="What to do").wait_for()
