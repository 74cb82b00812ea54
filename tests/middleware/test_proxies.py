from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svc_infra.config.serving import EdgeSettings
from svc_infra.errors import ConfigurationError
from svc_infra.middleware import TrustedProxiesMiddleware
from svc_infra.middleware._scope import client_ip
from svc_infra.middleware.proxies import MAX_HOPS, TrustedProxies
from tests.middleware.asgi import call, only, scope_of

PROXY, NEXT_PROXY, CLIENT = "10.0.0.1", "10.0.0.2", "203.0.113.9"
X = TrustedProxies(["10.0.0.0/8", "fd00::/8"], forwarded_host=True)
F = TrustedProxies(["10.0.0.0/8", "fd00::/8"], header="forwarded")


def seen(
    proxies: TrustedProxies, *headers: tuple[str, str], peer: str | None = PROXY, kind: str = "http"
) -> dict[str, Any]:
    """The scope of a request with these headers, as it is after the proxies were believed."""
    scope = {**scope_of(headers=[("host", "internal"), *headers], client=(peer, 5) if peer else None), "type": kind}
    proxies.apply(scope)
    return scope


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (CLIENT, CLIENT),
        (f"{CLIENT}, {NEXT_PROXY}", CLIENT),
        (f"198.51.100.66, {CLIENT}, {NEXT_PROXY}", CLIENT),
        (f"198.51.100.66,{CLIENT}", CLIENT),
        (f"{CLIENT}:4711", CLIENT),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("::ffff:203.0.113.9", CLIENT),
        (f"{NEXT_PROXY}, {NEXT_PROXY}", NEXT_PROXY),
        (f"unknown, {NEXT_PROXY}", NEXT_PROXY),
        ("unknown", PROXY),
        ("", PROXY),
        (f"{CLIENT}, ", PROXY),
        ("203.0.113.9:99999", PROXY),
        ("203.0.113.999", PROXY),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxy(header: str, client: str) -> None:
    assert client_ip(seen(X, ("x-forwarded-for", header))) == client


def test_headers_on_several_lines_are_one_list() -> None:
    lines = [("x-forwarded-for", "198.51.100.66"), ("x-forwarded-for", CLIENT), ("x-forwarded-for", NEXT_PROXY)]
    assert client_ip(seen(X, *lines)) == CLIENT


def test_a_peer_that_is_no_proxy_is_the_client_whatever_it_says() -> None:
    headers = [("x-forwarded-for", CLIENT), ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil.example")]
    scope = seen(X, *headers, ("forwarded", f"for={CLIENT}"), peer="192.0.2.1")
    assert (client_ip(scope), scope["scheme"], dict(scope["headers"])[b"host"]) == ("192.0.2.1", "http", b"internal")


def test_a_unix_sockets_peer_is_trusted_only_by_its_name() -> None:
    header = ("x-forwarded-for", CLIENT)
    assert client_ip(seen(X, header, peer=None)) == ""
    assert client_ip(seen(TrustedProxies(["unix"]), header, peer=None)) == CLIENT


def test_scheme_and_host_are_the_clients_own() -> None:
    headers = [("x-forwarded-for", CLIENT), ("x-forwarded-proto", "https"), ("x-forwarded-host", "API.example.com:444")]
    scope = seen(X, *headers)
    assert scope["scheme"] == "https"
    assert [value for name, value in scope["headers"] if name == b"host"] == [b"api.example.com:444"]
    assert seen(X, *headers, kind="websocket")["scheme"] == "wss"


def test_a_host_that_the_proxies_do_not_write_is_the_clients_invention() -> None:
    proxies = TrustedProxies(["10.0.0.0/8"])
    headers = [("x-forwarded-for", CLIENT), ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil.example")]
    scope = seen(proxies, *headers)
    assert (client_ip(scope), scope["scheme"], dict(scope["headers"])[b"host"]) == (CLIENT, "https", b"internal")


def test_the_scheme_belongs_to_the_same_hop_as_the_client() -> None:
    headers = [("x-forwarded-for", f"1.1.1.1, {CLIENT}, {NEXT_PROXY}"), ("x-forwarded-proto", "http, https, http")]
    assert seen(X, *headers)["scheme"] == "https"


@pytest.mark.parametrize("value", ["gopher", "", "https\r\n"])
def test_a_scheme_that_is_none_changes_nothing(value: str) -> None:
    assert seen(X, ("x-forwarded-for", CLIENT), ("x-forwarded-proto", value))["scheme"] == "http"


@pytest.mark.parametrize("value", ["a b", "evil.example/path", "a@b", "x" * 300, "[::1", "h:123456"])
def test_a_host_that_is_none_changes_nothing(value: str) -> None:
    scope = seen(X, ("x-forwarded-for", CLIENT), ("x-forwarded-host", value))
    assert dict(scope["headers"])[b"host"] == b"internal"


@pytest.mark.parametrize(
    ("header", "client", "scheme"),
    [
        (f"for={CLIENT}", CLIENT, "http"),
        (f"for={CLIENT};proto=https;by=10.0.0.1", CLIENT, "https"),
        (f'For="{CLIENT}:4711" ; PROTO=HTTPS', CLIENT, "https"),
        ('for="[2001:db8::7]:4711";proto=https', "2001:db8::7", "https"),
        (f"for=198.51.100.66, for={CLIENT};proto=https, for={NEXT_PROXY};proto=http", CLIENT, "https"),
        (f"for=_hidden, for={NEXT_PROXY}", NEXT_PROXY, "http"),
        ("for=unknown", PROXY, "http"),
        (f"for={CLIENT};for=1.1.1.1", PROXY, "http"),
        (f"for = {CLIENT}", PROXY, "http"),
        ('for="1.1.1.1', PROXY, "http"),
        ("proto=https", PROXY, "http"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_says(header: str, client: str, scheme: str) -> None:
    scope = seen(F, ("forwarded", header))
    assert (client_ip(scope), scope["scheme"]) == (client, scheme)


def test_only_the_header_that_the_proxies_write_is_read() -> None:
    headers = [("x-forwarded-for", "198.51.100.66"), ("forwarded", f"for={CLIENT}")]
    assert client_ip(seen(X, *headers)) == "198.51.100.66"
    assert client_ip(seen(F, *headers)) == CLIENT


anything = st.text(st.characters(max_codepoint=255), max_size=300)


@given(client_says=anything)
def test_nothing_that_a_client_says_before_its_proxy_changes_who_it_is(client_says: str) -> None:
    assert client_ip(seen(X, ("x-forwarded-for", f"{client_says},{CLIENT}"))) == CLIENT
    assert client_ip(seen(F, ("forwarded", f"{client_says},for={CLIENT}"))) == CLIENT
    quoted = f'{client_says},for="[2001:db8::7]:1";proto=https, for="{NEXT_PROXY}:2"'
    assert client_ip(seen(F, ("forwarded", quoted))) == "2001:db8::7"


@given(value=st.one_of(anything, st.text('for=",;[]:.0123456789 \\', max_size=200)))
def test_any_header_leads_to_an_address(value: str) -> None:
    names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"]
    for proxies in (X, F):
        scope = seen(proxies, *((name, value) for name in names))
        ip_address(client_ip(scope))
        assert scope["scheme"] in ("http", "https")
        assert len([name for name, _ in scope["headers"] if name == b"host"]) == 1


def test_a_long_chain_is_read_up_to_its_limit() -> None:
    chain = ", ".join([CLIENT, *[NEXT_PROXY] * MAX_HOPS])
    assert client_ip(seen(X, ("x-forwarded-for", chain))) == NEXT_PROXY


@pytest.mark.parametrize("part", ['"', ",", 'for="', "for=1.1.1.1;", "1", '",'])
def test_a_huge_header_costs_no_more_than_its_length(part: str) -> None:
    hostile = part * (1_000_000 // len(part))  # a step for each pair of its characters would take hours
    for proxies in (X, F):
        scope = seen(proxies, ("x-forwarded-for", hostile), ("forwarded", hostile))
        assert client_ip(scope) in (PROXY, "1.1.1.1")


async def test_the_class_alone_does_the_same() -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    alone = TrustedProxiesMiddleware(app, ["10.0.0.0/8"])
    await call(alone, headers=[("x-forwarded-for", CLIENT)], client=(PROXY, 5))
    await call(alone, headers=[("x-forwarded-for", CLIENT)], client=("192.0.2.1", 5))
    await alone({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert [client_ip(scope) for scope in scopes[:2]] == [CLIENT, "192.0.2.1"]


@pytest.mark.parametrize("made", [lambda: TrustedProxies(["nowhere"]), lambda: TrustedProxies([], header="via")])
def test_what_is_no_network_or_no_header_is_refused(made: Any) -> None:
    with pytest.raises(ConfigurationError):
        made()


def test_the_setting_names_what_is_wrong() -> None:
    with pytest.raises(ConfigurationError, match="EDGE_TRUSTED_PROXIES"):
        EdgeSettings(trusted_proxies=("10.0.0.1/8",))


async def test_behind_its_proxies_the_edge_logs_and_protects_the_real_client() -> None:
    async def endpoint(request: Any) -> Any:
        from starlette.responses import PlainTextResponse

        return PlainTextResponse(f"{request.client.host} {request.url}")

    app = only(endpoint, edge={"trusted_proxies": "10.0.0.0/8,unix", "forwarded_host": True})
    headers = [("x-forwarded-for", CLIENT), ("x-forwarded-proto", "https"), ("x-forwarded-host", "api.example.com")]
    answer = await call(app, headers=headers, client=(PROXY, 5))
    assert answer.body.decode() == f"{CLIENT} https://api.example.com/"
    assert answer.header("strict-transport-security")
