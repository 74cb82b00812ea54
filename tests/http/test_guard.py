"""Which addresses may be called."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svc_infra.errors import EgressRefusedError
from svc_infra.http import HttpClient
from svc_infra.http.guard import Guard

HOSTILE = [
    # not a web address
    "",
    "/relative",
    "//host/path",
    "example.com",
    "file:///etc/passwd",
    "ftp://example.com/",
    "gopher://example.com:70/_x",
    "dict://example.com:11211/stats",
    "ldap://example.com/",
    "javascript:alert(1)",
    "data:text/plain,x",
    "unix:///var/run/docker.sock",
    "ws://example.com/",
    "http:example.com",
    "http://",
    "http:///path",
    # malformed, or meant to be read in two ways
    "http://exa mple.com/",
    "http://example.com\\@127.0.0.1/",
    "http://127.0.0.1\\.example.com/",
    "http://exam\tple.com/",
    "http://example.com\r\nHost: x/",
    "http://%31%32%37.0.0.1/",
    "http://１２７.0.0.1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://ⓛocalhost/",
    "http://.example.com/",
    "http://example..com/",
    "http://" + "a" * 64 + ".example/",
    "http://" + "a." * 127 + "example/",
    "http://example.com/" + "a" * 70_000,
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:port/",
    "http://[::1/",
    "http://[1.2.3.4]/",
    "http://[fe80::1%25eth0]/",
    "http://[::1%lo]/",
    # with credentials
    "http://user@example.com/",
    "http://user:password@example.com/",
    "http://:@example.com/",
    "http://example.com@127.0.0.1/",
    "https://example.com%40@127.0.0.1/",
    # this machine
    "http://localhost/",
    "http://LOCALHOST/",
    "http://127.0.0.1/",
    "http://127.255.255.254/",
    "http://127.1/",
    "http://0177.0.0.1/",
    "http://0x7f.1/",
    "http://0x7f000001/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0/",
    "http://0.0.0.0:8000/",
    "http://[::]/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::]/",
    # this network
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://[fc00::1]/",
    "http://[fd12:3456::1]/",
    "http://[fec0::1]/",
    "http://[fe80::1]/",
    "http://[::ffff:10.0.0.1]/",
    "http://[64:ff9b::a00:1]/",
    # metadata services
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/",
    "http://[::ffff:169.254.169.254]/",
    "http://[fd00:ec2::254]/",
    "http://[fd20:ce::254]/",
    "http://100.100.100.200/",
    "http://192.0.0.192/",
    "http://168.63.129.16/",
    # nobody
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://192.88.99.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250:1900/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[ff02::1]/",
    "http://[100::1]/",
    "http://[5f00::1]/",
    "http://[4000::1]/",
]


async def as_given(host: str, port: int) -> Sequence[str]:
    """A resolver for hosts that are addresses."""
    return [host]


@pytest.mark.parametrize("url", HOSTILE)
async def test_a_hostile_url_is_refused(url: str) -> None:
    async with HttpClient() as http:
        with pytest.raises(EgressRefusedError):
            await http.check(url)
        with pytest.raises(EgressRefusedError):
            await http.request("GET", url)


PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.216.34", "100.63.255.255", "100.128.0.0",
    "126.255.255.255", "128.0.0.0", "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0",
    "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0", "192.167.255.255", "192.169.0.0", "198.17.255.255",
    "198.20.0.0", "223.255.255.255", "2001:200::1", "2003::1", "2606:4700:4700::1111", "2a00:1450::1", "3ffe::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
async def test_a_public_address_may_be_called(address: str) -> None:
    assert await Guard(resolve=as_given).addresses(address, 443) == [address]


@pytest.mark.parametrize("address", ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
async def test_a_public_ipv4_address_inside_an_ipv6_one_is_called_as_itself(address: str) -> None:
    assert await Guard(resolve=as_given).addresses(address, 443) == ["8.8.8.8"]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "172.20.0.1", "192.168.0.1", "::1", "fd12::1", "8.8.8.8"])
async def test_private_addresses_may_be_called_where_that_is_allowed(address: str) -> None:
    assert await Guard(allow_private_addresses=True, resolve=as_given).addresses(address, 80) == [address]


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "fe80::1", "fe80::1%2", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200",
        "168.63.129.16", "192.0.0.192", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "240.0.0.1",
        "255.255.255.255", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "2002:7f00:1::",
        "2001:0:7f00:1::", "fec0::1", "192.0.2.1",
    ],
)  # fmt: skip
async def test_metadata_and_special_addresses_may_never_be_called(address: str) -> None:
    with pytest.raises(EgressRefusedError):
        await Guard(allow_private_addresses=True, resolve=as_given).addresses(address, 80)


@pytest.mark.parametrize(
    "found", [["8.8.8.8", "127.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["2606:4700::1111", "::1"], ["8.8.8.8"] * 9 + ["::"]]
)
async def test_one_bad_address_among_good_ones_refuses_the_name(found: list[str]) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return found

    with pytest.raises(EgressRefusedError) as raised:
        await Guard(resolve=resolve).addresses("mixed.example", 443)
    assert raised.value.detail == "mixed.example may not be called: its address is not public."  # and not which


async def test_a_name_without_addresses_is_refused() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return []

    with pytest.raises(EgressRefusedError):
        await Guard(resolve=resolve).addresses("empty.example", 443)


async def test_each_address_is_given_once_in_the_order_found() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["8.8.8.8", "1.1.1.1", "8.8.8.8"]

    assert await Guard(resolve=resolve).addresses("twice.example", 443) == ["8.8.8.8", "1.1.1.1"]


@given(st.ip_addresses())
@settings(deadline=None)
async def test_every_address_that_may_be_called_is_global_to_the_standard_library_too(
    address: IPv4Address | IPv6Address,
) -> None:
    try:
        allowed = await Guard(resolve=as_given).addresses(str(address), 443)
    except EgressRefusedError:
        return
    called = ip_address(allowed[0])
    assert called.is_global
    assert not called.is_multicast
    assert not called.is_reserved


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("https://Example.COM/a?b#c", b"example.com", None, b"/a?b"),
        ("http://bücher.example:8080", b"xn--bcher-kva.example", 8080, b"/"),
        ("https://a_b-c.example.:443/", b"a_b-c.example.", None, b"/"),
        ("http://[2606:4700::1111]:80/", b"2606:4700::1111", None, b"/"),
        ("http://[::ffff:8.8.8.8]/", b"::ffff:8.8.8.8", None, b"/"),
    ],
)
def test_a_proper_url_is_taken_apart(url: str, host: bytes, port: int | None, target: bytes) -> None:
    parsed = Guard().url(url)
    assert (parsed.raw_host, parsed.port, parsed.raw_path) == (host, port, target)
