"""Search with the real models on the embedded stack, with only the permissions that docs/search.md lists."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from enrichment import Bundle, Enricher
from enrichment.ticket import EnrichmentData, RawTicket, enriched_json, ticket_from_object
from handler.aws.storage import AwsTicketSink
from handler.local import EmbeddedStack
from handler.ports import Write
from handler.tickets.command import app
from handler.tickets.repository import Selection, TicketRepository
from handler.tickets.search.indexer import Indexer
from handler.tickets.search.query import QueryEncoder, Search
from handler.tickets.search.sqlite import SqliteIndex
from tests.integration.test_tickets import credentials_of_user
from tests.support.proxy import Proxy
from tests.support.waiting import eventually, killed_at_end

# Other tests share the table: these tickets have dates of their own.
START: Final = 1_000_000_000
THESE: Final = Selection(since=START, until=START)
# A ticket, and what somebody else would search for: few of the words are the same.
PARAPHRASES = {
    "double-charge": (
        ("Invoice of May", "Our card was billed two times for the same subscription. Please return one payment."),
        "customer paid twice and wants a refund",
    ),
    "locked-out": (
        ("Cannot get in", "The sign-in page says that my credentials are wrong, although I have just changed them."),
        "password not accepted when logging in",
    ),
    "dark-theme": (
        ("An idea for the app", "At night the white screen hurts. Could you offer a black background?"),
        "wish for dark mode",
    ),
    "slow-reports": (
        ("Reports", "Since the weekend it takes more than five minutes until the monthly figures appear."),
        "performance of the dashboard is bad",
    ),
    "phishing": (
        ("Strange mail", "Somebody who pretends to work for you asked our staff to tell them their PIN."),
        "possible fraud, attackers impersonate support",
    ),
    "delete-data": (
        ("Leaving", "We end our contract. Wipe everything that you hold about us, as the law requires."),
        "GDPR erasure request",
    ),
    "webhook": (
        ("Callbacks", "Our server no longer receives your HTTP calls when an order changes."),
        "webhook notifications are not delivered to the endpoint",
    ),
    "crash": (
        ("App closes", "Whenever I open the camera, the program disappears and I am back on the home screen."),
        "mobile application crashes when taking a photo",
    ),
    "seats": (
        ("Ten colleagues", "Our team grows next month. How do we get more people into our plan?"),
        "increase the number of user licences",
    ),
    "export": (
        ("All our records", "For our auditor we need a file with every booking of last year."),
        "download the transaction history as CSV",
    ),
    "opening-hours": (
        ("A question", "Can I call somebody on a Saturday morning?"),
        "when is the support team available on weekends",
    ),
    "address": (
        ("We have moved", "Please print the new street and town on future bills."),
        "change the billing address",
    ),
}
OTHERS = [
    "Welcome pack|The box that you sent us has a broken lid, but the contents are fine.",
    "Training|Do you offer courses for new employees, and what do they cost?",
    "Signature|How do we put our logo below the mails that your system sends?",
    "Printer|Labels come out upside down since we have the new printer.",
    "Holiday|Our office is closed in August; please do not send the technician then.",
    "Translation|In the French menu two buttons have the same name.",
    "Thanks|Maria solved our problem in ten minutes. She was wonderful!",
    "Partner|We resell your product in Norway. Whom do we ask about a contract?",
    "Two phones|Can the same person receive the codes on a second telephone?",
    "Time zone|All meetings are shown one hour too early since the clocks changed.",
    "Search box|When I type an umlaut, the search finds nothing.",
    "Password rules|Our policy wants sixteen characters. Can you enforce that for all employees?",
    "Coupon|The code from your newsletter gives an error at the checkout.",
    "Cookies|The banner covers the button, so that nobody can accept it on a tablet.",
    "Old invoices|Where do I see what we paid in 2023?",
    "Backup|How often do you copy our data, and to which country?",
    "Rate limit|We get error 429 when we import products at night.",
    "Keyboard|It would be nice to archive a message by pressing E.",
]


def write(ticket: RawTicket, enrichment: EnrichmentData, times: Iterator[int]) -> Write:
    key = f"inline/{ticket.ticket_id}/{ticket.created_at}.json"
    return Write(ticket, enrichment, enriched_json(ticket, enrichment), key, "0" * 64, next(times))


@pytest.fixture(scope="module")
def reader(stack: EmbeddedStack, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user with only the permissions that the commands document, and an index of their own."""
    folder = tmp_path_factory.mktemp("search")
    actions = ("dynamodb:Query", "dynamodb:BatchGetItem", "s3:GetObjectVersion")
    return {
        **credentials_of_user(stack, f"tickets-searcher-{uuid.uuid4()}", *actions),
        "MODEL_BUNDLE": bundle.as_uri(),
        "BUNDLE_CACHE_DIR": str(folder / "bundles"),
        "VECTOR_INDEX": f"sqlite://{folder}",
    }


@pytest.fixture(scope="module")
def stored(stack: EmbeddedStack, enricher: Enricher) -> list[RawTicket]:
    """The tickets to find among others, enriched and stored as the function does it."""
    texts = {name: text for name, (text, _) in PARAPHRASES.items()}
    for number, text in enumerate(OTHERS):
        subject, _, body = text.partition("|")
        texts[f"other-{number}"] = (subject, body)
    fields = {"customer_id": "C", "created_at": START}
    tickets = [
        ticket_from_object({**fields, "ticket_id": f"search-{name}", "subject": subject, "body": body})
        for name, (subject, body) in texts.items()
    ]
    times = count(1)
    sink = AwsTicketSink(
        stack.client("s3"), stack.client("dynamodb"), stack.outputs["EnrichedBucket"], stack.outputs["TableName"]
    )
    for ticket, enrichment in zip(tickets, enricher.enrich(tickets), strict=True):
        assert isinstance(enrichment, EnrichmentData)
        assert sink.store(write(ticket, enrichment, times))
    return tickets


@pytest.fixture
def run(reader: Mapping[str, str], stored: list[RawTicket], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in reader.items():
        monkeypatch.setenv(name, value)

    def lines(*arguments: str) -> list[str]:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    return lines


def overlapping(words: str, tickets: list[RawTicket], limit: int) -> list[str]:
    """The tickets that share most words with a text: what a search by words would find."""

    def of(text: str) -> set[str]:
        return set(re.findall(r"[a-z]{3,}", text.lower()))

    def share(ticket: RawTicket) -> float:
        own = of(f"{ticket.subject} {ticket.body}")
        return len(own & of(words)) / (1 + math.sqrt(len(own)))

    return [ticket.ticket_id for ticket in sorted(tickets, key=share, reverse=True)[:limit]]


def test_paraphrases_are_found_by_meaning_and_not_by_words(
    stack: EmbeddedStack, stored: list[RawTicket], bundle: Path, tmp_path: Path
) -> None:
    repository = TicketRepository(
        stack.client("dynamodb"),
        lambda: stack.client("s3"),
        table=stack.outputs["TableName"],
        bucket=stack.outputs["EnrichedBucket"],
    )
    index = SqliteIndex(tmp_path / "index.sqlite")
    Indexer(repository, index, {}).reconcile()
    encoder = QueryEncoder(Bundle.open(bundle))
    search = Search(repository, index, lambda: encoder)
    by_meaning = by_words = 0
    for name, (_, words) in PARAPHRASES.items():
        found = [item.ticket_id for _, item in search.words(words, 5, THESE)]
        by_meaning += f"search-{name}" in found
        by_words += f"search-{name}" in overlapping(words, stored, 5)
    assert by_meaning >= 0.8 * len(PARAPHRASES)
    assert by_meaning >= by_words + 0.5 * len(PARAPHRASES), "the words alone find nearly as much"


def test_commands_find_tickets_with_only_their_permissions(run: Any, bundle: Path) -> None:
    run("index")
    (done,) = run("index", "--reconcile", "--json")
    assert (json.loads(done)["stored"], json.loads(done)["removed"]) == (0, 0)
    found = [json.loads(line) for line in run("search", "customer paid twice and wants a refund", "--json")]
    assert "search-double-charge" in {row["ticket_id"] for row in found}
    assert {row["embedding_model"] for row in found} == {Bundle.open(bundle).manifest.embedding_model}
    similar = [line.split("\t")[6] for line in run("similar", "search-double-charge", "--limit", "20")]
    assert len(similar) == 20
    assert "search-double-charge" not in similar
    assert not [line for line in run("duplicates") if "search-" in line.split("\t")[7]], "they are all different"


@pytest.mark.parametrize("missing", ["dynamodb:BatchGetItem", "s3:GetObjectVersion"])
def test_missing_permission_is_a_one_line_error(
    stack: EmbeddedStack, stored: list[RawTicket], missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions = {"dynamodb:Query", "dynamodb:BatchGetItem", "s3:GetObjectVersion"} - {missing}
    user = f"tickets-without-{missing.rpartition(':')[2]}"
    for name, value in credentials_of_user(stack, user, *sorted(actions)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VECTOR_INDEX", f"sqlite://{tmp_path}")
    result = CliRunner().invoke(app, ["index"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.endswith("the role needs the permissions that docs/search.md lists\n")


def test_killed_indexer_goes_on_where_it_stopped(
    stack: EmbeddedStack, reader: Mapping[str, str], stored: list[RawTicket], tmp_path: Path
) -> None:
    """A SIGKILL after the first batch: what is stored is complete up to the mark, and only the rest is read again."""
    dynamodb, table = stack.client("dynamodb"), stack.outputs["TableName"]
    one = dynamodb.get_item(
        TableName=table, Key={"ticket_id": {"S": stored[0].ticket_id}, "created_at": {"N": str(START)}}
    )["Item"]
    # All name the same object, which is enough for an indexer.
    items = [
        {**one, "ticket_id": {"S": f"killed-{number}"}, "created_at": {"N": str(START - 1000 + number)}}
        for number in range(900)
    ]
    for start in range(0, len(items), 25):
        requests = [{"PutRequest": {"Item": item}} for item in items[start : start + 25]]
        assert not dynamodb.batch_write_item(RequestItems={table: requests})["UnprocessedItems"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, "-m", "handler.tickets", "index", "--json"]
    is_killed = threading.Event()
    with Proxy(stack.endpoint_url) as proxy:

        def hold(operation: str) -> None:
            if operation == "GET" and proxy.calls.count("GET") > 450:  # the second batch is not complete
                is_killed.wait(120)

        proxy.before = hold
        own = {"VECTOR_INDEX": f"sqlite://{tmp_path}", "AWS_ENDPOINT_URL": proxy.url}
        environment, nowhere = {**kept, **reader, **own}, subprocess.DEVNULL
        with killed_at_end(subprocess.Popen(command, env=environment, stdout=nowhere, stderr=nowhere)):
            eventually(lambda: _entries(tmp_path), 120)
        is_killed.set()
        indexed, mark = _entries(tmp_path), _index(tmp_path).mark()
        assert mark is not None
        assert 0 < len(indexed) < 900
        wanted = {int(item["created_at"]["N"]) for item in items}
        assert {moment for moment in wanted if moment <= mark} <= {created_at for _, created_at in indexed}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert wanted <= {created_at for _, created_at in _entries(tmp_path)}
    result = json.loads(done.stdout)
    assert result["unchanged"] == len(indexed)
    assert result["stored"] == len(_entries(tmp_path)) - len(indexed)
    for start in range(0, len(items), 25):  # other tests would find them
        keys = [
            {"ticket_id": item["ticket_id"], "created_at": item["created_at"]} for item in items[start : start + 25]
        ]
        dynamodb.batch_write_item(RequestItems={table: [{"DeleteRequest": {"Key": key}} for key in keys]})


def _index(folder: Path) -> SqliteIndex:
    return SqliteIndex(next(folder.glob("*.sqlite")))


def _entries(folder: Path) -> list[Any]:
    return list(_index(folder).all_keys()) if list(folder.glob("*.sqlite")) else []
