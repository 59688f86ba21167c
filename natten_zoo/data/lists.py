"""Lists of labeled images: CSV, TSV and JSON lines, with the columns that people give them."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .listing import is_image_name
from .names import plain

# Names of a column, the most telling first; capitals and outer spaces do not count.
COLUMNS = {
    "file": ("file", "filename", "file_name", "filepath", "file_path", "path", "image",
             "image_path", "image_name", "image_file", "image_id", "img", "img_path", "id"),
    "label": ("label", "labels", "class", "class_name", "classname", "label_name", "category",
              "target", "choice"),
    "split": ("split", "set", "subset", "partition", "data set"),
}  # fmt: skip
# Lists that exporters put beside the images: Hugging Face's, Roboflow's.
BESIDE_IMAGES = ("metadata.csv", "metadata.jsonl", "_classes.csv", "labels.csv")
KINDS = "a folder, a tar or zip archive or a list (CSV) with the columns 'file' and 'label'"


@dataclass(frozen=True)
class Row:
    """A line of a list.

    Attributes:
        line: Its number, from 1.
        file: The image.
        label: Its class.
        split: What the list calls the part that it belongs to, if it says so.
        cells: All of it, for messages.
    """

    line: int
    file: Path
    label: str
    split: str | None
    cells: dict[str, Any]


def read_list(path: Path) -> list[Row]:
    """Reads a list; files are relative to it.

    Raises:
        ValueError: It is no list, lacks a column, or a line lacks a file or a label.
    """
    header, lines = _json_lines(path) if path.suffix == ".jsonl" else _table(path)
    columns = find_columns(header)
    classes = _one_hot(path, header, lines, columns)
    if "file" not in columns or not ("label" in columns or classes):
        raise ValueError(f"[data] {path} must be {KINDS}, but the first line is {header}.")
    rows = []
    for number, cells in lines:
        values = {kind: _text(cells.get(name)) for kind, name in columns.items()}
        if classes:
            values["label"] = ", ".join(
                plain(name) for name in classes if _text(cells[name]) == "1"
            )
        if not values["file"] or not values["label"]:
            raise ValueError(
                f"[data] {path} line {number} must have a file, a label and, if there is a split, "
                f"what part it is in, but got {cells}."
            )
        file = locate(path, str(cells[columns["file"]]).strip())
        rows.append(Row(number, file, values["label"], values.get("split"), cells))
    return rows


def labeled_list(folder: Path) -> Path | None:
    """The list of labels that lies in a folder of images, if any; one without labels is none."""
    for name in BESIDE_IMAGES:
        if (folder / name).is_file():
            try:
                read_list(folder / name)
            except ValueError:
                continue
            return folder / name
    return None


def find_columns(header: Sequence[str]) -> dict[str, str]:
    """Which column is the file, which the label, which the split, as far as there are such."""
    known = {plain(name).casefold(): name for name in reversed(header)}
    found = {}
    for kind, names in COLUMNS.items():
        if (name := next((n for n in names if n in known), None)) is not None:
            found[kind] = known[name]
    return found


def locate(table: Path, name: str) -> Path:
    """A file that a list names, composed or decomposed, with either slash, a suffix or none.

    It lies beside the list, or in a folder that is called like the list, as `train/` is for
    `train.csv`, or `images`.
    """
    spellings = [name, name.replace("\\", "/")]
    spellings += [unicodedata.normalize(form, s) for s in spellings for form in ("NFC", "NFD")]
    if not is_image_name(name):
        spellings += [f"{s}{end}" for s in spellings for end in (".jpg", ".jpeg", ".png")]
    folders = ("", table.stem, f"{table.stem}_images", "images")
    paths = (table.parent / folder / s for folder in folders for s in spellings)
    return next((path for path in paths if path.is_file()), table.parent / name)


def _table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """The header and the numbered lines of a CSV file, whatever stands between its cells."""
    try:
        content = path.read_bytes()
        is_wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")  # as spreadsheets write "Unicode text"
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
        first = text.partition("\n")[0]
        headers = {mark: next(csv.reader([first], delimiter=mark), []) for mark in ",;\t|"}
        mark = max(headers, key=lambda m: (len(find_columns(headers[m])), len(headers[m])))
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark)
        lines: list[tuple[int, dict[str, Any]]] = [
            (reader.line_num, row)
            for row in reader
            if any(str(cell).strip() for cell in row.values() if cell)
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"[data] {path} must be {KINDS}, but is no text in UTF-8: {error}."
        ) from error
    return list(reader.fieldnames or ()), lines


def _json_lines(path: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    try:
        texts = path.read_text(encoding="utf-8-sig").splitlines()
        lines = [(n, json.loads(text)) for n, text in enumerate(texts, 1) if text.strip()]
        return list(dict.fromkeys(name for _, row in lines for name in row)), lines
    except (ValueError, TypeError) as error:
        raise ValueError(f"[data] {path} must hold JSON objects, one a line: {error}.") from error


def _text(cell: Any) -> str:
    return "" if cell is None else plain(str(cell))


def _one_hot(
    path: Path,
    header: Sequence[str],
    lines: list[tuple[int, dict[str, Any]]],
    columns: dict[str, str],
) -> list[str]:
    """Names of the classes where each has a column of zeros and ones, as Roboflow exports them."""
    if "label" in columns or len(header) < 3:
        return []
    classes = [name for name in header if name not in columns.values()]
    for number, cells in lines:
        marks = [_text(cells.get(name)) for name in classes]
        if not set(marks) <= {"0", "1"}:
            return []
        if marks.count("1") != 1:
            raise ValueError(
                f"[data] {path} line {number} must be of one class but is of {marks.count('1')}."
            )
    return classes if lines else []
