"""What the writer of a ticket says.

`read_ticket` is the one step before all models: from mail and HTML to plain text, without quoted mail, signatures,
banners, legal notices, stack traces and logs. Every model and the summary read its result, never the raw body.
"""

from enrichment.text.reader import MAX_CHARACTERS, TicketText, model_text, read_ticket
from enrichment.text.sentences import Sentence, sentences, word_count

__all__ = ["MAX_CHARACTERS", "Sentence", "TicketText", "model_text", "read_ticket", "sentences", "word_count"]
