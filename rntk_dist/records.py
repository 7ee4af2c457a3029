"""What is written down of each computed tile, and what a finished matrix reports of all of them.

A record serves two ends: its checksum says which chunk belongs to the tile, so that a chunk in the
wrong place is noticed though it is whole; the rest says where the time went. A tile without a
record is as good as any other.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One computed tile.

    `crc32c` of the chunk as it is stored, 8 hex digits; `seconds` of wall time on one thread;
    `finished` in UTC; `attempt` counts from 1; `identity` is the SHA-256 of the matrix it was
    computed for. The last two are None in records of older versions.
    """

    crc32c: str
    seconds: float
    pair_steps: int
    host: str
    pid: int
    backend: str
    finished: str
    versions: Mapping[str, str]
    attempt: int | None = None
    identity: str | None = None

    def to_json(self) -> bytes:
        """As it is stored; `Record.from_json` is the inverse."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Record | None:
        """Inverse of `to_json`; None for what is no record, as a lost record is no fault.

        Fields that a newer version added are left out.
        """
        try:
            data = json.loads(text)
            record = cls(**{key: data[key] for key in _names(cls) if key in data})
            record.started()
        except (ValueError, TypeError, AttributeError):
            return None
        return record

    def started(self) -> datetime:
        """When the work on the tile began."""
        return datetime.fromisoformat(self.finished) - timedelta(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Report:
    """A finished matrix: what it took, as far as the records of its tiles tell.

    `recorded` of the `tiles` have a record; all other numbers are of those alone. `core_seconds`
    is the sum of their seconds, `retries` counts the attempts beyond each tile's first, `started`
    and `finished` are the first and the last moment, in UTC, None without records.
    """

    tiles: int
    recorded: int
    pair_steps: int
    core_seconds: float
    retries: int
    hosts: tuple[str, ...]
    backends: tuple[str, ...]
    versions: Mapping[str, tuple[str, ...]]
    started: str | None
    finished: str | None

    @classmethod
    def of(cls, tiles: int, records: Collection[Record]) -> Report:
        """The report on a matrix of `tiles` tiles, of which these are the records."""
        names = {name for record in records for name in record.versions}
        starts = [record.started() for record in records]
        ends = [datetime.fromisoformat(record.finished) for record in records]
        return cls(
            tiles=tiles,
            recorded=len(records),
            pair_steps=sum(record.pair_steps for record in records),
            core_seconds=round(sum(record.seconds for record in records), 3),
            retries=sum((record.attempt or 1) - 1 for record in records),
            hosts=_distinct(record.host for record in records),
            backends=_distinct(record.backend for record in records),
            versions={
                name: _distinct(record.versions.get(name) for record in records)
                for name in sorted(names)
            },
            started=_utc(min(starts)) if starts else None,
            finished=_utc(max(ends)) if ends else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as it stands in the group's attributes."""
        report: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return report


def _names(cls: type[Record]) -> list[str]:
    return [field.name for field in fields(cls)]


def _distinct(values: Any) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value is not None}))


def _utc(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
