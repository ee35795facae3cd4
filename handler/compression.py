"""Raw objects that were stored compressed."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Final

from enrichment.errors import TicketInvalid
from handler.errors import ObjectTooLarge

__all__ = ["decompress"]

_GZIP_MAGIC: Final = b"\x1f\x8b"


def decompress(raw: bytes, max_bytes: int) -> bytes:
    """The content of a gzip file; other bytes are returned as they are.

    The first two bytes decide, not the object's Content-Encoding: no JSON begins with them, and clients label objects
    wrongly in both directions. No more than `max_bytes` are decompressed, so that a small file with a huge content
    needs no more memory than any other. Raises ObjectTooLarge or TicketInvalid.
    """
    if not raw.startswith(_GZIP_MAGIC):
        return raw
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            content = stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TicketInvalid("the object is a gzip file, but a damaged or incomplete one") from error
    if len(content) > max_bytes:
        raise ObjectTooLarge(
            f"the decompressed object has more than the {max_bytes} bytes that MAX_TICKET_BYTES allows"
        )
    return content
