"""The pages that an app serves about itself need no internet, no inline code, and give way to the application's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient

import svc_infra.openapi
from svc_infra import create_app
from svc_infra.errors import ConflictError, SvcInfraError, error_types
from tests.app.conftest import settings

PAGES = ["/", "/docs", "/docs/oauth2-redirect", "/redoc", "/problems", "/problems/not_found", "/problems/gone"]
OURS = [kind for kind in error_types() if kind.__module__ == SvcInfraError.__module__]
STATIC = Path(svc_infra.openapi.__file__).with_name("static")


class OutOfStockError(ConflictError):
    """The shop has none of <these> left: order `fewer`.

    Only the first paragraph is for callers.
    """

    code = "out_of_stock"
    title = "Out Of Stock"


class Page(HTMLParser):
    """What a page loads, links to, and has written into itself."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        for name, value in attrs:
            if name in ("href", "src", "action"):
                self.links.append(value or "")
            if name == "style" or name.startswith("on"):
                self.inline.append(f"<{tag} {name}>")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.fixture(params=["", "/behind/a/proxy"])
def client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    root = request.param
    with TestClient(create_app(settings=settings()), base_url=f"http://testserver{root}", root_path=root) as client:
        yield client


@pytest.mark.parametrize("path", PAGES)
def test_everything_that_a_page_loads_or_links_to_is_served_by_the_app(path: str, client: TestClient) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    links = Page(response.text).links
    assert links
    for link in links:
        url = urljoin(str(response.url), link)
        assert urlsplit(url).netloc == "testserver", link
        assert client.get(url).status_code == 200, link


@pytest.mark.parametrize("path", PAGES)
def test_no_page_has_code_or_styles_written_into_it(path: str, client: TestClient) -> None:
    response = client.get(path)
    assert Page(response.text).inline == []
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_check_of_inline_code_finds_it() -> None:
    html = "<body onload='x()'><p style='color: red'></p><script>alert(1)</script><style>p {}</style></body>"
    assert len(Page(html).inline) == 4


@pytest.mark.parametrize("file", sorted(STATIC.iterdir()), ids=lambda file: file.name)
def test_our_own_files_load_nothing_from_elsewhere(file: Path) -> None:
    addresses = re.findall(r"https?:[^\s\"')]+|url\([^)]*\)|@import", file.read_text())
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}  # the name of a namespace, not an address


@pytest.mark.parametrize("file", ["swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "pages.css"])
def test_assets_are_kept_by_browsers_until_they_change(file: str, client: TestClient) -> None:
    first = client.get(f"/_assets/{file}")
    assert first.status_code == 200
    assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
    again = client.get(f"/_assets/{file}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == first.headers["cache-control"]


def test_pages_name_assets_by_their_content(client: TestClient) -> None:
    versions = {re.findall(r"\?v=(\w+)", client.get(path).text)[0] for path in PAGES}
    assert len(versions) == 1
    assert len(versions.pop()) == 12


@pytest.mark.parametrize("file", ["nothing.js", "../__init__.py", "..%2f__init__.py", "%2e%2e/add.py", ""])
def test_only_assets_are_served(file: str, client: TestClient) -> None:
    assert client.get(f"/_assets/{file}").json()["code"] == "not_found"


def test_the_landing_page_names_the_service_and_links_to_what_it_has(client: TestClient) -> None:
    html = client.get("/").text
    assert "<h1>shop</h1>" in html
    assert "Release 1.2.3 · local" in html
    for path in ("/docs", "/redoc", "/openapi.json", "/problems", "/_ops/live", "/_ops/ready", "/metrics"):
        assert f">{path}</code>" in html


def test_the_landing_page_links_to_nothing_that_is_not_there() -> None:
    app = create_app(settings=settings("prod"), probes=False, observability=False)
    assert re.findall(r"<code>(.*?)</code>", TestClient(app).get("/").text) == ["/problems"]


def test_what_a_page_shows_is_escaped() -> None:
    app = create_app(settings=settings(), name="<script>alert(1)</script>", title="</title><script>")
    client = TestClient(app)
    for path in ("/", "/docs", "/redoc"):
        assert "<script>" not in client.get(path).text


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_page_gives_way_to_a_route_of_the_application_with_the_same_path(when: str) -> None:
    routes = APIRouter()
    for path in ("/", "/docs", "/problems", "/problems/{problem_id}"):
        routes.add_api_route(path, lambda: "mine")
    app = create_app(settings=settings(), routers=[routes] if when == "before" else [])
    if when == "after":
        app.include_router(routes)
    with TestClient(app) as client:
        for path in ("/", "/docs", "/problems", "/problems/not_found"):
            assert client.get(path).json() == "mine"
        assert client.get("/redoc").status_code == 200


def test_a_page_gives_way_only_to_the_methods_that_the_application_has() -> None:
    app = create_app(settings=settings())
    app.post("/problems")(lambda: "mine")
    client = TestClient(app)
    assert client.post("/problems").json() == "mine"
    assert "<h1>Problems</h1>" in client.get("/problems").text
    assert client.put("/problems").json()["code"] == "method_not_allowed"


@pytest.mark.parametrize("kind", ["static files", "a route"])
def test_pages_come_before_the_catch_alls_of_the_application_but_the_landing_page(kind: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    app = create_app(settings=settings())
    if kind == "static files":
        app.mount("/", StaticFiles(directory=tmp_path, html=True))
    else:
        app.get("/{path:path}")(lambda: PlainTextResponse("mine"))
    client = TestClient(app)
    assert client.get("/").text == "mine"
    for path in PAGES[1:]:
        assert client.get(path).text.startswith("<!doctype html>"), path


def test_a_page_answers_no_other_method() -> None:
    response = TestClient(create_app(settings=settings())).post("/docs")
    assert response.json()["code"] == "method_not_allowed"
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_a_page_is_found_with_a_slash_at_its_end_unless_the_application_wants_none() -> None:
    assert TestClient(create_app(settings=settings())).get("/docs/").status_code == 200
    assert TestClient(create_app(settings=settings(), redirect_slashes=False)).get("/docs/").status_code == 404


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.code)
def test_every_type_of_problem_is_explained(kind: type[SvcInfraError], client: TestClient) -> None:
    page = client.get(f"/problems/{kind.code}")
    assert page.status_code == 200
    assert f"<h1>{kind.title}</h1>" in page.text
    assert f"Status {kind.status}" in page.text
    for heading in ("When it happens", "What to do"):
        assert re.search(rf"<h2>{heading}</h2><p>[^<]", page.text)
    assert f"/problems/{kind.code}" in client.get("/problems").text


@pytest.mark.parametrize("served", ["at the root", "below a prefix", "mounted", "with a mount"])
@pytest.mark.parametrize("refused", ["by a route", "by the edge"])
def test_the_type_of_a_problem_leads_to_its_page_wherever_the_app_is_served(served: str, refused: str) -> None:
    app = create_app(settings=settings())
    api: Starlette = app
    within, prefix = "", "/api v1/" if served == "below a prefix" else ""  # of a proxy, which takes it away
    if served == "mounted":
        api, within = Starlette(routes=[Mount("/sub", app)]), "/sub"
    elif served == "with a mount":
        app.mount("/sub", FastAPI())
        within = "/sub"
    client = TestClient(api, root_path=prefix)
    path = f"{within}/nowhere" + ("x" * 9_000 if refused == "by the edge" else "")
    problem = client.get(path).json()
    assert problem["status"] == (414 if refused == "by the edge" else 404)
    assert problem["type"].startswith(quote(prefix))
    page = client.get(problem["type"].removeprefix(quote(prefix.rstrip("/"))))
    assert (page.status_code, f"<h1>{problem['title']}</h1>" in page.text) == (200, True)


def test_a_problem_of_the_application_is_explained_by_its_docstring(client: TestClient) -> None:
    page = client.get("/problems/out_of_stock").text
    assert "<p>The shop has none of &lt;these&gt; left: order <code>fewer</code>.</p>" in page
    assert "Only the first" not in page


@pytest.mark.parametrize(("code", "status"), [("gone", 410), ("i_m_a_teapot", 418), ("status_499", 499)])
def test_a_bare_status_is_explained_too(code: str, status: int, client: TestClient) -> None:
    assert f"Status {status}" in client.get(f"/problems/{code}").text


@pytest.mark.parametrize("code", ["nothing", "status_200", "NOT_FOUND", "not_found/", "%00"])
def test_an_unknown_type_of_problem_is_a_problem(code: str, client: TestClient) -> None:
    response = client.get(f"/problems/{code}", follow_redirects=False)
    if response.status_code != 307:
        assert response.json()["code"] == "not_found"


def test_pages_are_named_in_metrics(client: TestClient) -> None:
    client.get("/problems/not_found")
    client.get("/")
    metrics = client.get("/metrics").text
    assert 'route="/problems/{code}"' in metrics
    assert 'route="/"' in metrics


def test_swagger_ui_is_started_with_what_the_app_was_given() -> None:
    app = create_app(
        settings=settings(),
        swagger_ui_parameters={"docExpansion": "none"},
        swagger_ui_init_oauth={"clientId": "web"},
        openapi_url="/v1/openapi.json",
    )
    html = TestClient(app).get("/docs").text
    for part in ("&quot;docExpansion&quot;: &quot;none&quot;", "&quot;clientId&quot;", "&quot;/v1/openapi.json&quot;"):
        assert part in html
