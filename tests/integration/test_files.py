"""`python -m enrichment IN --out OUT`: ordered, complete after any kill, from and to JSON lines and Parquet."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from enrichment import columns, files
from enrichment.__main__ import main
from enrichment.files import FileError, Options, enrich_file
from events.generator import TicketGenerator
from tests.support.waiting import eventually, killed_at_end

COUNT = 300
BROKEN = {3: "not json", 17: "{}", 250: "[]", 299: '{"ticket_id": "T"'}
TIME = re.compile(rb'"processed_at":"[^"]*"')


def made_up(count: int) -> Iterator[dict[str, Any]]:
    """Tickets with little to read and a field that is passed through: many chunks with little work."""
    for ticket in islice(TicketGenerator(seed=9, start=1_790_000_000), count):
        yield ticket | {"body": ticket["body"][:80], "note": "n" * 600}


@cache
def lines() -> list[str]:
    """Made-up tickets, a few broken lines and one blank line."""
    tickets = [json.dumps(ticket) for ticket in made_up(COUNT)]
    for number, text in BROKEN.items():
        tickets[number - 1] = text
    tickets[39] = ""
    return tickets


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "in.jsonl"
    path.write_text("\n".join(lines()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(source: Path, bundle: Path) -> tuple[bytes, bytes]:
    """Output and errors of a run that nothing interrupts, without its times."""
    out = source.with_name("whole.jsonl")
    done = run(bundle, source, out)
    assert done.returncode == 1, done.stderr
    assert f"{COUNT - 5} enriched, 4 failed, in " in done.stderr
    return outputs(out)


def command(bundle: Path, source: Path | str, out: Path, *more: str) -> list[str]:
    program = [sys.executable, "-m", "enrichment", "--bundle", str(bundle), str(source), "--out", str(out)]
    return [*program, "--processes", "2", *more]


def run(bundle: Path, source: Path | str, out: Path, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(bundle, source, out, *more), capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def outputs(out: Path) -> tuple[bytes, bytes]:
    assert sorted(path.name for path in out.parent.glob(f"{out.name}*")) == [out.name, f"{out.name}.errors.jsonl"]
    return TIME.sub(b"", out.read_bytes()), out.with_name(f"{out.name}.errors.jsonl").read_bytes()


def test_lines_are_in_order_with_the_library_s_results_and_errors(
    whole: tuple[bytes, bytes], source: Path, bundle: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    output, errors = whole
    good = [json.loads(line)["ticket_id"] for n, line in enumerate(lines(), 1) if line and n not in BROKEN]
    assert [json.loads(line)["ticket_id"] for line in output.replace(b",,", b",").splitlines()] == good
    assert [json.loads(line)["line"] for line in errors.splitlines()] == list(BROKEN)
    assert {json.loads(line)["error"] for line in errors.splitlines()} == {"schema_violation"}
    # The same as without --out, in other batches.
    assert main(["--bundle", str(bundle), str(source)]) == 1
    alone, messages = capfdbinary.readouterr()
    assert output == TIME.sub(b"", alone)
    for line in errors.splitlines():
        error = json.loads(line)
        assert f"{source}:{error['line']}: {error['error']}: {error['message']}\n".encode() in messages


def test_killed_at_any_point_and_continued_gives_the_same_bytes(
    whole: tuple[bytes, bytes], source: Path, bundle: Path, tmp_path: Path
) -> None:
    out, chance, runs = tmp_path / "out.jsonl", random.Random(4), 0
    while not out.exists():
        runs += 1
        assert runs < 60
        with killed_at_end(subprocess.Popen(command(bundle, source, out), stderr=subprocess.PIPE)) as process:
            # Runs that come further each time, so that the last one ends by itself on a machine of any speed.
            try:
                process.wait(chance.uniform(0.1, 1.5) * (1 + runs))
            except subprocess.TimeoutExpired:
                children = psutil.Process(process.pid).children()
                process.kill()
                psutil.wait_procs(children, timeout=60)
                assert not any(child.is_running() for child in children), "a process outlived its parent"
    assert runs > 2
    done = run(bundle, source, out)  # if the last kill came after the rename
    assert done.returncode in {1, 2}
    assert outputs(out) == whole


def test_killed_before_the_first_checkpoint_and_continued_gives_the_same_bytes(
    whole: tuple[bytes, bytes], source: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(_file: int) -> None:
        raise Killed

    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("enrichment.files.os.fsync", kill)
    with pytest.raises(Killed):
        enrich_file(Options(str(source), out, bundle, processes=1))
    assert out.with_name("out.jsonl.partial").exists()
    done = run(bundle, source, out)
    assert done.returncode == 1, done.stderr
    assert outputs(out) == whole


def test_killed_process_is_replaced(whole: tuple[bytes, bytes], source: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with killed_at_end(subprocess.Popen(command(bundle, source, out), stderr=subprocess.DEVNULL)) as process:
        suspended_workers(process.pid)[0].kill()
        for other in _workers(process.pid):
            other.resume()
        assert process.wait() == 1
    assert outputs(out) == whole


def _workers(pid: int) -> list[psutil.Process]:
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            with suppress(psutil.NoSuchProcess):
                found += [child] * ("spawn_main" in " ".join(child.cmdline()))
    return found


def suspended_workers(pid: int) -> list[psutil.Process]:
    """The two worker processes, stopped while they start or work: the run cannot end meanwhile."""
    found: list[psutil.Process] = []

    def suspend() -> bool:
        for one in _workers(pid):
            if one not in found and one.cpu_times().user > 0.5:
                one.suspend()
                found.append(one)
        return len(found) == 2

    eventually(suspend)
    return found


def test_ctrl_c_ends_with_a_line_and_continues(
    whole: tuple[bytes, bytes], source: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    with subprocess.Popen(
        command(bundle, source, out), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        suspended_workers(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate()
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted after \d+ tickets; the same command continues there\n", said)
    assert run(bundle, source, out).returncode == 1
    assert outputs(out) == whole


def test_lines_to_parquet_and_back(whole: tuple[bytes, bytes], source: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert run(bundle, source, out).returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    table = pq.read_table(out)
    assert table.schema.names == ["line", "raw", *columns.TICKET.names, *columns.ENRICHMENT.names]
    rows = table.to_pylist()
    assert [row["line"] for row in rows] == [n for n, line in enumerate(lines(), 1) if line]
    assert {row["line"] for row in rows if row["error"]} == BROKEN.keys()
    written = [json.loads(line.replace(b",,", b",")) for line in whole[0].splitlines()]
    for row, ticket in zip([row for row in rows if not row["error"]], written, strict=True):
        assert [round(value, 7) for value in row["embedding"]] == ticket["enrichment"]["embedding"]
        assert (row["ticket_id"], row["intent"]) == (ticket["ticket_id"], ticket["enrichment"]["intent"])
    # The raw column of that file, with other names, is a Parquet file of raw JSON.
    raw = tmp_path / "raw.parquet"
    pq.write_table(table.select(["line", "raw"]), raw, row_group_size=120)
    lines_again = tmp_path / "again.jsonl"
    assert run(bundle, raw, lines_again, "--raw", "raw").returncode == 1
    again = [json.loads(line)["ticket_id"] for line in lines_again.read_bytes().splitlines()]
    assert again == [ticket["ticket_id"] for ticket in written]


def test_parquet_continues_after_kills(bundle: Path, tmp_path: Path) -> None:
    rows = [{"n": n, "subject": t["subject"], "body": t["body"]} for n, t in enumerate(made_up(200))]
    table = pa.Table.from_pylist(rows)
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, source, row_group_size=70)
    plain = tmp_path / "plain.parquet"
    assert run(bundle, source, plain).returncode == 0
    for _ in range(2):
        with killed_at_end(subprocess.Popen(command(bundle, source, out), stderr=subprocess.DEVNULL)) as process:
            _wait_for_a_checkpoint(out)
            process.kill()
    assert run(bundle, source, out).returncode in {0, 2}
    found, wanted = pq.read_table(out), pq.read_table(plain)
    assert found["n"].to_pylist() == list(range(200))
    assert found.drop_columns("processed_at").equals(wanted.drop_columns("processed_at"))


def _wait_for_a_checkpoint(out: Path) -> None:
    begin = _rows_done(out)
    eventually(lambda: out.exists() or _rows_done(out) > begin)


def _rows_done(out: Path) -> int:
    progress = out.with_name(f"{out.name}.progress")
    try:
        return int(json.loads(progress.read_text(encoding="utf-8"))["done"]["offset"])
    except FileNotFoundError:
        return 0


@pytest.fixture
def begun(source: Path, bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A source and an output, of which an interrupted run has written a part."""
    mine, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    mine.write_bytes((source.read_bytes() + b"\n") * 20)  # far more than is done before the signal
    with killed_at_end(subprocess.Popen(command(bundle, mine, out), stderr=subprocess.DEVNULL)) as process:
        _wait_for_a_checkpoint(out)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 130
    return mine, out


def test_changed_input_is_refused(begun: tuple[Path, Path], bundle: Path) -> None:
    source, out = begun
    with source.open("a", encoding="utf-8") as file:
        file.write("\n{}")
    done = run(bundle, source, out)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {out} was begun with another input; continue with that one, or delete ")
    assert done.stderr.count("\n") == 1


def test_changed_bundle_is_refused(begun: tuple[Path, Path], bundle: Path, tmp_path: Path) -> None:
    source, out = begun
    other = tmp_path / "bundle"
    other.mkdir()
    for file in bundle.iterdir():
        if file.name != "bundle.json":
            (other / file.name).symlink_to(file.resolve())
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    (other / "bundle.json").write_text(json.dumps(manifest | {"name": "another"}))
    done = run(other, source, out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "was begun with another bundle" in done.stderr


def test_existing_output_is_not_replaced(source: Path, bundle: Path, tmp_path: Path) -> None:
    for name in ("out.jsonl", "out.jsonl.errors.jsonl"):
        (tmp_path / name).write_text("precious")
        done = run(bundle, source, tmp_path / "out.jsonl")
        assert (done.returncode, done.stderr) == (
            2,
            f"error: {tmp_path / name} exists; delete it, or choose another --out\n",
        )
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()


def test_two_runs_do_not_write_one_output(begun: tuple[Path, Path], bundle: Path) -> None:
    source, out = begun
    with killed_at_end(subprocess.Popen(command(bundle, source, out), stderr=subprocess.DEVNULL)) as first:
        eventually(lambda: psutil.Process(first.pid).children())
        first.send_signal(signal.SIGSTOP)  # so that it cannot end before the second one has tried
        second = run(bundle, source, out)
    assert second.returncode == 2
    assert second.stderr == f"error: another process writes {out}; wait for it, or choose another --out\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{source}", "--out", "{tmp}/none/out"], "the folder {tmp}/none does not exist"),
        (["{source}", "--out", "{tmp}/out", "--raw", "x"], "--raw names a column of a Parquet file"),
        (["{tmp}/none.jsonl", "--out", "{tmp}/out"], "No such file"),
        (
            ["{tmp}/bad.parquet", "--out", "{tmp}/out"],
            "{tmp}/bad.parquet cannot be read: Parquet file size is 2 bytes",
        ),
        (["{tmp}/other.parquet", "--out", "{tmp}/out"], "there is no column subject among text"),
        (
            ["{tmp}/other.parquet", "--out", "{tmp}/out", "--raw", "x"],
            "no column x; name an existing column with --raw: text",
        ),
        (["{source}", "--out", "{tmp}"], "{tmp} is a folder, pipe or device; name a file with --out"),
        (["{source}", "--out", ""], ". is a folder, pipe or device; name a file with --out"),
        (["{tmp}", "--out", "{tmp}/out"], "{tmp} is a folder, pipe or device; name a file, which can be read again"),
        (["{tmp}/pipe", "--out", "{tmp}/out"], "{tmp}/pipe is a folder, pipe or device"),
        (["s3://bucket/a b.jsonl", "--out", "{tmp}/out"], "s3://bucket/a b.jsonl cannot be read: "),
        (["{source}", "--out", "{tmp}/out", "--bundle", "{tmp}"], "holds no bundle.json"),
    ],
)
def test_what_cannot_start_is_one_line(
    source: Path, tmp_path: Path, bundle: Path, arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.parquet").write_text("no")
    pq.write_table(pa.table({"text": ["{}"]}), tmp_path / "other.parquet")
    os.mkfifo(tmp_path / "pipe")
    places = {"source": source, "tmp": tmp_path}
    assert main(["--bundle", str(bundle), *(each.format(**places) for each in arguments)]) == 2
    error = capfd.readouterr().err
    assert says.format(**places) in error
    assert (error[:7], error.count("\n")) == ("error: ", 1)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x", "--processes", "2"], "--processes and --raw need --out"),
        (["x", "--out", "o", "--processes", "0"], "--processes: 0 is not a whole number of at least 1"),
        (["x", "--out", "o", "--processes", "abc"], "--processes: abc is not a whole number of at least 1"),
        (["x", "--threads", "-1"], "--threads: -1 is not a whole number of at least 1"),
        (["x", "--out", "s3://b/x"], "--out: s3://b/x is not a file of this machine"),
        (["-", "--out", "o"], "--out needs a file and not standard input"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capfd.readouterr().err


@pytest.mark.parametrize("name", ["out", "out.partial", "out.errors.jsonl", "out.progress", "out.progress.temporary"])
def test_input_is_not_overwritten(bundle: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / name
    source.write_text(lines()[0])
    link = tmp_path / "in.jsonl"
    link.symlink_to(source)
    assert main(["--bundle", str(bundle), str(link), "--out", str(tmp_path / "out")]) == 2
    said = f"error: --out {tmp_path / 'out'} would overwrite the input {source}; choose another --out\n"
    assert capfd.readouterr().err == said
    assert source.read_text() == lines()[0]
    assert {path.name for path in tmp_path.iterdir()} == {name, "in.jsonl"}


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_partial_file_of_another_program_is_kept(
    source: Path, bundle: Path, tmp_path: Path, out: str, capfd: pytest.CaptureFixture[str]
) -> None:
    partial = tmp_path / f"{out}.partial"
    partial.write_text("precious")
    assert main(["--bundle", str(bundle), str(source), "--out", str(tmp_path / out)]) == 2
    assert capfd.readouterr().err == f"error: {partial} exists; delete it, or choose another --out\n"
    assert partial.read_text() == "precious"
    assert [*tmp_path.iterdir()] == [partial]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"run": 1, "done": 2}', '{"run": {}, "done": {"x": 1}}'])
def test_progress_file_of_another_program_is_kept(
    source: Path, bundle: Path, tmp_path: Path, content: str, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = tmp_path / "out.progress"
    progress.write_text(content)
    assert main(["--bundle", str(bundle), str(source), "--out", str(tmp_path / "out")]) == 2
    said = f"error: {progress} is not a checkpoint; delete it, or choose another --out\n"
    assert capfd.readouterr().err == said
    assert progress.read_text() == content
    assert [*tmp_path.iterdir()] == [progress]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_output_that_appears_during_the_run_is_kept(
    bundle: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / f"out.{suffix}"
    source.write_text("\n".join(lines()[:20]))

    enrich_all = files._run

    def appears(*arguments: Any) -> bool:
        out.write_text("precious")
        return enrich_all(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_run", appears)
        with pytest.raises(FileError) as refused:
            enrich_file(Options(str(source), out, bundle, processes=1))
    assert str(refused.value) == f"{out} was made by another program; move it, and repeat the command to finish"
    again = run(bundle, source, out)
    assert (again.returncode, again.stderr) == (2, f"error: {out} exists; delete it, or choose another --out\n")
    assert out.read_text() == "precious"
    out.unlink()
    assert "18 enriched, 2 failed" in run(bundle, source, out).stderr
    assert (pq.read_table(out).num_rows if suffix == "parquet" else out.read_bytes().count(b"\n") + 2) == 20


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_killed_after_the_rename_does_only_the_rest(
    bundle: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / f"out.{suffix}"
    source.write_text(lines()[0])

    def kill(_folder: Path) -> None:
        if out.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("enrichment.files._sync_folder", kill)
        with pytest.raises(KeyboardInterrupt):
            enrich_file(Options(str(source), out, bundle, processes=1))
    content = out.read_bytes()
    assert enrich_file(Options(str(source), out, bundle, processes=1)) == 0
    assert out.read_bytes() == content
    assert {*tmp_path.iterdir()} == {source, out}


@pytest.mark.parametrize("lost", ["out.partial", "out.errors.jsonl"])
@pytest.mark.parametrize("is_missing", [True, False])
def test_output_shorter_than_its_checkpoint_is_refused(
    bundle: Path, tmp_path: Path, lost: str, is_missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("\n".join(lines()[:20]))

    def kill(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("enrichment.files._LinesToLines.finish", kill)
        with pytest.raises(KeyboardInterrupt):
            enrich_file(Options(str(source), out, bundle, processes=1))
    path, begun = tmp_path / lost, [f"{out}.progress", f"{out}.partial", f"{out}.errors.jsonl"]
    if is_missing:
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(FileError) as refused:
        enrich_file(Options(str(source), out, bundle, processes=1))
    remedy = f"delete {', '.join(begun)} to begin again"
    assert str(refused.value) == f"{path} is shorter than {out}.progress says; {remedy}"
    assert path.exists() is not is_missing


def test_other_input_of_the_same_size_and_time_is_refused(begun: tuple[Path, Path], bundle: Path) -> None:
    source, out = begun
    other = source.with_name("other.jsonl")
    other.write_bytes(source.read_bytes())
    os.utime(other, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))
    done = run(bundle, other, out)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {out} was begun with another input; continue with that one, or delete ")
    assert done.stderr.endswith(f"{out}.errors.jsonl to begin again\n")


def test_dictionary_columns_are_kept_as_plain_values(bundle: Path, tmp_path: Path) -> None:
    words = pa.array(["a", "b", None, "a"]).dictionary_encode()
    table = pa.table(
        {
            "subject": pa.array(["Refund"] * 4).dictionary_encode(),
            "body": ["Where is my refund?"] * 4,
            "word": words,
            "list": pa.ListArray.from_arrays([0, 2, 2, 3, 4], words),
            "struct": pa.StructArray.from_arrays([words, pa.ListArray.from_arrays([0, 1, 2, 3, 4], words)], ["x", "y"]),
            "map": pa.MapArray.from_arrays([0, 1, 1, 1, 2], pa.array(["k", "l"]), words[:2]),
            "pair": pa.FixedSizeListArray.from_arrays(words, 1),
            "large": pa.LargeListArray.from_arrays([0, 1, 2, 3, 4], words),
        }
    )
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, source)
    assert enrich_file(Options(str(source), out, bundle, processes=1)) == 0
    assert pq.read_table(out).select(table.column_names).to_pylist() == table.to_pylist()


@pytest.mark.parametrize("redirect", [">/dev/full", ">&-", "<&-", "</proc/self/mem >/dev/null"])
def test_stream_errors_without_out_are_one_line(source: Path, bundle: Path, redirect: str) -> None:
    file = "-" if "<" in redirect else source
    words = [sys.executable, "-m", "enrichment", "--bundle", str(bundle), str(file)]
    done = subprocess.run(["sh", "-c", f'"$@" {redirect}', "sh", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1][:7]) == (2, "error: "), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_ctrl_c_without_out_has_no_traceback(bundle: Path) -> None:
    words = [sys.executable, "-m", "enrichment", "--bundle", str(bundle), "-"]
    pipe = subprocess.PIPE
    with killed_at_end(subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe)) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write((lines()[0] + "\n").encode() * 40)  # more than are enriched at once
        process.stdin.flush()
        process.stdout.readline()  # it runs, and waits for more
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b""
        assert process.wait() == 130


def test_input_without_tickets(bundle: Path, tmp_path: Path) -> None:
    for name, content in (("empty.jsonl", b""), ("blank.jsonl", b"\n \n\r\n")):
        (tmp_path / name).write_bytes(content)
        for suffix in ("jsonl", "parquet"):
            out = tmp_path / f"{name}.out.{suffix}"
            assert run(bundle, tmp_path / name, out).returncode == 0
            assert (pq.read_table(out).num_rows if suffix == "parquet" else out.stat().st_size) == 0


def test_a_line_that_kills_every_process_stops_the_run(bundle: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines()[:20]))
    with subprocess.Popen(command(bundle, source, out), stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for child in _workers(process.pid):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            time.sleep(0.05)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 2
    assert re.fullmatch(r"error: 3 processes ended while they had the lines or rows 1 to 20: .*\n", said)


def test_memory_does_not_grow_with_the_file(bundle: Path, tmp_path: Path) -> None:
    """The parent's peak: the tickets are broken, so that reading and dealing out are all that happens."""
    peaks = []
    for count in (10_000, 100_000):
        source, out = tmp_path / f"{count}.jsonl", tmp_path / f"{count}.out.jsonl"
        source.write_text(f'{{"ticket_id": "T", "body": "{"x" * 200}"}}\n' * count)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command(bundle, source, out)[3:]], capture_output=True, text=True, check=False
        )
        assert f"0 enriched, {count} failed" in done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.15 * peaks[0]


def test_memory_does_not_grow_with_a_row_group(bundle: Path, tmp_path: Path) -> None:
    peaks = []
    for count in (1_000, 10_000):
        source, out = tmp_path / f"{count}.parquet", tmp_path / f"{count}.out.jsonl"
        note = random.Random(1)
        rows = {"raw": ["not json"] * count, "note": [note.randbytes(10_000) for _ in range(count)]}
        pq.write_table(pa.table(rows), source, row_group_size=count, use_dictionary=False)
        del rows
        program = [sys.executable, "-c", PEAK, *command(bundle, source, out, "--raw", "raw")[3:]]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert f"0 enriched, {count} failed" in done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 40_000  # kB, of 100 MB


# VmHWM and not ru_maxrss, in which the memory of the process that started this one counts.
PEAK = """
import re, sys
from enrichment.__main__ import main
from enrichment.files import Options, enrich_file
if __name__ == "__main__":
    main(sys.argv[1:])
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def test_s3_object_is_read(whole: tuple[bytes, bytes], source: Path, bundle: Path, tmp_path: Path, stack: Any) -> None:
    stack.client("s3").create_bucket(Bucket="big-files")
    stack.client("s3").upload_file(str(source), "big-files", "some/in.jsonl")
    out = tmp_path / "out.jsonl"
    env = stack.environment()
    done = run(bundle, "s3://big-files/some/in.jsonl", out, **env)
    assert done.returncode == 1, done.stderr
    assert outputs(out) == whole
    prefix = run(bundle, "s3://big-files/some", tmp_path / "other.jsonl", **env)
    assert prefix.stderr == "error: s3://big-files/some is not an object; name one object, not a prefix\n"
