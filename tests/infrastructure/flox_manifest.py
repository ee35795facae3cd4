"""Flox's schema for a version 1 manifest: unknown names are errors, and every value has a type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SYSTEMS = {"x86_64-linux", "aarch64-linux", "x86_64-darwin", "aarch64-darwin"}
_INSTALLED = {"priority": int, "systems": [_SYSTEMS]}
_SCRIPTS = dict.fromkeys(("common", "bash", "zsh", "fish", "tcsh"), str)

# A rule is a type, a set of allowed values, a list with the rule of its items, a tuple of alternatives, or a dict of
# names with their rules ("*": any name; "!" before a name: required).
_MANIFEST: dict[str, Any] = {
    "!version": {1},
    "install": {
        "*": (
            {"!pkg-path": str, "pkg-group": str, "version": str, **_INSTALLED},
            {"!flake": str, **_INSTALLED},
            {"!store-path": str, **_INSTALLED},
        )
    },
    "vars": {"*": str},
    "hook": {"on-activate": str},
    "profile": _SCRIPTS,
    "services": {
        "*": {
            "!command": str,
            "vars": {"*": str},
            "is-daemon": bool,
            "shutdown": {"!command": str},
            "systems": [_SYSTEMS],
        }
    },
    "build": {
        "*": {
            "!command": str,
            "runtime-packages": [str],
            "sandbox": {"off", "pure"},
            "version": (str, {"!file": str}, {"!command": str}),
            "description": str,
        }
    },
    "include": {
        "environments": [({"!dir": str, "name": str}, {"!remote": str, "generation": int, "name": str})],
    },
    "options": {
        "systems": [_SYSTEMS],
        "activate": {"mode": {"dev", "run"}},
        "allow": {"unfree": bool, "broken": bool, "licenses": [str]},
        "semver": {"allow-pre-releases": bool},
        "cuda-detection": bool,
    },
    "containerize": {
        "config": {
            "user": str,
            "exposed-ports": [str],
            "cmd": [str],
            "volumes": [str],
            "working-dir": str,
            "labels": {"*": str},
            "stop-signal": str,
        }
    },
}


def problems(manifest: dict[str, Any]) -> list[str]:
    """The violations that Flox would report, each with its location; empty for a valid manifest."""
    found = list(_violations(manifest, _MANIFEST, "manifest"))
    for name, service in manifest.get("services", {}).items():
        if isinstance(service, dict) and service.get("is-daemon") and "shutdown" not in service:
            found.append(f"services.{name}: a daemon needs shutdown.command")
    return found


def _violations(value: Any, rule: Any, place: str) -> Iterator[str]:
    if isinstance(rule, tuple):
        tried = [list(_violations(value, alternative, place)) for alternative in rule]
        yield from min(tried, key=len)
    elif isinstance(rule, dict):
        yield from _table(value, rule, place)
    elif isinstance(rule, list):
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _violations(item, rule[0], f"{place}[{index}]")
        else:
            yield f"{place}: must be a list"
    elif isinstance(rule, set):
        if value not in rule:
            yield f"{place}: must be one of {sorted(rule, key=str)}"
    elif type(value) is not rule:  # not isinstance: true is not a number
        yield f"{place}: must be of type {rule.__name__}"


def _table(value: Any, rule: dict[str, Any], place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: must be a table"
        return
    rules = {name.lstrip("!"): inner for name, inner in rule.items()}
    for name, inner in value.items():
        if name in rules or "*" in rules:
            yield from _violations(inner, rules.get(name, rules.get("*")), f"{place}.{name}")
        else:
            yield f"{place}.{name}: unknown"
    for name in rule:
        if name.startswith("!") and name[1:] not in value:
            yield f"{place}.{name[1:]}: missing"
