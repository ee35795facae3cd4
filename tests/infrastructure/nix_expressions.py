"""Parses the Nix expressions of .flox/pkgs without Nix and without evaluating them.

Values are as written: a string keeps `${...}`, `python313Packages.numpy` becomes "numpy", a list a list, an attribute
set a dict, a path a Path. Only Nix can check that every name is defined: `make test-nix`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import tree_sitter_nix
from tree_sitter import Language, Node, Parser

_PARSER = Parser(Language(tree_sitter_nix.language()))


class Expression:
    """A parsed file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = _PARSER.parse(path.read_bytes()).root_node

    def syntax_errors(self) -> list[str]:
        """One line per syntax error."""
        wrong = [node for node in _walk(self._root) if node.is_error or node.is_missing]
        # The grammar does not support a trailing comma after a function's last argument.
        wrong = [node for node in wrong if node.parent is None or node.parent.type != "formal"]
        return [f"{self.path.name}:{node.start_point.row + 1}: syntax error" for node in wrong]

    def paths(self) -> list[Path]:
        """Every path in the expression, resolved."""
        return [self._path(node) for node in _walk(self._root) if node.type == "path_expression"]

    @cached_property
    def arguments(self) -> list[str]:
        """The arguments of the file's function, as passed by callPackage."""
        formals = next(node for node in _walk(self._root) if node.type == "formals")
        return [_text(formal) for formal in formals.named_children if _text(formal)]

    @cached_property
    def values(self) -> dict[str, Any]:
        """Every attribute and `let` binding by name; an outer one takes precedence over a nested one."""
        found: dict[str, Any] = {}
        for node in _walk(self._root):
            if node.type == "binding":
                path, value = node.named_children
                found.setdefault(_name(path), self._value(value))
            elif node.type == "inherit_from":
                source, names = node.named_children
                for name in names.named_children:
                    found.setdefault(_text(name), f"{_text(source).strip('()')}.{_text(name)}")
        return found

    def _value(self, node: Node) -> Any:  # noqa: PLR0911 - one line for each kind of node
        match node.type:
            case "string_expression":
                return "".join(_text(part) for part in node.named_children)
            case "indented_string_expression":
                return textwrap.dedent(_text(node)[2:-2])
            case "list_expression":
                return [self._value(element) for element in node.named_children if element.type != "comment"]
            case "path_expression":
                return self._path(node)
            case "attrset_expression" | "rec_attrset_expression":
                bindings = [child for child in _walk(node, depth=2) if child.type == "binding"]
                return {
                    _name(binding.named_children[0]): self._value(binding.named_children[1]) for binding in bindings
                }
            case "variable_expression" | "select_expression":
                return _text(node).rpartition(".")[2] if node.type == "select_expression" else _text(node)
            # A function is represented by its body, a call by its argument: `fetchPypi { hash = ...; }`.
            case "apply_expression" | "parenthesized_expression" | "function_expression":
                return self._value(node.named_children[-1])
            case _:
                return _text(node)

    def _path(self, node: Node) -> Path:
        return (self.path.parent / _text(node)).resolve()


def _walk(node: Node, depth: int | None = None) -> Iterator[Node]:
    """A node and its descendants in breadth-first order, `depth` levels deep."""
    level = [node]
    while level and (depth is None or depth >= 0):
        yield from level
        level = [child for parent in level for child in parent.children]
        depth = None if depth is None else depth - 1


def _name(attrpath: Node) -> str:
    return _text(attrpath).strip('"')


def _text(node: Node) -> str:
    return (node.text or b"").decode()
