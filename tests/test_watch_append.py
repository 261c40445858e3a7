"""The running day grows by appended files: after each of them silver holds, bit for bit, the rows of a batch run over
the same bronze, and sealed its bytes."""
import random
import signal
import time
from collections import Counter
from pathlib import Path

import lakes
import polars as pl
import polars.selectors as cs
import pytest
from lakes import BTC, cli, quotes, tape
from test_interrupt import data
from test_watch import KILLS, PATIENCE_S, batch, by_cli, done, executor, pieces, pipeline, publish, start, visible

import daedalus_etl.core.unit as unit
import daedalus_etl.run.append as append
from daedalus_etl.core.errors import ConfigError, StaleStateError
from daedalus_etl.run.watch import Watch, watch
from daedalus_etl.storage.commit import Dataset
from daedalus_etl.storage.fresh import check_fresh

SAMPLES = Path(__file__).resolve().parents[1] / "data_samples" / "bronze"


def bits(root: Path) -> pl.DataFrame:
    "All rows below `root`, in order; floats as the integers of their bits, where there is a value."
    def of(s: pl.Series) -> pl.Series:
        values = s.to_numpy()
        return pl.Series(s.name, values.view(f"i{values.dtype.itemsize}")).set(s.is_null(), None)
    found = lakes.dataset(root)
    return found.with_columns(of(found[c]) for c in found.select(cs.float()).columns)


def same(lake: Path, other: Path, tier: str = "silver") -> bool:
    "Whether the datasets of the tier have the same rows."
    found = sorted(p.relative_to(other) for p in (other / tier).glob("*"))
    pairs = [(bits(lake / p), bits(other / p)) for p in found]
    return bool(pairs) and all(a.height > 0 and a.schema == b.schema and a.equals(b) for a, b in pairs)


def names(lake: Path) -> list[str]: return [p.name for p in sorted((lake / "silver").rglob("*.parquet"))]


def reasons(updates) -> list[str]:
    return [u.reason for update in updates for u in (update.report.units if update.report else ())]


def growing(bronze: Path, lake: Path, transform=None) -> Watch:
    "A watcher that has seen the first file of the day, and the second."
    publish(bronze, tape(8, n=60)[:20], 8, name="part-0.parquet")
    watcher = Watch(executor(), transform or lakes.trades(bronze, lake), append=True)
    done(watcher)
    publish(bronze, tape(8, n=60)[20:40], 8)
    assert reasons(done(watcher)) == ["begun"]
    return watcher


def as_batch(bronze: Path, lake: Path, other: Path) -> None:
    "Silver is what a batch run makes of the bronze there is."
    lakes.run(lakes.trades(bronze, other))
    assert same(lake, other)


# ---- the same rows

def test_after_every_file_the_rows_are_those_of_a_batch_run(tmp_path):
    "Trades and quotes of two streams over three days, file after file; bars follow, and days are sealed as they end."
    bronze, lake, other = tmp_path / "bronze", tmp_path / "lake", tmp_path / "batch"
    files = [("trades", *p) for p in pieces(n=60, each=25)]
    for day in (8, 9, 10):
        both = quotes(day, n=60)
        files += [("ticker", both[i:i + 30], day, BTC, f"part-{i:05}.parquet") for i in range(0, both.height, 30)]
    files.sort(key=lambda f: (f[2], f[4]))
    turns = [files[i:i + 3] for i in range(0, len(files), 3)]
    for channel, *where in turns.pop(0): publish(bronze / channel, *where)
    watcher, told = Watch(executor(), pipeline(bronze, lake), append=True), []
    done(watcher)
    for turn in turns:
        for channel, *where in turn: publish(bronze / channel, *where)
        told += done(watcher)
        pipeline(bronze, other).run(executor=executor())
        assert same(lake, other) and same(lake, other, "gold")
    assert not any(u.error for u in told) and not any(f.appender.error for f in watcher.followers if f.appender)
    seen = Counter(reasons(told))
    assert seen["appended"] >= 6 and seen["begun"] >= 3 and not [r for r in seen if r.startswith("begun anew")]
    assert any(n != "part-0.parquet" for n in names(lake))
    append.close_all(watcher.followers)
    told = done(watcher)
    assert set(names(lake)) == {"part-0.parquet"} and data(lake) == batch(bronze, other)
    assert lakes.leftovers(lake) == []


def cut(channel: str, stream: str, day: int, k: int, n: int) -> pl.DataFrame:
    "The sample's rows from the day's start to its 180th book, the k-th of n parts of them."
    path = next((SAMPLES / channel).glob(f"*/symbol={stream}/year=2026/month=01/day={day}/*.parquet"))
    rows, book = (pl.read_parquet(p, hive_partitioning=False) for p in (path, str(path).replace(channel, "orderbook")))
    edge = book["capture_ts"][:180]
    start = edge[0].replace(hour=0, minute=0, second=0, microsecond=0)
    edges = [start, *(edge[i * 180 // n] for i in range(1, n)), edge[-1]]
    return rows.filter(pl.col("capture_ts") >= edges[k], pl.col("capture_ts") < edges[k + 1])


def come(bronze: Path, channel: str, stream: str, day: int, k: int, n: int = 6) -> None:
    rows = cut(channel, stream, day, k, n)
    place = bronze / channel / f"exchange=simulated/symbol={stream}/year=2026/month=01/day={day}"
    place.mkdir(parents=True, exist_ok=True)
    if rows.height: rows.write_parquet(place / f".{k}")
    if rows.height: (place / f".{k}").rename(place / f"part-{k}.parquet")


def test_books_with_trades(tmp_path):
    "Trades wait for their books; one that comes after a later book was computed has the day begin anew."
    bronze, lake, other = tmp_path / "bronze", tmp_path / "lake", tmp_path / "batch"
    for s in ("BTC-USDT", "ETH-USDT"): come(bronze, "trades", s, 14, 0), come(bronze, "orderbook", s, 14, 0)
    watcher, told = Watch(executor(), pipeline(bronze, lake).select("orderbook"), append=True), []
    done(watcher)
    for day, k in [(14, 1), (14, 2), (14, 3), (15, 0), (15, 1), (15, 2), (15, 3)]:
        for s in ("BTC-USDT", "ETH-USDT"): come(bronze, "trades", s, day, k)
        if (day, k) == (14, 2): assert done(watcher) == []          # no book, nothing to compute yet
        for s in ("BTC-USDT", "ETH-USDT"): come(bronze, "orderbook", s, day, k)
        told += done(watcher)
        pipeline(bronze, other).select("orderbook").run(executor=executor())
        assert same(lake, other)
    assert Counter(reasons(told))["appended"] == 8 and watcher.followers[0].appender.error is None
    come(bronze, "orderbook", "BTC-USDT", 15, 4)
    assert reasons(done(watcher)) == ["appended"]
    come(bronze, "trades", "BTC-USDT", 15, 4)                       # too late
    assert reasons(done(watcher)) == ["begun anew: rows came that are not later than those before them"]
    pipeline(bronze, other).select("orderbook").run(executor=executor())
    assert same(lake, other)
    append.close_all(watcher.followers)
    done(watcher)
    assert data(lake) == data(other)


# ---- what is not plain

def test_a_late_file_has_the_day_begin_anew(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    watcher = growing(bronze, lake)
    publish(bronze, tape(8, n=60)[50:], 8, name="part-2.parquet")
    assert reasons(done(watcher)) == ["appended"] and len(names(lake)) == 2
    publish(bronze, tape(8, n=60)[40:50], 8, name="part-3.parquet")
    assert reasons(done(watcher)) == ["begun anew: rows came that are not later than those before them"]
    assert len(names(lake)) == 1
    as_batch(bronze, lake, tmp_path / "batch")


def test_what_a_batch_would_see_across_files_is_not_appended(tmp_path):
    "The id of a trade of hours before; a clock that is the last one's; rows that are set aside; another column."
    bronze, lake, base = tmp_path / "bronze", tmp_path / "lake", tape(8, n=60)
    watcher = growing(bronze, lake)
    def comes(rows, k, why):
        publish(bronze, rows, 8, name=f"part-{k}.parquet")
        [said] = reasons(done(watcher))
        assert why in said
        as_batch(bronze, lake, tmp_path / "batch")
    again = base[3].with_columns(base[45]["capture_ts"])         # the same trade, told once more hours later
    comes(pl.concat([again, base[46]]), 2, "whose id was there before")
    comes(base[46:48].with_columns(trade_id=pl.Series(["77", "78"])), 3, "not later")
    bad = base[48:60].with_columns(price=pl.when(pl.int_range(pl.len()) == 4).then(-1.0).otherwise("price"))
    publish(bronze, bad, 8, name="part-4.parquet")      # one in some thirty: more than may be set aside
    [update] = done(watcher)
    assert update.error is not None and update.written == 0 and watcher.followers[0].appender.error is not None
    publish(bronze, base[48:60], 8, name="part-4.parquet")
    assert reasons(done(watcher)) == ["appended while watched"]         # what failed is up to the executor
    as_batch(bronze, lake, tmp_path / "batch")
    comes(base[60:70], 5, "begun")
    comes(base[70:80].with_columns(venue=pl.lit("x")), 6, "begun anew: its columns are not those")
    comes(base[80:90].with_columns(venue=pl.lit("x")), 7, "appended")


def test_files_that_go_or_are_replaced(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    watcher = growing(bronze, lake)
    path = publish(bronze, tape(8, n=60)[20:30], 8)
    assert reasons(done(watcher)) == ["begun anew: a file was replaced, or is gone"]
    as_batch(bronze, lake, tmp_path / "batch")
    path.unlink()
    assert reasons(done(watcher)) == ["begun anew: a file was replaced, or is gone"]
    as_batch(bronze, lake, tmp_path / "batch")


def test_a_file_into_the_day_before_changes_both(tmp_path):
    "The executor computes them, the running one sealed; the next file begins it again."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    watcher = growing(bronze, lake)
    for k, rows in enumerate((tape(9, n=60)[:20], tape(9, n=60)[20:40], tape(9, n=60)[40:60])):
        publish(bronze, rows, 9, name=f"part-{k}.parquet")
        done(watcher)
    assert len(names(lake)) == 3
    publish(bronze, tape(8, n=60)[40:], 8, name="part-9.parquet")
    [update] = done(watcher)
    assert [u.status for u in update.report.units] == ["written", "written"] and names(lake) == ["part-0.parquet"] * 2
    as_batch(bronze, lake, tmp_path / "batch")
    assert data(lake) == data(tmp_path / "batch")
    publish(bronze, tape(9, n=60)[60:], 9, name="part-9.parquet")
    assert reasons(done(watcher)) == ["begun"]
    as_batch(bronze, lake, tmp_path / "batch")


# ---- other programs

def test_a_batch_run_takes_the_day_for_stale_and_computes_it(tmp_path):
    "Without --replace; the watcher goes on from what it finds then."
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    watcher = growing(bronze, lake)
    publish(bronze, tape(8, n=60)[40:60], 8, name="part-2.parquet")
    done(watcher)
    assert len(names(lake)) == 2
    for n in (1, 2):                            # one appended file, and two
        plan = executor().plan(lakes.trades(bronze, lake))
        assert [(u.status, u.reason) for u in plan.units] == [("stale", "appended while watched")]
        with pytest.raises(StaleStateError, match="not sealed"): check_fresh(Dataset(str(lake), "silver/trades"))
        assert lakes.statuses(lakes.run(lakes.trades(bronze, lake))) == ["written"]
        assert names(lake) == ["part-0.parquet"] and lakes.statuses(lakes.run(lakes.trades(bronze, lake))) == ["done"]
        lakes.run(lakes.trades(bronze, tmp_path / "batch"))
        assert data(lake) == data(tmp_path / "batch")
        check_fresh(Dataset(str(lake), "silver/trades"))
        publish(bronze, tape(8, n=60)[60 + n * 10:70 + n * 10], 8, name=f"part-{n + 2}.parquet")
        assert reasons(done(watcher)) == ["begun anew: somebody else wrote to its output"]
        as_batch(bronze, lake, tmp_path / "batch")
    assert cli("verify", lake).returncode == 0


def test_a_reader_finds_each_row_once_at_all_times(tmp_path, monkeypatch):
    "Whatever is there between two steps of a commit: rows rise from file to file, and sealing changes none."
    import daedalus_etl.storage.disk as disk
    bronze, lake, counts = tmp_path / "bronze", tmp_path / "lake", []
    def looking(real):
        def call(*args):
            real(*args)
            found = sorted((lake / "silver").rglob("*.parquet"))
            if found: counts.append(pl.concat(pl.read_parquet(p, columns=["trade_id"]) for p in found))
        return call
    for name in ("rename", "exchange"): monkeypatch.setattr(disk, name, looking(getattr(disk, name)))
    watcher = growing(bronze, lake)
    for k in (4, 5, 6, 7):
        publish(bronze, tape(8, n=60)[k * 10:k * 10 + 10], 8, name=f"part-{k}.parquet")
        done(watcher)
    append.close_all(watcher.followers)
    done(watcher)
    assert names(lake) == ["part-0.parquet"]
    assert all(c["trade_id"].is_unique().all() for c in counts)
    assert [c.height for c in counts] == sorted(c.height for c in counts) and counts[-1].height == 80


def test_somebody_elses_file_is_left_alone(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    watcher = growing(bronze, lake)
    mine = next((lake / "silver").rglob("*.parquet")).with_name("mine.parquet")
    mine.write_bytes(next((lake / "silver").rglob("*.parquet")).read_bytes())
    publish(bronze, tape(8, n=60)[40:60], 8, name="part-2.parquet")
    [update] = done(watcher)
    assert update.error is not None and "mine.parquet" in str(update.error) and mine.exists()


# ---- what it costs

def test_a_file_costs_its_own_rows_however_long_the_day(tmp_path, monkeypatch):
    "Counted are the rows of all files that are read for it."
    bronze, lake, read = tmp_path / "bronze", tmp_path / "lake", []
    watcher = growing(bronze, lake)
    for module in (unit, append):
        real = module.scan_partition
        def scan(pf, *args, real=real, **kwargs):
            read.append(pf)
            return real(pf, *args, **kwargs)
        monkeypatch.setattr(module, "scan_partition", scan)
    for k in range(20):
        at = tape(8, n=60)["capture_ts"][39].timestamp() % 86_400 + 1 + k * 10
        read.clear()
        publish(bronze, tape(8, seconds=[at + i for i in range(10)]).with_columns(
            trade_id=pl.concat_str(pl.lit(f"{k}-"), "trade_id")), 8, name=f"part-{k + 2:02}.parquet")
        [update] = done(watcher)
        assert [(u.reason, u.rows_in, u.rows) for u in update.report.units] == [("appended", 10, {"silver": 10})]
        assert [len(pf.files) for pf in read] == [1, 1]     # for their clocks, and to be computed
    as_batch(bronze, lake, tmp_path / "batch")


# ---- the end

def test_sealed_at_the_end_and_by_the_clock(tmp_path, monkeypatch):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    watcher = growing(bronze, lake)
    assert done(watcher) == []
    monkeypatch.setattr(append, "SEAL_S", 0.0)              # the day is long over
    assert reasons(done(watcher)) == ["appended while watched"] and names(lake) == ["part-0.parquet"]
    lakes.run(lakes.trades(bronze, tmp_path / "batch"))
    assert data(lake) == data(tmp_path / "batch")
    assert done(watcher) == []


def wait_for(child, words: str) -> None:
    "Read what a watcher says until it says `words`."
    for line in child.stdout:
        if words in line: return
    raise AssertionError(child.stderr.read())


@pytest.mark.parametrize("seal", [False, True])
def test_the_command(tmp_path, seal):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    publish(bronze / "trades", tape(8, n=60)[:30], 8, name="part-0.parquet")
    child = start(bronze, lake, "--append", *(["--seal"] if seal else []))
    assert child.stdout.readline().startswith("watching") and child.stdout.readline() == "appending trades\n"
    wait_for(child, "trades_bars: ")
    publish(bronze / "trades", tape(8, n=60)[30:60], 8)
    wait_for(child, "trades_bars: ")
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, err
    assert (names(lake) == ["part-0.parquet"]) is seal
    whole = by_cli(bronze, tmp_path / "batch")
    if seal: assert data(lake) == whole
    assert same(lake, tmp_path / "batch")


def test_what_cannot_append_says_so(tmp_path):
    bronze, lake = tmp_path / "bronze", tmp_path / "lake"
    publish(bronze, tape(8), 8)
    with pytest.raises(ConfigError, match="no step can append"):
        Watch(executor(), lakes.bars(bronze, lake), append=True)
    with pytest.raises(ConfigError, match="once"): watch(executor(), lakes.trades(bronze, lake), append=True, once=True)
    with pytest.raises(ConfigError, match="seal"): Watch(executor(), lakes.trades(bronze, lake), seal=True)


def test_killed_at_random_and_sealed(tmp_path):
    "SIGKILL, and started again; files come all the while, most of them in order."
    bronze, lake, dice, seen = tmp_path / "bronze", tmp_path / "lake", random.Random(7), Counter()
    files = sorted(pieces(days=(8, 9), streams=(BTC,), n=60, each=2), key=lambda f: (f[1], f[3]), reverse=True)
    for i in range(0, len(files) - 1, 9): files[i], files[i + 1] = files[i + 1], files[i]      # some late ones
    kills = KILLS // 2
    a_round = len(files) // (kills + 2)
    def feed(n):
        for _ in range(min(n, len(files))):
            frame, *where = files.pop()
            publish(bronze / "trades", frame, *where)
    feed(a_round)
    for _ in range(kills):
        child = start(bronze, lake, "--append")
        wait_for(child, "trades_bars: ")                # what came before it has been computed
        feed(1)
        wait_for(child, "trades_bars: ")                # and the day begun
        give_up = time.monotonic() + dice.uniform(0.0, 1.5)
        for _ in range(a_round - 2):
            if time.monotonic() < give_up: time.sleep(dice.uniform(0, 0.3))
            feed(1)
        time.sleep(max(0.0, give_up - time.monotonic()))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        feed(1)                                         # so that the next one has something to compute
        seen["stage"] += bool(lakes.leftovers(lake))
        seen["grown"] += any(n != "part-0.parquet" for n in names(lake))
        for p in visible(lake): assert pl.read_parquet(p).height         # readers see whole files alone
    feed(len(files))
    last = start(bronze, lake, "--once")
    said, err = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, err
    whole = by_cli(bronze, tmp_path / "batch")
    assert set(names(lake)) == {"part-0.parquet"} and data(lake) == whole and lakes.leftovers(lake) == []
    print(f"\n{kills} kills: {dict(seen)}")
    assert seen["grown"] >= kills // 5, seen
