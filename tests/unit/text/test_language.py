"""The language of a text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrichment.text import language
from enrichment.text.language import detect

TEXTS = {
    "en": ["my wifi is down", "not working!!", "where is my order", "Since Monday nobody here can print an invoice."],
    "de": [
        "Der Drucker ist kaputt",
        "Ich kann mich nicht anmelden",
        "Wo bleibt mein Paket? Es sollte am Montag kommen.",
    ],
    "fr": ["L'imprimante est en panne", "Je ne peux pas me connecter à mon compte", "Où est ma commande ?"],
    "es": ["No puedo entrar en mi cuenta", "¿Dónde está mi pedido?", "La factura de octubre no es correcta."],
    "pt": ["A impressora não funciona", "Não consigo entrar na minha conta"],
    "it": ["La stampante non funziona", "Non riesco ad accedere al mio account"],
    "nl": ["De printer is kapot en niemand kan mij helpen", "Ik kan niet inloggen op mijn account"],
    "da": ["Jeg kan ikke logge ind på min konto, og ingen svarer på mine beskeder"],
    "sv": ["Jag kan inte logga in på mitt konto"],
    "pl": ["Drukarka nie działa", "Nie mogę się zalogować na moje konto"],
    "cs": ["Tiskárna nefunguje a nemohu se přihlásit"],
    "tr": ["Yazıcı çalışmıyor", "Hesabıma giriş yapamıyorum"],
    "ru": ["Принтер не работает", "Не могу войти в аккаунт"],
    "uk": ["Принтер не працює, і я не можу увійти"],
    "el": ["Ο εκτυπωτής δεν λειτουργεί"],
    "he": ["המדפסת לא עובדת"],
    "ar": ["الطابعة لا تعمل"],
    "hi": ["प्रिंटर काम नहीं कर रहा है"],
    "th": ["การส่งออกหยุดที่แถว"],
    "zh": ["发票有误，请更正。", "打印机坏了"],
    "ja": ["プリンターが動きません"],
    "ko": ["프린터가 작동하지 않습니다"],
    "vi": ["Máy in không hoạt động"],
}


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in TEXTS.items() for text in texts])
def test_a_sentence_is_enough(code: str, text: str) -> None:
    assert detect(text) == code
    assert detect(text.upper()) == code


@pytest.mark.parametrize(
    "text", ["", " \n", "?", "VPN", "403", "GET /api/v2/orders?id=17", "a@b.example", "12:30", "😀😀😀"]
)
def test_what_tells_no_language_has_none(text: str) -> None:
    assert detect(text) is None


def test_names_and_addresses_do_not_decide() -> None:
    assert (
        detect("The mail from jean.dupont@societe-generale.example to /srv/données/été.csv was never sent by us.")
        == "en"
    )


@given(st.text(max_size=200))
def test_any_text_can_be_asked_about(text: str) -> None:
    found = detect(text)
    assert found is None or (len(found) == 2 and found.isascii())


def test_a_long_text_takes_no_longer_than_a_paragraph() -> None:
    def seconds(text: str) -> float:
        found = []
        for _ in range(20):
            begin = time.process_time()
            language.detect(text)
            found.append(time.process_time() - begin)
        return min(found)

    sentence = "The export of our contacts stops at row 512 and the page then stays white. "
    seconds(sentence)  # loads the table
    assert seconds(sentence * 10_000) < 5 * seconds(sentence * 10)
