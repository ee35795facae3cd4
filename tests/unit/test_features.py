"""Lexical features: what is counted, how far a negation reaches, and what cannot be read."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment import BundleInvalid
from enrichment.features import SURFACE, LexicalFeatures

LEXICON = {
    "positive": ["good", "great"],
    "negative": ["bad", "broken"],
    "negators": ["not", "never", "no"],
    "intensifiers": ["very"],
}
FEATURES = LexicalFeatures(
    LEXICON,
    {
        "urgency.low": ["no rush", "not urgent", "whenever"],
        "urgency.high": ["urgent*", "down", "e-mail", "c++"],
        "intent.empty": [],
    },
)


def _features(text: str) -> dict[str, float]:
    return dict(zip(FEATURES.names, FEATURES.features(text).tolist(), strict=True))


def _count(text: str, name: str) -> int:
    return round(math.expm1(_features(text)[name]))


def test_the_names_are_the_surface_and_the_groups_that_hold_phrases() -> None:
    assert FEATURES.names == (*SURFACE, "urgency.high", "urgency.low")
    assert FEATURES.features("").shape == (len(FEATURES.names),)
    assert not FEATURES.features("").any()


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("good", (1, 0, 0, 0)),
        ("bad and broken", (0, 2, 0, 0)),
        ("not good", (0, 0, 1, 0)),
        ("not bad", (0, 0, 0, 1)),
        ("isn't good", (0, 0, 1, 0)),
        ("isn’t good", (0, 0, 1, 0)),
        ("not at all a good idea", (0, 0, 1, 0)),
        ("not one of us is good", (1, 0, 0, 0)),
        ("not. good", (1, 0, 0, 0)),
        ("not, good", (1, 0, 0, 0)),
        ("not\ngood", (1, 0, 0, 0)),
        ("never never good", (0, 0, 1, 0)),
        ("GOOD", (1, 0, 0, 0)),
        ("goodness", (0, 0, 0, 0)),
    ],
)
def test_a_negation_reaches_four_words_within_its_clause(text: str, counts: tuple[int, ...]) -> None:
    names = ("positive", "negative", "negated_positive", "negated_negative")
    assert tuple(_count(text, name) for name in names) == counts


def test_the_balance_turns_with_the_negation() -> None:
    assert _features("good")["balance"] > _features("not bad")["balance"] > 0
    assert _features("not good")["balance"] == _features("bad")["balance"] < 0


@pytest.mark.parametrize(
    ("text", "last", "after"),
    [
        ("good but bad", -1, -1),
        ("bad but good", 1, 1),
        ("bad, however not bad", 1, 1),
        ("good good bad", -1, 0),
        ("good but bad, yet good", 1, 1),
        ("nothing", 0, 0),
    ],
)
def test_what_follows_a_contrast_weighs(text: str, last: int, after: int) -> None:
    found = _features(text)
    assert found["last"] == last
    assert found["after_contrast"] == pytest.approx(math.tanh(after))


@pytest.mark.parametrize(
    ("text", "high", "low"),
    [
        ("urgent", 1, 0),
        ("urgently, with urgency", 1, 0),
        ("URGENT! Down!", 2, 0),
        ("not urgent", 1, 1),
        ("not\n  urgent", 1, 1),
        ("down, urgent, not down", 3, 0),
        ("no rush, whenever", 0, 2),
        ("insurgent downtown", 0, 0),
        ("by e-mail, in c++", 2, 0),
    ],
)
def test_groups_count_whole_phrases_and_open_endings(text: str, high: int, low: int) -> None:
    assert (_count(text, "urgency.high"), _count(text, "urgency.low")) == (high, low)


def test_the_surface_is_counted() -> None:
    found = _features("WHY is it NOT very 12 good?! 😀🙁 A!")
    assert {name: round(math.expm1(found[name])) for name in ("exclamations", "questions", "shouting", "digits")} == {
        "exclamations": 2,
        "questions": 1,
        "shouting": 2,
        "digits": 2,
    }
    assert round(math.expm1(found["words"])) == 8
    assert round(math.expm1(found["intensifiers"])) == 1
    assert _features("no capitals")["capitals"] == 0 < _features("Some Capitals")["capitals"] < 1


@given(st.text())
def test_any_text_has_finite_features(text: str) -> None:
    found = FEATURES.features(text)
    assert all(map(math.isfinite, found.tolist()))
    assert abs(float(found[SURFACE.index("balance")])) <= 1


def test_word_lists_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "features.json"
    path.write_text(json.dumps({"lexicon": LEXICON, "groups": {"urgency.high": ["down"]}}))
    assert LexicalFeatures.from_file(path).names == (*SURFACE, "urgency.high")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"lexicon": [], "groups": {}}', '{"lexicon": null}', "\xff"])
def test_a_file_without_word_lists_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "features.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(BundleInvalid, match=r"features\.json holds no word lists .*; rebuild the bundle"):
        LexicalFeatures.from_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"features\.json"):
        LexicalFeatures.from_file(tmp_path / "features.json")
