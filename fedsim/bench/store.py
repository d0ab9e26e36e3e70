"""``results.sqlite``: every cell of a folder, its rounds, seeds and versions, written by any number of processes.

The folders of the cells are the truth, the store is their index and can be made anew from them. It is in SQLite's
write-ahead mode: readers never wait, writers wait for each other for the milliseconds of a transaction. Who plays a
cell is settled by locks of files (:mod:`fedsim.bench.locks`); each play is a line of ``plays``, so that what happened,
a killed process included, can be read afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedsim.bench.cell import Cell, finished, measured, read_lines, summary
from fedsim.errors import RecordError
from fedsim.record import make_folder

NAME = "results.sqlite"
FORMAT = 1
PATIENCE = 120.0
"""Seconds to wait for other writers."""
OTHERS = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
"""What SQLite says where other connections are in the way, which waiting helps against."""
UNWRITABLE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
"""What it says of a disk that takes nothing more."""
TRIES = 2
"""Plays of a cell that fails, in one call."""
MEASURES = ("accuracy", "loss", "asr", "asr_low", "asr_high", "asr_eligible", "malicious_weight", "worst10", "epsilon")

_TABLES = """
CREATE TABLE IF NOT EXISTS versions (id TEXT PRIMARY KEY, fedsim TEXT, runtime TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY, folder TEXT NOT NULL, matrix TEXT NOT NULL, scenario TEXT NOT NULL, setting TEXT NOT NULL,
    seed INTEGER NOT NULL, state TEXT NOT NULL, error TEXT NOT NULL DEFAULT '', summary TEXT, digest TEXT,
    versions TEXT REFERENCES versions (id), changed REAL NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    key TEXT NOT NULL REFERENCES cells (key), round INTEGER NOT NULL, {measures}, line TEXT NOT NULL,
    PRIMARY KEY (key, round)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS plays (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL REFERENCES cells (key), session TEXT NOT NULL, host TEXT NOT NULL,
    pid INTEGER NOT NULL, began REAL NOT NULL, ended REAL, state TEXT NOT NULL, error TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS plays_of ON plays (key, session);
CREATE VIEW IF NOT EXISTS seeds AS SELECT setting, seed, key FROM cells WHERE state = 'finished';
""".format(measures=", ".join(f"{name} REAL" for name in MEASURES))


class Store:
    """The index of a folder of cells.

    Args:
        out: the folder; it is made.
        file: the index, where it is not the folder's ``results.sqlite``.

    Raises:
        RecordError: no store can be written there, or it is of a later fedsim.
    """

    def __init__(self, out: Path, file: Path | None = None) -> None:
        self.out = out
        self._file = file or out / NAME
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        make_folder(out)
        try:
            with self._writing() as connection:
                written = connection.execute("PRAGMA user_version").fetchone()[0]
                if written > FORMAT:
                    raise RecordError(f"{out / NAME}: written by a later fedsim (format {written}); accepted: {FORMAT}")
                for statement in _TABLES.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
        except (OSError, sqlite3.OperationalError) as error:
            accepted = "a folder that you may write to, on a disk with space"
            raise RecordError(f"{out / NAME}: cannot be written: {error}; accepted: {accepted}") from error
        except sqlite3.Error as error:
            raise RecordError(
                f"{out / NAME}: damaged: {error}; remove it: the cells' folders hold all that it says, and the next "
                "`fedsim bench` reads them into a new one"
            ) from error

    @classmethod
    @contextmanager
    def reading(cls, out: Path) -> Iterator[Store]:
        """The store of a folder, to be read: a copy of it where nothing can be written (a snapshot, another's folder).

        SQLite reads a write-ahead log only where it may write beside it, and without it would miss the last cells.
        """
        with TemporaryDirectory(prefix="fedsim-") as elsewhere:
            writable = os.access(out, os.W_OK) and os.access(out / NAME, os.W_OK)
            file = out / NAME if writable else Path(elsewhere) / NAME
            for ending in () if writable else ("", "-wal"):
                source = out / f"{NAME}{ending}"
                if source.is_file():
                    shutil.copyfile(source, Path(elsewhere) / source.name)
            store = cls(out, file)
            try:
                yield store
            finally:
                store.close()

    def close(self) -> None:
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()
        self._connection = None

    def lock(self, cell: Cell) -> Path:
        """The file whose lock says who plays a cell."""
        return self.out / "locks" / cell.folder.name

    def enter(self, cells: Sequence[Cell], done: set[str]) -> None:
        """Lines for cells that have none; those in ``done`` are finished, others that were are to be played again."""
        new = []
        for cell in cells:
            table = cell.scenario.table()
            row = json.dumps(cell.values, sort_keys=True, default=str)
            new.append((cell.key, cell.folder.name, row, json.dumps(table), setting(table), cell.scenario.seed))
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO cells (key, folder, matrix, scenario, setting, seed, state, changed) "
                f"VALUES (?, ?, ?, ?, ?, ?, 'waiting', {time.time()}) "
                "ON CONFLICT (key) DO UPDATE SET matrix = excluded.matrix",
                new,
            )
            known = dict(connection.execute("SELECT key, state FROM cells"))
            lost = [(cell.key,) for cell in cells if cell.key not in done and known[cell.key] == "finished"]
            connection.executemany("UPDATE cells SET state = 'waiting' WHERE key = ?", lost)
        for cell in cells:
            if cell.key in done and known[cell.key] != "finished":
                self.index(cell)

    def states(self, session: str) -> dict[str, tuple[str, int]]:
        """Key → state, and how often the cell failed (or killed its process) in this session."""
        failures = dict(
            self._reading().execute(
                "SELECT key, count(*) FROM plays WHERE session = ? AND state IN ('failed', 'died') GROUP BY key",
                (session,),
            )
        )
        states = self._reading().execute("SELECT key, state FROM cells")
        return {key: (state, failures.get(key, 0)) for key, state in states}

    def settled(self, cell: Cell, session: str) -> bool:
        """Whether there is nothing left to do in this session."""
        state = self._reading().execute("SELECT state FROM cells WHERE key = ?", (cell.key,)).fetchone()[0]
        return state == "finished" or self.failures(cell, session) >= TRIES

    def failures(self, cell: Cell, session: str) -> int:
        counted = self._reading().execute(
            "SELECT count(*) FROM plays WHERE key = ? AND session = ? AND state IN ('failed', 'died')",
            (cell.key, session),
        )
        return int(counted.fetchone()[0])

    def begin(self, cell: Cell, session: str) -> int:
        """A play begins; the lock is held. A play that never ended was killed.

        Returns:
            The play's number.
        """
        now = time.time()
        with self._writing() as connection:
            self._bury(connection, cell, now)
            connection.execute("UPDATE cells SET state = 'running', changed = ? WHERE key = ?", (now, cell.key))
            play = connection.execute(
                "INSERT INTO plays (key, session, host, pid, began, state) VALUES (?, ?, ?, ?, ?, 'running')",
                (cell.key, session, platform.node(), os.getpid(), now),
            )
        return int(play.lastrowid or 0)

    def bury(self, cell: Cell) -> None:
        """Plays of this cell that never ended have died; the lock is held."""
        with self._writing() as connection:
            self._bury(connection, cell, time.time())

    def _bury(self, connection: sqlite3.Connection, cell: Cell, now: float) -> None:
        connection.execute(
            "UPDATE plays SET state = 'died', ended = ?, error = 'its process died' WHERE key = ? AND ended IS NULL",
            (now, cell.key),
        )

    def end(self, cell: Cell, play: int) -> None:
        """A play has ended as the cell's state says."""
        if cell.state == "finished":
            self.index(cell, play)
            return
        state, now = "waiting" if cell.state == "interrupted" else cell.state, time.time()
        with self._writing() as connection:
            _end(connection, play, cell.state, cell.error)
            connection.execute(
                "UPDATE cells SET state = ?, error = ?, changed = ? WHERE key = ?", (state, cell.error, now, cell.key)
            )

    def give_up(self, cell: Cell) -> None:
        """A cell whose process died too often."""
        with self._writing() as connection:
            connection.execute(
                "UPDATE cells SET state = 'failed', error = ?, changed = ? WHERE key = ?",
                (cell.error, time.time(), cell.key),
            )

    def index(self, cell: Cell, play: int | None = None) -> None:
        """Read a finished cell's folder into the store, and with it end its play."""
        line = summary(cell) | {"state": "finished"}
        self._put(cell.key, cell.folder, line, play)

    def _put(self, key: str, folder: Path, line: dict[str, Any], play: int | None = None) -> None:
        """Write what a finished cell found, all at once; its line is there already."""
        described = json.loads((folder / "run.json").read_text())
        runtime = json.dumps(described["runtime"], sort_keys=True)
        versions = hashlib.sha256(f"{described['fedsim']} {runtime}".encode()).hexdigest()[:16]
        rounds = [
            (key, each["round"], *(each.get(name) for name in MEASURES), json.dumps(each))
            for each in read_lines(folder)
        ]
        with self._writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO versions VALUES (?, ?, ?)", (versions, described["fedsim"], runtime)
            )
            connection.execute("DELETE FROM rounds WHERE key = ?", (key,))
            connection.executemany(
                f"INSERT INTO rounds VALUES (?, ?, {', '.join('?' * len(MEASURES))}, ?)",
                rounds,
            )
            connection.execute(
                "UPDATE cells SET state = 'finished', error = '', summary = ?, digest = ?, versions = ?, changed = ? "
                "WHERE key = ?",
                (json.dumps(line), line["digest"], versions, time.time(), key),
            )
            if play is not None:
                _end(connection, play, "finished", "")

    def adopt(self, folder: Path, values: dict[str, Any]) -> bool:
        """Enter a finished cell's folder that is not in the store; False where it is, or is not finished."""
        if not finished(folder):
            return False
        import tomllib

        described = json.loads((folder / "run.json").read_text())
        table = tomllib.loads((folder / "scenario.toml").read_text("utf-8"))
        key, row = described["key"], json.dumps(values, sort_keys=True, default=str)
        with self._writing() as connection:
            there = connection.execute("SELECT state FROM cells WHERE key = ?", (key,)).fetchone()
            if there is not None and there[0] == "finished":
                return False
            connection.execute(
                "INSERT OR IGNORE INTO cells (key, folder, matrix, scenario, setting, seed, state, changed) "
                "VALUES (?, ?, ?, ?, ?, ?, 'waiting', ?)",
                (key, folder.name, row, json.dumps(table), setting(table), table["seed"], time.time()),
            )
        self._put(key, folder, {"folder": folder.name, "state": "finished", "values": values, **measured(folder)})
        return True

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """What a SELECT finds, a dict a row."""
        found = self._reading().execute(query, values)
        names = [each[0] for each in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]

    def _reading(self) -> sqlite3.Connection:
        """This process's connection: one must not be carried through a fork."""
        if self._connection is None or self._owner != os.getpid():
            self._connection = sqlite3.connect(
                self._file, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            self._owner = os.getpid()
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    self._connection.execute("PRAGMA journal_mode = WAL")
                    break
                except sqlite3.OperationalError as error:
                    # Changing the mode does not wait for other connections.
                    if error.sqlite_errorcode & 0xFF not in OTHERS or time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            self._connection.execute("PRAGMA synchronous = NORMAL")
        return self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction.

        Raises:
            RecordError: the disk is full, or takes nothing for another reason.
        """
        connection = self._reading()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:  # SQLite has ended it itself where the disk is full
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF in UNWRITABLE:
                full = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
                way = "free some space" if full else "make it a file in a folder that you may write to"
                raise RecordError(
                    f"{self.out / NAME}: cannot be written: {error}; the cells' folders hold what was played: {way}, "
                    "and the same command goes on"
                ) from error
            raise


def _end(connection: sqlite3.Connection, play: int, state: str, error: str) -> None:
    connection.execute(
        "UPDATE plays SET state = ?, error = ?, ended = ? WHERE id = ?", (state, error, time.time(), play)
    )


def setting(table: dict[str, Any]) -> str:
    """What a cell shares with those that differ from it by their seed alone."""
    rest = {name: value for name, value in table.items() if name not in ("seed", "title", "engine")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


__all__ = ["NAME", "TRIES", "Store", "setting"]
