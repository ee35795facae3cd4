"""How the page looks, in light and dark, on a desktop and a phone: pictures in build/page, and what axe-core finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.page.conftest import PHONE, Open, Site, assert_fits, live

PICTURES = Path(__file__).resolve().parents[2] / "build" / "page"
LARGEST = 300_000  # bytes of a picture


def views(site: Site, page: Page) -> Iterator[tuple[str, Page]]:
    """Opens each view of the page in turn; yields its name."""
    long = next(ticket for ticket in site.raw if 300 < len(ticket["body"]) < 700 and ticket["body"].isascii())
    live(page).keyboard.press("j")
    page.keyboard.press("j")
    yield "list", page
    page.keyboard.press("i")
    expect(page.get_by_role("dialog")).to_be_visible()
    yield "choice", page
    page.goto(f"{site.address}/ticket?id={long['ticket_id']}&created_at={long['created_at']}")
    yield "ticket", page
    page.goto(f"{site.address}/chart?task=intent")
    yield "chart", page
    page.goto(f"{site.address}/?words=I cannot sign in&urgency=critical&urgency=high")
    yield "search", page
    page.keyboard.press("?")
    yield "help", page
    page.goto(f"{site.address}/?since=nonsense&text=nothing-of-this")
    yield "empty", page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_no_serious_accessibility_fault(tab: Open, site: Site, scheme: str, size: str) -> None:
    options: dict[str, Any] = PHONE if size == "phone" else {}
    PICTURES.mkdir(parents=True, exist_ok=True)
    serious = []
    for name, page in views(site, tab("/", color_scheme=scheme, **options)):
        picture = PICTURES / "-".join(["page", name, *([scheme] * (scheme == "dark")), *([size] * (size == "phone"))])
        page.screenshot(path=picture.with_suffix(".png"), animations="disabled")
        assert picture.with_suffix(".png").stat().st_size < LARGEST
        assert_fits(page)
        serious += [f"{name}: {fault}" for fault in faults(page)]
    assert serious == []


def test_refusal_is_a_readable_page(browser: Browser, site: Site) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        answer = page.goto(site.address)
        assert answer is not None
        assert answer.status == 403
        expect(page.get_by_role("heading", name="Open the link in the terminal")).to_be_visible()
        assert faults(page) == []


def faults(page: Page) -> list[str]:
    """The serious and critical faults that axe-core finds."""
    return [
        f"{fault['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for fault in Axe().run(page).response["violations"]
        if fault["impact"] in {"serious", "critical"}
        for node in fault["nodes"]
    ]
