"""Reading a file of questions: JSON lines, a JSON array, SQuAD's and TriviaQA's nested JSON, CSV or TSV."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import FitError
from guard.harness.fields import QUESTION

_MARKS = (  # UTF-32 before UTF-16: its mark starts with the other's
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_CONTAINERS = {
    b"\x1f\x8b": "is compressed with gzip: unpack it",
    b"PK\x03\x04": "is a ZIP archive, as Excel writes them: export the table as CSV",
    b"PAR1": "is a Parquet file: write it as JSON lines (pandas: to_json(..., orient='records', lines=True))",
}
_LINE_ENDS = re.compile(r"\r\n|\n|\r")  # not the others of str.splitlines: they may stand in a JSON text
_UTF8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_SEVERAL = re.compile(rb"[\x80-\xff]{4}")  # no language that Latin-1 writes has as many in a row
_DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV with semicolons"}
_DEEP = "nested too deeply"


@dataclass(frozen=True, slots=True)
class Row:
    """place: where it stands, as "line 3". value: what stands there. fault: what is wrong with it, else None."""

    place: str
    value: Any
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class DataFile:
    """encoding, format: as a person calls them. text: the whole file, decoded."""

    path: Path
    encoding: str
    format: str
    text: str

    def rows(self) -> Iterator[Row]:
        """Every row; a row that cannot be read says why. Whole files that cannot be read are one row with a fault."""
        if self.format in _DELIMITERS.values():
            return _cells(self.text, next(d for d, name in _DELIMITERS.items() if name == self.format))
        if self.format == "JSON lines":
            return _json_lines(self.text)
        return _items(self.text) if self.format == "JSON array" else _nested(self.text)


def read_file(path: Path) -> DataFile:
    """Decode a file and tell its format by its content. Raises FitError for what cannot be read as text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FitError(f"{path} cannot be read: {error.strerror}") from None
    for magic, advice in _CONTAINERS.items():
        if data.startswith(magic):
            raise FitError(f"{path} {advice}")
    text, encoding = _decoded(path, data)
    return DataFile(path, encoding, _format(path, text), text)


def _decoded(path: Path, data: bytes) -> tuple[str, str]:
    for mark, codec, name in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(codec), name
            except UnicodeDecodeError as error:
                raise FitError(f"{path} starts as {name} and is not ({error.reason}): save it as UTF-8") from None
    if b"\x00" in data[:4]:  # UTF-16 without a mark: the first character is a bracket or a letter
        codec = "utf-16-be" if data[:1] == b"\x00" else "utf-16-le"
        try:
            return data.decode(codec), "UTF-16 without a byte order mark"
        except UnicodeDecodeError:
            pass
    try:
        return data.decode("utf-8"), "ASCII" if data.isascii() else "UTF-8"
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\n|\r", data[: error.start])) + 1
        where = f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8"
    # A file of Latin-1 has no UTF-8 in it; one that has both is damaged, and reading it would spoil the rest.
    if not _UTF8.search(data) and not _SEVERAL.search(data):
        try:
            return data.decode("cp1252"), "Latin-1 (Windows-1252)"
        except UnicodeDecodeError:
            pass
    raise FitError(f"{where}, nor is the file Latin-1: save it as UTF-8")


def _format(path: Path, text: str) -> str:
    start = text.lstrip()
    if start[:1] == "[":
        return "JSON array"
    if start[:1] == "{":
        try:  # one object over one line or many
            return "nested JSON" if _list_in(json.loads(text)) is not None else "JSON lines"
        except (ValueError, RecursionError):
            return "JSON lines"
    header = _LINE_ENDS.split(start, 1)[0].casefold()
    for delimiter, name in _DELIMITERS.items():
        columns = [cell.strip().strip('"') for cell in header.split(delimiter)]
        if len(columns) > 1 and set(columns) & set(QUESTION):
            return name
    if not start:
        return "JSON lines"
    raise FitError(
        f"{path}, line 1: neither JSON nor the header of a table with the columns question and answer (or problem, "
        "answers, possible_answers), with commas, semicolons or tabs between"
    )


# -- JSON --------------------------------------------------------------------------------------------------------------


def _json_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(_LINE_ENDS.split(text), 1):
        if line.strip():
            value, fault = _parsed(line)
            yield Row(f"line {number}", value, fault)


def _parsed(text: str) -> tuple[Any, str | None]:
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at character {error.pos + 1})"
    except RecursionError:
        return None, f"not JSON that can be read ({_DEEP})"
    except ValueError as error:  # a number of thousands of digits
        return None, f"not JSON that can be read ({str(error).split(';')[0]})"


def _items(text: str) -> Iterator[Row]:
    """The items of an array, each with the line that it starts on. What follows a damaged one cannot be found."""
    decoder = json.JSONDecoder()
    blank = re.compile(r"[\s,]*")
    at = text.index("[") + 1
    line, counted = 1, 0
    while True:
        skipped = blank.match(text, at)
        at = skipped.end() if skipped else at
        line += len(_LINE_ENDS.findall(text[counted:at]))
        counted = at
        if at >= len(text):
            yield Row(f"line {line}", None, "not JSON (the array that starts the file has no end)")
            return
        if text[at] == "]":
            if text[at + 1 :].strip():
                yield Row(f"line {line}", None, "not JSON (something follows the array)")
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            found = line + len(_LINE_ENDS.findall(text[counted : error.pos]))
            yield Row(f"line {found}", None, f"not JSON ({error.msg})")
            return
        except RecursionError:
            yield Row(f"line {line}", None, f"not JSON that can be read ({_DEEP})")
            return
        except ValueError as error:
            yield Row(f"line {line}", None, f"not JSON that can be read ({str(error).split(';')[0]})")
            return
        yield Row(f"line {line}", value)


def _list_in(value: Any) -> list[Any] | None:
    """The list under "data", as in SQuAD's and TriviaQA's files."""
    if not isinstance(value, dict):
        return None
    found = next((item for key, item in value.items() if key.casefold() == "data"), None)
    return found if isinstance(found, list) and "question" not in value else None


def _nested(text: str) -> Iterator[Row]:
    """data / paragraphs / qas of SQuAD, each question with its article's title; or the rows under "data"."""
    for i, item in enumerate(_list_in(json.loads(text)) or []):
        paragraphs = item.get("paragraphs") if isinstance(item, dict) else None
        if not isinstance(paragraphs, list):
            yield Row(f"item {i + 1} of data", item)
            continue
        for j, paragraph in enumerate(paragraphs):
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            for k, one in enumerate(questions if isinstance(questions, list) else []):
                place = f"question {k + 1} of paragraph {j + 1} of item {i + 1}"
                yield Row(place, {"title": item.get("title"), **one} if isinstance(one, dict) else one)


# -- tables ------------------------------------------------------------------------------------------------------------


def _cells(text: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(f"line {number}", None, f"not a row of a table ({error})")
            return
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = [cell.strip().casefold() for cell in cells]
            twice = next((name for name in columns if name and columns.count(name) > 1), None)
            if twice:
                yield Row(f"line {number}", None, f"two columns are called {twice}")
                return
        elif len(cells) != len(columns):
            fault = f"has {len(cells)} cells, and the header {len(columns)}; quote cells that contain {delimiter!r}"
            yield Row(f"line {number}", None, fault)
        else:
            yield Row(f"line {number}", {name: cell for name, cell in zip(columns, cells, strict=True) if cell.strip()})
