"""Public labelled data that the shipped classifiers are trained on; NOTICE names its sources and licences.

The files are not part of the repository. Each reader gives `Labelled` texts with the labels of docs/labels.md.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enrichment.export.corpus import OPINIONS, TAXONOMY, TICKETS, Labelled, Taxonomy, read_labelled
from enrichment.export.sources import ExportError

__all__ = ["BANKING77", "FILES", "Collection", "read_banking77", "read_collection", "read_senti4sd", "read_sst2"]

FILES: Final[Mapping[str, str]] = {
    "public": "tickets_public.jsonl",
    "banking77": "banking77_train.csv",
    "senti4sd": "senti4sd_train.csv",
    "sst2": "sst2_train.tsv",
}

_ACCOUNT, _PAYMENT, _BUG, _GENERAL, _LOGIN, _SECURITY = (
    "account_management",
    "payment_issue",
    "bug_report",
    "general_inquiry",
    "login_issue",
    "security_concern",
)
_QUESTION: Final = (_ACCOUNT, _GENERAL)
_FEE: Final = (_PAYMENT, _GENERAL)

# Category to accepted intents. Categories whose messages belong to several intents are left out.
BANKING77: Final[Mapping[str, Sequence[str]]] = {
    "Refund_not_showing_up": (_PAYMENT,),
    "activate_my_card": _QUESTION,
    "age_limit": (_GENERAL,),
    "atm_support": (_GENERAL,),
    "balance_not_updated_after_bank_transfer": (_PAYMENT,),
    "balance_not_updated_after_cheque_or_cash_deposit": (_PAYMENT,),
    "beneficiary_not_allowed": (_PAYMENT,),
    "cancel_transfer": (_PAYMENT, _ACCOUNT),
    "card_about_to_expire": _QUESTION,
    "card_acceptance": (_GENERAL,),
    "card_arrival": _QUESTION,
    "card_delivery_estimate": _QUESTION,
    "card_linking": (_ACCOUNT,),
    "card_not_working": (_BUG,),
    "card_payment_fee_charged": (_PAYMENT,),
    "card_payment_not_recognised": (_SECURITY,),
    "card_payment_wrong_exchange_rate": (_PAYMENT,),
    "cash_withdrawal_charge": (_PAYMENT,),
    "cash_withdrawal_not_recognised": (_SECURITY,),
    "change_pin": (_ACCOUNT, _LOGIN),
    "compromised_card": (_SECURITY,),
    "contactless_not_working": (_BUG,),
    "country_support": (_GENERAL,),
    "declined_card_payment": (_PAYMENT,),
    "declined_cash_withdrawal": (_PAYMENT,),
    "declined_transfer": (_PAYMENT,),
    "direct_debit_payment_not_recognised": (_SECURITY, _PAYMENT),
    "disposable_card_limits": (_GENERAL,),
    "edit_personal_details": (_ACCOUNT,),
    "exchange_charge": _FEE,
    "exchange_rate": (_GENERAL, _PAYMENT),
    "exchange_via_app": (_GENERAL,),
    "extra_charge_on_statement": (_PAYMENT,),
    "failed_transfer": (_PAYMENT,),
    "fiat_currency_support": (_GENERAL,),
    "get_disposable_virtual_card": _QUESTION,
    "getting_spare_card": _QUESTION,
    "getting_virtual_card": _QUESTION,
    "lost_or_stolen_card": (_SECURITY,),
    "lost_or_stolen_phone": (_SECURITY,),
    "order_physical_card": _QUESTION,
    "passcode_forgotten": (_LOGIN,),
    "pending_card_payment": (_PAYMENT,),
    "pending_cash_withdrawal": (_PAYMENT,),
    "pending_top_up": (_PAYMENT,),
    "pending_transfer": (_PAYMENT,),
    "pin_blocked": (_LOGIN,),
    "receiving_money": (_GENERAL, _PAYMENT),
    "request_refund": (_PAYMENT,),
    "reverted_card_payment?": (_PAYMENT,),
    "supported_cards_and_currencies": (_GENERAL,),
    "terminate_account": (_ACCOUNT,),
    "top_up_by_bank_transfer_charge": _FEE,
    "top_up_by_card_charge": _FEE,
    "top_up_by_cash_or_cheque": (_GENERAL,),
    "top_up_failed": (_PAYMENT,),
    "top_up_limits": (_GENERAL,),
    "top_up_reverted": (_PAYMENT,),
    "transaction_charged_twice": (_PAYMENT,),
    "transfer_fee_charged": (_PAYMENT,),
    "transfer_into_account": (_GENERAL, _PAYMENT),
    "transfer_not_received_by_recipient": (_PAYMENT,),
    "transfer_timing": _FEE,
    "verify_my_identity": (_GENERAL,),
    "verify_source_of_funds": (_GENERAL,),
    "virtual_card_not_working": (_BUG,),
    "visa_or_mastercard": (_GENERAL,),
    "why_verify_identity": (_GENERAL,),
    "wrong_amount_of_cash_received": (_PAYMENT,),
    "wrong_exchange_rate_for_cash_withdrawal": (_PAYMENT,),
}


@dataclass(frozen=True)
class Collection:
    """Labelled texts by source, and the sha256 of each file that they come from."""

    texts: Mapping[str, Sequence[Labelled]]
    sha256: Mapping[str, str]


def read_collection(folder: Path, *, public: bool = True) -> Collection:
    """The repository's own texts ("own", "opinions") and the public data sets in `folder`.

    Without `public` the public sample tickets, whose licence is not stated, are left out. Raises ExportError.
    """
    taxonomy = Taxonomy.read(TAXONOMY)
    texts: dict[str, Sequence[Labelled]] = {
        "own": [*read_labelled(TICKETS, taxonomy), *taxonomy.examples],
        "opinions": read_labelled(OPINIONS, taxonomy),
        "banking77": read_banking77(folder / FILES["banking77"]),
        "senti4sd": read_senti4sd(folder / FILES["senti4sd"]),
        "sst2": read_sst2(folder / FILES["sst2"]),
    }
    files = {TICKETS.name: TICKETS, OPINIONS.name: OPINIONS, TAXONOMY.name: TAXONOMY}
    names = [name for name in FILES if public or name != "public"]
    if public:
        texts["public"] = read_labelled(folder / FILES["public"], taxonomy)
    files |= {FILES[name]: folder / FILES[name] for name in names}
    return Collection(texts, {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()})


def read_banking77(path: Path) -> list[Labelled]:
    """Messages to a bank, with the intents that their categories correspond to. Raises ExportError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError, csv.Error) as error:
        raise ExportError(f"{path}: expected a CSV file with the columns text and category ({error!r})") from error
    return [Labelled(text, {"intent": BANKING77[category]}) for text, category in rows if category in BANKING77]


def read_senti4sd(path: Path) -> list[Labelled]:
    """Developers' posts with their polarity: id;polarity;text. Raises ExportError."""
    result = []
    for number, line in enumerate(_lines(path), 1):
        _, polarity, text = [*line.split(";", 2), "", ""][:3]
        if polarity not in {"positive", "negative", "neutral"} or not text.strip():
            raise ExportError(f"{path}, line {number}: expected id;polarity;text")
        result.append(Labelled(text.strip(), {"sentiment": [polarity.upper()]}))
    return result


def read_sst2(path: Path) -> list[Labelled]:
    """Sentences from film reviews: text, tab, 0 or 1. Raises ExportError."""
    result = []
    for number, line in enumerate(_lines(path), 1):
        text, _, label = line.rpartition("\t")
        if not text or label not in {"0", "1"}:
            raise ExportError(f"{path}, line {number}: expected a text, a tab, and 0 or 1")
        result.append(Labelled(text, {"sentiment": ["POSITIVE" if label == "1" else "NEGATIVE"]}))
    return result


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
