"The doctor: what it finds on real filesystems, and that it finds each fault when there is one."
import errno
import fcntl
import itertools
import os
import sys
import time
import unicodedata
from pathlib import Path
from subprocess import run

import pytest

from daedalus_etl import cli
from daedalus_etl.core.errors import StorageError
from daedalus_etl.storage import disk, doctor
from daedalus_etl.storage.doctor import PLACES, PROBES, REQUIRED, check, examine, filesystem, mounts, nearest, table
from daedalus_etl.storage.objects import walk
from objects import CANARY, use


def raises(kind, *texts):
    "An error of this very kind whose message holds all the texts."
    return pytest.raises(kind, check=lambda e: type(e) is kind and all(t in str(e) for t in texts))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch): monkeypatch.setattr(doctor, "_CHECKED", set())


@pytest.fixture
def at_the_door(monkeypatch):
    "Let a function stand in the door to the operating system: it gets the call and its arguments, and the real door."
    def stand(instead):
        real = disk.syscall
        monkeypatch.setattr(disk, "syscall", lambda call, *args, **kwargs: instead(real, call, *args, **kwargs))
    return stand


def by_name(path): return {f.what: f for f in examine(path)}


def failed(path): return [f.what for f in examine(path) if f.ok is False]


@pytest.fixture(params=["disk", "tmpfs"])
def place(request, tmp_path):
    "A folder on the disk of the tests, and one in memory."
    if request.param == "disk":
        yield tmp_path
        return
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or filesystem(shm) != "tmpfs": pytest.skip("no tmpfs at /dev/shm")
    folder = shm / f"daedalus-test-{os.getpid()}"
    folder.mkdir()
    try: yield folder
    finally: folder.rmdir()


# ---- real filesystems

def test_a_good_place_is_found_good_and_left_as_it_was(place):
    findings = examine(place)
    assert [f.what for f in findings] == ["may write", *PLACES, *PROBES]
    assert [f for f in findings if f.ok is not True] == []
    assert os.listdir(place) == []
    check(place)
    assert os.listdir(place) == []


def test_a_tmpfs_is_called_so(place):
    assert (by_name(place)["filesystem"].found == "tmpfs") is (place.parent == Path("/dev/shm"))


def test_a_lake_that_is_not_there_is_judged_by_its_parent_and_not_made(tmp_path):
    assert failed(tmp_path / "a/b/lake") == []
    check(tmp_path / "a/b/lake")
    assert os.listdir(tmp_path) == []
    assert by_name(tmp_path / "a/b")["may write"].found == f"in {tmp_path}"


def test_probes_lie_beside_the_data(tmp_path, monkeypatch):
    (tmp_path / ".daedalus").mkdir()
    seen = []
    monkeypatch.setitem(PROBES, "rename", (lambda folder: (seen.append(folder), (True, ""))[1], ""))
    examine(tmp_path)
    assert seen[0].parent.parent == tmp_path / ".daedalus" and os.listdir(tmp_path / ".daedalus") == []


def test_the_table(tmp_path, at_the_door):
    def instead(real, call, *args, **kwargs):
        if call is os.link: raise PermissionError(errno.EPERM, "Operation not permitted")
        return real(call, *args, **kwargs)
    at_the_door(instead)
    shown = table(examine(tmp_path))
    assert shown.columns == ["what", "ok", "found", "consequence"]
    _, ok, found, then = shown.filter(what="hard links").row(0)
    assert (ok, found) == ("no", "EPERM Operation not permitted") and "several files" in then
    assert shown.filter(what="rename")["consequence"].to_list() == [""]


# ---- what is missing is found

def fails(which, code):
    def instead(real, call, *args, **kwargs):
        if call in which: raise OSError(code, os.strerror(code))
        return real(call, *args, **kwargs)
    return instead


@pytest.mark.parametrize("what, call, code", [
    ("rename", os.replace, errno.EXDEV), ("locks", fcntl.flock, errno.ENOLCK), ("locks", fcntl.flock, errno.ENOSYS),
    ("fsync", os.fsync, errno.EINVAL), ("fsync", disk._full_fsync, errno.EIO), ("hard links", os.link, errno.EPERM),
    ("exchange", disk._exchange, errno.EINVAL), ("exchange", disk._exchange, errno.EPERM),
])
def test_calls_that_are_refused(tmp_path, at_the_door, what, call, code):
    at_the_door(fails({call}, code))
    assert what in failed(tmp_path)
    assert os.listdir(tmp_path) == []
    if what not in REQUIRED: return check(tmp_path)
    name = f"{what}: {errno.errorcode[code]}"
    with raises(StorageError, name, str(tmp_path), "the writer refuses", "daedalus doctor"): check(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_lock_that_keeps_nobody_out(tmp_path, at_the_door):
    at_the_door(lambda real, call, *args, **kwargs: None if call is fcntl.flock else real(call, *args, **kwargs))
    assert by_name(tmp_path)["locks"].found == "two holders of one lock in one process"
    with raises(StorageError, "two holders of one lock"): check(tmp_path)


def test_a_lock_between_files_of_a_process_only(tmp_path, at_the_door):
    "As on a network filesystem that keeps locks on each machine: here, those of the other process are not seen."
    def instead(real, call, *args, **kwargs):
        if call is fcntl.flock and Path(f"/proc/self/fd/{args[0]}").readlink().name == "held": return None
        return real(call, *args, **kwargs)
    if not Path("/proc/self/fd").is_dir(): pytest.skip("needs /proc/self/fd to know an open file's name")
    at_the_door(instead)
    assert by_name(tmp_path)["locks"].found == "two processes hold one lock"
    assert os.listdir(tmp_path) == []


def test_a_lock_that_outlives_its_process(tmp_path, monkeypatch):
    "A child of the holder has the file open, and with it the lock, when the holder is killed."
    monkeypatch.setattr(doctor, "WAIT_S", 0.2)
    monkeypatch.setattr(doctor, "_HOLDER", doctor._HOLDER.replace(
        "print(", "import os, time; os.fork() or time.sleep(2) or os._exit(0); print("))
    began = time.monotonic()
    assert by_name(tmp_path)["locks"].found == "a killed process keeps its lock"
    assert time.monotonic() - began < 10


def test_a_process_that_cannot_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_HOLDER", "import sys; sys.exit(1)")
    assert by_name(tmp_path)["locks"].found == "another process could not take a lock"


def test_a_rename_that_copies(tmp_path, at_the_door):
    def instead(real, call, *args, **kwargs):
        if call is os.replace: return Path(args[1]).write_bytes(Path(args[0]).read_bytes())
        return real(call, *args, **kwargs)
    at_the_door(instead)
    assert "the source is there" in by_name(tmp_path)["rename"].found


def test_an_exchange_that_does_nothing(tmp_path, at_the_door):
    at_the_door(lambda real, call, *args, **kwargs: None if call is disk._exchange else real(call, *args, **kwargs))
    assert by_name(tmp_path)["exchange"].found == "the folders did not change places"


def test_creation_that_is_not_exclusive(tmp_path, at_the_door):
    def instead(real, call, *args, **kwargs):
        if call is os.open: args = (args[0], args[1] & ~os.O_EXCL, *args[2:])
        return real(call, *args, **kwargs)
    at_the_door(instead)
    assert failed(tmp_path) == ["exclusive creation"]
    with raises(StorageError, "made twice"): check(tmp_path)


def folded(how):
    "A filesystem that takes names for the same that `how` maps to one: files are made under that name."
    def instead(real, call, *args, **kwargs):
        if call is os.open and Path(args[0]).name.startswith(("symbol=", "\u00e9")):
            args = (Path(args[0]).with_name(how(Path(args[0]).name)), *args[1:])
        return real(call, *args, **kwargs)
    return instead


def test_names_that_are_changed_are_found(tmp_path, at_the_door):
    at_the_door(folded(lambda name: unicodedata.normalize("NFD", name)))
    finding = by_name(tmp_path)["Unicode"]
    assert not finding.ok and "a name comes back as" in finding.found and "share a folder" in finding.consequence


def test_case_that_does_not_count_is_found(tmp_path, at_the_door):
    at_the_door(folded(lambda name: name.replace("btc", "BTC")))
    finding = by_name(tmp_path)["case"]
    assert (finding.ok, finding.found) == (False, "btc and BTC are one name")


def test_coarse_times(tmp_path, monkeypatch):
    steps = iter([2.0, 1.0, 2.0, 3.0, 3.0, 3.0])
    monkeypatch.setattr(doctor, "_time_step", lambda path: next(steps))
    finding = by_name(tmp_path)["file times"]
    assert (finding.ok, finding.found) == (False, "times of files in steps of 1e+03 ms")
    assert by_name(tmp_path)["file times"].found == "the time of a file that is written again does not change"


def test_the_step_of_times_is_measured(tmp_path, monkeypatch):
    "By a clock that goes on 10 ms with each look, and tells times in steps of 50 ms."
    real, now = Path.stat, itertools.count(0, 10_000_000)
    class Coarse:
        def __init__(self): self.st_mtime_ns = next(now) // 50_000_000 * 50_000_000
    monkeypatch.setattr(Path, "stat", lambda self, **kw: real(self, **kw) and Coarse())
    assert doctor._time_step(tmp_path / "file") == pytest.approx(0.05)


def test_a_clock_that_stands_wrong(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for year, word in ((1970, "now is 1970"), (2500, "now is 2500")):
        monkeypatch.setattr(doctor.time, "time", lambda y=year: (y - 1970) * 31_557_600.0)
        assert word in by_name(tmp_path)["clock"].found
    behind = os.stat(tmp_path / "file").st_mtime - 60
    monkeypatch.setattr(doctor.time, "time", lambda: behind)
    found = by_name(tmp_path)
    assert "a new file is +6" in found["clock"].found and found["clock"].ok is False
    assert "60 s ahead of now" in found["newest file"].found and found["newest file"].ok is False


def test_a_file_of_the_future(tmp_path):
    (tmp_path / "silver").mkdir()
    path = tmp_path / "silver/part-0.parquet"
    path.write_bytes(b"")
    os.utime(path, (time.time() + 3600,) * 2)
    assert failed(tmp_path) == ["newest file"] and str(path) in by_name(tmp_path)["newest file"].found


def test_a_part_of_the_lake_on_another_device(tmp_path, at_the_door):
    (tmp_path / "gold/trades_bars").mkdir(parents=True)
    class Elsewhere:
        st_dev = -1
    def instead(real, call, *args, **kwargs):
        if call is os.stat and Path(args[0]).name == "trades_bars": return Elsewhere()
        return real(call, *args, **kwargs)
    at_the_door(instead)
    assert failed(tmp_path) == ["one device"]
    assert "gold/trades_bars is on another device" in by_name(tmp_path)["one device"].found


def test_a_link_to_another_device(tmp_path):
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other device at hand")
    (tmp_path / "silver").symlink_to("/dev/shm")
    assert "one device" in failed(tmp_path)


def test_no_room(tmp_path, at_the_door):
    def instead(real, call, *args, **kwargs):
        return 10**6 if call is disk.free_bytes else real(call, *args, **kwargs)
    at_the_door(instead)
    assert failed(tmp_path) == ["free space"] and by_name(tmp_path)["free space"].found == "0.00 GB are free"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_no_right_to_write(tmp_path, at_the_door, code):
    import tempfile
    at_the_door(fails({tempfile.mkdtemp}, code))
    found = by_name(tmp_path)
    assert found["may write"].ok is False and found["may write"].found.startswith(errno.errorcode[code])
    assert {found[what].ok for what in PROBES} == {None}
    with raises(StorageError, "cannot be written"): check(tmp_path)


def test_a_full_disk_in_the_midst(tmp_path, at_the_door):
    at_the_door(fails({os.write}, errno.ENOSPC))
    found = by_name(tmp_path)
    assert found["rename"].found == "ENOSPC No space left on device" and os.listdir(tmp_path) == []


def test_a_probe_that_is_interrupted_leaves_nothing(tmp_path, at_the_door):
    def instead(real, call, *args, **kwargs):
        if call is os.link: raise KeyboardInterrupt
        return real(call, *args, **kwargs)
    at_the_door(instead)
    with pytest.raises(KeyboardInterrupt): examine(tmp_path)
    assert os.listdir(tmp_path) == []


# ---- which filesystem

MOUNTINFO = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 21 0:30 /sub /home rw shared:2 - btrfs /dev/sdb rw
40 21 0:44 / /mnt/my\040nas rw,nosuid shared:7 master:3 - {kind} server:/export rw
"""


@pytest.mark.parametrize("kind, ok", [("nfs4", None), ("nfs", None), ("cifs", None), ("smb3", None), ("9p", None),
                                      ("fuse.sshfs", None), ("xfs", True), ("fuse.mergerfs", True)])
def test_kinds_of_filesystems(tmp_path, monkeypatch, at_the_door, kind, ok):
    text = MOUNTINFO.format(kind=kind).replace(r"/mnt/my\040nas", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    def instead(real, call, *args, **kwargs):
        return text if getattr(call, "__name__", "") == "read_text" else real(call, *args, **kwargs)
    at_the_door(instead)
    finding = by_name(tmp_path / "lake")["filesystem"]
    assert finding.ok is ok and finding.found.startswith(kind)
    assert ("shared with other machines" in finding.found) is (ok is None)
    assert filesystem("/") == "ext4"


def test_mountinfo():
    assert mounts(MOUNTINFO.format(kind="cifs")) == {"/": "ext4", "/home": "btrfs", "/mnt/my nas": "cifs"}


def test_what_is_not_known_is_said(tmp_path, monkeypatch, at_the_door):
    monkeypatch.setattr(sys, "platform", "freebsd14")
    def instead(real, call, *args, **kwargs):
        if getattr(call, "__name__", "") == "read_text": raise FileNotFoundError(errno.ENOENT, "no such file")
        return real(call, *args, **kwargs)
    at_the_door(instead)
    assert (by_name(tmp_path)["filesystem"].ok, by_name(tmp_path)["filesystem"].found) == (None, "unknown")


def test_statfs_of_macos(tmp_path, monkeypatch, at_the_door):
    raw = bytes(72) + b"smbfs".ljust(16, b"\0") + b"/Volumes/x".ljust(1024, b"\0")
    monkeypatch.setattr(sys, "platform", "darwin")
    at_the_door(lambda real, call, *args, **kwargs: raw if call is doctor._statfs else real(call, *args, **kwargs))
    assert filesystem(tmp_path) == "smbfs"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a tmpfs: Linux, root")
def test_a_small_mount(tmp_path):
    lake = tmp_path / "lake"
    lake.mkdir()
    if run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(lake)], capture_output=True).returncode:
        pytest.skip("mount is not allowed here")
    try:
        (lake / "silver").mkdir()
        assert failed(lake) == ["free space"] and by_name(lake)["filesystem"].found == "tmpfs"
        assert run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(lake / "silver")]).returncode == 0
        try: assert "one device" in failed(lake)
        finally: run(["umount", str(lake / "silver")], check=True)
        assert run(["mount", "-o", "remount,ro", str(lake)]).returncode == 0
        assert by_name(lake)["may write"].found.startswith("EROFS")
        with raises(StorageError, "read-only"): check(lake)
    finally: run(["umount", str(lake)], check=True)


# ---- the check

def test_the_check_is_made_once_per_device(tmp_path, at_the_door):
    check(tmp_path)
    def instead(real, call, *args, **kwargs):
        assert call is os.stat, f"{call} though this device was checked"
        return real(call, *args, **kwargs)
    at_the_door(instead)
    check(tmp_path / "another/lake")


def test_what_failed_is_checked_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(disk, "syscall", lambda call, *a, real=disk.syscall, **k: None if call is fcntl.flock
                      else real(call, *a, **k))
        for _ in range(2):
            with raises(StorageError, "locks"): check(tmp_path)
    check(tmp_path)


def test_the_check_starts_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.subprocess, "Popen", lambda *_, **__: pytest.fail("a process"))
    check(tmp_path)


def test_nearest(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert nearest(tmp_path / "file/x") == tmp_path and nearest(tmp_path) == tmp_path


# ---- object stores

def on_store(url: str) -> dict[str, bool | None]:
    "Findings by name."
    return {f.what: f.ok for f in doctor.examine(url)}


def test_a_store_that_keeps_conditions(bucket, capsys):
    found = on_store(f"{bucket}/lake")
    assert len(found) == 10 and all(found.values()), found
    assert list(walk(bucket)) == []
    assert cli.main(["doctor", f"{bucket}/lake"]) == 0
    shown = capsys.readouterr().out
    assert "put if unchanged" in shown and "one wins" in shown


def test_a_store_that_does_not_is_told_apart(lax_bucket, capsys):
    found = on_store(lax_bucket)
    assert {w for w, ok in found.items() if not ok} == {"put if absent", "put if unchanged", "racing writers"}
    assert list(walk(lax_bucket)) == []
    assert cli.main(["doctor", lax_bucket]) == 1
    assert "single_writer" in capsys.readouterr().err


def test_a_store_that_cannot_be_asked(store_server, monkeypatch, capsys):
    use(monkeypatch, store_server)
    found = on_store("s3://no-such-bucket/lake")
    assert found["may write"] is False and found["put if absent"] is None and found["room for copies"] is True
    assert cli.main(["doctor", "s3://no-such-bucket/lake"]) == 1
    said = capsys.readouterr()
    assert "there is no bucket" in said.err and CANARY not in said.out + said.err
