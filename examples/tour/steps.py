"""What the tour does, and what must come of it. Each step is a sentence; a failed assertion is its ✗."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import standardwebhooks

from svc_infra.testing import WebhookReceiver
from tour.service import Service

TICKETS = Path(__file__).parent.parent / "tracker" / "tickets.csv"
LARGE_IMPORT_ROWS = 10_000
WAIT_SECONDS = 30.0


class Tour:
    """One visit: a person, their organisation, a receiver, and a stranger who must be kept out."""

    def __init__(self, service: Service, receiver: WebhookReceiver) -> None:
        self.service = service
        self.receiver = receiver
        self.client = httpx2.AsyncClient(base_url=service.url, trust_env=False, timeout=30)
        self.email = f"ana-{secrets.token_hex(4)}@example.com"
        self.password = secrets.token_urlsafe(16)
        self.tokens: dict[str, Any] = {}
        self.organization = self.project = self.secret = self.ticket = ""
        self.dead_delivery: dict[str, Any] = {}
        self.large_import = ""

    def steps(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """The steps in order."""
        return [
            ("sign up", self.sign_up),
            ("log in", self.log_in),
            ("create an organisation and a project", self.create_project),
            ("subscribe a webhook receiver", self.subscribe),
            ("create a ticket; its job runs", self.create_ticket),
            ("the webhook arrives; its signature verifies", self.webhook_arrives),
            ("import a CSV with progress", self.import_csv),
            ("broken CSV files are refused and leave nothing", self.broken_csv),
            ("receiver down: retried, then dead-lettered", self.receiver_down),
            ("receiver up: redelivered under the same id", self.redelivered),
            ("refresh the token", self.refresh),
            ("log out; the old tokens are refused", self.log_out),
            ("a stranger's tenant is refused", self.foreign_tenant),
            ("wrong input gets one clear problem each", self.bad_input),
            ("stop with a job in flight: exit 0", self.stop_in_flight),
            ("start again: the job finishes, nothing twice", self.finish_after_restart),
        ]

    @property
    def headers(self) -> dict[str, str]:
        """Who is asking, and for which tenant."""
        return {"Authorization": f"Bearer {self.tokens['access_token']}", "X-Tenant-Id": self.organization}

    async def call(self, method: str, path: str, expected: int, **request: Any) -> Any:
        """Ask the service and insist on the status; every refusal must be a problem document."""
        response = await self.client.request(
            method, path, **{"headers": self.headers if self.tokens else {}, **request}
        )
        assert response.status_code == expected, f"{method} {path}: {response.status_code} {response.text[:300]}"
        if expected >= 400:
            assert response.headers["content-type"] == "application/problem+json", response.headers["content-type"]
            problem = response.json()
            assert problem["status"] == expected, problem
            assert problem["code"], problem
        return response.json() if response.content else None

    async def until(self, fact: Callable[[], Awaitable[Any]], what: str) -> Any:
        """Wait for a fact."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not (found := await fact()):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"waited {WAIT_SECONDS:.0f} s for {what}") from None
        return found

    async def sign_up(self) -> None:
        account = {"email": self.email, "password": self.password}
        await self.call("POST", "/auth/register", 201, json=account)

    async def log_in(self) -> None:
        await self.call("POST", "/auth/login", 401, json={"email": self.email, "password": "not the password"})
        self.tokens = await self.call("POST", "/auth/login", 200, json={"email": self.email, "password": self.password})
        me = await self.call("GET", "/auth/me", 200)
        assert me["email"] == self.email

    async def create_project(self) -> None:
        self.organization = (await self.call("POST", "/organizations", 201, json={"name": "Acme"}))["id"]
        self.project = (await self.call("POST", "/projects", 201, json={"name": "Website"}))["id"]

    async def subscribe(self) -> None:
        await self.receiver.up()
        wanted = {"url": self.receiver.url, "topics": ["ticket.*", "import.finished"]}
        self.secret = (await self.call("POST", "/webhooks/endpoints", 201, json=wanted))["secret"]

    async def create_ticket(self) -> None:
        ticket = {"title": "It is broken", "priority": "high"}
        created = await self.call("POST", f"/projects/{self.project}/tickets", 201, json=ticket)
        self.ticket = created["id"]
        await self.until(lambda: self.open_tickets(1), "the job that counts the tickets")

    async def open_tickets(self, count: int) -> bool:
        """Whether the project's counters, which a job keeps, say so."""
        projects = await self.call("GET", "/projects", 200)
        return bool(projects[0]["open_tickets"] == count)

    async def webhook_arrives(self) -> None:
        async def arrived() -> Any:
            return self.receiver.about("ticket.created", id=self.ticket)

        (received,) = await self.until(arrived, "the webhook")
        standardwebhooks.Webhook(self.secret).verify(received.body, received.headers)
        forged = {**received.headers, "webhook-id": "another"}
        try:
            standardwebhooks.Webhook(self.secret).verify(received.body, forged)
        except standardwebhooks.WebhookVerificationError:
            return
        raise AssertionError("a forged webhook verified")

    async def upload(self, content: bytes, expected: int = 202) -> Any:
        """Upload a CSV file of tickets."""
        files = {"file": ("tickets.csv", content, "text/csv")}
        return await self.call("POST", f"/projects/{self.project}/imports", expected, files=files)

    async def imported(self, import_id: str) -> Any:
        """The import once it has finished, else None."""
        found = await self.call("GET", f"/imports/{import_id}", 200)
        return found if found["state"] == "finished" else None

    async def import_csv(self) -> None:
        started = await self.upload(TICKETS.read_bytes())
        done = await self.until(lambda: self.imported(started["id"]), "the import")
        assert done["rows_done"] == done["rows_total"] == 40, done
        tickets = await self.call("GET", f"/projects/{self.project}/tickets?limit=1", 200)
        assert tickets["total"] == 41, tickets

        async def told() -> Any:
            return self.receiver.about("import.finished", id=started["id"])

        await self.until(told, "the import's webhook")

    async def broken_csv(self) -> None:
        before = await self.call("GET", f"/projects/{self.project}/tickets?limit=1", 200)
        broken = {
            "encoding": "title,priority\ncafé,low\n".encode("latin-1"),
            "missing column": b"name,priority\nx,low\n",
            "zero rows": b"title,description,priority,status\n",
            "wrong value": b"title,priority\nfine,low\nwrong,apocalyptic\n",
        }
        for what, content in broken.items():
            problem = await self.upload(content, expected=422)
            assert len(problem["detail"]) > 20, (what, problem)
        await self.upload(b"title\n" + b"x" * 100_000_000, expected=413)
        after = await self.call("GET", f"/projects/{self.project}/tickets?limit=1", 200)
        assert after["total"] == before["total"], "a refused file left tickets behind"

    async def receiver_down(self) -> None:
        await self.receiver.down()
        await self.call("POST", f"/projects/{self.project}/tickets", 201, json={"title": "Nobody listens"})

        async def dead() -> Any:
            return await self.call("GET", "/webhooks/deliveries?state=dead", 200)

        (self.dead_delivery,) = await self.until(dead, "the dead letter")
        attempts = (await self.call("GET", f"/webhooks/deliveries/{self.dead_delivery['id']}", 200))["attempts"]
        assert len(attempts) == 4, attempts
        assert all(attempt["error"] and attempt["status"] is None for attempt in attempts), attempts

    async def redelivered(self) -> None:
        await self.receiver.up()
        await self.call("POST", f"/webhooks/deliveries/{self.dead_delivery['id']}/redeliver", 202)

        async def arrived() -> Any:
            return [
                one for one in self.receiver.received if one.headers["webhook-id"] == self.dead_delivery["event_id"]
            ]

        (received,) = await self.until(arrived, "the redelivery")
        standardwebhooks.Webhook(self.secret).verify(received.body, received.headers)

    async def refresh(self) -> None:
        old = self.tokens
        self.tokens = await self.call("POST", "/auth/refresh", 200, json={"refresh_token": old["refresh_token"]})
        assert self.tokens["refresh_token"] != old["refresh_token"]
        assert (await self.call("GET", "/auth/me", 200))["email"] == self.email

    async def foreign_tenant(self) -> None:
        stranger = {"email": f"eve-{secrets.token_hex(4)}@example.com", "password": secrets.token_urlsafe(16)}
        await self.call("POST", "/auth/register", 201, json=stranger, headers={})
        tokens = await self.call("POST", "/auth/login", 200, json=stranger, headers={})
        eve = {"Authorization": f"Bearer {tokens['access_token']}"}
        for tenant in (self.organization, "no-such-tenant"):
            await self.call("GET", "/projects", 403, headers={**eve, "X-Tenant-Id": tenant})
        own = await self.call("POST", "/organizations", 201, json={"name": "Eve"}, headers=eve)
        inside = {**eve, "X-Tenant-Id": own["id"]}
        assert await self.call("GET", "/projects", 200, headers=inside) == []
        await self.call("GET", f"/projects/{self.project}/tickets", 404, headers=inside)
        await self.call("PATCH", f"/tickets/{self.ticket}", 404, json={"status": "closed"}, headers=inside)
        await self.call("GET", "/projects", 401, headers={"X-Tenant-Id": self.organization})

    async def bad_input(self) -> None:
        path = f"/projects/{self.project}/tickets"
        as_json = {**self.headers, "Content-Type": "application/json"}
        await self.call("POST", path, 400, content=b'{"title": ', headers=as_json)
        problem = await self.call("POST", path, 422, json={"title": ["not", "text"], "colour": "red"})
        assert {error["pointer"] for error in problem["errors"]} == {"#/title", "#/colour"}, problem
        await self.call("POST", path, 413, content=b"x" * 11_000_000, headers=as_json)
        await self.call("GET", "/projects/not-a-uuid/tickets", 422)
        await self.call("GET", "/no/such/page", 404)
        await self.call("DELETE", "/projects", 405)
        await self.call("GET", "/auth/me", 401, headers={"Authorization": "Bearer not.a.token"})

    async def stop_in_flight(self) -> None:
        rows = "".join(f"Ticket {number},low\n" for number in range(LARGE_IMPORT_ROWS))
        self.large_import = (await self.upload(f"title,priority\n{rows}".encode()))["id"]

        async def begun() -> Any:
            return (await self.call("GET", f"/imports/{self.large_import}", 200))["rows_done"] > 0

        await self.until(begun, "the import to begin")
        await self.stop()

    async def stop(self) -> None:
        """SIGTERM; the service must end by itself and well."""
        code = await self.service.stop()
        assert code == 0, f"exit code {code}"

    async def finish_after_restart(self) -> None:
        await self.service.start()
        done = await self.until(lambda: self.imported(self.large_import), "the import to finish")
        assert done["rows_done"] == LARGE_IMPORT_ROWS, done
        tickets = await self.call("GET", f"/projects/{self.project}/tickets?limit=1", 200)
        assert tickets["total"] == 41 + 1 + LARGE_IMPORT_ROWS, tickets

    async def log_out(self) -> None:
        await self.call("POST", "/auth/logout", 204)
        refresh = {"refresh_token": self.tokens["refresh_token"]}
        await self.call("POST", "/auth/refresh", 401, json=refresh, headers={})
        await self.call("GET", "/auth/me", 401)
        self.tokens = {}
        await self.log_in()
