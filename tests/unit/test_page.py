"""The triage page: who may use it, what it shows and exports, and what a correction does."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import boto3
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from starlette.datastructures import QueryParams
from starlette.testclient import TestClient
from typer.testing import CliRunner

from handler.tickets.command import app as command
from handler.tickets.corrections import Corrections
from handler.tickets.page.app import create_app
from handler.tickets.page.chart import HEIGHT, MOST_DAYS, draw
from handler.tickets.page.export import csv_lines
from handler.tickets.page.feed import LiveList, events
from handler.tickets.page.filters import Filters
from handler.tickets.page.passages import passages
from handler.tickets.page.rendering import page as render
from handler.tickets.page.security import Sessions
from handler.tickets.page.views import Stores
from handler.tickets.repository import Item, RepositoryError, Selection
from handler.tickets.search.query import Search
from handler.tickets.search.sqlite import SqliteIndex
from tests.support.mocked_aws import mocked_aws
from tests.support.ticket_table import Harness, ticket_table

SITE = "http://127.0.0.1:8700"
ME = "arn:aws:iam::123456789012:user/ada"
DAY = 86400
NOON = 1_795_608_000  # 2026-11-25, 12:00 UTC
PAGES = ("/", "/feed", "/ticket", "/ticket.json", "/choice?task=intent", "/chart", "/export?format=csv", "/nothing")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} ${7*7}",
    "</textarea></template>]]>--><svg onload=alert(1)>",
    '=HYPERLINK("http://evil.example")',
)


@dataclass
class Site:
    """The page on a harness, and a browser that has a session."""

    harness: Harness
    index: Path
    links: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        repository, s3 = self.harness.repository, self.harness.s3
        log = Corrections(
            self.harness.dynamodb,
            lambda: s3,
            repository,
            lambda: ME,
            table=self.harness.place,
            bucket=self.harness.place,
        )

        def no_encoder() -> Any:
            raise RepositoryError("set MODEL_BUNDLE")

        self.stores = Stores(repository, log, Search(repository, SqliteIndex(self.index), no_encoder))
        self.app = create_app(self.stores, port=8700, announce=self.links.append, stopping=lambda: True)
        self.client = self.browser()
        self.client.get(self.links[-1])

    def browser(self, **headers: str) -> TestClient:
        """A browser without a session."""
        return TestClient(self.app, SITE, headers=headers, follow_redirects=True, raise_server_exceptions=False)

    def get(self, path: str, status: int = 200, **parameters: Any) -> str:
        answer = self.client.get(path, params=parameters or None)
        assert answer.status_code == status, answer.text
        return str(answer.text)

    def rows(self, **filters: Any) -> list[str]:
        """The ids of the listed tickets."""
        return [key.partition("/")[2] for key in re.findall(r'data-key="([^"]*)"', self.get("/", **filters))]

    def choice(self, ticket_id: str, task: str) -> tuple[str, str]:
        """The address and the token of the form with which a label is corrected."""
        form = self.get("/choice", id=ticket_id, task=task)
        action, token = re.search(r'action="([^"]*)"', form), re.search(r'name="form_token" value="([^"]*)"', form)
        assert action is not None
        assert token is not None
        return action[1].replace("&amp;", "&"), token[1]


@pytest.fixture(scope="module")
def aws() -> Iterator[tuple[Any, Any]]:
    """Yields clients of an in-process DynamoDB and S3."""
    with mocked_aws():
        yield boto3.client("dynamodb"), boto3.client("s3")


@pytest.fixture
def site(aws: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """Yields the page on an empty table."""
    with ticket_table(aws, monkeypatch) as harness:
        yield Site(harness, tmp_path / "index.sqlite")


# -- who may use it


def test_link_becomes_a_cookie_once(site: Site) -> None:
    link = site.links[-1]
    visitor = site.browser()
    answer = visitor.get(link, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("tickets-8700=")
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= {part.strip() for part in cookie.split(";")}
    assert visitor.get("/").status_code == 200
    assert visitor.get(link).status_code == 200  # who has a session needs no token
    again = site.browser().get(link)
    assert (again.status_code, "set-cookie" in again.headers) == (403, False)
    assert "each link works once" in again.text
    assert site.browser().get(site.links[-1]).status_code == 200
    assert len(set(site.links)) == len(site.links) == 4


@pytest.mark.parametrize("path", PAGES)
def test_nothing_without_a_session(site: Site, path: str) -> None:
    site.harness.store("secret")
    for cookie in ("", "tickets-8700=", "tickets-8700=guess", "tickets-8701=guess", 'tickets-8700="; =;;'):
        answer = site.browser(cookie=cookie).get(path)
        assert answer.status_code == 403
        assert "secret" not in answer.text
        assert "Open the link in the terminal" in answer.text


@pytest.mark.parametrize("cookie", ['theme={"dark": true}', "a b=c", "="])
def test_cookies_of_other_servers_of_this_machine_do_no_harm(site: Site, cookie: str) -> None:
    own = f"tickets-8700={site.client.cookies['tickets-8700']}"
    for both in (f"{cookie}; {own}", f"{own}; {cookie}"):
        assert site.browser(cookie=both).get("/").status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", "é", "x" * 5000])
def test_wrong_token_is_a_clear_page(site: Site, token: str) -> None:
    answer = site.browser().get("/", params={"token": token})
    assert answer.status_code == 403
    assert "This link is wrong" in answer.text
    assert site.browser().get(site.links[-1]).status_code == 200  # a guess uses nothing up


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8700", "127.0.0.1.evil.example", "10.0.0.1:8700", "", "@"),
        *("localhost/static/?", "localhost:8700/?", "evil.example@localhost", "localhost:x"),
    ],
)
def test_foreign_host_is_not_served(site: Site, host: str) -> None:
    site.harness.store("secret")
    for path in (*PAGES, "/static/page.css", site.links[-1]):
        answer = site.client.get(path, headers={"host": host}, follow_redirects=False)
        assert (answer.status_code, "secret" in answer.text) == (421, False)


@pytest.mark.parametrize("host", ["127.0.0.1:8700", "localhost:8700", "localhost:9999", "[::1]:8700"])
def test_names_of_this_machine_and_other_ports_of_a_tunnel_are_served(site: Site, host: str) -> None:
    assert site.client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", [*PAGES, "/static/page.css", "/?token=wrong", "/?since=nonsense"])
def test_headers_of_every_answer(site: Site, path: str) -> None:
    for browser in (site.client, site.browser(), site.browser(host="evil.example")):
        headers = browser.get(path).headers
        rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_pages_have_no_inline_script_or_style_and_no_foreign_address(site: Site) -> None:
    site.harness.store("one")
    for path in ("/", "/ticket?id=one", "/choice?id=one&task=intent", "/chart", "/nothing"):
        text = site.get(path, status=404 if path == "/nothing" else 200)
        assert not re.search(r"<script(?![^>]* src=\"/static/)|<style|\sstyle=|\son\w+=|javascript:", text)
        assert set(re.findall(r"""(?:src|href|action)=["'](\w+:|//)""", text)) == set()
    for file in ("page.css", "page.js"):
        assert "http" not in site.get(f"/static/{file}")


OWN = {"sec-fetch-site": "same-origin", "origin": SITE}
FOREIGN: list[dict[str, str]] = [
    {},
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:9999"},
    {"origin": "https://127.0.0.1:8700"},
    {"sec-fetch-site": "cross-site", "origin": SITE},
    {"sec-fetch-site": "same-site", "origin": SITE},
    {"sec-fetch-site": "none"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_foreign_pages_cannot_correct(site: Site, headers: dict[str, str]) -> None:
    site.harness.store("one")
    action, token = site.choice("one", "intent")
    answer = site.client.post(action, data={"label": "login_issue", "form_token": token}, headers=headers)
    assert answer.status_code == 403
    assert site.harness.item("one").intent == "bug_report"


@pytest.mark.parametrize("headers", [OWN, {"origin": SITE}, {"sec-fetch-site": "same-origin", "origin": "null"}])
def test_own_pages_can_correct(site: Site, headers: dict[str, str]) -> None:
    site.harness.store("one")
    action, token = site.choice("one", "intent")
    answer = site.client.post(
        action, data={"label": "login_issue", "form_token": token}, headers=headers, follow_redirects=False
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert site.harness.item("one").intent == "login_issue"


@pytest.mark.parametrize("token", [None, "", "guess"])
def test_form_token_is_needed(site: Site, token: str | None) -> None:
    site.harness.store("one")
    action, _ = site.choice("one", "intent")
    data = {"label": "login_issue"} | ({} if token is None else {"form_token": token})
    assert site.client.post(action, data=data, headers=OWN).status_code == 403
    assert site.harness.item("one").intent == "bug_report"


def test_form_tokens_belong_to_one_session() -> None:
    links: list[str] = []
    sessions = Sessions(links.append)
    one, other = sessions.begin(links[-1]), sessions.begin(links[-1])
    assert one is not None
    assert other is not None
    assert sessions.form_token(one) != sessions.form_token(other) is not None
    assert sessions.form_token("") is None


def test_corrections_are_only_made_by_post(site: Site) -> None:
    site.harness.store("one")
    action, token = site.choice("one", "intent")
    assert site.client.get(f"{action}&label=login_issue&form_token={token}").status_code == 405
    assert site.harness.item("one").intent == "bug_report"


# -- the list


def test_list_shows_the_newest_first_and_links_the_older_ones(site: Site) -> None:
    for number in range(120):
        site.harness.store(
            f"T-{number:03}", NOON + number // 2, urgency=("critical", "high", "medium", "low")[number % 4]
        )
    seen, path = [], "/"
    while path:
        text = site.get(path)
        seen.append(re.findall(r'data-key="(\d+)/([^"]*)"', text))
        following = re.search(r'rel="next" href="([^"]*)"', text)
        path = following[1].replace("&amp;", "&") if following else ""
    assert [len(part) for part in seen] == [50, 50, 20]
    times = [int(moment) for part in seen for moment, _ in part]
    assert times == sorted(times, reverse=True)
    assert {name for part in seen for _, name in part} == {f"T-{number:03}" for number in range(120)}


def test_filters_select(site: Site) -> None:
    store = site.harness.store
    store("low", NOON)
    store("urgent", NOON + DAY, urgency="critical", intent="login_issue", subject="Cannot LOG in")
    store("angry", NOON + 2 * DAY, urgency="high", sentiment="NEGATIVE", language="de", summary="Nichts geht mehr.")
    store("unsure", NOON + 3 * DAY, needs_review=True, review_reasons=["intent"])
    assert site.rows() == ["unsure", "angry", "urgent", "low"]
    assert site.rows(urgency="critical") == ["urgent"]
    assert site.rows(urgency=["critical", "high"]) == ["angry", "urgent"]
    assert site.rows(intent="login_issue") == ["urgent"]
    assert site.rows(sentiment="NEGATIVE") == ["angry"]
    assert site.rows(review="yes") == ["unsure"]
    assert site.rows(review="no") == ["angry", "urgent", "low"]
    assert site.rows(language="de") == site.rows(language="DE") == ["angry"]
    assert site.rows(text="log IN") == ["urgent"]
    assert site.rows(text="nichts") == ["angry"]
    assert site.rows(since="2026-11-26", until="2026-11-27") == ["angry", "urgent"]
    assert site.rows(since="2026-11-26T12:00:01") == ["unsure", "angry"]
    assert site.rows(urgency="low", review="no", until="2026-11-25") == ["low"]
    assert site.rows(text="nowhere") == []
    assert "No ticket matches" in site.get("/", text="nowhere")


def test_filters_stay_in_every_link(site: Site) -> None:
    site.harness.store("one", NOON, urgency="high", subject="a & b")
    text = site.get("/", urgency="high", text="a & b")
    links = [link.replace("&amp;", "&") for link in re.findall(r'href="(/(?:ticket|export|chart)[^"]*)"', text)]
    assert len(links) == 5
    for link in links:
        found = Filters.read(QueryParams(link.partition("?")[2]))
        assert (found.urgency, found.text) == (("high",), "a & b")


def test_filters_survive_their_address() -> None:
    query = "urgency=critical&urgency=low&intent=x&sentiment=POSITIVE&review=no&language=de&since=2026-01-31&until=3d"
    query += "&text=a%26b&words=c+d"
    filters = Filters.read(QueryParams(query))
    assert filters == Filters.read(QueryParams(filters.query()[1:]))
    assert filters.selection.since == 1_769_817_600
    assert filters.without("urgency").selection is not None
    assert "urgency" not in filters.without("urgency").query()
    assert Filters.read(QueryParams("")).query() == ""
    assert Filters.read(QueryParams("")).selection == Selection()


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sentiment=angry", "is none of POSITIVE"),
        ("review=perhaps", "is none of yes, no"),
        ("since=yesterday", "neither a date"),
        ("until=99999999999999999999-01-01", "neither a date"),
        ("since=999999w", "neither a date"),
        ("until=1969-12-30", "neither a date"),
    ],
)
def test_meaningless_filter_is_named_and_ignored(site: Site, query: str, problem: str) -> None:
    site.harness.store("one")
    text = site.get(f"/?{query}")
    assert problem in text
    assert 'data-key="1000/one"' in text
    assert site.client.get(f"/export?format=csv&{query}").status_code == 400


def test_invalid_position_is_one_line(site: Site) -> None:
    assert "begin with the newest tickets" in site.get("/", after="nonsense", status=409)


def test_reads_use_an_index(site: Site) -> None:
    for number in range(3):
        site.harness.store(f"T-{number}", NOON)
    site.harness.forget_calls()
    for path in (
        "/",
        "/?text=x&urgency=low",
        "/chart",
        "/export?format=jsonl",
        "/ticket?id=T-1",
        "/choice?id=T-1&task=intent",
    ):
        site.get(path)
    assert site.harness.queries
    assert "Scan" not in site.harness.calls


# -- a ticket and its correction


def test_ticket_shows_text_scores_summary_and_source(site: Site) -> None:
    body = "Hello team,\n\nOur card was charged twice for invoice 2291. Please refund one of them soon.\n\nMarta"
    site.harness.store(
        "one", NOON, subject="Charged twice", body=body, summary="Our card was charged twice for invoice 2291."
    )
    text = site.get("/ticket", id="one")
    assert "<mark>Our card was charged twice for invoice 2291.</mark>" in text
    for label, share in (("bug report", "75.0"), ("login issue", "20.0"), ("payment issue", "5.0")):
        assert re.search(rf'{label}</th><td><svg.*?width="{float(share):.2f}".*?{share} %', text, re.DOTALL)
    order = [text.index(f"{label}</th>") for label in ("bug report", "login issue", "payment issue")]
    assert order == sorted(order)
    assert "compact-int8@0123456789ab" in text
    assert "there is no vector index yet" in text  # which is not fatal
    whole = site.client.get("/ticket.json", params={"id": "one"})
    assert json.loads(whole.text)["body"] == body
    assert whole.headers["content-disposition"] == 'attachment; filename="one.json"'


def test_ticket_without_object_is_shown(site: Site) -> None:
    key = site.harness.store("one", NOON)
    (version,) = site.harness.s3.list_object_versions(Bucket=site.harness.place, Prefix=key)["Versions"]
    site.harness.s3.delete_object(Bucket=site.harness.place, Key=key, VersionId=version["VersionId"])
    text = site.get("/ticket", id="one")
    assert "about one" in text
    assert "is gone; enrich the ticket again" in text
    assert "is gone" in site.get("/choice", id="one", task="intent", status=409)


def test_unknown_tickets_and_tasks_are_named(site: Site) -> None:
    site.harness.store("one", 1000)
    assert "There is no such ticket" in site.get("/ticket", id="two", status=404)
    assert "There is no such ticket" in site.get("/ticket", id="one", created_at="1001", status=404)
    assert "There is no such ticket" in site.get("/ticket", status=404)
    assert "The task must be one of" in site.get("/choice", id="one", task="colour", status=400)


def test_ids_of_any_text_have_a_page(site: Site) -> None:
    for ticket_id in ("a/b?c&d=e", "../../etc/passwd", "ü %2F #1", "<b>"):
        site.harness.store(ticket_id, NOON, subject="odd")
    links = re.findall(r'class="subject"[^>]* href="([^"]*)"', site.get("/"))
    assert len(links) == 4
    for link in links:
        assert "odd" in site.get(link.replace("&amp;", "&"))


def correct(site: Site, ticket_id: str, task: str, label: str) -> int:
    action, token = site.choice(ticket_id, task)
    answer = site.client.post(action, data={"label": label, "form_token": token}, headers=OWN)
    return int(answer.status_code)


def test_correction_shows_everywhere_and_can_be_undone(site: Site) -> None:
    site.harness.store("one", NOON, needs_review=True, review_reasons=["urgency"], summary="What it says.")
    assert correct(site, "one", "urgency", "critical") == 200
    assert site.rows(urgency="critical") == ["one"]
    assert site.rows(urgency="low") == []
    assert site.rows(review="yes") == []
    text = site.get("/ticket", id="one")
    assert "corrected; predicted was <b>low</b>" in text
    assert re.search(r"urgency: <b>low</b> → <b>critical</b>", text)
    assert ME in text
    assert re.search(r"low</span>\s*<span[^>]*>100 %, predicted</span>", site.get("/choice", id="one", task="urgency"))
    (entry,) = site.stores.corrections.of(site.harness.item("one"))
    assert (entry.labels, entry.predicted, entry.by) == ({"urgency": "critical"}, {"urgency": "low"}, ME)
    assert correct(site, "one", "urgency", "low") == 200
    assert site.rows(urgency="low") == ["one"]
    assert len(site.stores.corrections.of(site.harness.item("one"))) == 2


def test_unknown_label_is_refused_in_one_line(site: Site) -> None:
    site.harness.store("one")
    action, token = site.choice("one", "intent")
    answer = site.client.post(action, data={"label": "<b>nonsense", "form_token": token}, headers=OWN)
    assert answer.status_code == 409
    assert "intent cannot be &lt;b&gt;nonsense; choose one of" in answer.text


def test_choice_goes_back_to_where_it_was_opened(site: Site) -> None:
    site.harness.store("one", NOON)
    for back, place in (
        ("ticket", "/ticket?text=about&id=one&created_at="),
        ("list", "/?text=about"),
        ("//evil.example", "/?"),
    ):
        form = site.get("/choice", id="one", task="intent", text="about", back=back)
        action = re.search(r'action="([^"]*)"', form)
        token = re.search(r'name="form_token" value="([^"]*)"', form)
        assert action is not None
        assert token is not None
        answer = site.client.post(
            action[1].replace("&amp;", "&"),
            data={"label": "login_issue", "form_token": token[1]},
            headers=OWN,
            follow_redirects=False,
        )
        assert answer.headers["location"].startswith(place)


# -- hostile texts


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_escaped(site: Site, text: str) -> None:
    site.harness.store(f"id {text}", NOON, subject=text, body=f"{text} and more\n{text}", summary=text)
    for path, parameters in (
        ("/", {"text": text}),
        ("/", {"intent": text, "language": text, "since": text}),
        ("/ticket", {"id": f"id {text}"}),
        ("/choice", {"id": f"id {text}", "task": "intent"}),
        ("/chart", {"text": text, "task": text}),
        ("/ticket", {"id": text}),
    ):
        shown = site.client.get(path, params=parameters).text
        assert "alert(1)>" not in shown
        assert "<script>alert" not in shown
        assert "<img" not in re.sub(r'<img src="/static/', "", shown)
        assert "49 $" not in shown


def test_control_characters_are_not_shown(site: Site) -> None:
    site.harness.store("one", NOON, subject="invoice\u202e\u2066fdp.exe\u0000\x1b[31m", body="A\u202eB " * 30)
    for path in ("/", "/ticket?id=one", "/choice?id=one&task=intent"):
        assert not set(site.get(path)) & set("\u202e\u2066\u0000\x1b")
    assert "invoicefdp.exe" in site.get("/")


def test_long_texts_are_cut_and_can_be_downloaded(site: Site) -> None:
    body = "word " * 100_000 + "<i>" * 100_000
    site.harness.store("one", NOON, subject="x" * 10_000, body=body, summary="y" * 10_000)
    text = site.get("/ticket", id="one")
    assert len(text) < 150_000
    assert "Only the beginning of a long text is shown" in text
    assert json.loads(site.get("/ticket.json", id="one"))["body"] == body
    assert len(site.get("/")) < 30_000


def test_errors_of_a_service_are_a_page(site: Site) -> None:
    def fail(name: str, _: Any) -> None:
        if name == "Query":
            raise ClientError({"Error": {"Code": "ExpiredToken", "Message": "The token has <expired>."}}, "Query")

    site.harness.before = fail
    text = site.get("/", status=502)
    assert "Query: ExpiredToken: The token has &lt;expired&gt;; renew the AWS credentials" in text
    assert site.client.get("/export?format=csv").status_code == 502


# -- exports


def test_csv_has_the_selected_tickets_and_no_formulas(site: Site) -> None:
    for number, subject in enumerate(("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", 'quoted "," text', "ＡＢＣ ü\nnext")):
        site.harness.store(f"T-{number}", NOON + number, subject=subject, urgency="high")
    site.harness.store("other", NOON)
    answer = site.client.get("/export", params={"format": "csv", "urgency": "high"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert re.fullmatch(r'attachment; filename="tickets-[\d-]+\.csv"', answer.headers["content-disposition"])
    assert answer.content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))
    assert [row["ticket_id"] for row in rows] == [f"T-{number}" for number in reversed(range(7))]
    assert [row["subject"] for row in rows] == [
        "ＡＢＣ ü\nnext", 'quoted "," text', "'\t=1", "'@SUM(A1)", "'-1", "'+1", "'=1+1",
    ]  # fmt: skip
    assert rows[0]["created_at"] == "2026-11-25T12:00:06Z"
    assert rows[0]["intent_confidence"] == "0.75"
    assert "embedding" not in rows[0]


def test_json_lines_and_parquet_have_the_same_tickets(site: Site) -> None:
    site.harness.store("one", NOON, subject="=1", needs_review=True, review_reasons=["intent", "sentiment"])
    site.harness.store("two", NOON + 1, language="de")
    assert correct(site, "one", "intent", "login_issue") == 200
    lines = [json.loads(line) for line in site.get("/export", format="jsonl").splitlines()]
    assert [line["ticket_id"] for line in lines] == ["two", "one"]
    assert lines[1]["subject"] == "=1"
    assert (lines[1]["intent"], lines[1]["corrected"], lines[1]["review_reasons"]) == (
        "login_issue",
        ["intent"],
        ["sentiment"],
    )
    found = pq.read_table(io.BytesIO(site.client.get("/export", params={"format": "parquet"}).content)).to_pylist()
    assert found[0].pop("created_at").isoformat() == "2026-11-25T12:00:01+00:00"
    assert found[1].pop("created_at").isoformat() == "2026-11-25T12:00:00+00:00"
    for line in lines:
        del line["created_at"]
    assert found == lines


def test_exports_are_written_while_tickets_are_read() -> None:
    read = []

    def items() -> Iterator[Item]:
        for number in range(100_000):
            read.append(number)
            yield Item(ticket_id=f"T-{number}", created_at=number)

    assert len(list(islice(csv_lines(items()), 3))) == 3
    assert len(read) <= 1001


def test_unknown_format_is_refused(site: Site) -> None:
    assert "csv, jsonl, parquet" in site.get("/export", format="xml", status=400)


# -- the chart


def test_chart_stacks_the_labels_of_each_day() -> None:
    counts = {"2026-11-01": {"low": 3, "high": 1}, "2026-11-03": {"low": 7, "odd": 1}, "2026-12-01": {"low": 99}}
    chart = draw(counts, date(2026, 11, 1), date(2026, 11, 4), ("critical", "high", "medium", "low"))
    assert [bar.day for bar in chart.bars] == [f"2026-11-0{day}" for day in (1, 2, 3, 4)]
    assert [bar.total for bar in chart.bars] == [4, 0, 8, 0]
    assert dict(chart.totals) == {"high": 1, "low": 10, "odd": 1}
    assert chart.total == 12
    first, _, third, _ = chart.bars
    assert [part.label for part in first.parts] == ["high", "low"]
    assert first.parts[0].y + first.parts[0].height == pytest.approx(HEIGHT)
    assert first.parts[1].y + first.parts[1].height == pytest.approx(first.parts[0].y, abs=0.02)
    assert third.parts[0].height == pytest.approx(7 * first.parts[0].height, abs=0.05)
    assert [tick.text for tick in chart.values] == ["0", "2", "4", "6", "8"]
    assert all(left.x + left.width < right.x for left, right in zip(chart.bars, chart.bars[1:], strict=False))


def test_chart_of_nothing_and_of_too_many_days() -> None:
    assert draw({}, date(2026, 11, 1), date(2026, 11, 30), ()).total == 0
    assert draw({}, date(2026, 11, 30), date(2026, 11, 1), ()).bars == ()
    long = draw({"1970-01-01": {"a": 1}, "2026-11-01": {"a": 1_234_567}}, date(1970, 1, 1), date(2026, 11, 1), ())
    assert len(long.bars) == MOST_DAYS
    assert long.total == 1_234_567
    assert long.values[-1].text == "1,500,000"


def test_chart_page_has_bars_and_a_table(site: Site) -> None:
    for number in range(5):
        site.harness.store(f"T-{number}", NOON + DAY * (number // 3), urgency="high" if number % 2 else "low")
    text = site.get("/chart", since="2026-11-24", until="2026-11-27", task="urgency")
    assert "5 tickets from 2026-11-24 to 2026-11-27, by urgency" in text
    assert len(re.findall(r'<g class="day">', text)) == 4
    cell = r'<td class="number">(\d*)</td>'
    assert re.findall(rf'<th scope="row">(\S+)</th>{cell}{cell}', text) == [
        ("2026-11-26", "1", "1"), ("2026-11-25", "1", "2"),
    ]  # fmt: skip
    assert "There are no such tickets" in site.get("/chart", since="2020-01-01", until="2020-01-02")
    assert "There are no such tickets" in site.get("/chart", since="2026-11-27", until="2026-11-20")
    assert "There are no such tickets" in site.get("/chart", since="9999-12-31", until="9999-12-31")
    assert "There are no such tickets" in site.get("/chart", until="1970-01-01")


# -- the sources of a summary


def test_passages_are_the_whole_text() -> None:
    body = "Hi,\n\nThe export stops at 40 %. It worked yesterday. We need the file by Friday, please.\n\n-- \nAda"
    found = passages("Export stops", body, "The export stops at 40 %. We need the file by Friday, please.")
    assert [part.text for part in found if part.is_source] == [
        "The export stops at 40 %.",
        "We need the file by Friday, please.",
    ]
    assert "".join(part.text for part in found).startswith("Hi,")
    assert "It worked yesterday." in [part.text.strip() for part in found]


@pytest.mark.parametrize(
    ("summary", "source"),
    [
        (
            "Export stopped at 40 % since the update of yesterday.",
            "The export has stopped at 40 % since the update of yesterday.",
        ),
        ("Something else entirely, about bananas.", None),
        ("Export stops.", None),  # the subject is the summary
        ("", None),
    ],
)
def test_generated_summary_has_the_nearest_sentence(summary: str, source: str | None) -> None:
    body = "The export has stopped at 40 % since the update of yesterday. We need the file by Friday."
    found = [part.text for part in passages("Export stops", body, summary) if part.is_source]
    assert found == ([] if source is None else [source])


@pytest.mark.parametrize("body", ["", " \n", "<p>", "> quoted", "word" * 300_000])
def test_odd_bodies_have_no_source(body: str) -> None:
    assert not any(part.is_source for part in passages("", body, "Summary."))


# -- the live list


def keys(items: list[Item]) -> list[str]:
    return [item.ticket_id for item in items]


def test_live_list_adds_changes_and_removes(site: Site) -> None:
    store = site.harness.store
    for number in range(5):
        store(f"T-{number}", NOON + number)
    live = LiveList(site.harness.repository, Selection(intent="bug_report"), 4)
    assert keys(live.read()) == ["T-4", "T-3", "T-2", "T-1"]
    store("new", NOON + 9, urgency="critical")
    store("other", NOON + 10, intent="login_issue")
    assert keys(live.read()) == ["new", "T-4", "T-3", "T-2"]
    site.stores.corrections.correct(site.harness.item("T-3"), {"intent": "login_issue"})
    assert keys(live.read()) == ["new", "T-4", "T-2"]
    site.stores.corrections.correct(site.harness.item("T-4"), {"urgency": "high"})
    assert [(item.ticket_id, item.urgency) for item in live.read()] == [
        ("new", "critical"),
        ("T-4", "high"),
        ("T-2", "low"),
    ]


def test_live_list_of_a_rare_filter_reads_only_what_is_new(site: Site) -> None:
    for number in range(230):
        site.harness.store(f"T-{number}", NOON + number, subject="rare" if number in {3, 225} else "common")
    live = LiveList(site.harness.repository, Selection(text="rare"), 50)
    assert keys(live.read()) == ["T-225", "T-3"]
    site.harness.forget_calls()
    site.harness.store("new", NOON + 300, subject="rare too")
    assert keys(live.read()) == ["new", "T-225", "T-3"]
    lowest = [query["ExpressionAttributeValues"][":created_at"]["N"] for query in site.harness.queries]
    assert set(lowest) == {str(NOON + 30)}  # the 200th newest at the first read


def received(site: Site, meanwhile: Callable[[], object] = lambda: None) -> list[tuple[str, Any]]:
    """The events of a live list that ends after some reads."""
    ends = iter([False, True])
    live = LiveList(site.harness.repository, Selection(), 50)
    parts: list[str] = []

    async def listen() -> None:
        async for part in events(live, Filters(), lambda: next(ends)):
            if part.startswith("event:") and not parts:
                meanwhile()
            if part.startswith("event:"):
                parts.append(part)

    anyio.run(listen)
    return [
        (part.partition("\n")[0].removeprefix("event: "), json.loads(part.split("\n")[1].removeprefix("data: ")))
        for part in parts
    ]


def test_events_name_all_rows_and_carry_the_changed_ones(site: Site) -> None:
    site.harness.store("one", NOON)
    site.harness.store("two", NOON + 1)
    first, second = received(site, lambda: site.harness.store("<three>", NOON + 2, subject="<b>"))
    assert first[0] == second[0] == "rows"
    assert first[1]["keys"] == [f"{NOON + 1}/two", f"{NOON}/one"]
    assert list(first[1]["html"]) == first[1]["keys"]
    assert second[1]["keys"] == [f"{NOON + 2}/<three>", *first[1]["keys"]]
    assert list(second[1]["html"]) == [f"{NOON + 2}/<three>"]
    assert "<b>" not in second[1]["html"][f"{NOON + 2}/<three>"]


def test_live_list_of_nothing_is_live(site: Site) -> None:
    assert received(site) == [("rows", {"keys": [], "html": {}})]


def test_live_list_goes_on_after_an_error(site: Site) -> None:
    site.harness.store("one", NOON)

    def fail(name: str, _: Any) -> None:
        site.harness.before = lambda _name, _params: None
        raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow down"}}, name)

    site.harness.before = fail
    first, second = received(site)
    assert first == ("problem", "Query: ThrottlingException: slow down")
    assert second[0] == "rows"


# -- the command


def test_help_and_missing_packages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    assert "--port" in runner.invoke(command, ["serve", "--help"]).output
    monkeypatch.setitem(sys.modules, "handler.tickets.page.server", None)
    result = runner.invoke(command, ["serve"])
    assert result.exit_code == 1
    assert "pip install 'ticket-enrichment[page]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_errors_have_a_page_without_a_session() -> None:
    assert b"<title>Error" in render("error.html", 500, what="x").body
