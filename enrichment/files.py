"""One big file on one machine: `python -m enrichment IN --out OUT --processes N`.

This process cuts the file into chunks, deals them out and appends what comes back, in the order of the input. The other
processes do the rest: they parse, enrich and serialise. Until the run is complete, there are two more files:

    OUT.partial     what is written so far: lines, or for Parquet a stream of Arrow record batches
    OUT.progress    the last checkpoint: how far the input is read, and the size of the output files at that point

A run that was killed continues at its last checkpoint, after cutting off what was written behind it. For JSON lines,
the errors are in OUT.errors.jsonl; in Parquet they are columns.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from io import BufferedReader
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Final, Protocol, Self, cast

from enrichment.bundle import Bundle
from enrichment.enricher import Enricher, open_once
from enrichment.errors import EnrichmentError
from enrichment.ticket import RawTicket, enriched_json, parse_ticket

__all__ = ["FileError", "Options", "enrich_file"]

_CHUNK_BYTES: Final = 1 << 15  # about 50 tickets: enough to fill micro-batches
_CHUNK_ROWS: Final = 50
_IN_FLIGHT: Final = 2  # chunks per process: the next one is there when a process has finished one
_WINDOW: Final = 4  # chunks per process that are read and not yet written: what one slow chunk may hold up
_CHECKPOINT_SECONDS: Final = 2.0
_LOSSES: Final = 2  # processes that may end over one chunk
_READ_BYTES: Final = 1 << 20  # per request, if the file is in S3
_ROW_GROUP: Final = 10_000  # rows: 20 MB, as much memory as a Parquet file's writer and reader need


class FileError(Exception):
    """The run cannot start or continue. One line that names the remedy."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to enrich, and where to. `source` is a path or an s3:// URI; Parquet files are named *.parquet."""

    source: str
    out: Path
    bundle: Path
    processes: int
    threads: int = 1
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Some lines (list of bytes) or rows (a serialised record batch): the first one's number, and where the next is."""

    first: int
    payload: Any
    next_offset: int
    next_row: int


@dataclass(frozen=True, slots=True)
class _Result:
    output: bytes
    errors: bytes
    good: int
    bad: int


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Offset (bytes, or rows of Parquet) and number of the next line or row; sizes of the files; counts of tickets."""

    offset: int = 0
    row: int = 1
    output: int = 0
    errors: int = 0
    good: int = 0
    bad: int = 0
    is_complete: bool = False


def enrich_file(options: Options) -> int:
    """Enriches a file. Returns the exit code: 1 if some tickets failed, 130 if it was interrupted.

    Raises FileError, BundleError or OSError.
    """
    bundle = Bundle.open(options.bundle)
    source = _source(options)
    work = source.work(options)
    with _Output.open(options, {**source.identity(), "bundle": bundle.digest, "raw": options.raw}, work) as output:
        begin, before = time.perf_counter(), output.done.good + output.done.bad
        if not output.done.is_complete and not _run(options, source, work, output):
            count = output.done.good + output.done.bad
            sys.stderr.write(f"interrupted after {count} tickets; the same command continues there\n")
            return 130
        output.finish(work)
        seconds = time.perf_counter() - begin
        done = output.done
    resumed = f", of which {before} in earlier runs" if before else ""
    sys.stderr.write(f"{done.good} enriched, {done.bad} failed{resumed}, in {seconds:.1f} s, by {bundle.version}\n")
    return 1 if done.bad else 0


def _run(options: Options, source: _Source, work: _Work, output: _Output) -> bool:
    """Enriches what is left of the source; False if a signal interrupted it."""
    chunks = source.chunks(output.done.offset, output.done.row)
    unwritten: list[_Chunk] = []  # in order
    results: dict[int, _Result] = {}  # by the first line or row
    progress = _Progress(source.total, output.done)
    saved = time.monotonic()
    with _interruptible() as interrupted, _Pool(options, work) as pool:
        while not interrupted():
            while len(unwritten) < _WINDOW * options.processes and pool.is_waiting and (chunk := next(chunks, None)):
                unwritten.append(chunk)
                pool.submit(chunk)
            if not unwritten:
                break
            results |= dict(pool.collect())
            while unwritten and unwritten[0].first in results:
                chunk = unwritten.pop(0)
                output.append(chunk, results.pop(chunk.first))
            progress.show(output.done)
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                output.save()
                saved = time.monotonic()
        is_complete = not interrupted()
    progress.end()
    output.save()
    return is_complete


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM set a flag; a second one raises KeyboardInterrupt."""
    signals: list[int] = []

    def note(number: int, _frame: object) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- processes ---------------------------------------------------------------------------------------------------------


class _Process:
    """One process, its connection, and the chunks that it has."""

    def __init__(self, options: Options, work: _Work) -> None:
        # Started anew and not forked, because threads do not survive a fork. Ctrl-C on a terminal reaches the whole
        # group, and only the parent must see it.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process = context.Process(target=_serve, args=(theirs, options.bundle, options.threads, work), daemon=True)
            process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()
        self.process = process
        self.chunks: list[_Chunk] = []

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


class _Pool:
    """N processes; one that ends is replaced, and its chunks are done again."""

    def __init__(self, options: Options, work: _Work) -> None:
        self._options = options
        self._work = work
        self._processes: list[_Process] = []
        self._lost: dict[int, int] = {}

    def __enter__(self) -> Self:
        self._processes = [_Process(self._options, self._work) for _ in range(self._options.processes)]
        return self

    def __exit__(self, *_exception: object) -> None:
        for process in self._processes:
            process.end()

    @property
    def is_waiting(self) -> bool:
        """Whether a process can take a chunk."""
        return any(len(process.chunks) < _IN_FLIGHT for process in self._processes)

    def submit(self, chunk: _Chunk) -> None:
        """Gives the chunk to the process with the fewest."""
        process = min(self._processes, key=lambda each: len(each.chunks))
        process.chunks.append(chunk)
        with suppress(OSError):  # it has ended, which `collect` notices
            process.connection.send((chunk.first, chunk.payload))

    def collect(self) -> Iterator[tuple[int, _Result]]:
        """Waits for results, at most as long as a person would wait for Ctrl-C to have an effect.

        Raises FileError if processes end repeatedly over the same chunk, and BundleError.
        """
        by_connection = {process.connection: process for process in self._processes}
        for ready in wait([*by_connection], timeout=0.2):
            process = by_connection[cast("Connection", ready)]
            try:
                result = process.connection.recv()
            except (EOFError, OSError):
                self._replace(process)
                continue
            if isinstance(result, EnrichmentError):
                raise result
            yield process.chunks.pop(0).first, result

    def _replace(self, process: _Process) -> None:
        process.end()
        for chunk in process.chunks:
            self._lost[chunk.first] = self._lost.get(chunk.first, 0) + 1
            if self._lost[chunk.first] > _LOSSES:
                raise FileError(
                    f"{self._lost[chunk.first]} processes ended while they had the lines or rows {chunk.first} to "
                    f"{chunk.next_row - 1}: is there too little memory? The same command continues before them"
                )
        fresh = _Process(self._options, self._work)
        self._processes[self._processes.index(process)] = fresh
        for chunk in process.chunks:
            fresh.chunks.append(chunk)
            with suppress(OSError):
                fresh.connection.send((chunk.first, chunk.payload))


def _serve(connection: Connection, bundle: Path, threads: int, work: _Work) -> None:
    """The life of a process: it ends with its parent, however that ends."""
    inbox: SimpleQueue[tuple[int, Any]] = SimpleQueue()

    def receive() -> None:
        # In a thread of its own: a parent that sends never waits for a process that waits for it.
        while True:
            try:
                inbox.put(connection.recv())
            except (EOFError, OSError):
                os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    try:
        enricher = open_once(bundle, threads=threads)
    except EnrichmentError as error:
        connection.send(error)
        return
    while True:
        first, payload = inbox.get()
        connection.send(work(enricher, first, payload))


# -- what a process does with a chunk ----------------------------------------------------------------------------------


class _Work(Protocol):
    """How a chunk becomes output. Picklable."""

    @property
    def header(self) -> bytes:
        """What the output begins with."""

    def __call__(self, enricher: Enricher, first: int, payload: Any, /) -> _Result:
        """The output of a chunk and its errors."""

    def finish(self, partial: Path) -> Path:
        """Makes the complete file of all outputs, still under another name than OUT."""


@dataclass(frozen=True, slots=True)
class _LinesToLines:
    header: bytes = b""

    def __call__(self, enricher: Enricher, first: int, lines: Sequence[bytes], /) -> _Result:
        numbered = [(number, line) for number, line in enumerate(lines, first) if line.strip()]
        tickets: list[tuple[int, RawTicket]] = []
        failed: list[tuple[int, EnrichmentError]] = []
        for number, line in numbered:
            try:
                tickets.append((number, parse_ticket(line)))
            except EnrichmentError as error:
                failed.append((number, error))
        output = []
        for (number, ticket), result in zip(tickets, enricher.enrich([t for _, t in tickets]), strict=True):
            if isinstance(result, EnrichmentError):
                failed.append((number, result))
            else:
                output.append(enriched_json(ticket, result) + b"\n")
        failed.sort(key=lambda each: each[0])
        errors = (_error_line(number, error.code, str(error), error.ticket_id) for number, error in failed)
        return _Result(b"".join(output), b"".join(errors), len(output), len(failed))

    def finish(self, partial: Path) -> Path:
        return partial


@dataclass(frozen=True, slots=True)
class _RowsToLines:
    raw: str | None
    header: bytes = b""

    def __call__(self, enricher: Enricher, first: int, payload: bytes, /) -> _Result:
        from enrichment import columns

        found = columns.enrich(_batch(payload), enricher, raw=self.raw, as_json=True).to_pylist()
        output = [row["enriched"].encode() + b"\n" for row in found if row["error"] is None]
        errors = [
            _error_line(number, row["error"], row["error_message"], None)
            for number, row in enumerate(found, first)
            if row["error"] is not None
        ]
        return _Result(b"".join(output), b"".join(errors), len(output), len(errors))

    def finish(self, partial: Path) -> Path:
        return partial


@dataclass(frozen=True, slots=True)
class _ToParquet:
    """Of lines: their number (`line`), the raw text (`raw`) and the results. Of rows: their columns and the results."""

    raw: str | None
    keep: tuple[str, ...]
    of_lines: bool
    header: bytes

    def __call__(self, enricher: Enricher, first: int, payload: Any, /) -> _Result:
        from enrichment import columns

        batch = _lines_batch(first, payload) if self.of_lines else _batch(payload)
        found = columns.enrich(batch, enricher, raw=self.raw, keep=self.keep)
        good = found.column("error").null_count
        return _Result(found.serialize().to_pybytes(), b"", good, found.num_rows - good)

    def finish(self, partial: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        temporary = _beside(partial, ".temporary")
        with (
            partial.open("rb") as file,
            pa.ipc.open_stream(file) as stream,
            pq.ParquetWriter(temporary, stream.schema, compression="zstd") as writer,
        ):
            batches: list[Any] = []
            for batch in stream:
                batches.append(batch)
                if sum(each.num_rows for each in batches) >= _ROW_GROUP:
                    writer.write_table(pa.Table.from_batches(batches))
                    batches.clear()
            if batches:
                writer.write_table(pa.Table.from_batches(batches))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        return temporary


def _error_line(number: int, code: str, message: str, ticket_id: str | None) -> bytes:
    line: dict[str, Any] = {"line": number, "error": code, "message": message}
    return json.dumps(line | ({"ticket_id": ticket_id} if ticket_id else {})).encode() + b"\n"


def _batch(payload: bytes) -> Any:
    import pyarrow as pa

    return next(iter(pa.ipc.open_stream(payload)))


def _lines_batch(first: int, lines: Sequence[bytes]) -> Any:
    import pyarrow as pa

    numbered = [(number, line) for number, line in enumerate(lines, first) if line.strip()]
    arrays = [pa.array([n for n, _ in numbered], pa.int64()), pa.array([line for _, line in numbered], pa.binary())]
    return pa.RecordBatch.from_arrays(arrays, ["line", "raw"])


# -- sources -----------------------------------------------------------------------------------------------------------


class _Source(Protocol):
    """Where tickets come from."""

    @property
    def total(self) -> int:
        """Its size in bytes, or rows of Parquet."""

    def identity(self) -> dict[str, Any]:
        """What tells a changed source from an unchanged one."""

    def work(self, options: Options) -> _Work:
        """What its chunks need."""

    def chunks(self, offset: int, row: int) -> Iterator[_Chunk]:
        """The chunks from there on; always the same ones."""


def _source(options: Options) -> _Source:
    if options.source.endswith(".parquet"):
        return _Rows(options.source)
    if options.raw is not None:
        raise FileError(f"--raw names a column of a Parquet file, and {options.source} is not named *.parquet")
    return _Lines(options.source)


class _Opened:
    """A file of this machine or of S3."""

    def __init__(self, source: str) -> None:
        self.name = source
        if source.startswith("s3://"):
            fs = _arrow("to read from S3", "pyarrow.fs")
            with _arrow_errors(source):
                self._files, self._path = fs.FileSystem.from_uri(source)
                info = self._files.get_file_info(self._path)
            if info.type != fs.FileType.File:
                raise FileError(f"{source} is not an object; name one object, not a prefix")
            self.size, self.modified = info.size, info.mtime_ns
        else:
            found = Path(source).stat()
            if not stat.S_ISREG(found.st_mode):
                raise FileError(f"{source} is a folder, pipe or device; name a file, which can be read again")
            self._files, self.size, self.modified = None, found.st_size, found.st_mtime_ns
        self.open().close()  # whether it can be read, before the output is begun

    def identity(self) -> dict[str, Any]:
        source = self.name if self._files else str(Path(self.name).resolve())
        return {"source": source, "size": self.size, "modified": self.modified}

    def open(self) -> BinaryIO:
        if self._files is None:
            return Path(self.name).open("rb")
        return cast("BinaryIO", BufferedReader(self._files.open_input_file(self._path), _READ_BYTES))


class _Lines:
    def __init__(self, source: str) -> None:
        self._file = _Opened(source)
        self.total = self._file.size

    def identity(self) -> dict[str, Any]:
        return self._file.identity()

    def work(self, options: Options) -> _Work:
        if options.out.suffix != ".parquet":
            return _LinesToLines()
        schema = _columns("to write Parquet").output_schema(_lines_batch(1, []).schema, raw="raw", keep=["line", "raw"])
        return _ToParquet("raw", ("line", "raw"), True, schema.serialize().to_pybytes())  # noqa: FBT003 - a field

    def chunks(self, offset: int, row: int) -> Iterator[_Chunk]:
        with self._file.open() as stream:
            stream.seek(offset)
            while lines := stream.readlines(_CHUNK_BYTES):
                offset, next_row = offset + sum(map(len, lines)), row + len(lines)
                yield _Chunk(row, lines, offset, next_row)
                row = next_row


class _Rows:
    def __init__(self, source: str) -> None:
        self._parquet = _arrow("to read Parquet", "pyarrow.parquet")
        self._file = _Opened(source)
        with self._file.open() as stream, _arrow_errors(source):
            metadata = self._parquet.read_metadata(stream)
            self._schema = _without_dictionaries(metadata.schema.to_arrow_schema())
        self._groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self.total = metadata.num_rows

    def identity(self) -> dict[str, Any]:
        return self._file.identity()

    def work(self, options: Options) -> _Work:
        columns = _columns("to read Parquet")
        names = self._schema.names
        if options.raw is not None and options.raw not in names:
            raise FileError(f"there is no column {options.raw}; name an existing column with --raw: {', '.join(names)}")
        to_lines = options.out.suffix != ".parquet"
        keep = () if to_lines else tuple(names)
        try:
            schema = columns.output_schema(self._schema, raw=options.raw, keep=keep, as_json=to_lines)
        except ValueError as error:
            raise FileError(f"{self._file.name}: {error}") from error
        if to_lines:
            return _RowsToLines(options.raw)
        return _ToParquet(options.raw, keep, False, schema.serialize().to_pybytes())  # noqa: FBT003 - a field

    def chunks(self, offset: int, row: int) -> Iterator[_Chunk]:
        import pyarrow as pa

        first = begin = 0  # row group, and its first row
        while first < len(self._groups) and begin + self._groups[first] <= offset:
            begin += self._groups[first]
            first += 1
        with self._file.open() as stream, _arrow_errors(self._file.name):
            # Page by page: without these options, a whole row group is in memory.
            file = self._parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)
            # One row group after the other: then a run that continues has the chunks of an uninterrupted one.
            for group in range(first, len(self._groups)):
                for batch in file.iter_batches(_CHUNK_ROWS, row_groups=[group], use_threads=False):
                    begin += batch.num_rows
                    if begin <= offset:
                        continue
                    sink = pa.BufferOutputStream()
                    with pa.ipc.new_stream(sink, self._schema) as writer:
                        writer.write_batch(batch.cast(self._schema))
                    yield _Chunk(row, sink.getvalue().to_pybytes(), begin, row + batch.num_rows)
                    row += batch.num_rows


def _without_dictionaries(schema: Any) -> Any:
    """The schema with plain values instead of dictionaries, which a serialised record batch does not hold."""
    import pyarrow as pa

    def plain(field: Any) -> Any:
        kind = field.type
        if "dictionary<" not in str(kind):
            return field
        if pa.types.is_dictionary(kind):
            return plain(field.with_type(kind.value_type))
        if pa.types.is_struct(kind):
            return field.with_type(pa.struct([*map(plain, kind)]))
        if pa.types.is_map(kind):
            return field.with_type(pa.map_(plain(kind.key_field), plain(kind.item_field)))
        if pa.types.is_fixed_size_list(kind):
            return field.with_type(pa.list_(plain(kind.value_field), kind.list_size))
        make = pa.large_list if pa.types.is_large_list(kind) else pa.list_
        return field.with_type(make(plain(kind.value_field)))

    return pa.schema([*map(plain, schema)])


@contextmanager
def _arrow_errors(source: str) -> Iterator[None]:
    """Errors of Arrow that are no OSError as FileError."""
    import pyarrow as pa

    try:
        yield
    except (ValueError, pa.ArrowException) as error:
        raise FileError(f"{source} cannot be read: {error}") from error


def _columns(purpose: str) -> Any:
    return _arrow(purpose, "enrichment.columns")


def _arrow(purpose: str, module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise FileError(
            f"{error.name} is needed {purpose}; install it: pip install 'ticket-enrichment[arrow]'"
        ) from None


# -- output ------------------------------------------------------------------------------------------------------------


class _Output:
    """OUT.partial, OUT.errors.jsonl and OUT.progress."""

    def __init__(self, out: Path, run: dict[str, Any], partial: BinaryIO) -> None:
        self._out = out
        self._run = run
        self._partial = partial
        self._errors: BinaryIO | None = None
        self.done = _Checkpoint()

    @classmethod
    @contextmanager
    def open(cls, options: Options, run: dict[str, Any], work: _Work) -> Iterator[_Output]:
        """Continues an earlier run, or begins a new one. Raises FileError if it is neither."""
        out = options.out
        if out.exists() and not out.is_file():
            raise FileError(f"{out} is a folder, pipe or device; name a file with --out")
        if not out.parent.is_dir():
            raise FileError(f"the folder {out.parent} does not exist; create it, or choose another --out")
        for path in (_beside(out, suffix) for suffix in _SUFFIXES):
            if path.exists() and Path(options.source).exists() and path.samefile(options.source):
                raise FileError(f"--out {out} would overwrite the input {path}; choose another --out")
        partial = _beside(out, ".partial")
        with partial.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileError(f"another process writes {out}; wait for it, or choose another --out") from None
            output = cls(out, run, file)
            try:
                output._begin(work)
            except FileError:
                if not file.tell():
                    partial.unlink(missing_ok=True)
                raise
            try:
                yield output
            finally:
                if output._errors:
                    output._errors.close()

    def append(self, chunk: _Chunk, result: _Result) -> None:
        """Writes the results of the next chunk."""
        self._partial.write(result.output)
        if self._errors and result.errors:
            self._errors.write(result.errors)
        self.done = replace(
            self.done,
            offset=chunk.next_offset,
            row=chunk.next_row,
            output=self.done.output + len(result.output),
            errors=self.done.errors + len(result.errors),
            good=self.done.good + result.good,
            bad=self.done.bad + result.bad,
        )

    def save(self, *, is_complete: bool = False) -> None:
        """Makes the last chunk a checkpoint: first the results reach the disk, then the note that they are there."""
        self.done = replace(self.done, is_complete=is_complete)
        for file in filter(None, (self._partial, self._errors)):
            file.flush()
            os.fsync(file.fileno())
        temporary = _beside(self._out, ".progress.temporary")
        with temporary.open("w", encoding="utf-8") as note:
            json.dump({"run": self._run, "done": asdict(self.done)}, note)
            note.flush()
            os.fsync(note.fileno())
        temporary.replace(self._progress)
        _sync_folder(self._out.parent)

    def finish(self, work: _Work) -> None:
        """Puts the complete output into place. Does only what is left if an earlier run got this far."""
        partial = _beside(self._out, ".partial")
        if not (self.done.is_complete and self._out.exists()):
            complete = work.finish(partial)
            if self._out.exists():
                raise FileError(f"{self._out} was made by another program; move it, and repeat the command to finish")
            self.save(is_complete=True)  # from here on, OUT is that of this run
            complete.replace(self._out)
        partial.unlink(missing_ok=True)
        if self._errors and not self.done.errors:
            self._error_file.unlink(missing_ok=True)
        _sync_folder(self._out.parent)
        self._progress.unlink()

    @property
    def _progress(self) -> Path:
        return _beside(self._out, ".progress")

    @property
    def _error_file(self) -> Path:
        return _beside(self._out, ".errors.jsonl")

    def _begin(self, work: _Work) -> None:
        partial, has_errors = _beside(self._out, ".partial"), self._out.suffix != ".parquet"
        is_new = not self._progress.exists()
        if not is_new:
            begun = [self._progress, partial, *([self._error_file] if has_errors else [])]
            self.done = self._saved(f"delete {', '.join(map(str, begun))} to begin again")
        if self._out.exists() and not self.done.is_complete:
            raise FileError(f"{self._out} exists; delete it, or choose another --out")
        if is_new:
            with partial.open("rb") as file:
                # A run that ended before its first checkpoint has written a part of the header at most.
                is_ours = work.header.startswith(file.read(len(work.header) + 1))
            for path in (*([] if is_ours else [partial]), self._error_file):
                if path.exists():
                    raise FileError(f"{path} exists; delete it, or choose another --out")
            self._partial.truncate(0)
            self._partial.write(work.header)
            self.done = replace(self.done, output=len(work.header))
            self.save()
        if not self.done.is_complete:
            self._partial.truncate(self.done.output)
        if has_errors:  # after the note: a file of errors without one is somebody else's
            self._errors = self._error_file.open("ab")
            self._errors.truncate(self.done.errors)

    def _saved(self, remedy: str) -> _Checkpoint:
        """The last checkpoint. Raises FileError if it is not that of this run and of the files."""
        try:
            saved = json.loads(self._progress.read_bytes())
            run, done = dict(saved["run"]), _Checkpoint(**saved["done"])
        except (ValueError, KeyError, TypeError):
            raise FileError(f"{self._progress} is not a checkpoint; delete it, or choose another --out") from None
        changed = [name for name, value in self._run.items() if run.get(name) != value]
        if changed:
            name = _NAMES[changed[0]]
            raise FileError(f"{self._out} was begun with another {name}; continue with that one, or {remedy}")
        sizes = {self._error_file: done.errors}
        if not (done.is_complete and self._out.exists()):  # otherwise, OUT.partial is OUT
            sizes[_beside(self._out, ".partial")] = done.output
        for path, size in sizes.items():
            if (path.stat().st_size if path.exists() else 0) < size:
                raise FileError(f"{path} is shorter than {self._progress} says; {remedy}")
        return done


_SUFFIXES: Final = ("", ".partial", ".partial.temporary", ".errors.jsonl", ".progress", ".progress.temporary")
_NAMES: Final = {"source": "input", "size": "input", "modified": "input", "bundle": "bundle", "raw": "--raw"}


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _sync_folder(folder: Path) -> None:
    """Makes names that were changed in a folder survive a loss of power."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


# -- progress ----------------------------------------------------------------------------------------------------------


class _Progress:
    """Tickets, share of the input, rate and time left: one line on a terminal, otherwise a line now and then."""

    def __init__(self, total: int, begin: _Checkpoint) -> None:
        self._total = total
        self._begin = begin
        self._is_terminal = sys.stderr.isatty()
        self._every = 0.5 if self._is_terminal else 30.0
        self._began = self._shown = time.monotonic()

    def show(self, done: _Checkpoint) -> None:
        now, read = time.monotonic(), done.offset - self._begin.offset
        if now - self._shown < self._every or not read:
            return
        self._shown, seconds = now, now - self._began
        tickets = done.good + done.bad
        line = (
            f"{tickets} tickets, {100 * done.offset / self._total:.1f} %, "
            f"{(tickets - self._begin.good - self._begin.bad) / seconds:.0f} per second, "
            f"{_duration(seconds * (self._total - done.offset) / read)} left"
        )
        sys.stderr.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._is_terminal:
            sys.stderr.write("\r\x1b[K")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
