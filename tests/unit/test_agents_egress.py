"""The allow-list of addresses: what is written decides, and every trick with it is refused before a connection."""

import pytest

from orchestrator.domain.errors import ConfigError
from orchestrator.domain.outcome import FailureClass
from orchestrator.ports import AgentFailed
from workers.agents.egress import Egress
from workers.agents.transport import _aiohttp_url

ALLOWED = [
    ("https://api.example.com/", "https://api.example.com/v1/x?y=1"),
    ("https://api.example.com", "https://API.Example.COM/"),
    ("https://api.example.com", "https://api.example.com:443/x"),
    ("HTTPS://api.example.com".lower(), "HTTPS://api.example.com/x"),
    ("http://127.0.0.1:*", "http://127.0.0.1:8080/x"),
    ("http://127.0.0.1:*", "http://127.0.0.1/x"),
    ("http://[::1]:8080", "http://[::1]:8080/x"),
    ("https://*.example.com", "https://a.b.example.com/"),
    ("https://*", "https://anything.test/"),
    ("https://münchen.example", "https://xn--mnchen-3ya.example/"),
    ("https://api.example.com/v1", "https://api.example.com/v1"),
    ("https://api.example.com/v1", "https://api.example.com/v1/chat"),
    ("https://api.example.com/v1", "https://api.example.com/v1?key=1"),
    ("https://api.example.com/v1/", "https://api.example.com/v1/../v1/x"),
]

REFUSED = [
    ("https://api.example.com/", "http://api.example.com/"),
    ("https://api.example.com/", "https://api.example.com:8443/"),
    ("https://api.example.com/", "https://api.example.com.evil.test/"),
    ("https://api.example.com/", "https://api.example.com./"),
    ("https://api.example.com/", "https://evil.test/https://api.example.com/"),
    ("https://api.example.com/", "https://api.example.com@evil.test/"),
    ("https://api.example.com/", "https://user:pass@api.example.com/"),
    ("https://api.example.com/", "https://evil.test\\@api.example.com/"),
    ("https://api.example.com/", "https://evil.test#@api.example.com/"),
    ("https://api.example.com/", "https://evil.test?@api.example.com/"),
    ("https://*.example.com", "https://example.com/"),
    ("https://*.example.com", "https://evilexample.com/"),
    ("http://127.0.0.1:*", "http://2130706433/"),
    ("http://127.0.0.1:*", "http://127.0.0.1.evil.test/"),
    ("http://127.0.0.1:*", "http://127.1/"),
    ("https://api.example.com/v1", "https://api.example.com/v10"),
    ("https://api.example.com/v1", "https://api.example.com/v1/../admin"),
    ("https://api.example.com/v1", "https://api.example.com/v1/%2e%2e/admin"),
    ("https://api.example.com/v1", "https://api.example.com/v1/%252e%252e/admin"),
    ("https://api.example.com/v1", "https://api.example.com/v1/%" + "25" * 5000 + "2e"),
    ("https://api.example.com/v1", "https://api.example.com/v1/..%2fadmin"),
    ("https://api.example.com/v1", "https://api.example.com/v1/..;/admin"),
    ("https://api.example.com/v1", "https://api.example.com/v1/..%5cadmin"),
    ("https://api.example.com/v1/", "https://api.example.com/v1"),
]


def refusal(egress: Egress, url: str) -> str:
    with pytest.raises(AgentFailed) as caught:
        egress.check(url)
    failure = caught.value.failure
    assert failure.kind is FailureClass.REFUSED_BY_POLICY
    assert failure.outcome_known
    assert not failure.answered
    return failure.message


@pytest.mark.parametrize(("pattern", "url"), ALLOWED)
def test_a_matching_address_is_allowed(pattern: str, url: str) -> None:
    assert Egress([pattern]).check(url).scheme in ("http", "https")


@pytest.mark.parametrize(("pattern", "url"), REFUSED)
def test_an_address_that_only_looks_like_it_is_refused(pattern: str, url: str) -> None:
    refusal(Egress([pattern]), url)


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "https://api.example.com/"])
def test_an_empty_list_allows_nothing_and_says_how_to_allow_it(url: str) -> None:
    message = refusal(Egress(), f"{url}?token=secret")
    assert "ORCHESTRATOR_EGRESS" in message
    assert url in message
    assert "secret" not in message


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a.test/",
        "gopher://a.test/",
        "",
        "/path",
        "http://",
        "http:///x",
        "http://a.test:0/",
        "http://a.test:99999/",
        "http://user@a.test/",
        "http://a\n.test/",
        "http://[::1/",
        "http://a.test/\x00",
    ],
)
def test_unrestricted_still_means_a_plain_http_url(url: str) -> None:
    refusal(Egress(unrestricted=True), url)


def test_any_of_several_patterns_allows() -> None:
    egress = Egress(["https://a.test", "https://b.test"])
    assert egress.check("https://b.test/x").host == "b.test"
    refusal(egress, "https://c.test/x")


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "*",
        "api.example.com",
        "ftp://x.test",
        "https://",
        "https://a.test:port",
        "https://u@a.test",
        "https://a.test?q",
        "https://a.*.test/",
        "https://a.test:99999",
        "https://\N{FULLWIDTH LATIN SMALL LETTER A}.test",
    ],
)
def test_a_pattern_that_cannot_be_read_stops_the_start(pattern: str) -> None:
    with pytest.raises(ConfigError, match="ORCHESTRATOR_EGRESS"):
        Egress([pattern])


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("http://[::1]:8080/x?y=1%20&z=%2F", "::1", 8080, "/x?y=1%20&z=%2F"),
        ("http://A.test", "a.test", 80, "/"),
        ("https://münchen.test/%2e%2E/a%2Fb/ü", "xn--mnchen-3ya.test", 443, "/%2e%2E/a%2Fb/%C3%BC"),
        ("http://a.test/a//b?c?d=%", "a.test", 80, "/a//b?c?d=%"),
    ],
)
def test_the_connection_goes_where_the_check_looked(url: str, host: str, port: int, target: str) -> None:
    checked = Egress(unrestricted=True).check(url)
    used = _aiohttp_url(checked)
    assert (used.raw_host, used.port, used.raw_path_qs) == (host, port, target)
    assert checked.raw_host.decode() == host
