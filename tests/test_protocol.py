"""Single holes in the protocol of commits, each of which was one: what came in by it, a race, a stranger or a
machine."""
import errno
import os
import subprocess
import sys
from pathlib import Path

import faults
import lakes
import pytest
from faults import Died, Door, standing
from scenarios import DAYS, Doubled, Numbered, bronze, direct, rows, run, simple, staged, values

from daedalus_etl.core import outputs
from daedalus_etl.core.errors import ConfigError, ConflictError, CorruptFileError, StorageError
from daedalus_etl.storage import commit as committing
from daedalus_etl.storage import disk
from daedalus_etl.storage import verify as verifying
from daedalus_etl.storage.commit import look
from daedalus_etl.storage.doctor import check, probe_folder
from daedalus_etl.storage.journal import Change, commit, journals, recover, survey_dataset, sweep
from daedalus_etl.storage.modes import fresh_name
from daedalus_etl.storage.verify import gc


@pytest.fixture
def lake(tmp_path): return tmp_path / "lake"


@pytest.fixture
def data(lake): return direct(lake)


def put_day(data, day, *numbers, name="part-0.parquet", **footer):
    folder = data.folder(DAYS[day])
    seen = look(folder)
    commit([Change(data, DAYS[day], seen, (staged(data, rows(*numbers), name, **footer),), seen.names - {name})])


def dies_at_first_rename(data, act) -> None:
    "Run `act` until its journal is written, and no further."
    with standing(Door()) as door:
        def call(what, *args, **kwargs):
            if what is os.replace and any(str(a).startswith(str(data.root)) for a in args): door.dead = True
            return door(what, *args, **kwargs)
        disk.syscall = call
        with pytest.raises(Died): act()
    assert len(journals(data.lake)) == 1


def test_what_was_staged_is_gone(data):
    "A commit whose staged file somebody removed must not report success."
    put_day(data, 8, 1)
    for days in ((8,), (8, 9)):
        changes = [Change(data, DAYS[d], look(data.folder(DAYS[d])), (staged(data, rows(2)),)) for d in days]
        changes[-1].put[0].path.unlink()
        with pytest.raises(StorageError, match="gone"): commit(changes)
        assert values(data.folder(DAYS[8])) == [1] and journals(data.lake) == []


def test_a_swap_may_not_bring_a_name_that_is_there(data):
    "Otherwise it took itself for done, and the new rows were thrown away."
    for n in "ab": commit([Change(data, DAYS[8], put=(staged(data, rows(1), f"part-{n}.parquet"),), exact=False)])
    seen = look(data.folder(DAYS[8]))
    both = tuple(staged(data, rows(2), n) for n in sorted(seen.names))
    with pytest.raises(ConflictError, match="is there already"): commit([Change(data, DAYS[8], seen, both)])
    assert values(data.folder(DAYS[8])) == [1, 1] and not list((data.meta / "stage").iterdir())


def test_two_changes_of_one_partition_are_refused(data):
    for changes in ([Change(data, DAYS[8], put=(staged(data, rows(k)),)) for k in (1, 2)],
                    [Change(data, DAYS[8], put=(staged(data, rows(1)), staged(data, rows(2))))]):
        with pytest.raises(ConfigError, match="one commit"): commit(changes)
    assert not data.folder(DAYS[8]).exists() and not list((data.meta / "stage").iterdir())


@pytest.mark.parametrize("stranger", ["notes.txt", "hour=01/part-0.parquet", ".part-0.parquet.crc"])
def test_what_else_lies_in_a_folder_does_not_go_with_it(data, stranger):
    put_day(data, 8, 1)
    other = data.folder(DAYS[8]) / stranger
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(b"somebody's")
    seen = look(data.folder(DAYS[8]))
    with pytest.raises(ConflictError, match=r"would be lost"): commit([Change(data, DAYS[8], seen, drop=seen.names)])
    new = (staged(data, rows(3), "part-1.parquet"),)
    with pytest.raises(ConflictError, match=r"would be lost"): commit([Change(data, DAYS[8], seen, new, seen.names)])
    assert other.read_bytes() == b"somebody's" and values(data.folder(DAYS[8])) == [1]


def test_a_dataset_is_replaced_after_the_commits_before_it(data):
    "A dead commit of two new days; then the dataset is replaced by somebody who has not seen them."
    put_day(data, 7, 7)
    seen = survey_dataset(data)
    dies_at_first_rename(data, lambda: commit([Change(data, DAYS[d], put=(staged(data, rows(d)),)) for d in (8, 9)]))
    gone = Change(data, DAYS[7], seen[DAYS[7].path], drop=frozenset(["part-0.parquet"]))
    with pytest.raises(ConflictError, match="wrote to the dataset"): commit([gone], whole={data: seen})
    assert [values(data.folder(DAYS[d])) for d in (7, 8, 9)] == [[7], [8], [9]]


def test_a_commit_comes_after_the_replacing_of_its_dataset(data):
    put_day(data, 7, 7)
    put_day(data, 8, 8)
    seen = survey_dataset(data)
    def replace_all():
        changes = [Change(data, DAYS[d], seen[DAYS[d].path], drop=frozenset(["part-0.parquet"])) for d in (7, 8)]
        commit([*changes, Change(data, DAYS[9], put=(staged(data, rows(9)),))], whole={data: seen})
    dies_at_first_rename(data, replace_all)
    put_day(data, 10, 10)
    assert journals(data.lake) == [] and sorted(survey_dataset(data)) == [DAYS[9].path, DAYS[10].path]


def test_no_journal_that_cannot_be_carried_out(data, monkeypatch):
    "On a filesystem that cannot exchange folders a journal with a swap would block the lake for ever."
    def impossible(*_): raise OSError(errno.EINVAL, "Invalid argument")
    for n in "ab": commit([Change(data, DAYS[8], put=(staged(data, rows(1), f"part-{n}.parquet"),), exact=False)])
    seen = look(data.folder(DAYS[8]))
    monkeypatch.setattr(disk, "_exchange", impossible)
    changes = [Change(data, DAYS[8], seen, (staged(data, rows(2), "part-z.parquet"),), seen.names),
               Change(data, DAYS[9], put=(staged(data, rows(9)),))]
    with pytest.raises(StorageError, match="cannot exchange"): commit(changes)
    assert journals(data.lake) == [] and not list((data.meta / "stage").iterdir())
    assert values(data.folder(DAYS[8])) == [1, 1] and not data.folder(DAYS[9]).exists()


def test_a_journal_may_go_while_it_is_listed(data, monkeypatch):
    folder = Path(data.lake) / ".daedalus/journal"
    folder.mkdir(parents=True)
    (folder / "a.json").symlink_to("nowhere")
    assert journals(data.lake) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2, "alone": [], "shared": [], "steps": []}'])
def test_a_journal_that_nobody_understands_stops_everything(data, text):
    folder = Path(data.lake) / ".daedalus/journal"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(text)
    for act in (lambda: recover(data.lake), lambda: put_day(data, 8, 1)):
        with pytest.raises(CorruptFileError, match=r"a\.json"): act()


def test_a_file_may_go_while_it_is_looked_at(data, monkeypatch):
    "Between the listing and the stat of a file, a swap: the folder is looked at again."
    put_day(data, 8, 1, name="part-0.parquet")
    put_day(data, 8, 2, name="part-1.parquet")
    folder, real = data.folder(DAYS[8]), os.scandir
    def once(path):
        monkeypatch.undo()
        entries = list(real(path))
        put_day(data, 8, 3, name="part-2.parquet")
        return entries
    monkeypatch.setattr(committing.os, "scandir", once)
    assert look(folder).names == {"part-2.parquet"}


def test_unreadable_folders_are_not_gone(data, monkeypatch):
    "Root may read all: so the refusal is played."
    put_day(data, 8, 1)
    real = os.scandir
    def refused(path):
        if str(path).endswith("year=2024"): raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)
    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(StorageError, match="year=2024"): survey_dataset(data)


def test_a_dataset_called_stage_is_not_swept(lake):
    below = direct(lake, "silver/direct/stage")
    put_day(below, 8, 1)
    committing.put_artifact(below, below.meta / "states/a.state", b"a")
    before = lakes.contents(lake)
    assert sweep(direct(lake)) == [] and lakes.contents(lake) == before


def test_many_partitions_in_one_commit_need_few_open_files(tmp_path):
    code = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}
import resource, scenarios as s
from daedalus_etl.storage.journal import Change, commit
from daedalus_etl.storage.partitions import Partition
data = s.direct({str(tmp_path / 'lake')!r})
one = s.staged(data, s.rows(0))
resource.setrlimit(resource.RLIMIT_NOFILE, (64 + 20, 4096))
days = [Partition.of(symbol=f"S{{k}}", year=2024, month=1, day=d) for k in range(10) for d in range(1, 26)]
one.discard()
commit([Change(data, d, put=(s.staged(data, s.rows(k)),)) for k, d in enumerate(days)])
print(len(list(data.root.rglob("*.parquet"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "250\n", done.stderr[-2000:]


def test_append_of_two_configurations_at_once(tmp_path, lake, monkeypatch):
    "Both see an empty partition: the second must not add the same input's rows again."
    src = bronze(tmp_path / "src", 8)
    class Other(Doubled):
        def code_version(self): return "f" * 64
    def meanwhile(folder, real=committing.look):
        seen = real(folder)
        if not meanwhile.done:
            meanwhile.done = True
            run(simple(Other, src, lake, "append"))
        return seen
    meanwhile.done = False
    monkeypatch.setattr(outputs, "look", meanwhile)
    with pytest.raises(ConflictError): run(simple(Doubled, src, lake, "append"))
    assert len(lakes.dataset(lake / "silver/small")) == 3


def test_append_twice_is_once(tmp_path, lake):
    src = bronze(tmp_path / "src", 8)
    run(simple(Doubled, src, lake, "append"))
    before = lakes.places(lake)
    run(simple(Doubled, src, lake, "append"))
    assert lakes.places(lake) == before


def test_a_merge_whose_rows_are_replaced_meanwhile(tmp_path, lake, monkeypatch):
    run(simple(Doubled, bronze(tmp_path / "old", 8), lake, "merge"))
    def gone(old, new, keys): raise FileNotFoundError(errno.ENOENT, "No such file or directory", "part-0.parquet")
    monkeypatch.setattr(outputs, "merge_rows", gone)
    before = lakes.contents(lake)
    with pytest.raises(ConflictError, match="to merge into"):
        run(simple(Doubled, bronze(tmp_path / "new", 8, first=200.0), lake, "merge"), replace=True)
    assert lakes.contents(lake) == before and faults.open_locks() == []


def test_a_damaged_state_is_mended_by_computing_again(tmp_path, lake):
    src = bronze(tmp_path / "src", 8, 9)
    run(simple(Numbered, src, lake, "overwrite_partition"))
    before = faults.tree(lake)
    for state in (lake / ".daedalus/silver/small/states").iterdir(): state.write_bytes(b"x")
    for part in (lake / "silver").rglob("*.parquet"): part.unlink()
    run(simple(Numbered, src, lake, "overwrite_partition"))
    assert faults.tree(lake) == before


def test_an_older_state_is_not_handed_on_after_a_run_that_found_all_done(tmp_path, lake):
    src, states = bronze(tmp_path / "src", 8, 9), tmp_path / "states"
    made = simple(Numbered, src, lake, "overwrite_partition")
    run(made, state_path=states)
    (file,) = states.rglob("end.state")
    first = file.read_bytes()
    file.unlink()
    run(made, state_path=states)
    assert file.read_bytes() == first
    before = lakes.places(states)
    run(made, state_path=states)
    assert lakes.places(states) == before


def test_reader_of_a_list_never_mixes_two_merges(data):
    "Two replacements later the name of a file among several is not that of the new one."
    put_day(data, 8, 1)
    commit([Change(data, DAYS[8], put=(staged(data, rows(2), "part-x.parquet"),), exact=False)])
    listed = look(data.folder(DAYS[8])).names
    for k in range(3):
        now = look(data.folder(DAYS[8]))
        put_day(data, 8, 1, 2, 10 + k, name=fresh_name(now))
        assert not listed & look(data.folder(DAYS[8])).names


def test_lock_is_free_after_release_though_a_child_inherited_it(tmp_path):
    lock = disk.Lock(tmp_path / "all", stays=True).acquire()
    child = subprocess.Popen(["sleep", "30"], pass_fds=[lock.fd])
    try:
        lock.release()
        again = disk.Lock(tmp_path / "all", stays=True)
        assert again.try_acquire()
        again.release()
    finally:
        child.kill()
        child.wait()


# ---- what each mode promises when errors come from the machine

@pytest.mark.parametrize("site", ["fsync < fsync_dir < make_dirs", "replace < rename < _move"])
def test_errors_do_not_leave_locks_in_a_living_process(data, site):
    with standing(Door()) as door: put_day(data, 8, 1)
    at = next(n for n, s in enumerate(door.sites, 1) if s.startswith(site))
    other = direct(Path(data.lake).parent / "other")
    with standing(Door(at, errno.EIO)), pytest.raises(StorageError): put_day(other, 8, 1)
    assert faults.open_locks() == [] and committing._Owner.known == {}
    put_day(other, 8, 1)
    assert values(other.folder(DAYS[8])) == [1]


def test_unfinished_commits_are_spoken_of(data):
    with standing(Door()) as door: commit([Change(data, DAYS[d], put=(staged(data, rows(d)),)) for d in (8, 9)])
    at = [n for n, s in enumerate(door.sites, 1) if s.startswith("replace < rename < _move")][1]
    other = direct(Path(data.lake).parent / "other")
    with standing(Door(at, errno.ENOSPC)), pytest.raises(StorageError, match="Make room") as caught:
        commit([Change(other, DAYS[d], put=(staged(other, rows(d)),)) for d in (8, 9)])
    assert any("daedalus recover" in n for n in caught.value.__notes__)
    assert recover(other.lake) and values(other.folder(DAYS[9])) == [9]


# ---- collection, while others write

def old_and_unneeded(data) -> Path:
    "A state of long ago that no result names."
    committing.put_artifact(data, path := data.meta / "states" / f"{'a' * 64}.state", b"a")
    os.utime(path, (1, 1))
    return path


def test_what_is_used_again_is_not_collected(data):
    "A result returns to a state of long ago: it is there, and must be there still when the result is published."
    put_day(data, 8, 1)
    path = old_and_unneeded(data)
    committing.put_artifact(data, path, b"a")
    assert path.stat().st_mtime > 1
    gc(data.lake)
    assert path.exists()
    os.utime(path, (1, 1))
    gc(data.lake)
    assert not path.exists()


def test_results_that_wait_long_for_their_publication_keep_their_states(data):
    "A run that is published as one may take longer than the hour for which young states are left alone."
    put_day(data, 8, 1)
    waiting = staged(data, rows(2))
    path = old_and_unneeded(data)
    os.utime(path)
    gc(data.lake, min_age_s=-3600)
    assert path.exists()
    waiting.discard()
    gc(data.lake, min_age_s=-3600)
    assert not path.exists()


def test_nothing_is_collected_while_a_commit_is_unfinished(data, monkeypatch):
    put_day(data, 7, 7)
    path = old_and_unneeded(data)
    dies_at_first_rename(data, lambda: commit([Change(data, DAYS[d], put=(staged(data, rows(d)),)) for d in (8, 9)]))
    monkeypatch.setattr(verifying, "open_datasets", lambda sets: None)       # it dies right after we have recovered
    with pytest.raises(ConflictError, match="not finished"): gc(data.lake)
    assert path.exists()


def test_what_a_killed_probe_left_is_removed_by_the_next(tmp_path):
    check(tmp_path)                 # this device is known to be good: the next check tries nothing
    code = "import sys, os\nfrom daedalus_etl.storage.doctor import check, probe_folder\n" \
           "with probe_folder(sys.argv[1]) as f:\n    (f / 'old').write_bytes(b'x')\n    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    (left,) = tmp_path.iterdir()
    with probe_folder(tmp_path) as mine, probe_folder(tmp_path) as another:
        assert mine.exists() and another.exists() and not left.exists()
    assert list(tmp_path.iterdir()) == []
    subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    check(tmp_path)
    assert list(tmp_path.iterdir()) == []
