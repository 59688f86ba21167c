"""The Swift package of examples/: its files are Swift. No compiler is at hand, a grammar is."""

from pathlib import Path

import pytest

tree_sitter = pytest.importorskip("tree_sitter")
tree_sitter_swift = pytest.importorskip("tree_sitter_swift")
PACKAGE = Path(__file__).parents[2] / "examples/swift"
FILES = sorted(PACKAGE.rglob("*.swift"))


def parsed(source: bytes):
    language = tree_sitter.Language(tree_sitter_swift.language())
    return tree_sitter.Parser(language).parse(source).root_node


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_parses(file):
    assert not parsed(file.read_bytes()).has_error


def test_a_fault_is_seen():
    source = next(file for file in FILES if file.name == "main.swift").read_bytes()
    assert parsed(source.replace(b"throws -> MLXArray {", b"throws -> {", 1)).has_error
    assert parsed(source[: len(source) // 2]).has_error
