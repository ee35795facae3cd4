"""Scores a sentence by its words: agents need the request, or what is wrong, rather than the background.

The weights come from a linear ranking, fitted so that the sentence that an agent needs most ranks first in its ticket
(tests/parity/test_summaries.py has the tickets and the measurement). They are in units of a cosine.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["merit"]

_LONGEST: Final = 1000  # characters that are read

# Requests and problems.
_REQUEST: Final = re.compile(
    r"\?$|\bplease (?!find\b|note\b|see\b|allow\b|do not hesitate|let me know if|feel free|accept\b)|"
    r"\b(?:could|can|would|will) (?:you|someone|somebody|anyone)\b|\b(?:may|can|could) (?:i|we)\b|\bkindly\b|"
    r"\b(?:i|we)(?: would| should|'d|’d)? (?:hereby |therefore |also |now |would )?(?:like (?:to|you)|ask|request|"
    r"need|want|require|demand|"
    r"wish|propose|suggest|appreciate it if|be (?:grateful|glad|obliged|happy) if)\b|"
    r"\b(?:i|we) (?:hereby |therefore )?(?:kindly )?request\b|\b(?:is|are) there (?:a|any) (?:way|possibility|option|"
    r"chance)\b|"
    r"\bis it possible\b|\bwould it be possible\b|\bwould be (?:a (?:great|big) help|helpful|useful|nice|great) if\b|"
    r"\b(?:give|send|tell|refund|fix) (?:me|us)\b|"
    r"\bfeature request\b|\bwould love to\b",
    re.IGNORECASE,
)
_PROBLEM: Final = re.compile(
    r"\b(?:cannot|can no longer|could not|unable|no longer|not|never|none|nothing|nobody|no one|without (?:any )"
    r"?(?:success|effect)|"
    r"fail(?:s|ed|ing|ure)?|error|crash(?:es|ed|ing)?|broken|breaks?|missing|wrong|incorrect\w*|duplicate\w*|twice|"
    r"instead of|lost|gone|vanished|damaged|"
    r"cracked?|reject(?:s|ed)?|refused?|declined|blocked|locked|stops?|stopped|stuck|hangs?|freezes?|slow(?:ly|er)?|"
    r"delayed?|late|outage|down|offline|empty|blank|"
    r"unknown|unauthori[sz]ed|suspicious|unexpected(?:ly)?|zero|only|although|even though|whereas|charged|"
    r"overcharged|doubled?|disappear(?:s|ed)|"
    r"(?:does|do|did|is|was|has|have|had|will|wo|ca|could|would|are|were)n['’]t)\b",
    re.IGNORECASE,
)
# Polite phrases, and information about the writer.
_POLITE: Final = re.compile(
    r"\b(?:thank|thanks|grateful for|look(?:ing)? forward|at your disposal|regards|compliment|satisfied|content with|"
    r"pleased|happy to|excellent|"
    r"splendid|favourable|appreciated?$|appreciate (?:an?|your|any)|understanding|apologi[sz]e|sorry|hope|"
    r"enclose[ds]?|attach(?:ed|ments?)?|screenshots?|"
    r"photographs?|loyal|for (?:many|several|some|\w+) years|customers? (?:for|since)|as (?:announced|you may|"
    r"planned|agreed|every month|a rule)|no hurry|no rush|"
    r"to this end|to whom|i am writing|we are an?\b|i am an?\b|call me|welcome a call|a (?:prompt|quick) (?:answer|"
    r"reply|response)|remember(?:s)?|assure[sd]?)\b",
    re.IGNORECASE,
)
_CONTRAST: Final = re.compile(
    r"\b(?:however|nevertheless|nonetheless|yet|but|unfortunately|on the other hand|still|although|though|whereas|"
    r"while|"
    r"even though|despite)\b",
    re.IGNORECASE,
)
_NOW: Final = re.compile(
    r"\b(?:since|now|today|this morning|yesterday|last night|currently|at present|every time|always)\b", re.IGNORECASE
)
_BACKGROUND: Final = re.compile(
    r"(?:as an?|for (?:the|an?)|in (?:the|order|accordance|20\d\d)|last|on (?:mon|tues|wednes|thurs|fri|satur|sun|"
    r"the|\d)|our|"
    r"my|we (?:are|have|operate|run|use)|i (?:am|have|sell|own|was)|between|to (?:this|the)|at the|when|until|before|"
    r"following)\b",
    re.IGNORECASE,
)


def merit(sentence: str) -> float:
    """The score of a sentence's words, which is added to its cosine with the whole ticket."""
    sentence = sentence[:_LONGEST].rstrip(" .!")
    return (
        0.28 * _found(_REQUEST, sentence)
        + 0.2 * min(2, sum(1 for _ in _PROBLEM.finditer(sentence)))
        - 0.12 * _found(_POLITE, sentence)
        + 0.08 * _found(_CONTRAST, sentence)
        + 0.14 * _found(_NOW, sentence)
        - 0.08 * (_BACKGROUND.match(sentence) is not None)
        + 0.15 * any(map(str.isdigit, sentence))
        + 0.2 * min(len(sentence), 300) / 100
    )


def _found(pattern: re.Pattern[str], sentence: str) -> bool:
    return pattern.search(sentence) is not None
