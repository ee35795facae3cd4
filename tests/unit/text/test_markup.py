"""HTML to lines: what is shown, what is hidden, and what is no HTML at all."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment.text import model_text, read_ticket
from enrichment.text.characters import visible
from enrichment.text.markup import html_lines, is_html

OWN = "The lift on the second floor still stops between two floors."


def _text(body: str) -> str:
    return model_text("", body)


def test_paragraphs_breaks_lists_and_tables_become_lines() -> None:
    body = (
        "<html><head><title>A mail. Indeed.</title><style>p {color: red. Really.}</style></head><body>"
        "<!-- written. by a machine --><h1>Lift</h1><p>It is\nstuck <b>ag</b>ain &amp; loud.<br>Help<br/>us.</p>"
        "<ul><li>first floor<li>second "
        "floor</ul><table><tr><td>Key</td><td>4711</td></tr></table><div>Bye<o:p></o:p></div></body></html>"
    )
    assert _text(body).split("\n") == [
        "Lift",
        "It is stuck again & loud.",
        "Help",
        "us.",
        "first floor",
        "second floor",
        "Key",
        "4711",
        "Bye",
    ]


@pytest.mark.parametrize(
    "hidden",
    [
        '<div style="display:none">Read this now</div>',
        '<div style="display: none !important; max-height: 0px">Read this now</div>',
        "<span style='visibility:hidden'>Read this now</span>",
        '<div style="max-height:0;overflow:hidden">Read this now</div>',
        '<span style="opacity:0">Read this now</span>',
        '<span style="mso-hide:all">Read this now</span>',
        '<div style="font-size:0px;line-height:0">Read this now</div>',
        '<span style="font-size:1px;color:#ffffff">Read this now</span>',
        "<div hidden>Read this now</div>",
        '<div class="preheader">Read this now</div>',
        '<div style="display:none"><div>Read</div><div>this <div>now</div></div></div>',
        "<script>Read('this now')</script>",
        "<STYLE>Read this now</STYLE>",
        "<!-- Read this now -->",
        "<!--[if mso]><p>Read this now</p><![endif]-->",
        "<noscript>Read this now</noscript>",
        '<div style="display:none">&zwnj;&nbsp;&#847;&zwnj;&nbsp;&#8199;&shy;</div>',
        "<template><p>Read this now</p></template>",
    ],
)
def test_what_is_hidden_is_not_read(hidden: str) -> None:
    assert _text(f"<html><body>{hidden}<p>{OWN}</p></body></html>") == OWN
    assert _text(f"<div>{OWN} {hidden}</div>") == OWN


@pytest.mark.parametrize(
    "shown",
    [
        f'<td style="font-size:0px"><div style="font-size:13px">{OWN}</div></td>',
        f'<div style="overflow: hidden">{OWN}</div>',
        f'<div style="display:block;opacity:0.9;max-height:100px">{OWN}</div>',
        f'<div class="a hidden-print">{OWN}</div>',
        f'<p style="display:none">x<p>{OWN}',
        f"<p>{OWN}<!-- an open comment",
        f"<style>p {{color: red}}</style><p>{OWN}</p><style>",
        f'<div style="display:none">{OWN}</div>',  # all that there is
        f"<p title='a > b'>{OWN}</p>",
        f'<p title="5" tall">{OWN}</p><p class="x"></p>',
        f"<P CLASS=a>{OWN}</P>",
        f"<html><body>İİİİİİ<style>p {{color:red}}</style><p>{OWN}</p></body></html>",
    ],
)
def test_what_is_shown_is_read(shown: str) -> None:
    assert OWN in _text(shown)


@pytest.mark.parametrize(
    "text",
    [
        "Press <Enter> now.",
        "a List<String> of 5 < 6 > 4",
        "<ann@tower.example> wrote it",
        "if a<b and c>d",
        "<3 your shop",
        "The <title> tag of my page is empty.",
        "I typed <script>alert(1)</script> into the field and it ran.",
        "The <br> in the middle of my text is shown.",
        "Use <name> and <p> here",
        "<config><name>lift</name></config> is not read",
        "<a " + "=" * 20 + " " * 40 + "x",
        "&#x110000000;",
        "&#" + "1" * 30_000 + ";",
        "a && b &c; d &copy=1",
    ],
    ids=lambda text: text[:24],
)
def test_angle_brackets_and_ampersands_are_not_all_mark_up(text: str) -> None:
    assert not is_html(text)
    assert _text(text) == " ".join(text.split())
    assert " ".join(text.split()).rstrip("x") in _text(f"<div>{text.replace('<', '&lt;')}</div>")


@pytest.mark.parametrize(
    ("reference", "character"),
    [
        ("&amp;", "&"),
        ("&#39;", "'"),
        ("&#x2019;", "’"),
        ("&uuml;", "ü"),
        ("&lt;", "<"),
        ("&#128512;", "😀"),
        ("&#0;", "\ufffd"),
        ("&#xD800;", "\ufffd"),
    ],
)
def test_character_references_are_decoded(reference: str, character: str) -> None:
    assert _text(f"a{reference}b") == f"a{character}b"
    assert _text(f"<p>a{reference}b</p>") == f"a{character}b"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("li\u00adft \u200bstuck\ufeff", "lift stuck"),
        ("a\u200c\u034f\u200db", "ab"),
        ("\u202elift\u202c", "lift"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # Persian needs its non-joiner
        ("क्\u200dष", "क्\u200dष"),  # and Hindi its joiner
        ("👩\u200d🔧 ❤\ufe0f\u200d🔥", "👩\u200d🔧 ❤\ufe0f\u200d🔥"),
        ("\u200c\u200c می", " می"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f3f4\U000e0067\U000e0062\U000e007f"),
        ("a\U000e0067\U000e0062b", "ab"),
        ("a\r\nb\rc\u2028d\x00e", "a\nb\nc\nd e"),
    ],
)
def test_invisible_characters_are_removed(text: str, seen: str) -> None:
    assert visible(text) == seen


class _Reference(HTMLParser):
    """What Python's own parser says is text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        """A piece of text."""
        self.parts.append(data)


NAMES = st.sampled_from(["p", "div", "b", "span", "td", "li", "h1", "blockquote", "a"])
WORDS = st.text("abcé ü&<>\"'", max_size=6).map(
    lambda t: t.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
)
TREES = st.recursive(
    WORDS,
    lambda inner: st.tuples(NAMES, st.lists(inner, max_size=3)).map(
        lambda pair: f'<{pair[0]} class="a" title="it\'s">{"".join(pair[1])}</{pair[0]}>'
    ),
    max_leaves=12,
)


@given(TREES)
def test_of_a_well_formed_document_the_text_is_that_of_pythons_parser(tree: str) -> None:
    document = f"<html><body>{tree}</body></html>"
    reference = _Reference()
    reference.feed(document)
    reference.close()
    found = "".join(line.text for line in html_lines(document, 10_000))
    assert "".join(found.split()) == "".join("".join(reference.parts).split())


@given(st.text("<>/pbdivstyle-!='\" \n&;#1é", max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    found = read_ticket("", text)
    assert found.text == found.text.strip()
    assert found.text[found.begin :].isprintable() or "\n" in found.text
