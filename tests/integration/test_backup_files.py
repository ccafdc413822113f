"""`olympus backup` and `olympus restore` on homes made of files: what is taken, where it goes, and what is refused."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus import archive, moved_paths, restore, state
from bus.cli import app, exits
from workers.memory.records import Records

WAIT_S = 30.0
ROOT = Path(__file__).parents[2]


def put(path: Path, content: str | bytes) -> None:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def database(path: Path, *rows: str) -> None:
    """A SQLite file with a write-ahead log and some rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS things (path TEXT, note TEXT)")
        connection.executemany("INSERT INTO things VALUES (?, ?)", [(row, row) for row in rows])
        connection.commit()


def rows_of(path: Path) -> list[tuple[str, str]]:
    """What `database` put there."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.execute("SELECT path, note FROM things"))


def make_home(home: Path) -> Path:
    """One of everything."""
    database(home / "learning.db", f"{home}/learning/jobs/1/adapter", "said by somebody")
    database(home / "models.db", f"{home}/adapters/aa.gguf")
    database(home / "broker" / "dead_letters.db", "letter")
    put(home / "broker" / "events" / f"{1:020d}.log", b"events")
    put(home / "broker" / "events" / "sequence", "1000\n")
    put(home / "adapters" / "aa.gguf", b"adapter")
    put(home / "adapters" / ".new-1", b"half")
    put(home / "learning" / "jobs" / "1" / "checkpoints" / "step-00000001" / "manifest.json", "{}")
    put(home / "learning" / "jobs" / "1" / "checkpoints" / ".step-00000002.7.aside" / "half", "")
    put(home / "learning" / "jobs" / "1" / "trainer.pid", "1")
    put(home / "keys" / "secret", "secret")
    put(home / "keys" / "trusted" / "pc2", "public")
    put(home / "auth" / "keys" / "000001-aaaaaaaa.pem", "key")
    put(home / "auth" / "local-admin", "token of now")
    put(home / "auth" / "session.json", "{}")
    put(home / "models" / "big.gguf", b"model")
    put(home / "cache" / "encoder" / "known.json", "{}")
    put(home / "memory" / "vectors" / "some" / "current", "1")
    put(home / "memory" / "backups" / "old.db", "")
    put(home / "resources" / "leases.json", "[]")
    put(home / "locks" / "cpu.lock", "")
    put(home / "olympus.yaml", "bus:\n  timeout_s: 7\n")
    put(home / "suites" / "mine.yaml", "suite")
    put(home / state.MARK, json.dumps({"format": state.FORMAT, "version": "0.1.0"}))
    return home


ALWAYS = {
    "adapters/aa.gguf",
    "broker/dead_letters.db",
    f"broker/events/{1:020d}.log",
    "broker/events/sequence",
    "learning.db",
    "learning/jobs/1/checkpoints/step-00000001/manifest.json",
    "models.db",
    "olympus.yaml",
    "state.json",
    "suites/mine.yaml",
}
KEYS = {"auth/keys/000001-aaaaaaaa.pem", "auth/session.json", "keys/secret", "keys/trusted/pc2"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and the settings pointing there."""
    for name in [name for name in os.environ if name.startswith("OLYMPUS_") and not name.startswith("OLYMPUS_TEST_")]:
        monkeypatch.delenv(name)
    home = make_home(tmp_path / "home")
    monkeypatch.setenv("OLYMPUS_HOME", str(home))
    return home


def names_in(path: Path) -> set[str]:
    """The files of an archive without the two that describe it."""
    with tarfile.open(path) as tar:
        return set(tar.getnames()) - {archive.HEAD, archive.CHECKSUMS}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def backed_up(home: Path, *options: str) -> Path:
    """An archive of `home` beside it."""
    path = home.with_name("backup.tar.gz")
    assert app.main(["backup", str(path), "--force", *options]) == exits.OK
    return path


def test_everything_that_cannot_be_made_anew_is_taken(home: Path) -> None:
    """Models only when asked for, keys unless forbidden."""
    assert names_in(backed_up(home)) == ALWAYS | KEYS
    assert names_in(backed_up(home, "--models")) == ALWAYS | KEYS | {"models/big.gguf"}
    assert names_in(backed_up(home, "--without-keys")) == ALWAYS


def test_archive_is_of_its_owner_alone_and_says_what_is_not_in_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds private keys, and nobody should miss something without knowing."""
    path = home.with_name("b.tar.gz")
    assert app.main(["backup", str(path), "--json"]) == exits.OK

    said = json.loads(capsys.readouterr().out)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said["files"] == len(ALWAYS | KEYS)
    assert said["size_bytes"] == path.stat().st_size
    assert said["left_out"]["models/"] == "models are large; --models takes them"
    assert {"cache/", "locks/", "memory/vectors/", "memory/backups/", "resources/"} < set(said["left_out"])


def test_files_that_no_archive_takes_are_named_and_the_rest_comes_back(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names that a restore would refuse, half-written files, and what is no file."""
    for name in ("back\\slash", "new\nline", archive.HEAD, "suites/half.part", "suites/.hidden", "models.db.v3-backup"):
        put(home / name, "x")
    put(Path(os.fsdecode(os.fsencode(home) + b"/\xff")), "x")
    os.mkfifo(home / "pipe")
    (home / "dangling").symlink_to("/nowhere")
    path = home.with_name("b.tar.gz")
    assert app.main(["backup", str(path), "--json"]) == exits.OK

    left_out = set(json.loads(capsys.readouterr().out)["left_out"])
    assert left_out >= {
        *(ascii("back\\slash"), ascii("new\nline"), ascii("\udcff"), ascii(archive.HEAD)),
        *("suites/half.part", "suites/.hidden", "models.db.v3-backup", "pipe", "dangling"),
    }
    assert app.main(["restore", str(path), "--into", str(tmp_path / "other")]) == exits.OK
    assert set(tree(tmp_path / "other")) == ALWAYS | KEYS


def test_restored_home_is_the_one_that_was_backed_up(home: Path, tmp_path: Path) -> None:
    """In another folder; paths below the old one follow, what people said does not."""
    path = backed_up(home, "--models")
    other = tmp_path / "deep" / "other"

    assert app.main(["restore", str(path), "--into", str(other)]) == exits.OK

    assert set(tree(other)) == ALWAYS | KEYS | {"models/big.gguf"}
    assert (other / "suites" / "mine.yaml").read_text() == "suite"
    adapter = f"{home}/learning/jobs/1/adapter"
    assert rows_of(other / "learning.db") == [
        (adapter.replace(str(home), str(other)), adapter),
        ("said by somebody", "said by somebody"),
    ]
    assert rows_of(other / "broker" / "dead_letters.db") == [("letter", "letter")]
    assert stat.S_IMODE(other.stat().st_mode) == 0o700
    assert stat.S_IMODE((other / "keys" / "secret").stat().st_mode) == 0o600
    assert not [name for name in os.listdir(tmp_path / "deep") if name != "other"]


def test_json_of_jobs_keeps_its_paths_in_step_too() -> None:
    """Keys named path, however deep; nothing else."""
    value = {"adapter_path": "/a/x", "text": "/a/x", "in": [{"path": "/a/y"}, {"path": "/ab"}], "previous_path": ""}

    assert moved_paths.moved(value, "/a", "/b") == {
        "adapter_path": "/b/x",
        "text": "/a/x",
        "in": [{"path": "/b/y"}, {"path": "/ab"}],
        "previous_path": "",
    }


def test_json_in_a_database_follows_the_home(tmp_path: Path) -> None:
    """As in the records of trainings."""
    path = tmp_path / "learning.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE jobs (record TEXT, at REAL)")
        connection.execute("INSERT INTO jobs VALUES (?, 1)", ('{"info":{"adapter_path":"/old/x"},"n":1}',))
        connection.execute("INSERT INTO jobs VALUES (?, 2)", ('{not json "/old/x"',))

    assert moved_paths.follow(path, "/old", "/new") == 1
    with closing(sqlite3.connect(path)) as connection:
        first, second = (text for (text,) in connection.execute("SELECT record FROM jobs ORDER BY at"))
    assert json.loads(first) == {"info": {"adapter_path": "/new/x"}, "n": 1}
    assert second == '{not json "/old/x"'


def test_home_that_holds_something_is_only_replaced_when_asked_and_kept_then(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --replace nothing happens; with it the old one lies beside."""
    path = backed_up(home)
    (home / "no.db").mkdir()
    put(home / "suites" / "mine.yaml", "changed since")
    before = tree(home)

    assert app.main(["restore", str(path)]) == exits.FAILED
    assert "--replace" in capsys.readouterr().err
    assert tree(home) == before

    assert app.main(["restore", str(path), "--replace", "--json"]) == exits.OK
    kept = Path(json.loads(capsys.readouterr().out)["kept_as"])
    assert (home / "suites" / "mine.yaml").read_text() == "suite"
    assert (kept / "suites" / "mine.yaml").read_text() == "changed since"
    assert kept.name.startswith("home.before-restore-")


def test_home_in_use_is_not_replaced(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the lock, and where an older program without it serves, by that of SQLite."""
    path = backed_up(home)
    before = tree(home)
    with state.alone(home):
        assert app.main(["restore", str(path), "--replace"]) == exits.CONFIGURATION
    assert "is in use" in capsys.readouterr().err

    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM things'); print(1); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home / "models.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert app.main(["restore", str(path), "--replace"]) == exits.CONFIGURATION
        other.communicate(b"\n", timeout=WAIT_S)
    assert "models.db is open" in capsys.readouterr().err
    assert {name: data for name, data in tree(home).items() if not name.endswith(("-wal", "-shm", ".lock"))} == {
        name: data for name, data in before.items() if not name.endswith(".lock")
    }


def test_bad_archives_leave_everything_as_it_was(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut off, damaged, and no archive at all: refused in words, by the check too."""
    data = bytearray(backed_up(home).read_bytes())
    middle = bytearray(data)
    middle[len(data) // 2] ^= 0xFF
    before = tree(home)
    for bad in (data[: len(data) // 2], middle, b"", b"no archive", bytes(100_000)):
        path = home.with_name("bad")
        path.write_bytes(bad)
        for action in (["--replace"], ["--check"]):
            assert app.main(["restore", str(path), *action]) == exits.FAILED
            assert "cannot be restored" in capsys.readouterr().err
    assert tree(home).keys() - {"state.lock"} == before.keys()
    assert [name for name in os.listdir(home.parent) if name.startswith(".olympus")] == []


def forge(path: Path, member: tarfile.TarInfo, entry: archive.Entry) -> None:
    """An archive with one member of our making."""
    head = archive.Head(
        format=1, version="0.1.0", state_format=2, machine="m", home="/h", created_at=1.0, files=[entry]
    )
    with tarfile.open(path, "w:gz") as tar:
        data = msgspec.json.encode(head)
        first = tarfile.TarInfo(archive.HEAD)
        first.size = len(data)
        tar.addfile(first, io.BytesIO(data))
        tar.addfile(member, io.BytesIO(bytes(member.size)))


def test_hostile_archives_write_nothing(home: Path, tmp_path: Path) -> None:
    """A link, a way out of the folder, a bomb, and more than the disk holds."""
    link = tarfile.TarInfo("a")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    outside = tarfile.TarInfo("../outside")
    bomb = tarfile.TarInfo("a")
    bomb.size = 50_000_000
    for member, entry in (
        (link, archive.Entry("a", "file", 1)),
        (outside, archive.Entry("../outside", "file", 0)),
        (bomb, archive.Entry("a", "file", 10)),
        (tarfile.TarInfo("a"), archive.Entry("a", "file", 1 << 61)),
    ):
        path = tmp_path / "hostile.tar.gz"
        forge(path, member, entry)
        assert app.main(["restore", str(path), "--into", str(tmp_path / "target" / "home")]) == exits.FAILED
        assert os.listdir(tmp_path / "target") == []
    assert not (tmp_path / "outside").exists()


def test_backup_of_a_newer_home_is_refused_and_names_the_version(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its format is not known here."""
    path = tmp_path / "newer.tar.gz"
    forge(path, tarfile.TarInfo("a"), archive.Entry("a", "file", 1))
    head = archive.Head(format=1, version="9.9", state_format=999, machine="m", home="/h", created_at=1.0, files=[])
    data = msgspec.json.encode(head)
    with tarfile.open(path, "w:gz") as tar:
        first = tarfile.TarInfo(archive.HEAD)
        first.size = len(data)
        tar.addfile(first, io.BytesIO(data))

    assert app.main(["restore", str(path), "--into", str(tmp_path / "x")]) == exits.FAILED
    assert "made by Olympus 9.9 in a newer format" in capsys.readouterr().err


def test_mount_point_and_full_disk_are_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is unpacked."""
    path = backed_up(home)
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "ismount", lambda path: str(path) == str(home))
        assert app.main(["restore", str(path), "--replace"]) == exits.FAILED
    assert "is where a disk is mounted" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(restore.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        assert app.main(["restore", str(path), "--into", str(tmp_path / "x")]) == exits.FAILED
    assert "1,000 bytes free" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_only_the_newest_backups_of_this_machine_are_kept(home: Path, tmp_path: Path) -> None:
    """Those of others, and other files, are nobody's business."""
    folder = tmp_path / "folder"
    for name in ("olympus-pc2-20200101T000000Z.tar.gz", "notes.tar.gz", "olympus-here-2-20200101T000000Z.tar.gz"):
        put(folder / name, "")
    others = set(os.listdir(folder))
    put(folder / "olympus-here-20200101T000000Z.tar.gz", "")
    for _ in range(3):
        assert app.main(["backup", str(folder), "--keep", "2", "--set", "machine.name=here"]) == exits.OK

    ours = set(os.listdir(folder)) - others
    assert len(ours) == 2
    assert "olympus-here-20200101T000000Z.tar.gz" not in ours


def test_backup_made_after_the_clock_was_set_back_is_kept(home: Path, tmp_path: Path) -> None:
    """Others have newer names then."""
    folder = tmp_path / "folder"
    for year in (2998, 2999):
        put(folder / f"olympus-here-{year}0101T000000Z.tar.gz", "")

    assert app.main(["backup", str(folder), "--keep", "2", "--set", "machine.name=here"]) == exits.OK

    first, second = sorted(os.listdir(folder))
    assert second == "olympus-here-29990101T000000Z.tar.gz"
    assert app.main(["restore", "--check", str(folder / first)]) == exits.OK


def test_database_outside_of_home_is_taken_and_comes_back_below_it(home: Path, tmp_path: Path) -> None:
    """The settings of the restored home may name the place of the old one, which must not be touched."""
    database(tmp_path / "fast" / "errors.db", "elsewhere")
    database(tmp_path / "fast" / "audit.db", "beside it")
    path = home.with_name("b.tar.gz")
    option = f"errors.path={tmp_path / 'fast' / 'errors.db'}"
    assert app.main(["backup", str(path), "--set", option]) == exits.OK
    assert app.main(["restore", str(path), "--into", str(tmp_path / "other")]) == exits.OK

    assert rows_of(tmp_path / "other" / "errors" / "errors.db") == [("elsewhere", "elsewhere")]
    assert rows_of(tmp_path / "other" / "errors" / "audit.db") == [("beside it", "beside it")]


def test_linked_folder_is_taken_once_and_its_loop_ends(home: Path, tmp_path: Path) -> None:
    """A memory on another disk belongs to the home; a link back to the home does not go round for ever."""
    put(tmp_path / "disk" / "note", "x")
    (home / "linked").symlink_to(tmp_path / "disk")
    (home / "linked-again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(home)
    (home / "dangling").symlink_to(tmp_path / "nowhere")

    assert len(names_in(backed_up(home)) & {"linked/note", "linked-again/note"}) == 1


def test_damaged_database_fails_the_backup(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is found out now, and not on the day the backup is needed."""
    for suffix in ("-wal", "-shm"):
        Path(f"{home / 'models.db'}{suffix}").unlink(missing_ok=True)
    damaged = bytearray((home / "models.db").read_bytes())
    damaged[4096:] = b"\xff" * (len(damaged) - 4096)
    (home / "models.db").write_bytes(damaged)

    assert app.main(["backup", str(home.with_name("b.tar.gz"))]) == exits.FAILED
    assert "models.db cannot be copied" in capsys.readouterr().err
    assert not home.with_name("b.tar.gz").exists()


def test_home_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the name of the variable."""
    missing = f"home={tmp_path / 'missing'}"

    assert app.main(["backup", str(tmp_path / "b.tar.gz"), "--set", missing]) == exits.FAILED
    assert "OLYMPUS_HOME names another" in capsys.readouterr().err


def command(*words: str) -> list[str]:
    """`olympus ...` as a process."""
    return [sys.executable, "-m", "bus.cli.app", *words]


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` is true, or fail with what was missing."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {WAIT_S:g} s: {what}")
        time.sleep(0.005)
    return found


def test_pipe_takes_a_backup_and_gives_it_back(home: Path, tmp_path: Path) -> None:
    """For a program that encrypts; stdout holds the archive and nothing else."""
    made = subprocess.run(command("backup", "-"), capture_output=True, cwd=ROOT, check=True, timeout=WAIT_S)
    subprocess.run(
        command("restore", "-", "--into", str(tmp_path / "other")),
        input=made.stdout,
        cwd=ROOT,
        check=True,
        timeout=WAIT_S,
        capture_output=True,
    )

    assert set(tree(tmp_path / "other")) == ALWAYS | KEYS


def test_killed_backup_leaves_no_archive_and_the_next_one_clears_up(home: Path, tmp_path: Path) -> None:
    """kill -9 in the middle."""
    put(home / "suites" / "noise", os.urandom(40_000_000))
    folder = tmp_path / "folder"
    with subprocess.Popen(command("backup", f"{folder}/"), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        until(
            lambda: [path for path in folder.glob(".olympus-backup-*/*.partial") if path.stat().st_size > 100_000],
            "an archive that grows",
        )
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list(folder.glob("*.tar.gz")) == []

    put(home / "suites" / "noise", b"little")
    assert app.main(["backup", str(folder)]) == exits.OK
    (name,) = os.listdir(folder)
    assert app.main(["restore", "--check", str(folder / name)]) == exits.OK


def test_killed_restore_changes_nothing_and_the_next_one_clears_up(home: Path, tmp_path: Path) -> None:
    """kill -9 while it unpacks: private things lie in a hidden folder until then."""
    put(home / "suites" / "noise", os.urandom(40_000_000))
    path = backed_up(home)
    target = tmp_path / "target"
    words = command("restore", str(path), "--into", str(target / "home"))
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        until(lambda: list(target.glob(".olympus-restore-*/home/suites/noise")), "files that are unpacked")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (target / "home").exists()

    put(home / "suites" / "noise", b"little")
    assert app.main(["restore", str(backed_up(home)), "--into", str(target / "home")]) == exits.OK
    assert os.listdir(target) == ["home"]


def test_disk_too_small_for_a_copy_is_named(home: Path, tmp_path: Path) -> None:
    """The disk that is full is said, and nothing of damage."""
    database(home / "models.db", *("x" * 1000 for _ in range(2000)))
    folder = tmp_path / "folder"

    done = subprocess.run(
        command("backup", f"{folder}/"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )

    assert done.returncode == exits.FAILED
    assert str(folder) in done.stderr
    assert "room" in done.stderr
    assert "damaged" not in done.stderr
    assert os.listdir(folder) == []


def test_disk_that_fills_up_leaves_nothing(home: Path, tmp_path: Path) -> None:
    """Neither an archive nor a part of one."""
    put(home / "suites" / "noise", os.urandom(3_000_000))
    folder = tmp_path / "folder"

    done = subprocess.run(
        command("backup", f"{folder}/"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )

    assert done.returncode == exits.FAILED
    assert "no backup was made: File too large" in done.stderr
    assert os.listdir(folder) == []


def test_memory_stays_flat_however_large_a_file_is(home: Path, tmp_path: Path) -> None:
    """A file of 200 MB passes through a process that may have no more than a part of that."""
    with (home / "suites" / "zeros").open("wb") as file:
        file.truncate(200_000_000)
    code = (
        "import re, sys\n"
        "from bus.cli.app import main\n"
        "status = main(sys.argv[1:])\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1], file=sys.stderr)\n"
        "sys.exit(status)\n"
    )
    peaks = []
    for words in (["backup", str(tmp_path / "b")], ["restore", str(tmp_path / "b"), "--into", str(tmp_path / "other")]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=WAIT_S
        )
        peaks.append(int(done.stderr.splitlines()[-1]))

    assert max(peaks) < 100_000, f"KiB: {peaks}"
    assert (tmp_path / "other" / "suites" / "zeros").stat().st_size == 200_000_000


async def test_memory_of_a_backup_orders_every_vector(home: Path, tmp_path: Path) -> None:
    """Its vectors are not in the archive, and a server that has them may have newer ones."""
    records = await Records.open(home / "memory" / "memory.db", readers=1, on_committed=lambda events: None)
    await records.close()
    path = backed_up(home)
    assert "memory/memory.db" in names_in(path)

    assert app.main(["restore", str(path), "--into", str(tmp_path / "other")]) == exits.OK

    with closing(sqlite3.connect(tmp_path / "other" / "memory" / "memory.db")) as connection:
        (model,) = connection.execute("SELECT value FROM service_state WHERE key = 'vectors.model'").fetchone()
    assert msgspec.msgpack.decode(model) == "unknown"


def test_memory_that_is_none_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive may be whole and its memory of no use."""
    database(home / "memory" / "memory.db", "of another program")
    path = backed_up(home)

    assert app.main(["restore", str(path), "--into", str(tmp_path / "other")]) == exits.FAILED
    assert "the memory of the backup cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
