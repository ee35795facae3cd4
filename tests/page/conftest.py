"""The page in Chromium: `tickets serve` on the embedded stack, with ten thousand tickets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from enrichment import Enricher, EnrichmentData, parse_ticket
from handler.aws.forgetting import NO_TICKET, item_key
from handler.local import EmbeddedStack
from handler.tickets.repository import UPGRADED, Selection, TicketRepository
from handler.tickets.search.index import Entry
from handler.tickets.search.indexer import key_of
from handler.tickets.search.location import index_at
from handler.tickets.similarity import vector_of
from tests.support.page_tickets import made_up_tickets, made_up_write, store, write_of

TICKETS = 10_000
LABELLED = 120  # the newest: by the real models, with objects and in the vector index
DAYS = 30
PATIENCE = 120_000  # milliseconds: the emulator sorts all tickets for each read, and the machine may be busy
# Without these, a headless Chromium reports home.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@dataclass
class Site:
    """The running page, and the stores behind it."""

    stack: EmbeddedStack
    repository: TicketRepository
    raw: list[dict[str, Any]]  # all tickets, newest first
    address: str
    state: dict[str, Any]  # the cookies of a browser that opened the link
    enricher: Enricher

    def add(self, *tickets: dict[str, Any], **fields: Any) -> None:
        """Stores tickets with made-up labels, as the function does."""
        outputs = self.stack.outputs
        writes = [made_up_write(ticket, **fields) for ticket in tickets]
        clients = (self.stack.client("dynamodb"), self.stack.client("s3"))
        store(*clients, outputs["TableName"], outputs["EnrichedBucket"], writes)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("chromium is missing; on Debian: apt-get install chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def site(
    bundle: Path, enricher: Enricher, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The page on a stack of its own."""
    folder = tmp_path_factory.mktemp("page")
    with EmbeddedStack() as stack:
        table, bucket = stack.outputs["TableName"], stack.outputs["EnrichedBucket"]
        dynamodb, s3 = stack.client("dynamodb"), stack.client("s3")
        repository = TicketRepository(dynamodb, lambda: s3, table=table, bucket=bucket)
        raw = made_up_tickets(TICKETS, newest=int(time.time()) - 60, days=DAYS)
        tickets = [parse_ticket(json.dumps(ticket)) for ticket in raw[:LABELLED]]
        labelled = [
            write_of(ticket, found)
            for ticket, found in zip(tickets, enricher.enrich(tickets), strict=True)
            if isinstance(found, EnrichmentData)
        ]
        store(dynamodb, s3, table, bucket, labelled, [made_up_write(ticket) for ticket in raw[LABELLED:]])
        dynamodb.put_item(TableName=table, Item=item_key(UPGRADED, NO_TICKET))  # the stack was never of version 0.1
        environment = {
            **os.environ,
            **stack.environment(),
            "MODEL_BUNDLE": bundle.as_uri(),
            "BUNDLE_CACHE_DIR": str(folder),
            "VECTOR_INDEX": f"sqlite://{folder}",
        }
        index = index_at(
            environment["VECTOR_INDEX"], bucket=bucket, table=table, endpoint=stack.endpoint_url, s3vectors=lambda: None
        )
        newest = repository.page(Selection(), LABELLED).items
        index.put(
            [
                Entry(key_of(item), item.s3_version_id, item.embedding_model, vector_of(repository.whole(item)))
                for item in newest
                if item.embedding_model
            ]
        )
        command = [sys.executable, "-m", "handler.tickets", "serve", "--port", "0"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            link = server.stdout.readline().strip()
            found = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\?token=\S+", link)
            assert found, link
            with browser.new_context() as context:
                opened = context.new_page()
                opened.goto(link)
                assert opened.url == f"{found[1]}/"
                state = dict(context.storage_state())
            yield Site(stack, repository, raw, found[1], state, enricher)
            server.terminate()
            assert server.wait(60) == 0


Open = Callable[..., Page]


@pytest.fixture
def tab(site: Site, browser: Browser) -> Iterator[Open]:
    """A function that opens a tab at a path, in a context with the given options. Nothing may go wrong in it."""
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def failed(request: Request) -> None:
        # When its page is left, a browser cancels what is still loading: the live list, or an icon.
        if request.failure != "net::ERR_ABORTED":
            problems.append(f"{request.url}: {request.failure}")

    def start(path: str = "/", **options: Any) -> Page:
        size = {"width": 1280, "height": 860}
        context = browser.new_context(**({"storage_state": site.state, "viewport": size} | options))
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
        page.on("requestfailed", failed)
        page.goto(site.address + path, wait_until="domcontentloaded")
        return page

    yield start
    for context in contexts:
        context.close()
    assert problems == []


def live(page: Page) -> Page:
    """The same page, once its list is live."""
    expect(page.locator("#state")).to_have_text("Live")
    return page


def assert_fits(page: Page) -> None:
    """Nothing is wider than the window."""
    scrolled, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert scrolled <= shown
