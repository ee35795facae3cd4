"""What machines wrote: stack traces, lines of logs, blocks of code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from enrichment.text.patterns import Pattern

__all__ = ["machine_lines"]

_LONGEST: Final = 500  # characters of a line that are looked at
_NAME: Final = r"[\w$.<>`\[\]+/@#~-]{1,200}"
# A frame of a stack trace: Java, .NET (in several languages), JavaScript, Python, Go, Ruby, PHP, Rust, C, Swift, Perl.
_FRAME: Final = Pattern(
    rf"at (?:async |new )?{_NAME}(?: \[as [^\]]{{1,60}}\])? \((?:[^()]{{0,300}}:\d|native|<anonymous>|index \d|eval "
    rf"at)|at {_NAME}\(|at (?:https?|file|node|webpack[\w-]*|app)://?\S+:\d+|at \S+:\d+:\d+$|"
    rf"at <anonymous>|(?:bei|à|en|in|w) {_NAME}\([^()]{{0,200}}\)(?: (?:in|dans|en|w) .{{1,200}}:\s?(?:Zeile|ligne|"
    rf"línea|line|wiersz)\s\d+\.?)?$|"
    r"\.\.\. \d{1,5} (?:more|common frames omitted)|(?:Suppressed|Caused by|Wrapped by): ?[\w$.]|"
    r"File \"[^\"]{1,300}\", line \d+|(?:During handling of the above exception|The above exception was the direct "
    r"cause)|"
    r"Traceback \(most recent call (?:last|first)\)|\[Previous line repeated \d+ more times?\]|"
    r"--- End of (?:inner exception )?stack trace|-{3,}> ?[\w.]{3,200}(?:Exception|Error)|"
    r"[\w$.<>*/]{0,120}@(?:https?|file|resource|app|webpack[\w-]*)://\S+:\d+|"
    r"goroutine \d+ \[|created by [\w./*()]+|[\w./-]{1,200}\.go:\d+(?: \+0x[0-9a-f]+)?$|\[signal SIG|exit status \d+$|"
    r"[\w./*()]{1,150}\.[\w.*()]{1,80}\((?:0x[0-9a-f]+|\.\.\.|\{)[^()]{0,200}\)$|"
    r"(?:from )?[\w./\\:-]{1,200}\.\w{1,5}:\d+:in [`'\"]|from \(irb\):|"
    r"#\d{1,3}:? {1,4}(?:0x[0-9a-f]+|\S{1,200}\(\d+\)|\{main\}|[\w:~<>]{1,200} ?\(|\[internal function\])|Stack "
    r"trace:$|stack backtrace:$|"
    r"thrown in \S+ on line \d+|PHP (?:Fatal error|Warning|Notice|Parse error):|"
    r"\d{1,4}:\s{1,20}(?:0x[0-9a-f]+ - )?[\w<>$]{1,80}::[\w<>:{}$# ]{1,200}|at (?:\.{0,2}/|/|[A-Z]:\\)\S{1,200}:\d+|"
    r"thread '[^']{1,80}' (?:\(\d+\) )?panicked at|"
    r"note: run with `RUST_BACKTRACE|panic: |\d{1,3}\s{1,20}\S{1,60}\s{1,40}0x[0-9a-f]{6,16} |"
    r"at [\w:]{1,80} line \d+\.?$|\s*\^+~*\s*$|Exception in thread \"|Unhandled exception\. |Uncaught (?:Error|"
    r"\w{1,60}Error|\w{0,60}Exception)\b"
)
# The name of an exception with its message; a writer may say so too, so it counts only beside a frame.
_EXCEPTION: Final = Pattern(
    r"(?:Unhandled |Uncaught |Caused by: |Exception in thread \"[^\"]{1,80}\" |Fatal error: |java\.|System\.|"
    r"\(?node:\d+\)? )?"
    r"[\w$.:]{0,200}(?:Error|Exception|Throwable|Warning|Fault|Exit|Interrupt|Failure)(?:\(\w*\))?(?:\s?[:(].{0,500}|"
    r")$|"
    r"\S{1,200}\([^()]{0,200}\)$|(?:E|Error|ERROR|FATAL|Fatal error|panic): .{1,500}$|"
    r"[\w/.-]{1,100}\.\w{1,5}:\d+(?::\d+)?:?$"
)
_LEVEL: Final = (
    r"(?:TRACE|DEBUG|INFO|INFORMATION|NOTICE|WARN|WARNING|ERROR|ERR|SEVERE|CRITICAL|CRIT|FATAL|ALERT|EMERG|PANIC|"
    r"trace|debug|info|notice|warn|warning|error|severe|critical|fatal|alert)"
)
_TIME: Final = r"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
_ISO: Final = rf"\d{{4}}[-/.]\d\d[-/.]\d\d[T ]{_TIME}(?:\s?(?:Z|UTC|[+-]\d\d:?\d\d))?"
_LOG: Final = Pattern(
    # syslog and journald
    rf"(?:<\d{{1,3}}>(?:1 )?)?(?:(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) {{1,2}}\d{{1,2}} {_TIME}|{_ISO})"
    rf" [\w.:-]{{1,80}} "
    rf"[\w./()@-]{{1,80}}(?:\[\d{{1,10}}\])?: |"
    # a timestamp, and a level within the next words
    rf"[\[(]?{_ISO}[\])]?[\s|:,-]{{0,4}}(?:\S{{1,80}} {{1,8}}){{0,4}}?[\[(<|*]?(?:[\w-]{{1,40}}\.)?{_LEVEL}\b|"
    rf"[\[(]?{_TIME}[\])]?[\s|:,-]{{1,4}}(?:\[[^\]]{{1,60}}\] {{1,8}}){{0,2}}[\[(<|*]?{_LEVEL}\b|"
    rf"\[[^\]]{{0,30}}\d\d:\d\d:\d\d[^\]]{{0,30}}\] {{0,2}}\[[^\]]{{1,40}}\]|"
    # a timestamp to the fraction of a second, or with a zone, is no writer's
    rf"[\[(]?\d{{4}}[-/.]\d\d[-/.]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{{3,9}}|Z|\+\d\d:?\d\d)|"
    # a level first
    rf"[\[(]{_LEVEL}[\])]:? |(?-i:{_LEVEL}):[\w.-]{{1,60}}:|(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR|FATAL)"
    rf" {{1,8}}[\[(]?(?:\d{{4}}-\d\d-\d\d|{_TIME}|\[)|"
    # web servers, glog, logcat, the kernel, logfmt, JSON lines, containers
    r"[\d.:a-f]{3,40} \S{1,40} \S{1,40} \[\d\d/\w{3}/\d{4}:|[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ |\d\d-\d\d "
    r"\d\d:\d\d:\d\d\.\d{3} {1,4}\d+|"
    r"\[ {0,8}\d{1,8}\.\d{4,9}\] |(?:time|ts|level|lvl)=\"?\S{1,60} (?:\S{1,80} ){0,3}?(?:level|lvl|msg|time)=|"
    r"\{\"(?:level|time|timestamp|ts|@timestamp|msg|message|severity|log)\" ?:|[\w-]{1,40} {1,20}\| (?:\[|\d{4}-|"
    r"\d\d:\d\d:\d\d|[A-Z]{4,8}\b)"
)
# A bare date and time may be the writer's; two or more in a row that look alike are a log.
_STAMP: Final = Pattern(
    rf"[\[(]?(?:{_ISO}|\d\d[./-]\d\d[./-]\d{{4}} {_TIME}|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    rf" {{1,2}}\d{{1,2}} {_TIME}|\[?{_TIME}\]?)[\])]?[\s|:,-]"
)
_PROGRAM: Final = Pattern(r"[\[\]{}=]|\w\.\w{1,80}\.\w|\w\(|\w\[\d{1,10}\]|\w:\s|/\w{1,80}/")
_FENCE: Final = Pattern(r"(?:```|~~~)[\w+-]{0,20}$")


def machine_lines(lines: Sequence[str], raw: Sequence[str]) -> set[int]:
    """The numbers of the lines that machines wrote; `raw` are the same lines with their indentation."""
    found = _fenced(lines)
    stamped: list[int] = []
    for number, line in enumerate(lines):
        if not line or number in found:
            continue
        head = line[:_LONGEST]
        if _FRAME.match(head) or _LOG.match(head):
            found.add(number)
        if _STAMP.match(head):
            stamped.append(number)
    for first, second in pairwise(stamped):
        if second == first + 1 and _is_log(lines[first]) and _is_log(lines[second]):
            found.update((first, second))
    for number in sorted(found):
        _beside(lines, raw, number, found)
    return found


def _fenced(lines: Sequence[str]) -> set[int]:
    found: set[int] = set()
    opened = -1
    for number, line in enumerate(lines):
        if line[:1] in "`~" and _FENCE.match(line):
            if opened < 0:
                opened = number
            else:
                found.update(range(opened, number + 1))
                opened = -1
    return found


def _is_log(line: str) -> bool:
    """Whether what follows a timestamp is a machine's, rather than a writer's own diary of the fault."""
    stamp = _STAMP.match(line)
    # Machines name a program, a thread or a level after the time; people go on in words.
    return stamp is not None and _PROGRAM.search(line, stamp.end(), stamp.end() + 200) is not None


def _beside(lines: Sequence[str], raw: Sequence[str], number: int, found: set[int]) -> None:
    """Adds what belongs to a frame: the exception above or below it, and the code that Python shows below a frame."""
    line = lines[number]
    above = number - 1
    if above >= 0 and above not in found and lines[above] and _EXCEPTION.match(lines[above][:_LONGEST]):
        found.add(above)
    below = number + 1
    if below >= len(lines) or below in found or not lines[below]:
        return
    if line.startswith('File "') and _indent(raw[below]) > _indent(raw[number]):
        found.add(below)
        below += 1
        while below < len(lines) and lines[below] and not lines[below].strip("^~ "):
            found.add(below)
            below += 1
    elif line.startswith('File "') and _indent(raw[number]) == 0 and not lines[below].endswith((".", "!", "?")):
        found.add(below)  # the same where indentation was lost
        below += 1
    if below < len(lines) and lines[below] and _EXCEPTION.match(lines[below][:_LONGEST]):
        found.add(below)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
