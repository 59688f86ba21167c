"""scripts/mutants.py: what it changes, and that a change is seen."""

from __future__ import annotations

import shutil

import pytest

from scripts import mutants
from scripts.mutants import Metal, Native

TEXT = """// a comment with 1 < 2
#include "file_1.h"
template <int N>
int first(int n) {
  static_assert(N < 4);
  if (n <= 10 && n != N) return na_min(n, 3);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return array<3>(x1) * 0.5f + 0.0f;
}
"""


def test_every_comparison_constant_and_barrier():
    found = [(m.before, m.after) for m in mutants.mutants("a.h", TEXT)]
    assert found == [
        ("<=", "<"), ("10", "11"), ("&&", "||"), ("!=", "=="), ("min", "max"), ("3", "4"),
        ("threadgroup_barrier(mem_flags::mem_threadgroup);", ";"), ("3", "4"),
        ("0.5f", "(2 * 0.5f)"), ("0.0f", "1.0f"),
    ]  # fmt: skip
    third = list(mutants.mutants("a.h", TEXT))[3]
    assert third.of(TEXT) == TEXT.replace("n != N", "n == N")


@pytest.mark.parametrize("kind", [Native, Metal])
def test_all_files_have_some(kind):
    found = of(kind)
    assert len(found) > 500
    assert all(m.before != m.after for m in found)
    assert {m.file for m in found} >= {p.name for p in kind.files() if p.suffix != ".h"}


def test_what_is_explained_is_there():
    lines = {line for line in mutants.EXPLAINED.read_text().splitlines() if " | " in line}
    named = mutants.numbered([m for kind in (Native, Metal) for m in of(kind)])
    assert lines <= {m.key for m in named.values()} | named.keys()


def test_an_explanation_may_be_of_one_of_several_alike(tmp_path, monkeypatch):
    named = mutants.numbered(list(mutants.mutants("a.h", "x = {1, 1, 2};\ny = f(3, 3);\n")))
    monkeypatch.setattr(mutants, "EXPLAINED", tmp_path / "mutants.txt")
    one, all_alike = "a.h | 1 -> 2 | x = {1, 1, 2}; | 2", "a.h | 3 -> 4 | y = f(3, 3);"
    mutants.EXPLAINED.write_text(f"Why.\n{one}\n{all_alike}\n")
    assert mutants.explained(named) == {one, f"{all_alike} | 1", f"{all_alike} | 2"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_fault_of_the_compiled_tier_is_seen(tmp_path):
    native = Native(tmp_path)
    assert native.caught(None) == ""
    line = "for (int j = 0; j < count; ++j) top = max(weights_[j], top);"
    fault = next(m for m in of(Native) if m.line == line and m.before == "<")
    assert native.caught(fault)


def of(kind: type) -> list[mutants.Mutant]:
    return [m for path in kind.files() for m in mutants.mutants(path.name, path.read_text())]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    """Side by side, written as they come, listed in the order of the files, and never twice."""
    asked, results, wrong = [], tmp_path / "results.jsonl", ""

    class Some:
        def __init__(self, folder):
            self.folder = folder

        @classmethod
        def files(cls):
            return [tmp_path / "a.h"]

        @staticmethod
        def together(todo, jobs):
            yield from ()

        def caught(self, mutant):
            if mutant is None:
                return wrong
            asked.append(mutant.start)
            return "" if mutant.before in ("10", "min", "<=") else "it is wrong"

    (tmp_path / "a.h").write_text(TEXT)
    monkeypatch.setattr(mutants, "Metal", Some)
    monkeypatch.setattr("sys.argv", ["mutants", "metal", "--jobs", "3", "--results", str(results)])
    line = "if (n <= 10 && n != N) return na_min(n, 3);"
    left = [f"  a.h | {change} | {line}" for change in ("<= -> <", "10 -> 11", "min -> max")]
    assert mutants.main() == 3 and len(asked) == 10
    assert capsys.readouterr().out.splitlines()[-3:] == left
    written = results.read_text().splitlines()
    results.write_text("\n".join([*written[:6], written[6][:9]]))  # cut off within a line
    asked.clear()
    assert mutants.main() == 3 and len(asked) == 4
    assert capsys.readouterr().out.splitlines()[-3:] == left
    (tmp_path / "a.h").write_text("// another line\n" + TEXT + "int x = 7;\n")
    asked.clear()
    mutants.main()
    assert len(asked) == 1 and len(results.read_text().splitlines()) > 10
    before, wrong = results.read_text(), "a judge that finds all wrong"
    (tmp_path / "a.h").write_text(TEXT + "int y = 8;\n")
    with pytest.raises(SystemExit, match="without any fault: a judge"):
        mutants.main()
    assert results.read_text() == before
