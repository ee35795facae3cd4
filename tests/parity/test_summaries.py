"""Whether extractive summaries hold the sentence that an agent needs most; see tests/bench/summaries.py."""

from enrichment import Enricher
from tests.bench.summaries import BUDGET, MARKED, share_that_keeps


def test_our_own_tickets_keep_the_sentence_that_is_needed_most(enricher: Enricher) -> None:
    rows = [row for row in MARKED if "body" in row]
    assert len(rows) > 40
    assert share_that_keeps(enricher, rows) >= BUDGET
