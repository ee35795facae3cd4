"""The members of a JSON object as they were written, without making Python objects of their values.

A parsed value needs up to sixty times the memory of its JSON, and a float has fewer digits than a number in JSON may
have. What is only passed through is therefore kept as bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pydantic_core

__all__ = ["join", "member", "other_members"]

_QUOTE, _COMMA, _COLON, _BRACE, _BRACKET, _END_OF_BRACE, _END_OF_BRACKET = b'",:{[}]'


def other_members(raw: bytes, known: Collection[str]) -> bytes:
    """The members of a JSON object whose names are not in `known`, as JSON text without the braces.

    `raw` has to be valid JSON (without byte order mark) and an object. As in a dict, the last of several members with
    one name counts. Line ends and tabs between tokens are removed, everything else is kept as it is. Linear in the
    length of `raw`.
    """
    found = {name: raw[begin:end] for name, begin, end in _members(raw) if name not in known}
    return b",".join(_written(name, value.translate(None, b"\r\n\t")) for name, value in found.items())


def member(raw: bytes, name: str) -> bytes:
    """The value of a member as it was written; the last one counts. Raises KeyError; `raw` as in other_members."""
    return {found: raw[begin:end] for found, begin, end in _members(raw)}[name]


def join(members: Mapping[str, bytes], more: bytes = b"") -> bytes:
    """A JSON object of members whose values are JSON; `more` are members as other_members gives them."""
    parts = [_written(name, value) for name, value in members.items()]
    return b"{" + b",".join([*parts, more] if more else parts) + b"}"


def _written(name: str, value: bytes) -> bytes:
    return pydantic_core.to_json(name) + b":" + value.strip(b" ")


def _members(raw: bytes) -> list[tuple[str, int, int]]:
    """Name, begin and end of the value of each member."""
    # Backslashes occur in strings only. Without escaped ones and escaped quotes, each quote begins or ends a string.
    plain = raw.replace(b"\\\\", b"__").replace(b'\\"', b"__") if b"\\" in raw else raw
    codes = np.frombuffer(plain, np.uint8)
    outside = np.bitwise_xor.accumulate((codes == _QUOTE).view(np.uint8)) == 0
    opening = (codes == _BRACE) | (codes == _BRACKET)
    closing = (codes == _END_OF_BRACE) | (codes == _END_OF_BRACKET)
    steps = opening.view(np.int8) - closing.view(np.int8)
    steps[~outside] = 0
    depths = np.cumsum(steps, dtype=np.int32)
    at_top = outside & (depths == 1)
    colons = np.flatnonzero(at_top & (codes == _COLON)).tolist()
    if not colons:
        return []
    commas = np.flatnonzero(at_top & (codes == _COMMA)).tolist()
    begins = [plain.index(b"{") + 1, *(comma + 1 for comma in commas)]
    ends = [*commas, plain.rindex(b"}")]
    return [
        (pydantic_core.from_json(raw[begin:colon]), colon + 1, end)
        for begin, colon, end in zip(begins, colons, ends, strict=True)
    ]
