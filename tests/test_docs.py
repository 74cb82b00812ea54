"""The documentation: every Python block runs, every link and every make target exists."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fresh import Interpreter, interpreter

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)[^)]*\)")

RUN = """
import asyncio, example, httpx2

async def start_and_ask(app):
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://app")
    async with app.router.lifespan_context(app), client:
        response = await client.get("/_ops/ready")
        assert response.status_code == 200, response.text

if hasattr(example, "app"):
    asyncio.run(start_and_ask(example.app))
"""

USE_THE_HOTEL = """
import asyncio, example, httpx2
from svc_infra.jobs import JobState, JobStore
from svc_infra.wiring import wiring_of

ADA = {"email": "ada@example.com", "password": "correct horse battery"}

async def use(app):
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://hotel")
    async with app.router.lifespan_context(app), client:
        assert (await client.post("/rooms/aurora/bookings")).status_code == 401
        assert (await client.post("/auth/register", json=ADA)).status_code == 201
        token = (await client.post("/auth/login", json=ADA)).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        missing = await client.post("/rooms/nowhere/bookings")
        assert (missing.status_code, missing.json()["detail"]) == (404, "Room nowhere was not found.")
        booked = await client.post("/rooms/aurora/bookings")
        assert booked.status_code == 202, booked.text
        store = wiring_of(app).get(JobStore)
        async with asyncio.timeout(30):
            while (await store.get(booked.json()["job"])).state is not JobState.SUCCEEDED:
                await asyncio.sleep(0.01)

asyncio.run(use(example.app))
"""


def blocks() -> Iterator[tuple[str, str]]:
    """Each block's code under its page and line."""
    for page in PAGES:
        text = page.read_text()
        for block in PYTHON_BLOCK.finditer(text):
            yield f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, block.start()) + 1}", block[1]


BLOCKS = dict(blocks())


Run = Callable[[str, str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python() -> Iterator[Interpreter]:
    """An interpreter with no settings but these."""
    with interpreter({"APP_ENV": "test", "PATH": os.environ["PATH"]}, "-W", "error") as made:
        yield made


@pytest.fixture
def run(python: Interpreter, tmp_path: Path) -> Run:
    """Saves a block as `example.py` in an empty folder and runs the driver, which imports it."""

    def saved_and_run(block: str, driver: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "example.py").write_text(block)
        return python.run(driver, tmp_path)

    return saved_and_run


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_every_python_block_runs_and_its_app_is_ready(block: str, run: Run) -> None:
    result = run(block, RUN)
    assert result.returncode == 0, result.stderr


def test_the_app_of_the_readme_does_what_the_readme_says(run: Run) -> None:
    [block] = [block for place, block in BLOCKS.items() if place.startswith("README.md")]
    result = run(block, USE_THE_HOTEL)
    assert result.returncode == 0, result.stderr
    assert "booking.confirmed" in result.stdout + result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    broken = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]
    assert not broken, f"{page.relative_to(ROOT)} links to {broken}, which do not exist."


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    unknown = set(re.findall(r"(?:`|^|\$ )make ([a-z]+)", page.read_text(), re.MULTILINE)) - targets
    assert not unknown, f"{page.relative_to(ROOT)} names make targets that do not exist: {sorted(unknown)}."
