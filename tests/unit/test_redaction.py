"""Redaction: figures on labelled texts, what a redacted ticket keeps, and time that is linear in the text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import get_args

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrichment import EnrichmentData, RawTicket, parse_ticket
from enrichment.redaction import Kind, Span, find, redact, redact_json, redact_ticket
from enrichment.ticket import enriched_json, ticket_from_object
from tests.support.fakes import FakeModels, ticket

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = get_args(Kind)
LABEL = re.compile(r"\[\[([A-Z]+):(.+?)\]\](?!\])")


@cache
def labelled_texts() -> list[tuple[str, frozenset[Span]]]:
    """The texts without their labels, and what is labelled."""
    found = []
    for line in (Path(__file__).parent / "redaction_texts.tsv").read_text(encoding="utf-8").splitlines():
        marked = line.split("\t", 1)[1].replace("\\n", "\n")
        text, spans, end = "", set(), 0
        for label in LABEL.finditer(marked):
            text += marked[end : label.start()]
            spans.add(Span(len(text), len(text) + len(label[2]), label[1]))  # type: ignore[arg-type]
            text, end = text + label[2], label.end()
        found.append((text + marked[end:], frozenset(spans)))
    return found


def held_out() -> list[tuple[str, frozenset[Span]]]:
    """Every third text: the rules were written without a look at what they do with these."""
    return labelled_texts()[2::3]


def figures(texts: Sequence[tuple[str, frozenset[Span]]]) -> dict[str, tuple[int, int, int]]:
    """Per kind the numbers of labels, of labels found exactly, and of findings."""
    labels, hits, findings = Counter[str](), Counter[str](), Counter[str]()
    for text, expected in texts:
        found = find(text)
        labels.update(span.kind for span in expected)
        hits.update(span.kind for span in found if span in expected)
        findings.update(span.kind for span in found)
    return {kind: (labels[kind], hits[kind], findings[kind]) for kind in KINDS}


# -- figures


def test_300_texts_are_labelled() -> None:
    texts = labelled_texts()
    assert (len(texts), len({text for text, _ in texts})) == (300, 300)
    assert sum(not spans for _, spans in texts) >= 80  # hard negatives: order numbers, versions, dates, hashes
    assert not any("[[" in text for text, _ in texts)


@pytest.mark.parametrize("texts", [labelled_texts, held_out])
def test_recall_and_precision(texts: Callable[[], list[tuple[str, frozenset[Span]]]]) -> None:
    found = figures(texts())
    recall = {kind: hits / labels for kind, (labels, hits, _) in found.items()}
    assert min(recall[kind] for kind in ("CARD", "IBAN", "EMAIL")) >= 0.99, recall
    assert recall["PHONE"] >= 0.95, recall
    assert min(recall["SECRET"], recall["IP"]) >= 0.9, recall
    hits, findings = (sum(numbers[place] for numbers in found.values()) for place in (1, 2))
    assert hits / findings >= 0.97


def test_documentation_has_the_figures() -> None:
    page = (REPOSITORY / "docs" / "redaction.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `\[(\w+)\]` \|.*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    expected = []
    for kind in KINDS:
        row = [kind]
        for texts in (labelled_texts(), held_out()):
            labels, hits, findings = figures(texts)[kind]
            row += [f"{hits / labels:.3f}", f"{hits / findings:.3f}"]
        expected.append(tuple(row))
    assert sorted(rows) == sorted(expected)


# -- kinds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+x@mail.example.org.", "Write to [EMAIL]."),
        ("JANE@EXAMPLE.COM, icon@2x.png, sdk@4.1.0, @jane", "[EMAIL], icon@2x.png, sdk@4.1.0, @jane"),
        ("DE89370400440532013000 and de89 3704 0044 0532 0130 00 soon", "[IBAN] and [IBAN] soon"),
        ("DE89 3704 0044 0532 0130 01 has a wrong check digit", "DE89 3704 0044 0532 0130 01 has a wrong check digit"),
        ("4111-1111-1111-1111, 4111 1111 1111 1112", "[CARD], 4111 1111 1111 1112"),
        ("Order 7992739871300006 is late", "Order 7992739871300006 is late"),  # passes Luhn, but no issuer has it
        ("10.0.0.1, v10.0.0.1, ::1, 12:30:45, 00:1A:2B:3C:4D:5E", "[IP], v10.0.0.1, [IP], 12:30:45, 00:1A:2B:3C:4D:5E"),
        ("password: hunter2, then", "password: [SECRET], then"),
        ('{"api_key": "abc123def"}', '{"api_key": "[SECRET]"}'),
        ("<password>hunter2</password>", "<password>[SECRET]</password>"),
        ("password is wrong; password: (none)", "password is wrong; password: (none)"),
        ("password: ********", "password: ********"),
        ("My password was changed to Foo123bar; hunter22", "My password was changed to [SECRET]; hunter22"),
        (
            "The password hunter2 is old, the password SHA256 hash too",
            "The password [SECRET] is old, the password SHA256 hash too",
        ),
        ("10.0.0.1-10.0.0.20, 1.2.3.4-5", "[IP]-[IP], 1.2.3.4-5"),
        ("Call 030 901820 or 0171 3920012.", "Call [PHONE] or [PHONE]."),
        ("+49 (0)30 901820, +1 (212) 555-0187", "[PHONE], [PHONE]"),
        ("Order 030 901820 of 2024-05-05", "Order 030 901820 of 2024-05-05"),
        ("Call us before 2024-05-05 or 05.05.2024", "Call us before 2024-05-05 or 05.05.2024"),
        ("İİ password: hunter2", "İİ password: [SECRET]"),  # a letter that has two characters in lower case
        ("", ""),
    ],
)
def test_text_is_redacted(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_international_numbers_of_every_country_are_found() -> None:
    missed = []
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        number = phonenumbers.example_number(region)
        assert number is not None
        for style in (phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164):
            written = phonenumbers.format_number(number, style)
            if redact(f"Please ask at {written}, tomorrow.") != "Please ask at [PHONE], tomorrow.":
                missed.append(written)
    assert missed == []


def test_national_numbers_are_found_behind_a_word() -> None:
    missed = []
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        number = phonenumbers.example_number(region)
        assert number is not None
        written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
        if redact(f"Tel. {written}, ask for Bo") != "Tel. [PHONE], ask for Bo":
            missed.append(written)
    # Islands whose numbers have fewer than seven digits.
    assert all(sum(map(str.isdigit, written)) < 7 for written in missed), missed


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("password", "swordfish", "[SECRET]"),
        ("apiKey", "k-1", "[SECRET]"),
        ("phone_number", "4155550132", "[PHONE]"),
        ("mobilePhone", "4155550132", "[PHONE]"),
        ("order", "4155550132", "4155550132"),
        ("", "4155550132", "4155550132"),
    ],
)
def test_name_of_a_field_says_what_it_holds(name: str, value: str, expected: str) -> None:
    assert redact(value, name=name) == expected


@given(st.text(alphabet="0123456789 @.:+-()/aAbdeEtlpIk=\n\"'é", max_size=200))
def test_findings_are_ordered_and_apart(text: str) -> None:
    end = 0
    for span in find(text):
        assert end <= span.begin < span.end <= len(text)
        end = span.end


# -- tickets


def enriched(raw: RawTicket, **fields: str) -> EnrichmentData:
    [result] = FakeModels().enrich([raw])
    assert isinstance(result, EnrichmentData)
    return result.model_copy(update=fields)


RAW = {
    **ticket("T-jane@example.com", customer_id="jane@example.com", subject="Mail to jane@example.com"),
    "body": "Hello,\nthe wifi password is:\nhunter2-x. My card is 4111 1111 1111 1111.",
    "metadata": {
        "source": "mail from jane@example.com",
        "tags": ["vip", "call +49 30 901820"],
        "agent": {"name": "Tom", "mail": "tom@example.com", "pins": ["4821"], "id": 12345678901234567890},
    },
    "token": "abcdef",
    "cc": ["a@example.com", {"b@example.com": "b@example.com"}],
    "amount": 1.50,
    "note": 'say "hi" to \\"c@example.com\\"',
}


def whole(raw: RawTicket) -> dict[str, object]:
    redacted, enrichment = redact_ticket(raw, enriched(raw))
    found = json.loads(enriched_json(redacted, enrichment))
    del found["enrichment"]
    return dict(found)


EXPECTED = {
    **RAW,
    "subject": "Mail to [EMAIL]",
    "body": "Hello,\nthe wifi password is:\n[SECRET]. My card is [CARD].",
    "priority": None,
    "metadata": {
        "source": "mail from [EMAIL]",
        "language": None,
        "tags": ["vip", "call [PHONE]"],
        "agent": {"name": "Tom", "mail": "[EMAIL]", "pins": ["4821"], "id": 12345678901234567890},
    },
    "token": "[SECRET]",
    "cc": ["[EMAIL]", {"b@example.com": "[EMAIL]"}],
    "note": 'say "hi" to \\"[EMAIL]\\"',
}


def test_texts_of_a_ticket_are_redacted_and_its_ids_stay() -> None:
    assert whole(parse_ticket(json.dumps(RAW))) == EXPECTED


def test_unknown_fields_of_a_decoded_ticket_are_redacted() -> None:
    assert whole(ticket_from_object(RAW)) == EXPECTED


def test_redaction_leaves_the_ticket_itself_alone() -> None:
    raw = parse_ticket(json.dumps(RAW))
    before = enriched_json(raw, enriched(raw))
    redact_ticket(raw, enriched(raw))
    assert enriched_json(raw, enriched(raw)) == before


def test_summary_has_nothing_that_was_found_in_the_ticket() -> None:
    raw = parse_ticket(json.dumps(RAW))
    _, enrichment = redact_ticket(raw, enriched(raw, summary="hunter2-x. Ask tom@example.com."))
    assert enrichment.summary == "[SECRET]. Ask [EMAIL]."


def test_numbers_keep_their_digits() -> None:
    raw = b'"a":1.500,"b":12345678901234567890,"c":[true,null],"d":"jane@example.com"'
    assert redact_json(raw) == raw.replace(b"jane@example.com", b"[EMAIL]")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["a@example.com", "\\", '"', "x: y"]),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), JSON), st.booleans())
def test_json_keeps_its_structure(value: dict[str, object], ascii_only: bool) -> None:
    def shape(item: object) -> object:
        if isinstance(item, dict):
            return {name: shape(part) for name, part in item.items()}
        if isinstance(item, list):
            return [shape(part) for part in item]
        return "" if isinstance(item, str) else item

    raw = json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    assert shape(json.loads(redact_json(raw))) == shape(value)


# -- time

HOSTILE = [
    "1", "1 ", "0 1 ", "1.", "1-", "5555 ", "+49 30 901820 ", "(212) 555-0187 ", "0123 456 789 ", "call 0301234567 ",
    "@", "a@", "a@b.co ", "a.", ":", "a:1", "1.2.3.4 ", "DE89 ", "DE89370400440532013000 ", "4111111111111111 ",
    "password ", "password is ", "password=", 'password: "', "api key for a b c d e f g ", " ", "(", "+",
]  # fmt: skip


def seconds(run: Callable[[], object]) -> float:
    """CPU time, the shortest of three."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return min(times)


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear(unit: str) -> None:
    short, long = unit * (2000 // len(unit)), unit * (16000 // len(unit))
    assert seconds(lambda: find(long)) < 3 * 8 * seconds(lambda: find(short)) + 0.02


def test_json_takes_linear_time() -> None:
    short, long = (b'"a":"' + b'x\\"' * count + b'",' + b'"b":"c",' * count for count in (500, 4000))
    assert seconds(lambda: redact_json(long)) < 3 * 8 * seconds(lambda: redact_json(short)) + 0.02


def test_a_kilobyte_takes_less_than_a_millisecond() -> None:
    # As a ratio, because machines differ: a loop over the characters takes about 0.03 ms per kB.
    text = "\n".join(text for text, _ in labelled_texts())
    loop = seconds(lambda: [character.isalnum() for character in text])
    assert seconds(lambda: find(text)) < 30 * loop


def test_nothing_is_imported_while_redaction_is_off() -> None:
    program = (
        "import sys; from tests.support.fakes import *; import json;"
        "harness = FakeHarness(redact=sys.argv[1]);"
        "harness.invoke(event(record(json.dumps(ticket()))));"
        "found = {'phonenumbers', 'stdnum', 'enrichment.redaction'} & sys.modules.keys();"
        "print(sorted(found), len(harness.sink.items))"
    )
    found = {}
    for setting in ("off", "table"):
        command = [sys.executable, "-c", program, setting]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        found[setting] = done.stdout.splitlines()[-1]
    assert found == {"off": "[] 1", "table": "['enrichment.redaction', 'phonenumbers', 'stdnum'] 1"}
