"""Inputs on an object store: found as on a disk, read from one version of each object, refused with the same words."""
import gzip
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import lakes
from daedalus_etl.core.config import FilterSpec
from daedalus_etl.core.enums import DataFormat
from daedalus_etl.core.errors import (
    ConfigError, CorruptFileError, EmptyMatchError, InputChangedError, InputNotFoundError, PartitionError,
    StaleStateError, StorageError)
from daedalus_etl.lake import read
from daedalus_etl.storage import buckets, objects, spool
from daedalus_etl.storage.commit import Dataset
from daedalus_etl.storage.dataset import scan, scan_partition
from daedalus_etl.storage.fresh import stale_partitions
from daedalus_etl.storage.lake import dataset_names
from daedalus_etl.storage.object_lake import ObjectDataset
from daedalus_etl.storage.objects import list_folder, put, remove, walk
from daedalus_etl.storage.partitions import discover
from daedalus_etl.storage.spool import spooled
from lakes import BTC, ETH, leaf, run, statuses, tape
from objects import CANARY, Proxy, every_second_put, use


@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch) -> Path:
    "The folder of the copies; nothing may be left in it."
    monkeypatch.setenv("DAEDALUS_SPOOL", str(tmp_path / "spool"))
    yield tmp_path / "spool"
    assert [p for p in (tmp_path / "spool").rglob("*") if p.is_file()] == []


def upload(folder: Path, url: str) -> str:
    "Put all files of a folder below `url`."
    for p in sorted(folder.rglob("*")):
        if p.is_file(): put(f"{url}/{p.relative_to(folder).as_posix()}", p)
    return url


def add(url: str, folder: str, name: str = "part-0.parquet", data: bytes = b"PAR1 rows PAR1") -> str:
    "Put an object that a listing takes for data; its URL."
    return put(f"{url}/{folder}/{name}", data).url


def days(url, **spec) -> list[str]:
    "The partitions that a filter keeps, in order."
    return [str(pf.partition) for pf in discover(url, FilterSpec(**spec) if spec else None)]


# ---------------------------------------------------------------------------------------------- what is found

def build(add):
    "The same small tree on a disk or in a bucket."
    for d in ("8", "9", "10"): add(f"exchange=binance/symbol=BTC%2FUSDT/year=2024/month=8/day={d}")
    add("exchange=binance/symbol=ETH-USDT/year=2024/month=08/day=08")
    add("exchange=okx/symbol=BTC%2FUSDT/year=2023/month=12/day=31")
    add("exchange=okx/symbol=BTC%2FUSDT/year=2023/month=12/day=31", "b c.parquet")
    add("exchange=okx/symbol=BTC%2FUSDT/year=2023/month=12/day=31", ".hidden.parquet")
    add("exchange=okx/symbol=BTC%2FUSDT/year=2023/month=12/day=31", "_SUCCESS")
    add("exchange=okx/symbol=BTC%2FUSDT/year=2023/month=12/day=31", "notes.csv")


@pytest.mark.parametrize("spec", [
    {}, {"symbol": "BTC/USDT"}, {"exchange": "okx"}, {"symbol": "ETH/USDT"}, {"start_date": "2024-08-09"},
    {"symbol": "BTC/USDT", "start_date": "2023-12-31", "end_date": "2024-08-08"}, {"day": 8}], ids=str)
def test_a_bucket_is_walked_as_a_folder_is(tmp_path, bucket, spec):
    def on_disk(folder, name="part-0.parquet"):
        path = tmp_path / "trades" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PAR1 rows PAR1")
    build(on_disk)
    build(lambda *a: add(f"{bucket}/bronze/trades", *a))
    here, there = (discover(root, FilterSpec(**spec)) for root in (tmp_path / "trades", f"{bucket}/bronze/trades/"))
    assert [pf.partition for pf in here] == [pf.partition for pf in there]
    assert [[(f.relative, f.size) for f in pf.files] for pf in here] \
        == [[(f.relative, f.size) for f in pf.files] for pf in there]
    assert all(f.path == f"{bucket}/bronze/trades/{f.relative}" and f.etag for pf in there for f in pf.files)


def test_what_the_filter_does_not_keep_is_not_listed(bucket, store_server, monkeypatch):
    build(lambda *a: add(f"{bucket}/trades", *a))
    with Proxy(store_server) as proxy:
        use(monkeypatch, proxy.endpoint)
        assert len(days(f"{bucket}/trades", symbol="BTC/USDT", exchange="binance", end_date="2024-08-08")) == 1
    listed = [p for _, p in proxy.seen if "prefix=" in p]
    assert not any("okx" in p or "ETH" in p or "day%3D9" in p for p in listed)
    assert {m for m, _ in proxy.seen} == {"GET"} and len(listed) < 12


@pytest.mark.parametrize("more, error, words", [
    (("exchange=binance/symbol=BTC%2FUSDT/year=2024/month=08/day=08",), PartitionError, ("month=8/", "month=08/")),
    (("exchange=binance/symbol=btc%2Fusdt/year=2024/month=08/day=08",), PartitionError, ("in case alone",)),
    (("exchange=__HIVE_DEFAULT_PARTITION__/symbol=A",), PartitionError, ("null",)),
    (("exchange=binance/symbol=ETH-USDT/year=2024/month=13/day=08",), PartitionError, ("no such date",)),
    (("exchange=binance/symbol=ETH-USDT/year=2024/month=08/day=08", "e.parquet", b""), CorruptFileError, ("0 bytes",)),
    (("_delta_log", "00000.json"), ConfigError, ("a Delta table",)),
    (("exchange=okx/_delta_log", "00000.json"), ConfigError, ("a Delta table",)),
], ids=["padded and not", "twins", "null", "date", "empty", "delta", "delta below"])
def test_faults_of_the_tree(bucket, more, error, words):
    build(lambda *a: add(f"{bucket}/trades", *a))
    url = add(f"{bucket}/trades", *more)
    with pytest.raises(error) as e: discover(f"{bucket}/trades")
    assert all(w in str(e.value) for w in words)
    assert bucket in str(e.value) or "no such date" in words
    remove(url)
    assert len(discover(f"{bucket}/trades")) == 5


def test_a_table_above_the_root_is_refused(bucket):
    add(f"{bucket}/lake/table", "_delta_log", "00000.json")
    add(f"{bucket}/lake/table", "exchange=okx/symbol=A")
    with pytest.raises(ConfigError, match=f"{bucket}/lake/table: a Delta table"):
        discover(f"{bucket}/lake/table/exchange=okx")


def test_nothing_found_says_what_is_there(bucket):
    build(lambda *a: add(f"{bucket}/trades", *a))
    with pytest.raises(EmptyMatchError) as e: discover(f"{bucket}/trades", FilterSpec(symbol="BTC/USDC"))
    assert "binance/BTC/USDT (2024-08-08 .. 2024-08-10)" in str(e.value) and "Did you mean 'BTC/USDT'" in str(e.value)
    with pytest.raises(EmptyMatchError, match="holds exchange=binance, exchange=okx"):
        discover(f"{bucket}/trades", None, DataFormat.NDJSON)
    with pytest.raises(InputNotFoundError, match=f"nearest that exists is {bucket}. Did you mean 'trades'"):
        discover(f"{bucket}/tradse/x")
    with pytest.raises(StorageError, match="there is no bucket"): discover("s3://no-such-bucket/trades")


def test_more_objects_than_a_page_of_a_listing_holds(bucket):
    def one(i): put(f"{bucket}/t/symbol=S{i:04}/a.parquet", b"PAR1")
    with ThreadPoolExecutor(8) as pool: list(pool.map(one, range(1_010)))
    assert len(days(f"{bucket}/t", symbol=["S0000", "S1009"])) == 2
    assert len(list_folder(f"{bucket}/t")[0]) == len(list(walk(f"{bucket}/t"))) == 1_010


def test_a_changed_object_is_noticed(bucket):
    for i in (0, 1): add(f"{bucket}/t", "symbol=A", f"{i}.parquet")
    [pf] = discover(f"{bucket}/t")
    assert pf.changed() == []
    put(pf.paths[0], b"PAR1 other PAR1")
    assert pf.changed() == pf.paths[:1]
    remove(pf.paths[1])
    assert pf.changed() == pf.paths
    assert discover(f"{bucket}/t")[0].fingerprint != pf.fingerprint


# ---------------------------------------------------------------------------------------------- copies

def test_a_copy_is_gone_after_an_error(bucket, copies):
    add(f"{bucket}/t", "symbol=A")
    [pf] = discover(f"{bucket}/t")
    with pytest.raises(CorruptFileError, match=f"^{pf.paths[0]}: bad; expected all of {bucket}/t"), spooled(pf) as near:
        raise CorruptFileError("bad", path=near.paths[0], expected=f"all of {near.root}")
    with pytest.raises(ValueError, match="^other\n") as e, spooled(pf): raise ValueError("other")
    assert f"{bucket}/t" in e.value.__notes__[0]


def test_the_disk_of_the_copies_is_full(bucket, monkeypatch):
    add(f"{bucket}/t", "symbol=A")
    [pf] = discover(f"{bucket}/t")
    monkeypatch.setattr(spool, "free_bytes", lambda _: spool.SPARE_BYTES + 13)
    with pytest.raises(StorageError, match="DAEDALUS_SPOOL.*larger disk"), spooled(pf): pass
    monkeypatch.setattr(spool, "free_bytes", lambda _: spool.SPARE_BYTES + 14)
    with spooled(pf), pytest.raises(StorageError, match="DAEDALUS_SPOOL"):
        monkeypatch.setattr(spool, "free_bytes", lambda _: spool.SPARE_BYTES)
        with spooled(pf): pass


def test_what_a_killed_process_left_is_swept(bucket, copies):
    add(f"{bucket}/t", "symbol=A")
    die = ("import os, signal\nfrom daedalus_etl.storage.partitions import discover\n"
           "from daedalus_etl.storage.spool import spooled\n"
           f"with spooled(discover({bucket + '/t'!r})[0]) as near:\n"
           "    assert os.path.exists(near.paths[0])\n    os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", die], timeout=120).returncode == -9
    assert [p.name for p in copies.rglob("*.parquet")] == ["part-0.parquet"]
    [pf] = discover(f"{bucket}/t")
    with spooled(pf): assert len(list(copies.rglob("*.parquet"))) == 1
    assert os.stat(copies).st_mode & 0o777 == 0o700


def test_a_spool_of_somebody_else_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("DAEDALUS_SPOOL")
    monkeypatch.setattr(spool.tempfile, "gettempdir", lambda: str(tmp_path))
    theirs = tmp_path / f"daedalus-{os.geteuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    with pytest.raises(StorageError, match="DAEDALUS_SPOOL"): spool.spool_folder()
    theirs.rmdir()
    (tmp_path / "elsewhere").mkdir()
    theirs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="DAEDALUS_SPOOL"): spool.spool_folder()


# ---------------------------------------------------------------------------------------------- runs

@pytest.fixture
def bronze(tmp_path) -> Path:
    "Two days of one stream, the first in two files."
    folder = tmp_path / "bronze" / "trades"
    day = tape(8)
    lakes.put(folder, day.head(200), 8, name="a.parquet")
    lakes.put(folder, day.slice(200), 8, name="b.parquet")
    lakes.put(folder, tape(9), 9)
    return folder


def rows(lake: Path) -> pl.DataFrame: return scan(lake / "silver/trades").collect()


def test_a_run_reads_objects_as_it_reads_files(bronze, bucket, tmp_path):
    upload(bronze, f"{bucket}/bronze/trades")
    here, there = tmp_path / "here", tmp_path / "there"
    for source, lake in ((bronze, here), (f"{bucket}/bronze/trades", there)):
        assert statuses(run(lakes.trades(source, lake))) == ["written"] * 2
        assert statuses(run(lakes.trades(source, lake))) == ["done"] * 2
    assert_frame_equal(rows(here), rows(there))


def test_an_object_that_is_replaced_between_listing_and_fetch_is_read_anew(bronze, bucket, tmp_path, monkeypatch):
    upload(bronze, f"{bucket}/trades")
    real, left = spool.fetch, [1]
    def fetch(info, to):
        if left and "b.parquet" in info.url:
            left.pop()
            put(info.url, altered)
        real(info, to)
    changed = tape(8).slice(200).with_columns(pl.col("price") * 2)
    path = tmp_path / "altered.parquet"
    changed.write_parquet(path)
    altered = path.read_bytes()
    monkeypatch.setattr(spool, "fetch", fetch)
    assert statuses(run(lakes.trades(f"{bucket}/trades", tmp_path / "lake"))) == ["written"] * 2
    monkeypatch.undo()
    lakes.put(bronze, changed, 8, name="b.parquet")
    run(lakes.trades(bronze, tmp_path / "again"))
    assert_frame_equal(rows(tmp_path / "lake"), rows(tmp_path / "again"))


def test_an_object_that_never_stands_still_fails_its_unit(bronze, bucket, tmp_path, monkeypatch):
    upload(bronze, f"{bucket}/trades")
    real, n = spool.fetch, iter(range(100))
    def fetch(info, to):
        put(info.url, b"PAR1 %d PAR1" % next(n))
        real(info, to)
    monkeypatch.setattr(spool, "fetch", fetch)
    with pytest.raises(InputChangedError, match=f"{bucket}/trades"):
        run(lakes.trades(f"{bucket}/trades", tmp_path / "lake"))


def test_runs_whose_answers_are_lost_publish_the_same(bronze, bucket, tmp_path, store_server, monkeypatch):
    "Each put is done, and for every second one the store's answer does not arrive: it is repeated, and meets itself."
    run(lakes.trades(bronze, tmp_path / "lake"))
    with Proxy(store_server, loses=every_second_put()) as proxy:
        use(monkeypatch, proxy.endpoint)
        assert statuses(run(lakes.trades(bronze, f"{bucket}/lake"))) == ["written"] * 2
    for day in (8, 9):
        name = f"silver/trades/{leaf(day)}/part-0.parquet"
        assert objects.read(f"{bucket}/lake/{name}") == (tmp_path / "lake" / name).read_bytes()


def test_damage_names_the_object(bronze, bucket, tmp_path):
    upload(bronze, f"{bucket}/trades")
    whole = Path(bronze, leaf(8), "a.parquet").read_bytes()
    put(f"{bucket}/trades/{leaf(8)}/a.parquet", whole[:-1_000])
    with pytest.raises(CorruptFileError, match=f"{bucket}/trades/{leaf(8)}/a.parquet: truncated") as e:
        run(lakes.trades(f"{bucket}/trades", tmp_path / "lake"))
    assert str(tmp_path / "spool") not in str(e.value)
    with pytest.raises(CorruptFileError, match="a.parquet: truncated"):
        scan_partition(discover(f"{bucket}/trades")[0], "trades")


@pytest.mark.parametrize("name, fmt", [("t.ndjson.gz", DataFormat.NDJSON), ("t.csv", DataFormat.CSV)])
def test_text_from_a_bucket(bucket, tmp_path, name, fmt):
    day = lakes.iso(tape(8))
    path = tmp_path / "text" / leaf(8) / name
    path.parent.mkdir(parents=True)
    text = day.write_ndjson() if fmt is DataFormat.NDJSON else day.write_csv()
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    upload(tmp_path / "text", f"{bucket}/text")
    for source, lake in ((tmp_path / "text", "here"), (f"{bucket}/text", "there")):
        run(lakes.trades(source, tmp_path / lake, fmt=fmt))
    assert_frame_equal(rows(tmp_path / "here"), rows(tmp_path / "there"))
    with pytest.raises(ConfigError, match="cannot be scanned where it lies"):
        scan(f"{bucket}/text", channel="trades", fmt=fmt)


def test_lines_and_files_set_aside_are_noted_by_their_addresses(bucket, tmp_path):
    lines = lakes.iso(tape(8, n=2_000)).write_ndjson().splitlines()
    lines[3] = "{broken"
    put(f"{bucket}/text/{leaf(8)}/t.ndjson", "\n".join(lines).encode())
    run(lakes.trades(f"{bucket}/text", tmp_path / "lake", fmt=DataFormat.NDJSON))
    [aside] = (tmp_path / "lake").rglob("rows.parquet")
    assert pl.read_parquet(aside)["file"].to_list() == [f"{bucket}/text/{leaf(8)}/t.ndjson"]


def test_wrong_keys_are_a_short_error(bronze, bucket, tmp_path, store_server, monkeypatch):
    upload(bronze, f"{bucket}/trades")
    said = f"<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>{CANARY}</AWSAccessKeyId></Error>".encode()
    with Proxy(store_server, answer=lambda *_: (403, said)) as proxy:
        use(monkeypatch, proxy.endpoint)
        with pytest.raises(StorageError, match="refuses access: 403.*AWS_SECRET_ACCESS_KEY") as e:
            run(lakes.trades(f"{bucket}/trades", tmp_path / "lake"))
    assert CANARY not in str(e.value)


def test_a_store_that_fails_for_longer_than_requests_are_repeated(bronze, bucket, tmp_path, store_server, monkeypatch):
    upload(bronze, f"{bucket}/trades")
    monkeypatch.setattr(buckets, "RETRIES", 0)
    left = [(503, b"<Error><Code>SlowDown</Code></Error>")] * 2
    def answer(method, path): return left.pop() if left and path.endswith("b.parquet") else None
    with Proxy(store_server, answer=answer) as proxy:
        use(monkeypatch, proxy.endpoint)
        assert statuses(run(lakes.trades(f"{bucket}/trades", tmp_path / "lake"))) == ["written"] * 2
    assert left == []


# ---------------------------------------------------------------------------------------------- scans

def test_a_scan_of_a_bucket_is_that_of_the_folder(bronze, bucket):
    lakes.put(bronze, tape(8, stream=ETH), 8, ETH)
    lakes.put(bronze, tape(8, stream=("okx", "BTC/USDT:USDT")).with_columns(x=1), 8, ("okx", "BTC%2FUSDT%3AUSDT"))
    url = upload(bronze, f"{bucket}/my data/trades")
    for kwargs in ({}, {"channel": "trades"}, {"filter_spec": FilterSpec(symbol=BTC[1], day=9)}):
        assert_frame_equal(scan(bronze, **kwargs).collect(), scan(url, **kwargs).collect(), check_column_order=True)
    assert scan(url).select("exchange", "symbol").unique().collect().height == 3


# ---------------------------------------------------------------------------------------------- lakes

@pytest.fixture
def lake(bronze, bucket, tmp_path) -> tuple[Path, str]:
    "A lake on a disk with its bronze, and the same by a run in a bucket."
    lakes.put(bronze, tape(8, stream=ETH), 8, ETH)
    here, there = tmp_path / "lake", f"{bucket}/lake"
    upload(bronze, f"{bucket}/bronze/trades")
    run(lakes.trades(bronze, here))
    run(lakes.trades(f"{bucket}/bronze/trades", there))
    return here, there


def test_a_lake_in_a_bucket_is_read_as_one_on_a_disk(lake, bronze):
    here, there = lake
    for kwargs in ({}, {"symbols": "BTC-USDT", "start": "2024-08-09"}, {"features": ["log_return"]},
                   {"start": "2024-08-08T12:00:00Z", "end": "2024-08-09T12:00:00Z"}):
        assert_frame_equal(read(here, "silver", "trades", **kwargs).collect(),
                           read(there, "silver", "trades", **kwargs).collect())
    raw = there.replace("/lake", "/bronze/")
    assert_frame_equal(read(bronze.parent, "bronze", "trades").collect(), read(raw, "bronze", "trades").collect())
    assert (dataset_names(there), dataset_names(raw)) == (["silver/trades"], ["trades"])
    with pytest.raises(InputNotFoundError, match="silver has no dataset 'tradse'.*Did you mean 'trades'"):
        read(there, "silver", "tradse")
    with pytest.raises(InputNotFoundError, match="nothing lies below"): read(f"{there}x", "silver", "trades")


def test_a_read_asks_for_footers_and_for_what_is_selected_only(lake, store_server, monkeypatch):
    _, there = lake
    with Proxy(store_server) as proxy:
        use(monkeypatch, proxy.endpoint)
        read(there, "silver", "trades", symbols="BTC-USDT", start="2024-08-09").collect()
    assert {m for m, _ in proxy.seen} <= {"GET", "HEAD"}
    asked = [p for _, path in proxy.seen if (p := unquote(path)).endswith(".parquet")]
    assert any(leaf(9) in p for p in asked)
    assert not any(leaf(8).partition("year")[2] in p or "ETH" in p for p in asked)


def test_what_is_stale_in_a_bucket_is_told(lake):
    _, there = lake
    dataset = ObjectDataset(there, "silver/trades")
    assert stale_partitions(dataset) == []
    read(there, "silver", "trades", fresh=True)
    raw = there.replace("/lake", "/bronze/trades")
    first, object_ = f"{raw}/{leaf(8)}", f"{raw}/{leaf(9)}/data.parquet"
    put(object_, b"PAR1 other PAR1")
    assert [(str(p), w) for p, w in stale_partitions(dataset)] == [(leaf(9), f"input trades: {object_} was replaced")]
    put(f"{first}/c.parquet", b"PAR1 new PAR1")
    remove(object_)
    why = {str(p): w for p, w in stale_partitions(dataset)}
    assert why == {leaf(8): f"input trades: {first}/c.parquet came", leaf(9): f"input trades: {object_} is gone"}
    with pytest.raises(StaleStateError, match=f"daedalus trades.*--output {there}"):
        read(there, "silver", "trades", fresh=True)
    read(there, "silver", "trades", symbols=ETH[1], fresh=True)


def test_a_lake_on_a_disk_knows_its_inputs_in_a_bucket(bronze, bucket, tmp_path):
    url = upload(bronze, f"{bucket}/trades")
    run(lakes.trades(url, tmp_path / "lake"))
    dataset = Dataset(str(tmp_path / "lake"), "silver/trades")
    assert stale_partitions(dataset) == []
    put(f"{url}/{leaf(8)}/a.parquet", b"PAR1 other PAR1")
    [(partition, why)] = stale_partitions(dataset)
    assert (str(partition), why) == (leaf(8), f"input trades: {url}/{leaf(8)}/a.parquet was replaced")
    with pytest.raises(StaleStateError, match=f"--input {url}"): read(tmp_path / "lake", "silver", "trades", fresh=True)


def test_what_was_made_before_its_beginning_is_gone_is_stale(lake):
    _, there = lake
    remove(f"{there}/silver/trades/{leaf(8)}/part-0.parquet")
    [(partition, why)] = stale_partitions(ObjectDataset(there, "silver/trades"))
    assert str(partition) == leaf(9) and "the partition before it" in why


# ---------------------------------------------------------------------------------------------- other stores

def test_a_run_reads_what_fsspec_reaches(bronze, tmp_path):
    url = upload(bronze, f"memory://{tmp_path.name}/trades")
    run(lakes.trades(bronze, tmp_path / "here"))
    run(lakes.trades(url, tmp_path / "there"))
    assert_frame_equal(rows(tmp_path / "here"), rows(tmp_path / "there"))
    with pytest.raises(ConfigError, match="cannot be scanned where they lie"): scan(url)
