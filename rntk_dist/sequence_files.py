"""Sequences in files of NumPy and of the archives, read into packed arrays.

Each reader raises ValueError or TypeError for what it cannot take, naming the line if there is one.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from rntk_dist.packed import AnyArray, Floats, Packed, refuse_non_finite, without_padding
from rntk_dist.sequence_error import SequenceError


def read_npy(place: str) -> Packed:
    """(n, T) or (n, T, m)."""
    return without_padding(_loaded(place)["array"])


def read_npz(place: str) -> Packed:
    """`values` and `offsets` [and `labels`, `n_items`], or `X` [and `y`], or a single array."""
    arrays = _loaded(place)
    if {"values", "offsets"} <= arrays.keys():
        size = arrays.get("n_items")
        n_items = None if size is None else size.item()
        return arrays["values"], arrays["offsets"], arrays.get("labels"), n_items
    if "X" in arrays:
        return without_padding(arrays["X"], arrays.get("y"))
    if len(arrays) == 1:
        return without_padding(*arrays.values())
    way_out = "save `values` and `offsets`, or `X` [and `y`], or one array"
    raise ValueError(f"found the arrays {sorted(arrays)}: {way_out}")


def _loaded(place: str) -> dict[str, AnyArray]:
    """The arrays of a .npz file, or `array` alone from a .npy file; never unpickles."""
    try:
        with Path(place).open("rb") as file:
            content = np.load(file, allow_pickle=False)
            return (
                dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {"array": content}
            )
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        found = "found no intact NumPy file, or one of Python objects, which are never unpickled"
        raise ValueError(f"{found}: write ragged sequences with Sequences.write") from error


def read_tsv(place: str) -> Packed:
    """A sequence a line, the label first; tabs, commas or spaces between."""
    lines = _text_lines(place, comments=())
    fields = [line.split(_separator(line)) for _, line in lines]
    for (number, line), (_, *values) in zip(lines, fields, strict=True):
        if not values:
            raise _malformed(number, line, "write the label, then the values")
    rows = [_parsed(row[1:], number) for (number, _), row in zip(lines, fields, strict=True)]
    return _from_text(rows, [label.strip() for label, *_ in fields], lines)


def _separator(line: str) -> str | None:
    return next((mark for mark in ("\t", ",") if mark in line), None)


def read_ts(place: str) -> Packed:
    """Dimensions separated by ":", values by ",", the label last, behind a header."""
    lines = _text_lines(place, comments=("#", "%"))
    start = next((k for k, (_, line) in enumerate(lines) if line.lower() == "@data"), None)
    if start is None:
        raise ValueError("found no line @data: put one between the header and the sequences")
    labelled, dimensions = _ts_header(lines[:start])
    cases = [_ts_case(number, line, labelled, dimensions) for number, line in lines[start + 1 :]]
    labels = [label for _, label in cases] if labelled else None
    return _from_text([table for table, _ in cases], labels, lines[start + 1 :])


def _ts_header(lines: list[tuple[int, str]]) -> tuple[bool, int | None]:
    """Whether lines end in a label, and how many dimensions they have if the header says so."""
    header: dict[str, str] = {}
    for number, line in lines:
        if not line.startswith("@"):
            raise _malformed(number, line, "put sequences behind @data, and # before comments")
        key, *rest = line[1:].lower().split(None, 1)
        value = header[key] = rest[0] if rest else ""
        if key == "timestamps" and value != "false":
            raise _malformed(number, line, "time stamps are not supported, resample to even steps")
        if key in ("dimensions", "dimension") and not value.isdecimal():
            raise _malformed(number, line, "give the number of dimensions as an integer")
    labelled = any(header.get(key, "").startswith("true") for key in ("classlabel", "targetlabel"))
    default = "1" if header.get("univariate") == "true" else None
    dimensions = header.get("dimensions", header.get("dimension", default))
    return labelled, None if dimensions is None else int(dimensions)


def _ts_case(number: int, line: str, labelled: bool, dimensions: int | None) -> tuple[Floats, str]:
    """One line as a (T, m) array and its label ("" if there is none)."""
    parts = line.split(":")
    label = parts.pop().strip() if labelled else ""
    if len(parts) != (dimensions or max(1, len(parts))):
        wanted = f"{dimensions or 'some'} dimensions{' and a label' if labelled else ''}"
        way_out = f"the header asks for {wanted}, separated by ':'"
        raise _malformed(number, f"{len(parts)} dimensions", way_out)
    channels = [_parsed(part.split(","), number) for part in parts]
    lengths = [len(channel) for channel in channels]
    if len(set(lengths)) > 1:
        way_out = "give all dimensions of a sequence one length"
        raise _malformed(number, f"dimensions of lengths {lengths}", way_out)
    return np.stack(channels, axis=1), label


def _text_lines(place: str, comments: tuple[str, ...]) -> list[tuple[int, str]]:
    """(number from 1, stripped line) of the lines that are neither blank nor comments."""
    # Only comments hold anything but ASCII in the archives, and some of those are Latin-1.
    with Path(place).open(encoding="utf-8-sig", errors="replace") as file:
        numbered = [(number, line.strip()) for number, line in enumerate(file, start=1)]
    return [(number, line) for number, line in numbered if line and not line.startswith(comments)]


def _malformed(number: int, found: str, way_out: str) -> ValueError:
    excerpt = found if len(found) <= 60 else found[:57] + "..."
    return ValueError(f"line {number}: found {excerpt!r}: {way_out}")


def _parsed(fields: list[str], number: int) -> Floats:
    """(len(fields),) float64, with NaN for "", "?" and "NaN"."""
    try:
        return np.array([float(field) for field in fields])
    except ValueError:
        return np.array([_parsed_field(field.strip(), number) for field in fields])


def _parsed_field(field: str, number: int) -> float:
    if field in ("", "?"):
        return float("nan")
    try:
        return float(field)
    except ValueError as error:
        raise _malformed(
            number, field, "write a number, or NaN or ? where it is missing"
        ) from error


def _from_text(
    rows: list[Floats], labels: list[str] | None, lines: list[tuple[int, str]]
) -> Packed:
    try:
        read = without_padding(rows, None if labels is None else _parsed_labels(labels))
        refuse_non_finite(read[0], read[1])
        return read
    except SequenceError as error:
        raise ValueError(f"line {lines[error.index][0]}: {error}") from error


def _parsed_labels(labels: list[str]) -> AnyArray:
    """int64 if all are integers, else float64 if all are numbers, else strings."""
    if any("_" in label for label in labels):  # int("1_0") is 10, but "1_0" is the name of a class
        return np.array(labels)
    for dtype in (int, float):
        try:
            return np.array([dtype(label) for label in labels], dtype=dtype)
        except (ValueError, OverflowError):
            continue
    return np.array(labels)
