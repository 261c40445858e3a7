"Files of Tardis, Binance and LOBSTER: each value against the one in the file, read the slow way, and their traps."
import csv
import gzip
import io
import random
import shutil
import zipfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from conftest import ROOT

from daedalus_etl.core.errors import ConfigError, ConflictError, CorruptFileError, SchemaError, TimeUnitError
from daedalus_etl.sources import binance_files, lobster, tardis
from daedalus_etl.sources.importer import import_files
from daedalus_etl.sources.inspect import inspect_file
from daedalus_etl.sources.source import BAD, FORMATS, Batch, Head, Options, format_of
from daedalus_etl.storage.contract import contract_for

RAW = ROOT.parent / "shared" / "data" / "raw"
ALL = [format_of(name) for name in FORMATS]
OURS = (tardis.FORMAT, binance_files.FORMAT, lobster.FORMAT)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def raw():
    if not RAW.is_dir(): pytest.skip("original files (../shared/data/raw) are not on this machine")
    return RAW


def batches(path, options=Options(), kind=None) -> list[Batch]:
    "All batches of a file by the one format that claims it; each is checked against the contract."
    head = Head.of(path)
    claims = {f: kind or k for f in ALL if (k := f.looks_like(head))}
    assert len(claims) == 1, claims
    (fmt, kind), = claims.items()
    out = list(fmt.read(path, kind, options))
    for b in out:
        schema = contract_for(b.channel).schema | {"row": pl.Int64()}
        assert dict(b.frame.schema).items() <= schema.items(), set(b.frame.schema.items()) - set(schema.items())
        assert {"row", "capture_ts", "exchange", "symbol"} <= set(b.frame.columns)
        assert b.bad is None or dict(b.bad.schema) == {k: t() for k, t in BAD.items()}
        assert b.frame["row"].is_sorted()
    return out


def frame(path, options=Options(), channel=None, kind=None) -> pl.DataFrame:
    return pl.concat([b.frame for b in batches(path, options, kind) if channel in (None, b.channel)])


def aside(path, options=Options()) -> list[tuple]:
    bad = [b.bad for b in batches(path, options) if b.bad is not None]
    return sorted(pl.concat(bad).select("row", "reason").rows())


def records(path):
    with open(path, newline="") as f: yield from enumerate(csv.DictReader(f), 2)


def us(text): return EPOCH + timedelta(microseconds=int(text))


def pairs(side): return [(x["price"], x["size"]) for x in side]


# ---- the samples, every row of them

def common_of(row, r):
    return {"row": row, "collected_at": int(r["local_timestamp"]) // 1000, "capture_ts": us(r["local_timestamp"]),
            "exchange": r["exchange"], "symbol": r["symbol"], "timestamp": int(r["timestamp"]) // 1000}


def test_tardis_trades(raw):
    path = raw / "tardis/bitmex_trades_XBTUSD.csv"
    got = frame(path).to_dicts()
    assert got == [common_of(n, r) | {"side": r["side"], "price": float(r["price"]), "amount": float(r["amount"]),
                                      "trade_id": r["id"]} for n, r in records(path)]
    assert len(got) == 10 and got[0] == {
        "row": 2, "collected_at": 1583020803307, "capture_ts": datetime(2020, 3, 1, 0, 0, 3, 307160, UTC),
        "exchange": "bitmex", "symbol": "XBTUSD", "timestamp": 1583020803145, "side": "sell", "price": 8531.5,
        "amount": 2152.0, "trade_id": "ccc3c1fa-212c-e8b0-1706-9b9c4f3d5ecf"}


def test_tardis_quotes(raw):
    path = raw / "tardis/huobi-dm-swap_quotes_BTC-USD.csv"
    got = frame(path).to_dicts()
    assert got == [common_of(n, r) | {"bid": float(r["bid_price"]), "ask": float(r["ask_price"]), "bid_volume":
                   float(r["bid_amount"]), "ask_volume": float(r["ask_amount"])} for n, r in records(path)]
    assert [(g["bid"], g["bid_volume"], g["ask"], g["ask_volume"]) for g in (got[0], got[-1])] == [
        (8629.2, 806.0, 8629.3, 5494.0), (8629.2, 847.0, 8629.3, 5411.0)]


@pytest.mark.parametrize("depth", [1, 3, 50])
@pytest.mark.parametrize("n", [5, 25])
def test_tardis_snapshots(raw, n, depth):
    path = raw / f"tardis/binance-futures_book_snapshot_{n}_BTCUSDT.csv"
    got, levels = frame(path, Options(depth=depth)), range(min(n, depth))
    assert got.drop("bids", "asks").to_dicts() == [common_of(k, r) for k, r in records(path)]
    for side in ("bids", "asks"):
        assert [pairs(s) for s in got[side]] == [
            [(float(r[f"{side}[{i}].price"]), float(r[f"{side}[{i}].amount"])) for i in levels]
            for _, r in records(path)]
    assert pairs(got["asks"][0])[0] == (11657.08, 1.714) and pairs(got["bids"][9])[0] == (11657.07, 10.881)


def test_tardis_incremental(raw):
    path = raw / "tardis/deribit_incremental_book_L2_BTC-PERPETUAL.csv"
    got = frame(path)
    assert got.height == 1 and got["row"].item() == 16 and got["bids"].to_list() == [[]]
    assert got["capture_ts"].item() == datetime(2020, 4, 1, 0, 0, 0, 355684, UTC)
    assert got["timestamp"].item() == 1585699200245
    assert pairs(got["asks"][0]) == [
        (6421.5, 18640), (6422, 1190), (6422.5, 1080), (6423, 1400), (6423.5, 6630), (6424, 37070), (6424.5, 120),
        (6425, 51280), (6425.5, 61770), (6426, 3500), (6426.5, 16340), (6427, 22510), (6427.5, 45550), (6428, 10460),
        (6428.5, 39950)]
    assert pairs(frame(path, Options(depth=2))["asks"][0]) == [(6421.5, 18640), (6422, 1190)]


def test_binance_2018(raw):
    path = raw / "binance/aggtrades_2018.csv"
    got, told = frame(path, Options(symbol="BTCUSDT")), list(records(path))
    sides, when = {"b": "sell", "s": "buy"}, [datetime.fromisoformat(r["time"] + "+00:00") for _, r in told]
    ids = {i for _, r in told for i in range(int(r["first_trade_ID"]), int(r["last_trade_ID"]) + 1)}
    assert got["trade_id"].to_list() == [r["aggregate_ID"] for _, r in told] and got.height == 500
    assert got["capture_ts"].to_list() == when and got["side"].to_list() == [sides[r["buy_or_sell"]] for _, r in told]
    assert got["price"].to_list() == [float(r["price"]) for _, r in told]
    assert got["amount"].to_list() == [float(r["amount"]) for _, r in told]
    assert got["seq_gap"].sum() == max(ids) - min(ids) + 1 - len(ids)
    assert got.select("exchange", "symbol").unique().rows() == [("binance", "BTCUSDT")]
    with pytest.raises(ConfigError, match="Name the symbol"): batches(path)


def test_binance_2018_names_the_maker(raw):
    "Takers buy at the ask and sell at the bid, so the price falls when a sell comes and rises when a buy comes."
    got = frame(raw / "binance/aggtrades_2018.csv", Options(symbol="BTCUSDT"))
    up = got.select("side", up=pl.col("price").diff().sign()).filter(pl.col("up").abs() == 1)
    share = dict(up.group_by("side").agg((pl.col("up") > 0).mean()).rows())
    assert share["buy"] > 0.7 and share["sell"] < 0.25


# ---- books from changes, against dictionaries

def naive_books(rows, depth):
    "Books and unused rows of one symbol's (row, time, snapshot, side, price, amount), the whole file at hand."
    out, lost, book, was = [], [], None, False
    for i, (row, at, snap, side, price, amount) in enumerate(rows):
        if snap and not was: book = {"bid": {}, "ask": {}}
        was = snap
        if book is None: lost.append(row)
        elif amount == 0: book[side].pop(price, None)
        else: book[side][price] = amount
        following = rows[i + 1] if i + 1 < len(rows) else None
        over = following is None or following[1] != at
        if book is not None and over and not (snap and following and following[2]):
            out.append((row, sorted(book["bid"].items(), reverse=True)[:depth], sorted(book["ask"].items())[:depth]))
    return out, lost


CHANGES = ",".join([*tardis.FIRST, *tardis.COLUMNS["incremental_book_L2"]])


def changes(seed, symbols, n):
    "Lines of a grouped file; snapshots come in the middle, too, some in two messages."
    rng, at, lines = random.Random(seed), 1_585_699_200_000_000, []
    for _ in range(n):
        at += rng.randint(1, 300_000)
        symbol, snap = rng.choice(symbols), rng.random() < 0.1
        for _ in range(rng.randint(1, 5)):
            amount = rng.choice([0, 1, 2.5, 7])
            lines.append((symbol, at, snap, rng.choice(["bid", "ask"]), 100 + rng.randint(0, 9) / 2, amount))
    return [(k, *line) for k, line in enumerate(lines, 2)]


def put_changes(path, lines):
    path.write_text("\n".join([CHANGES, *(f"okex,{s},{t - 5000},{t},{str(snap).lower()},{side},{p},{q}"
                                       for _, s, t, snap, side, p, q in lines)]) + "\n")
    return path


@pytest.mark.parametrize(("batch_rows", "n"), [(1, 25), (2, 40), (7, 80), (100, 300), (50_000, 300)])
@pytest.mark.parametrize("seed", range(3))
def test_replay_is_the_naive_one(tmp_path, seed, batch_rows, n):
    symbols = ["A", "B", "C"][:1 + seed]
    lines = changes(seed, symbols, n)
    path = put_changes(tmp_path / "okex_incremental_book_L2.csv", lines)
    got, lost = frame(path, Options(depth=3, batch_rows=batch_rows)), aside(path, Options(batch_rows=batch_rows))
    unused = []
    for symbol in symbols:
        expected, unknown = naive_books([(k, *rest) for k, s, *rest in lines if s == symbol], 3)
        one = got.filter(pl.col("symbol") == symbol)
        assert [(r, pairs(b), pairs(a)) for r, b, a in one.sort("row").select("row", "bids", "asks").rows()] == expected
        unused += unknown
    assert lost == [(row, "book_unknown") for row in sorted(unused)]
    when = {row: t for row, _, t, *_ in lines}
    assert all(us(when[r]) == t for r, t in got.select("row", "capture_ts").rows())


@pytest.mark.parametrize("every_ms", [1, 100, 1000])
def test_books_are_thinned_alike_however_the_file_is_cut(tmp_path, every_ms):
    path = put_changes(tmp_path / "okex_incremental_book_L2.csv", changes(9, ["A"], 60))
    thin = [frame(path, Options(every_ms=every_ms, batch_rows=n)) for n in (3, 8, 1000)]
    assert thin[0].equals(thin[1]) and thin[0].equals(thin[2])
    whole, last, kept = frame(path), None, []
    for row, at in whole.select("row", "capture_ts").rows():
        if last is not None and at - last < timedelta(milliseconds=every_ms): continue
        kept, last = [*kept, row], at
    assert thin[0]["row"].to_list() == kept and (len(kept) < whole.height or every_ms == 1)
    assert whole.join(thin[0], on="row", how="semi").equals(thin[0])


@pytest.mark.parametrize(("fault", "reason"), [
    ("okex,A,1585699200300000,1585699200300000,false,bid,1", "ragged_line"),
    ("okex,A,1585699200300000,1585699200300000,maybe,bid,1,1", "bad_cell"),
    ("okex,A,1585699200300000,1585699200300000,false,buy,1,1", "unknown_side"),
    ("okex,A,1585699200300000,1585699200300000,false,bid,-1,1", "bad_price"),
    ("okex,A,1585699200300000,1585699200300000,false,bid,nan,1", "bad_price"),
    ("okex,A,1585699200300000,1585699200300000,false,bid,1,-2", "bad_size"),
    ("okex,A,1585699200300000,1585699200300000,false,bid,,2", "bad_price")])
@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_a_fault_makes_the_book_unknown_until_a_snapshot(tmp_path, fault, reason, batch_rows):
    at = [f"okex,A,1585699200{ms}000,1585699200{ms}000,{r}" for ms, r in [
        (100, "true,bid,100,1"), (100, "true,ask,101,1"), (200, "false,bid,99,2"), (250, "false,bid,98,2"),
        (400, "false,ask,101,5"), (500, "true,bid,97,1"), (600, "false,ask,102,1")]]
    path = tmp_path / "okex_incremental_book_L2.csv"
    path.write_text("\n".join([CHANGES, *at[:4], fault, *at[4:]]))
    found, unreadable = aside(path, Options(batch_rows=batch_rows)), reason in ("ragged_line", "bad_cell")
    # an unreadable line may belong to the message before it
    assert found == [*([(5, "book_unknown")] if unreadable else []), (6, reason), (7, "book_unknown")]
    got = frame(path, Options(batch_rows=batch_rows))
    assert got["row"].to_list() == [3, 4, *([] if unreadable else [5]), 8, 9]
    assert pairs(got["bids"][-1]) == [(97, 1)] and pairs(got["asks"][-1]) == [(102, 1)]


def test_another_symbols_fault_is_not_ours(tmp_path):
    at = 1585699200100000
    rows = [f"okex,{s},{at},{at},{r}" for s, r in [
        ("A", "true,bid,100,1"), ("B", "true,bid,7,1"), ("B", "false,bid,0,1"), ("A", "false,bid,99,2")]]
    path = tmp_path / "okex_incremental_book_L2.csv"
    path.write_text("\n".join([CHANGES, *rows]))
    assert frame(path).select("symbol", "row").rows() == [("A", 5)]
    assert aside(path) == [(3, "book_unknown"), (4, "bad_price")]


# ---- Binance, every kind

MS, US = 1_704_067_200_123, 1_735_689_600_123_456
BINANCE = {
    "BTCUSDT-trades-2024-01-01.csv": (
        None, [f"10,42283.58,0.00057,24.1016406,{MS},True,True", f"11,42283.59,1e-05,0.4228359,{MS + 1},False,True",
               f"14,42283.6,2,84567.2,{MS + 2},True,True"],
        dict(exchange="binance", trade_id=["10", "11", "14"], side=["sell", "buy", "sell"],
             timestamp=[MS, MS + 1, MS + 2], price=[42283.58, 42283.59, 42283.6],
             amount=[0.00057, 1e-05, 2.0], cost=[24.1016406, 0.4228359, 84567.2], seq_gap=[None, 0, 2])),
    "BTCUSDT-trades-2025-01-01.csv": (
        None, [f"10,93576.0,0.5,46788.0,{US},true,true"],
        dict(exchange="binance", capture_ts=[us(US)], timestamp=[US // 1000], side=["sell"], amount=[0.5])),
    "BTCUSDT-aggTrades-2024-01-01.csv": (
        None, [f"7,42283.58,0.3,100,102,{MS},True,True", f"8,42283.58,0.1,103,103,{MS},False,True",
               f"10,42283.6,0.1,106,107,{MS},False,True"],
        dict(exchange="binance", trade_id=["7", "8", "10"], side=["sell", "buy", "buy"], seq_gap=[None, 0, 2])),
    "ETHUSDT-aggTrades-2024-01.csv": (
        "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker",
        [f"7,2283.58,0.3,100,102,{MS},true", f"9,2283.59,0.4,103,109,{MS},false"],
        dict(exchange="binance-futures", symbol=["ETHUSDT"] * 2, side=["sell", "buy"], seq_gap=[None, 0])),
    "BTCUSDT-trades-2024-01-02.csv": (
        "id,price,qty,quote_qty,time,is_buyer_maker", [f"4363,42313.9,0.076,3215.8564,{MS},true"],
        dict(exchange="binance-futures", trade_id=["4363"], cost=[3215.8564], amount=[0.076])),
    "BTCUSD_PERP-trades-2024-01-01.csv": (
        "id,price,qty,base_qty,time,is_buyer_maker", [f"7,42313.9,10,0.02363290,{MS},false"],
        dict(exchange="binance-delivery", symbol=["BTCUSD_PERP"], amount=[0.0236329], contracts=[10.0], side=["buy"],
             contract_type=["inverse"])),
    "BTCUSDT-bookTicker-2023-03-09.csv": (
        "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time",
        [f"254,21700.1,3.2,21700.2,0.8,{MS},{MS + 5}", f"255,21700.0,3.3,21700.2,0.7,{MS},{MS + 6}"],
        dict(exchange="binance-futures", bid=[21700.1, 21700.0], bid_volume=[3.2, 3.3], ask=[21700.2] * 2,
             ask_volume=[0.8, 0.7], timestamp=[MS, MS])),
    "BTCUSDT-bookDepth-2023-01-01.csv": (
        "timestamp,percentage,depth,notional", ["2023-01-01 00:00:08,-5.00,7265.7,118365462.1",
                                                "2023-01-01 00:00:08,0.20,912.5,15088331.5"],
        dict(name=["depth_-5", "notional_-5", "depth_0.2", "notional_0.2"], timestamp=[1672531208000] * 4,
             value=[7265.7, 118365462.1, 912.5, 15088331.5], row=[2, 2, 3, 3])),
    "BTCUSDT-metrics-2024-01-01.csv": (
        "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
        "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio",
        ["2024-01-01 00:05:00,BTCUSDT,78117.3,3302415021.2,1.6,,1.9,0.8"],
        dict(name=["open_interest", "open_interest_value", "count_toptrader_long_short_ratio", "count_long_short_ratio",
                   "sum_taker_long_short_vol_ratio"], value=[78117.3, 3302415021.2, 1.6, 1.9, 0.8])),
    "BTCUSDT-fundingRate-2024-01.csv": (
        "calc_time,funding_interval_hours,last_funding_rate", [f"{MS},8,-0.00037409"],
        dict(name=["funding_rate"], value=[-0.00037409], exchange=["binance-futures"])),
}


def text_of(name):
    header, rows, _ = BINANCE[name]
    return "\n".join([*([header] if header else []), *rows]) + "\n"


@pytest.mark.parametrize("batch_rows", [1, 50_000])
@pytest.mark.parametrize("name", BINANCE)
def test_binance(tmp_path, name, batch_rows):
    (tmp_path / name).write_text(text_of(name))
    got, expected = frame(tmp_path / name, Options(batch_rows=batch_rows)), BINANCE[name][2]
    for column, values in expected.items():
        values = values if isinstance(values, list) else [values] * got.height
        assert got[column].to_list() == values, column


def test_binance_without_a_header_in_an_order_of_its_own(tmp_path):
    path = tmp_path / "BTCUSDT-trades-2024-01-01.csv"
    path.write_text("price,id,qty,quote_qty,time,is_buyer_maker\n42313.9,4363,0.076,3215.8564,1704067200123,true\n")
    assert binance_files.kind_of(Head.of(path)) is None


def test_binance_unknown_flag_is_an_unknown_side(tmp_path):
    path = tmp_path / "BTCUSDT-trades-2024-01-01.csv"
    path.write_text("id,price,qty,quote_qty,time,is_buyer_maker\n"
                    "1,2.5,1,2.5,1704067200123,?\n2,2.5,1,2.5,1704067200123,\n3,2.5,1,2.5,1704067200123,TRUE\n")
    assert frame(path)["side"].to_list() == [None, None, "sell"]


COIN = {"aggTrades": "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
                     f"1,50000.0,10,1,1,{MS},true\n",
        "bookTicker": "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time\n"
                      f"1,50000.0,10,50000.0,20,{MS},{MS}\n",
        "trades": f"id,price,qty,base_qty,time,is_buyer_maker\n1,50000.0,10,0.02,{MS},true\n"}


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("kind", COIN)
def test_coin_margined_contracts_become_base_units_or_nothing(tmp_path, kind, header):
    path, table = tmp_path / f"BTCUSD_PERP-{kind}-2024-01-01.csv", tmp_path / "sizes.yaml"
    path.write_text(COIN[kind][0 if header else COIN[kind].index("\n") + 1:])
    table.write_text("binance-delivery:\n  BTCUSD_PERP: {size: 100, type: inverse}\n")
    report = import_files(path, tmp_path / "bare" / "bronze")
    if kind == "trades": assert report.success
    else: assert "--contracts" in str(report.failed[0].error) and isinstance(report.failed[0].error, ConfigError)
    assert import_files(path, tmp_path / "bronze", options=Options(contracts=table)).success
    [file] = (tmp_path / "bronze").rglob("exchange*/**/*.parquet")
    made = pl.read_parquet(file, hive_partitioning=False)
    expected = {"bid_volume": 0.02, "ask_volume": 0.04} if kind == "bookTicker" else {
        "amount": 0.02, "contracts": 10.0, "cost": 1000.0}
    expected |= {"contract_size": 100.0, "contract_type": "inverse"}
    assert made.select(*expected).row(0, named=True) == expected


def test_binance_candles_are_refused(tmp_path):
    path = tmp_path / "BTCUSDT-1m-2024-01-01.csv"
    path.write_text(f"{MS},1,2,0.5,1.5,10,{MS + 59999},15,3,5,7,0\n")
    with pytest.raises(SchemaError, match="make bars of them"): batches(path)


@pytest.mark.parametrize("seed", range(3))
def test_gaps_are_the_numbers_that_no_row_has(seed):
    rng = np.random.default_rng(seed)
    ids = np.flatnonzero(rng.random(500) < 0.8) + 1000
    shuffled = ids[np.argsort(np.arange(ids.size) + rng.uniform(0, 3, ids.size))]       # out of order by some rows
    gaps, highest = binance_files.sequence_gaps(pl.Series(shuffled), pl.Series(shuffled))
    before = {int(b): int(b - a - 1) for a, b in zip(ids[:-1], ids[1:], strict=True)}
    assert gaps.to_list() == [before.get(int(i)) for i in shuffled] and highest == ids[-1]


# ---- LOBSTER

def lobster_pair(folder, day="2012-06-21", n=50, levels=3, seed=0, suffix=""):
    rng = random.Random(seed)
    at, events, books = Decimal(34200), [], []
    for _ in range(n):
        at += Decimal(rng.randint(1, 10**9)) / 10**9
        kind = rng.choice([1, 2, 3, 4, 5, 6])
        events.append((str(at), kind, rng.randint(0, 9**8), rng.randint(1, 500), rng.randint(10**5, 10**8),
                       rng.choice([1, -1])))
        best, have = rng.randint(10**6, 10**7), [rng.randint(0, levels) for _ in range(2)]
        books.append([x for i in range(levels) for s, sign in ((0, 1), (1, -1)) for x in (
            (best + sign * 100 * (i + 1), rng.randint(1, 900)) if i < have[s] else (sign * lobster.DUMMY, 0))])
    paths = [folder / f"AAPL_{day}_34200000_57600000_{k}_{levels}.csv{suffix}" for k in ("message", "orderbook")]
    for path, rows in zip(paths, (events, books), strict=True):
        path.write_text("".join(",".join(map(str, r)) + "\n" for r in rows))
    return paths, events, books


def clock(day, seconds):
    midnight = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo("America/New_York")).astimezone(UTC)
    return midnight + timedelta(microseconds=int(Decimal(seconds) * 10**6))


@pytest.mark.parametrize("day", ["2012-06-21", "2012-01-05", "2015-03-06", "2015-03-09"])
@pytest.mark.parametrize("batch_rows", [3, 50_000])
def test_lobster(tmp_path, day, batch_rows):
    (message, orderbook), events, books = lobster_pair(tmp_path, day)
    trades = frame(message, Options(batch_rows=batch_rows))
    told = [(k, e) for k, e in enumerate(events, 1) if e[1] in (4, 5)]
    taker = {1: "sell", -1: "buy"}
    assert trades.select("row", "trade_id", "capture_ts", "side", "price", "amount", "exchange", "symbol").rows() == [
        (k, f"{Decimal(t):.9f}-{order}-0", clock(day, t), None if kind == 5 and day > "2014-07-13" else taker[way],
         price / 10_000, float(size), "nasdaq", "AAPL") for k, (t, kind, order, size, price, way) in told]
    got = frame(orderbook, Options(batch_rows=batch_rows))
    assert got["nonce"].to_list() == list(range(1, len(events) + 1))
    assert got["capture_ts"].to_list() == [clock(day, e[0]) for e in events]
    for side, at in (("asks", 0), ("bids", 2)):
        assert [pairs(s) for s in got[side]] == [
            [(b[i + at] / 10_000, float(b[i + at + 1])) for i in range(0, len(b), 4) if b[i + at + 1]] for b in books]
    assert [pairs(s) for s in frame(orderbook, Options(depth=1))["bids"]] == [pairs(s)[:1] for s in got["bids"]]


@pytest.mark.parametrize("batch_rows", [1, 2, 50_000])
def test_lobster_files_that_overlap_name_a_trade_alike(tmp_path, batch_rows):
    "Three executions of one order at once, and one of another, are four trades, in both files."
    lines = [f"{t},4,{order},100,2239500,-1\n" for t, order in (
        ("34200.1", 7), ("34200.2", 8), ("34200.2", 9), ("34200.2", 8), ("34200.2", 8), ("34200.3", 8))]
    for start, rows in ((34_200_000, lines), (34_200_200, lines[1:])):
        path = tmp_path / f"AAPL_2012-06-21_{start}_57600000_message_1.csv"
        path.write_text("".join(rows))
        report = import_files(path, tmp_path / "lake/bronze", options=Options(batch_rows=batch_rows))
        assert report.success, report.failed[0].error
        assert report.rows == {"trades": 6 if start == 34_200_000 else 0}
    assert report.files[0].counts.duplicates == 5 and report.files[0].counts.set_aside == 0
    assert frame(path, Options(batch_rows=batch_rows))["trade_id"].to_list()[1:4] == [
        "34200.200000000-9-0", "34200.200000000-8-1", "34200.200000000-8-2"]


def test_lobster_halts_are_a_series(tmp_path):
    (message, _), *_ = lobster_pair(tmp_path)
    message.write_text("34200.5,7,0,0,-1,-1\n34500.25,7,0,0,0,-1\n34600,7,0,0,1,-1\n")
    got = frame(message, channel="series")
    assert got.select("name", "value").rows() == [("trading_halt", v) for v in (-1.0, 0.0, 1.0)]
    assert frame(message, channel="trades").height == 0


@pytest.mark.parametrize(("which", "change"), [(0, -1), (1, -1), (0, 1), (1, 1)])
@pytest.mark.parametrize("batch_rows", [10, 50, 50_000])
def test_lobster_pair_of_unlike_length(tmp_path, which, change, batch_rows):
    paths, *_ = lobster_pair(tmp_path)
    lines = paths[which].read_text().splitlines()
    paths[which].write_text("\n".join(lines[:-1] if change < 0 else [*lines, lines[-1]]) + "\n")
    with pytest.raises(CorruptFileError, match="same number of lines"):
        batches(paths[1], Options(batch_rows=batch_rows))


def test_lobster_lines_that_cannot_be_read(tmp_path):
    (message, orderbook), *_ = lobster_pair(tmp_path, n=6)
    lines = message.read_text().splitlines()
    message.write_text("\n".join([lines[0], "34200.9,x,1,1,1,1", *lines[2:]]) + "\n")
    books = orderbook.read_text().splitlines()
    orderbook.write_text("\n".join([*books[:4], books[4] + ",1", books[5]]) + "\n")
    assert aside(message) == [(2, "bad_cell")]
    assert aside(orderbook) == [(2, "no_time"), (5, "ragged_line")]
    assert frame(orderbook)["row"].to_list() == [1, 3, 4, 6]


def test_lobster_names(tmp_path):
    (message, _), *_ = lobster_pair(tmp_path)
    renamed = message.rename(tmp_path / "x_message_3.csv")
    with pytest.raises(ConfigError, match="symbol"): batches(renamed)
    with pytest.raises(ConfigError, match="Name the date"): batches(renamed, Options(symbol="AAPL"))
    with pytest.raises(ConfigError, match="YYYY-MM-DD"): batches(renamed, Options(symbol="AAPL", date="21.6.2012"))
    assert frame(renamed, Options(symbol="AAPL", date="2012-06-21"))["capture_ts"][0].day == 21


# ---- traps of all formats

TARDIS = ",".join([*tardis.FIRST, *tardis.FILL]) + "\n" + "".join(
    f"bitmex,XBTUSD,158302080{i}145000,158302080{i}307160,id{i},{s},8531.5,{i}\n"
    for i, s in enumerate(("sell", "BUY", "unknown", "")))
FILES = {"bitmex_trades_XBTUSD.csv": TARDIS, **{n: text_of(n) for n in BINANCE},
         "AMZN_2012-06-21_34200000_57600000_message_1.csv": "34200.5,4,1,100,2239500,-1\n34200.6,5,0,7,2239500,1\n"}


def packed(how, name, text):
    data = text.encode()
    if how == "crlf": return data.replace(b"\n", b"\r\n")
    if how == "bom": return b"\xef\xbb\xbf" + data
    if how == "gz": return gzip.compress(data[:50]) + gzip.compress(data[50:])
    if how == "no end": return data.removesuffix(b"\n")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z: z.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["crlf", "bom", "gz", "zip", "no end"])
@pytest.mark.parametrize("name", FILES)
def test_packed_and_ended_otherwise(tmp_path, name, how):
    (tmp_path / name).write_text(FILES[name])
    plain = frame(tmp_path / name)
    (tmp_path / name).write_bytes(packed(how, name, FILES[name]))
    assert frame(tmp_path / name).equals(plain) and plain.height


def test_tardis_sides(tmp_path):
    (tmp_path / "bitmex_trades_XBTUSD.csv").write_text(TARDIS)
    assert frame(tmp_path / "bitmex_trades_XBTUSD.csv")["side"].to_list() == ["sell", "buy", None, None]


@pytest.mark.parametrize(("exchange", "symbol", "said"), [
    ("bitmex", "XBTUSD", True), ("deribit", "BTC-PERPETUAL", True), ("okex-swap", "BTC-USDT-SWAP", True),
    ("gate", "BTC/USDT:USDT", True), ("binance", "BTCUSDT", False), ("binance-futures", "BTCUSDT_240628", False)])
def test_inspection_says_that_amounts_may_be_contracts(tmp_path, exchange, symbol, said):
    path, table = tmp_path / "bitmex_trades_XBTUSD.csv", tmp_path / "sizes.yaml"
    path.write_text(TARDIS.replace("bitmex,XBTUSD", f"{exchange},{symbol}"))
    table.write_text("bitmex:\n  XBTUSD: {size: 1, type: inverse}\n")
    assert ("--contracts turns contracts into base units" in repr(inspect_file(path))) is said
    assert "turns contracts" not in repr(inspect_file(path, Options(contracts=table)))


@pytest.mark.parametrize("name", ["bitmex_trades_XBTUSD.csv", "BTCUSDT-trades-2024-01-01.csv"])
def test_broken_lines_are_set_aside_by_number(tmp_path, name):
    lines = FILES[name].splitlines()
    first = lines.index(next(x for x in lines if x[0] in "b1"))
    broken = [*lines[:first + 1], lines[first] + ",1", lines[first].replace("1", "x", 99), "", *lines[first + 1:]]
    (tmp_path / name).write_text("\n".join(broken) + "\n")
    reasons = dict(aside(tmp_path / name))
    assert reasons == {first + 2: "ragged_line", first + 3: "bad_cell"}
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / name).write_text(FILES[name])
    whole = frame(tmp_path / "whole" / name)
    assert frame(tmp_path / name).drop("row").equals(whole.drop("row"))


def test_times_in_another_unit_are_refused(tmp_path):
    path = tmp_path / "bitmex_trades_XBTUSD.csv"
    path.write_text(TARDIS.replace("145000,", "145,").replace("307160,", "307,"))
    with pytest.raises(TimeUnitError, match="They fit 'ms'"): batches(path)
    spot = tmp_path / "BTCUSDT-trades-2025-01-01.csv"
    spot.write_text(FILES[spot.name])
    with pytest.raises(TimeUnitError, match="They fit 'us'"): batches(spot, Options(time_unit="ms"))


@pytest.mark.parametrize("text", ["", "time,price,amount\n1,2,3\n", "1,2,3,4\n", "{\"a\": 1}\n", "PAR1xxxx",
                                  "exchange,symbol,timestamp,local_timestamp\n", "exchange,symbol,price\na,b,1\n"])
@pytest.mark.parametrize("name", ["x.csv", "BTCUSDT-trades-2024-01-01.csv", "AAPL_2012-06-21_1_2_message_1.csv"])
def test_others_files_are_not_claimed(tmp_path, text, name):
    (tmp_path / name).write_text(text or " ")
    assert [f.looks_like(Head.of(tmp_path / name)) for f in OURS] == [None] * 3


# ---- into bronze

def test_import_of_a_folder(tmp_path):
    folder, lake = tmp_path / "files", tmp_path / "bronze"
    folder.mkdir()
    _, events, _ = lobster_pair(folder)
    both = "BTCUSDT-aggTrades-2024-01-01.csv"                       # the same fills as that day's trades
    for name, text in FILES.items():
        if name != both: (folder / name).write_text(text)
    expected = {}
    for path in folder.iterdir():
        for b in batches(path): expected[b.channel] = expected.get(b.channel, 0) + b.frame.height
    report = import_files(folder, lake)
    assert report.success and report.rows == expected and expected["orderbook"] == len(events)
    assert import_files(folder, lake).rows == {} and import_files(folder, lake).success
    exchanges = {p.name.removeprefix("exchange=") for p in (lake / "trades").iterdir()}
    assert exchanges == {"binance", "binance-futures", "binance-delivery", "bitmex", "nasdaq"}


def test_trades_beside_their_aggregates_are_refused(tmp_path):
    folder, lake = tmp_path / "files", tmp_path / "lake" / "bronze"
    folder.mkdir()
    both = ["BTCUSDT-aggTrades-2024-01-01.csv", "BTCUSDT-trades-2024-01-01.csv"]
    for name in both: (folder / name).write_text(text_of(name).replace("\n1", "\n91").replace("\n8", "\n98"))
    report = import_files(folder, lake)
    assert [f.status for f in report.files] == ["imported", "failed"] and report.rows == {"trades": 3}
    error = report.failed[0].error
    assert isinstance(error, ConflictError) and all(name in str(error) for name in both)
    assert [f.status for f in import_files(folder, lake).files] == ["known", "failed"]
    other_day = folder / "BTCUSDT-trades-2025-01-01.csv"
    other_day.write_text(text_of(other_day.name))
    assert import_files(other_day, lake).success
    [day] = (lake / "trades").rglob("year=2024")
    shutil.rmtree(day)
    assert import_files(folder / both[1], lake).success         # what the first kind told is gone


@pytest.mark.parametrize("name", ["tardis", "binance", "binance_ws", "lobster"])
@pytest.mark.parametrize("channel", ["trades", "orderbook", "series"])
def test_a_channel_makes_no_format_of_a_file(tmp_path, name, channel):
    path = tmp_path / "f_message_1.csv"
    path.write_text("time,price,amount\n1,2,3\n")
    report = import_files(path, tmp_path / "bronze", format=name, options=Options(channel=channel))
    error = report.failed[0].error
    assert isinstance(error, ConfigError) and f"does not look like {name}" in str(error)


def test_a_file_of_an_unknown_book_is_not_imported(tmp_path):
    lines = [line for line in changes(3, ["A"], 60) if not line[3]]            # no snapshot at all
    path = put_changes(tmp_path / "okex_incremental_book_L2.csv", lines)
    report = import_files(path, tmp_path / "bronze")
    assert not report.success and "book_unknown" in str(report.failed[0].error)
