"""Recording a venue: every message becomes a row once, and what was missed is said, whatever breaks."""
import asyncio
import builtins
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from faults import NIGHTLY
from lakes import cli, leftovers

from daedalus_etl.core.errors import ConfigError, MissingExtraError, StorageError
from daedalus_etl.sources import capture as live
from daedalus_etl.sources.capture import CaptureConfig, record
from daedalus_etl.sources.rotation import GAPS, Rotation, Stream, book, events_frame, publish, resume, trade
from daedalus_etl.sources.venue import tapped, venue_class

ccxt = pytest.importorskip("ccxt.pro", reason="ccxt (extra `live`) is not installed")
import aiohttp  # noqa: E402  ccxt brings it
from replay_server import Book, ReplayServer, made_up, recorded  # noqa: E402  needs aiohttp, which ccxt brings

STREAMS = [(c, "BTC/USDT") for c in ("trades", "orderbook", "ticker")]
DAY = 1_767_225_600_000_000             # 2026-01-01 00:00 UTC


@pytest.fixture(scope="module")
def market():
    return made_up(7_000)


def config(server, root, **given) -> CaptureConfig:
    given = {"exchange": "binance", "symbols": ["BTC/USDT"], "output": str(root), "rotate_s": 0.4, "backoff_s": 0.05,
             "endpoint": server.url} | given
    return CaptureConfig(**given)


def record_until(settings: CaptureConfig, enough, at_most: float = 40) -> list:
    "Record until `enough(events so far)`; returns the events."
    async def main():
        found, seen = asyncio.Event(), []
        def on_event(event):
            seen.append(event)
            if not found.is_set() and enough(seen): found.set()
        task = asyncio.create_task(record(settings, on_event))
        waiting = asyncio.create_task(found.wait())
        await asyncio.wait({task, waiting}, timeout=at_most, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        waiting.cancel()
        with suppress(asyncio.CancelledError): await task
        assert found.is_set(), f"{len(seen)} events in {at_most} s"
        return seen
    return asyncio.run(main())


def rows(root, channel: str) -> pl.DataFrame:
    "All rows of a channel, by file and row."
    files = sorted(Path(root, channel).rglob("*.parquet"))
    if not files: return pl.DataFrame(schema=GAPS)
    held = pl.concat([pl.read_parquet(f, hive_partitioning=False) for f in files])
    return held.sort("capture_ts", maintain_order=True)


def gaps(root, channel: str) -> list[tuple]:
    "(from, to, reason) of the channel's gaps, in order."
    return rows(root, "gaps").filter(pl.col("channel") == channel).select("from", "to", "reason").rows()


def reasons(root, channel: str) -> list[str]: return [g[2] for g in gaps(root, channel)]


def truth(market, server, depth: int = 50) -> dict[int, tuple]:
    "Update id -> (bids, asks): every state of the book so far."
    held, found = Book(market[0]), {}
    for diff in server.happened("depth"):
        held.apply(diff)
        found[held.u] = tuple([{"price": float(p), "size": float(q)} for p, q in held.levels(s, depth)] for s in "ba")
    return found


def check(root, market, server) -> None:
    "What is recorded is true, there once, and all that is missing lies in a gap that is recorded."
    check_trades(root, server)
    books = rows(root, "orderbook")
    assert books["nonce"].is_unique().all()
    states = truth(market, server)
    states.setdefault(market[0]["lastUpdateId"], None)
    for nonce, bids, asks in books.select("nonce", "bids", "asks").iter_rows():
        if states[nonce]: assert (bids, asks) == states[nonce]
    check_missing(root, "orderbook", books, "nonce", sorted(states))
    assert leftovers(Path(root)) == []


def check_trades(root, server) -> None:
    made = {str(t["t"]): t for t in server.happened("trade")}
    held = rows(root, "trades")
    assert held["trade_id"].is_unique().all()
    for t in held.iter_rows(named=True):
        m = made[t["trade_id"]]
        expected = (float(m["p"]), float(m["q"]), "sell" if m["m"] else "buy", m["T"])
        assert (t["price"], t["amount"], t["side"], t["timestamp"]) == expected
        assert t["cost"] == pytest.approx(t["price"] * t["amount"], rel=1e-14)
    ids = held["trade_id"].cast(pl.Int64)
    check_missing(root, "trades", held.with_columns(ids), "trade_id", sorted(map(int, made)))
    assert held["seq_gap"][0] is None
    assert held["seq_gap"][1:].to_list() == (ids.diff()[1:] - 1).to_list()


def check_missing(root, channel: str, held: pl.DataFrame, name: str, made: list[int]) -> None:
    "Two neighbours between which something happened have a gap between them; others follow in order."
    place = {n: i for i, n in enumerate(made)}
    known = gaps(root, channel)
    at = held.select(name, "capture_ts").rows()
    assert len(at) > 1
    for (a, before), (b, after) in zip(at, at[1:], strict=False):
        if place[b] == place[a] + 1: continue
        assert place[b] > place[a]
        assert any(f and f >= before and (t is None or t <= after) for f, t, _ in known), (a, b, before, after, known)


# ---- whole runs

def test_every_message_is_a_row(market, tmp_path):
    with ReplayServer(market) as server:
        seen = record_until(config(server, tmp_path), lambda seen: len(seen) > 1500)
        check(tmp_path, market, server)
        for channel, symbol in STREAMS:
            mine = [e for e in seen if e.channel == channel]
            held = rows(tmp_path, channel)
            assert held.height == len(mine) > 300                # also those of the rotation under way at the end
            assert held["capture_ts"].dt.epoch("us").to_list() == [e.at for e in mine]
            assert held["collected_at"].to_list() == [e.at // 1000 for e in mine]
            assert held["symbol"].unique().to_list() == [symbol]
            (none, first, start), (last, never, stop) = gaps(tmp_path, channel)
            assert (none, never, start, stop) == (None, None, "start", "stop")
            assert (first, last) == (held["capture_ts"][0], held["capture_ts"][-1])
        missing = rows(tmp_path, "orderbook")["seq_gap"]
        assert missing[0] is None and missing[1:].eq(0).all()
        quotes = [tuple(float(q[k]) for k in "bBaA") for q in server.happened("bookTicker")]
        kept = rows(tmp_path, "ticker").select("bid", "bid_volume", "ask", "ask_volume").rows()
        at = quotes.index(kept[0])
        while quotes[at:at + len(kept)] != kept: at = quotes.index(kept[0], at + 1)        # a quote may recur


def test_files_are_closed_and_of_the_day(market, tmp_path):
    with ReplayServer(market) as server:
        record_until(config(server, tmp_path, channels=["trades"]), lambda seen: seen[-1].at - seen[0].at > 1.5e6)
    files = sorted(tmp_path.glob("trades/exchange=binance/symbol=BTC%2FUSDT/year=*/month=*/day=*/part-*.parquet"))
    assert len(files) >= 2
    assert sorted(p for p in (tmp_path / "trades").rglob("*") if p.is_file()) == files
    starts = [pl.read_parquet(f, hive_partitioning=False)["capture_ts"][0] for f in files]
    assert [f"part-{t:%Y%m%dT%H%M%S%f}-" for t in starts] == [f.name[:-len("01234567.parquet")] for f in files]


def test_a_broken_connection_is_a_gap(market, tmp_path):
    with ReplayServer(market) as server:
        broken = []
        def enough(seen):
            if len(seen) > 400 and not broken:
                server.send_again(200)
                server.drop()
                broken.append(len(seen))
            return bool(broken) and len(seen) > broken[0] + 600 and {e.key for e in seen[broken[0] + 99:]} == {*STREAMS}
        record_until(config(server, tmp_path), enough)
        check(tmp_path, market, server)
        for channel in ("trades", "orderbook", "ticker"):
            assert reasons(tmp_path, channel) == ["start", "disconnect", "stop"]
        assert server.resent > 20


def test_a_book_that_lost_a_message_starts_anew(market, tmp_path):
    with ReplayServer(market) as server:
        lost = []
        def enough(seen):
            if len(seen) > 400 and not lost:
                server.lose("depth")
                lost.append(len(seen))
            return bool(lost) and sum(e.channel == "orderbook" for e in seen[lost[0]:]) > 200
        record_until(config(server, tmp_path), enough)
        check(tmp_path, market, server)
        assert reasons(tmp_path, "orderbook") == ["start", "sequence", "stop"]
        assert reasons(tmp_path, "trades") == ["start", "stop"]
        jumps = rows(tmp_path, "orderbook").with_columns(step=pl.col("nonce").diff()).filter(pl.col("seq_gap") > 0)
        assert jumps.height == 1 and jumps["seq_gap"][0] == jumps["step"][0] - 1


def test_a_lost_trade_is_counted(market, tmp_path):
    with ReplayServer(market) as server:
        lost = []
        def enough(seen):
            if len(seen) > 100 and not lost:
                server.lose("trade")
                lost.append(1)
            return len(seen) > 300
        record_until(config(server, tmp_path, channels=["trades"]), enough)
    held = rows(tmp_path, "trades")
    assert held["seq_gap"].sum() == 1 and reasons(tmp_path, "trades") == ["start", "stop"]


def test_a_message_nobody_can_read_breaks_the_connection_only(market, tmp_path):
    with ReplayServer(market) as server:
        sent = []
        def enough(seen):
            if len(seen) > 200 and not sent:
                server.garbage = True
                sent.append(1)
            return len(seen) > 700 and len({e.key for e in seen[500:]}) == 3
        record_until(config(server, tmp_path), enough)
        assert any("disconnect" in reasons(tmp_path, c) for c in ("trades", "orderbook", "ticker"))
        check(tmp_path, market, server)


def test_a_venue_that_is_not_there_yet(market, tmp_path):
    with ReplayServer(market) as first: port = first.port
    server = ReplayServer(market, port=port)
    said = []
    def say(text):
        said.append(text)
        if len(said) == 2: server.__enter__()
    try: report = live.capture(config(server, tmp_path, duration_s=5), say=say)
    finally: server.__exit__()
    assert "markets" in said[0] and "next try in" in said[0]
    assert report.rows == sum(rows(tmp_path, c).height for c, _ in STREAMS) > 0
    assert report.streams["gaps"].to_list() == [2, 2, 2]


def test_a_disk_that_hangs_holds_the_venue_back_and_loses_nothing(market, tmp_path, monkeypatch):
    first, messages = market[0], market[1][:15_000]
    last = max(d["u"] for s, d in messages if s.endswith("@depth@100ms"))
    seen, held, free = [], [], threading.Event()
    def hanging(*args):
        free.wait(60)
        return publish(*args)
    def watch(server):
        wait_for(lambda: server.at >= len(messages))            # the venue has said all, most of it to the network
        held.append(len(seen))
        free.set()
    monkeypatch.setattr(live, "publish", hanging)
    with ReplayServer((first, messages), rate=8000) as server:
        watching = threading.Thread(target=watch, args=(server,))
        watching.start()
        def enough(so_far):
            seen.append(so_far[-1])
            return so_far[-1].seq == last
        record_until(config(server, tmp_path, queue=200), enough)
        watching.join()
        check(tmp_path, (first, messages), server)
    assert 200 <= held[0] < 9000                # the queue twice, and for each connection what it had read already
    assert {r for c, _ in STREAMS for r in reasons(tmp_path, c)} == {"start", "stop"}


@pytest.mark.parametrize("fault", ["ConnectionError", "TimeoutError", "ClientOSError", "NetworkError", "ExchangeError",
                                   "ChecksumError"])
def test_what_a_network_does_wrong_is_tried_again(tmp_path, fault):
    "Also errors that are none of ccxt's: a connection that closes before the subscription is sent is one of Python's."
    kind = next(getattr(m, fault) for m in (builtins, aiohttp, ccxt) if hasattr(m, fault))
    said, key, faults = [], ("trades", "A/B"), [kind("closed"), kind("closed")]
    async def main():
        recorder = live.Recorder(CaptureConfig(exchange="binance", symbols=["A/B"], output=str(tmp_path),
                                               backoff_s=0.01), say=said.append)
        recorder.rotation.add(trade("A/B", DAY, "1", "buy", 1.0, 1.0))
        async def attempt():
            if faults: raise faults.pop()
        await live.try_on(attempt, "binance trades", recorder, key, once=True)
        return recorder.rotation.streams[key].broken
    assert asyncio.run(main()) == ("sequence" if fault == "ChecksumError" else "disconnect")
    assert len(said) == 2 and fault in said[0]


# ---- stopped and killed

def started(server, root, *more) -> subprocess.Popen:
    command = [sys.executable, "-c", "from daedalus_etl.cli import app; app()", "capture", "--exchange", "binance",
               "--symbols", "BTC/USDT", "--output", str(root), "--rotate-s", "0.3", "--endpoint", server.url, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(what, at_most: float = 40) -> None:
    end = time.monotonic() + at_most
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_killed_at_random_and_started_again(market, tmp_path):
    rng, kills = random.Random(7), 12 if NIGHTLY else 2
    with ReplayServer(market, rate=300) as server:
        for _ in range(kills):
            before = len(list(tmp_path.glob("orderbook/**/*.parquet")))
            process = started(server, tmp_path)
            wait_for(lambda n=before: len(list(tmp_path.glob("orderbook/**/*.parquet"))) > n)
            time.sleep(rng.uniform(0, 0.7))
            process.kill()
            process.communicate()
        process = started(server, tmp_path)
        wait_for(lambda: min(reasons(tmp_path, c).count("start") for c, _ in STREAMS) == kills + 1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        check(tmp_path, market, server)
    for channel in ("trades", "orderbook", "ticker"):
        said = gaps(tmp_path, channel)
        assert [r for *_, r in said][-1] == "stop" and said[0][:1] == (None,)
        at = set(rows(tmp_path, channel)["capture_ts"])
        assert all(f in at for f, _, r in said[1:] if r == "start")     # from the last row that was published


def test_ctrl_c_keeps_all_rows(market, tmp_path):
    with ReplayServer(market) as server:
        process = started(server, tmp_path, "--rotate-s", "600")
        wait_for(lambda: len(server.happened("trade")) > 300)
        assert not list(tmp_path.glob("trades/**/*.parquet"))           # all of it is still in memory
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        check(tmp_path, market, server)
    held = {c: rows(tmp_path, c).height for c, _ in STREAMS}
    assert f"binance: {sum(held.values()):,} rows in 5 files" in out
    assert all(reasons(tmp_path, c) == ["start", "stop"] for c in held) and held["trades"] > 150


def test_a_run_goes_on_where_another_ended(market, tmp_path):
    with ReplayServer(market) as server:
        record_until(config(server, tmp_path), lambda seen: len(seen) > 600)
        last = rows(tmp_path, "trades")["trade_id"][-1]
        at = next(i for i, (s, d) in enumerate(server.sent) if s.endswith("@trade") and str(d["t"]) == last)
        server.send_again(len(server.sent) - at + 100)
        record_until(config(server, tmp_path), lambda seen: len(seen) > 400)
        check(tmp_path, market, server)
        assert server.resent > 10
    said = gaps(tmp_path, "trades")
    assert [r for *_, r in said] == ["start", "stop", "start", "stop"] and said[1][0] == said[2][0]


# ---- what is refused, and what fails

def test_a_symbol_that_is_not_there(market, tmp_path):
    with ReplayServer(market) as server:
        with pytest.raises(ConfigError, match="Did you mean 'BTC/USDT'"):
            live.capture(config(server, tmp_path, symbols=["BTC/USDC"]))
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_disk_that_refuses(market, tmp_path, monkeypatch):
    def full(*_): raise StorageError("no space left on device")
    monkeypatch.setattr(live, "publish", full)
    with ReplayServer(market) as server:
        with pytest.raises(StorageError, match=r"[\d,]+ rows could not be written and are lost.*no space left"):
            live.capture(config(server, tmp_path, duration_s=30))


def test_a_listener_that_fails_ends_the_run(market, tmp_path):
    def strategy(event): raise ZeroDivisionError("of a strategy")
    with ReplayServer(market) as server:
        with pytest.raises(ZeroDivisionError): live.capture(config(server, tmp_path, duration_s=30), strategy)
    assert sum(rows(tmp_path, c).height for c, _ in STREAMS) >= 1       # what it was told is kept all the same


def test_without_ccxt(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ccxt.pro", None)
    with pytest.raises(MissingExtraError, match=r"daedalus_etl\[live\]"):
        live.capture(CaptureConfig(exchange="binance", symbols=["BTC/USDT"], output=str(tmp_path)))


@pytest.mark.parametrize("given, match", [
    ({"exchange": "binanse"}, "Did you mean 'binance'"), ({"output": "s3://b/bronze"}, "folder"),
    ({"endpoint": "localhost:80"}, "http://"), ({"symbols": []}, "symbols"), ({"depht": 5}, "Did you mean 'depth'")],
    ids=["venue", "url", "endpoint", "no-symbols", "typo"])
def test_refused(tmp_path, given, match):
    with pytest.raises(ConfigError, match=match):
        live.capture(CaptureConfig(**{"exchange": "binance", "symbols": ["A/B"], "output": str(tmp_path)} | given))


# ---- without a network

def test_midnight(tmp_path):
    rotation = Rotation("binance", {("trades", "A/B"): Stream()})
    for i, at in enumerate((DAY - 1, DAY, DAY + 1)): rotation.add(trade("A/B", at, str(i), "buy", 1.0, 1.0))
    rotation.stop()
    files = [f for name, frame in rotation.take().items() for f in publish(frame, tmp_path, name)]
    days = sorted((f.relative_to(tmp_path).parts[0], f.parent.name) for f in files)
    assert days == [("gaps", "day=01"), ("gaps", "day=31"), ("trades", "day=01"), ("trades", "day=31")]
    assert rows(tmp_path, "trades")["trade_id"].to_list() == ["0", "1", "2"]
    stream = resume(tmp_path, "binance", ("trades", "A/B"))
    assert (stream.last, stream.seq) == (DAY + 1, 2) and not any(stream.recent.add(s) for s in "012")


def test_the_newest_day_is_not_the_last_name(tmp_path):
    "Somebody else's folders may say month=9 beside month=10."
    for month in (9, 10):
        folder = tmp_path / "trades/exchange=x/symbol=A%2FB/year=2025" / f"month={month}" / "day=01"
        folder.mkdir(parents=True)
        when = pl.Series("capture_ts", [datetime(2025, month, 1, tzinfo=UTC)], pl.Datetime("us", "UTC"))
        pl.DataFrame([when, pl.Series("trade_id", [str(month)])]).write_parquet(folder / "data.parquet")
    assert resume(tmp_path, "x", ("trades", "A/B")).seq == 10


def test_venues_without_numbers_keep_everything():
    rotation = Rotation("other", {("trades", "A/B"): Stream(), ("orderbook", "A/B"): Stream()})
    for at in (1, 2): assert rotation.add(trade("A/B", at, None, "buy", 1.0, 1.0))
    for at in (1, 2): assert rotation.add(book("A/B", at, None, [(1, 1)], [(2, 1)]))
    assert rotation.take()["trades"]["seq_gap"].to_list() == [None, None]


def test_a_gap_stays_open_until_something_is_heard():
    rotation = Rotation("binance", {("trades", "A/B"): Stream()})
    rotation.add(trade("A/B", 10, "1", "buy", 1.0, 1.0))
    for reason in ("sequence", "disconnect"): rotation.lost([("trades", "A/B")], reason)
    rotation.add(trade("A/B", 30, "1", "buy", 1.0, 1.0))               # a repeat: nothing new, but it is back
    rotation.add(trade("A/B", 40, "3", "buy", 1.0, 1.0))
    taken = rotation.take()
    assert taken["gaps"].select(pl.col("from", "to").dt.epoch("us"), "reason").rows() == [
        (None, 10, "start"), (10, 30, "sequence")]
    assert taken["trades"]["seq_gap"].to_list() == [None, 1]


# ---- a recorded market

def test_recorded_messages_become_the_recorded_bronze(shared_bronze, tmp_path):
    "The venue's own messages of five minutes, through ccxt, equal what another collector made of them."
    path = shared_bronze.parent / "raw" / "binance" / "websocket_btcusdt_20240808.gz"
    if not path.exists(): pytest.skip(f"{path.name} is not on this machine")
    snapshot, messages = recorded(path)
    messages = messages if NIGHTLY else messages[:6000]
    last = [d["u"] for s, d in messages if s.endswith("@depth@100ms")][-1]
    with ReplayServer((snapshot, messages), rate=3000, whole=True) as server:
        record_until(config(server, tmp_path, rotate_s=5),
                     lambda seen: seen[-1].channel == "orderbook" and seen[-1].seq == last, at_most=200)
    day = "exchange=binance/symbol=BTC-USDT/year=2024/month=08/day=08/data.parquet"
    for channel, by, columns in (("trades", "trade_id", ["trade_id", "timestamp", "side", "price", "amount"]),
                                 ("orderbook", "nonce", ["nonce", "timestamp", "bids", "asks"])):
        ours = rows(tmp_path, channel).select(columns)[1:]              # the first book is a snapshot: no event time
        theirs = pl.read_parquet(shared_bronze / channel / day, columns=columns)
        theirs = theirs.filter(pl.col(by).is_in(ours[by].implode()))
        assert ours.height > 300 and ours.equals(theirs.select(columns)), channel




# ---- what a venue's numbers are worth, and how it delivers

def delivered(exchange: str, key, messages, **market) -> live.Recorder:
    "What a recorder makes of messages of a venue, handled by ccxt as if they had come from the network."
    async def main():
        settings = CaptureConfig(exchange=exchange, symbols=[key[1]], channels=[key[0]], output="none")
        recorder = live.Recorder(settings)
        venue = live.open_venue(settings, recorder)
        base, quote = key[1].split(":")[0].split("/")
        names = {"symbol": key[1], "base": base, "quote": quote, "active": True}
        venue.set_markets([venue.safe_market_structure(names | market)])
        client = venue.client("ws://127.0.0.1:9/")
        for message in messages:
            if message is not None: venue.handle_message(client, message)
            else:                                                   # the connection broke; ccxt begins anew
                recorder.down(client, "closed")
                venue.orderbooks.clear()
        await venue.close()
        return recorder
    recorder = asyncio.run(main())
    if recorder.failure: raise recorder.failure
    return recorder


def blofin(action, size):
    return {"arg": {"channel": "books", "instId": "A-USDT"}, "action": action,
            "data": {"bids": [["0.1", size]], "asks": [["0.2", "1"]], "ts": "1", "prevSeqId": "1", "seqId": "7"}}


def dydx(number, size):
    if number > 1: kind, bids, asks = "channel_data", [["100", size]], []
    else: kind, bids, asks = "subscribed", [{"price": "100", "size": size}], [{"price": "101", "size": "1"}]
    return {"type": kind, "connection_id": "c", "message_id": number, "id": "A-USD", "channel": "v4_orderbook",
            "version": "1.0.0", "contents": {"bids": bids, "asks": asks}}


@pytest.mark.parametrize("exchange, symbol, market, messages, sizes", [
    ("blofin", "A/USDT:USDT", "A-USDT", [blofin("snapshot", "1")] + [blofin("update", s) for s in "23325"], "12325"),
    ("dydx", "A/USDC:USDC", "A-USD", [dydx(1, "8"), dydx(2, "2"), None, dydx(1, "8"), dydx(2, "2"), dydx(3, "4")],
     "82824")], ids=["number-of-the-snapshot", "numbers-begin-anew"])
def test_a_book_that_changed_is_a_row_whatever_its_number(exchange, symbol, market, messages, sizes):
    key = ("orderbook", symbol)
    swap = {"id": market, "type": "swap", "swap": True, "contract": True, "linear": True, "contractSize": 1}
    recorder = delivered(exchange, key, messages, **swap, settle=symbol.split(":")[1])
    stream, books = recorder.rotation.streams[key], recorder.rotation.take()["orderbook"]
    assert [b[0]["size"] for b in books["bids"]] == [float(s) for s in sizes]
    assert stream.repeats == sum(m is not None for m in messages) - len(sizes)


def test_a_book_is_known_again_by_another_run(tmp_path):
    key, same = ("orderbook", "A/B"), [(1.0, 2.0)]
    first = Rotation("blofin", {key: Stream()})
    for at in (DAY, DAY + 1): first.add(book("A/B", at, 7, same, [(2.0, at - DAY)]))
    publish(first.take()["orderbook"], tmp_path, "orderbook")
    again = Rotation("blofin", {key: resume(tmp_path, "blofin", key)})
    assert [again.add(book("A/B", DAY + 9 + i, 7, same, [(2.0, s)])) for i, s in enumerate((1, 0, 1))] == [
        False, True, True]


@pytest.mark.parametrize("symbol, missing", [("A/B", 3999), ("A/B:B", None)])
def test_ids_of_books_of_futures_have_holes(symbol, missing):
    key = ("orderbook", symbol)
    rotation = Rotation("binance", {key: Stream()})
    rotation.add(book(symbol, 10, 1000, [(1, 1)], [(2, 1)]))
    rotation.lost([key], "disconnect")
    rotation.add(book(symbol, 20, 5000, [(1, 1)], [(2, 1)]))
    assert rotation.take()["orderbook"]["seq_gap"].to_list() == [None, missing]


def test_a_message_under_several_names_is_one_row():
    quote = {"type": "ticker", "product_id": "A-B", "price": "100", "best_bid": "99", "best_bid_size": "1",
             "best_ask": "101", "best_ask_size": "1", "side": "sell", "time": "2023-03-04T03:37:20Z", "trade_id": 1}
    recorder = delivered("coinbaseexchange", ("ticker", "A/B"), [quote | {"sequence": i} for i in (1, 2)],
                         id="A-B", spot=True, type="spot")
    assert recorder.rotation.take()["ticker"].height == 2


def test_a_message_is_of_one_instant_and_what_it_says_twice_is_kept():
    "Two changes of a book under the name of the book and that of all; each is heard once, all at one time."
    class Base(venue_class("binance")):
        def handle_message(self, client, message):
            for size in message:
                held["bids"] = [[1.0, size]]
                time.sleep(0.001)
                for name in ("orderbook:A/B", "orderbook"): client.resolve(held, name)
    held, heard = {"symbol": "A/B", "nonce": 1, "asks": [], "bids": []}, []
    class Ear:
        room = asyncio.Event()
        def heard(self, client, result, message_hash, at): heard.append((result["bids"][0][1], message_hash, at))
        def down(self, client, why): raise AssertionError(why)
    async def main():
        venue = tapped(Base, Ear())()
        client = venue.client("ws://127.0.0.1:9/")
        for message in ((1, 2), (3,)): venue.handle_message(client, message)
        client.resolve(held, "orderbook")                           # beside all messages
        await venue.close()
    asyncio.run(main())
    assert [h[:2] for h in heard] == [*((n, "orderbook:A/B") for n in (1, 2, 3)), (3, "orderbook")]
    assert heard[0][2] == heard[1][2] < heard[2][2] < heard[3][2]


def test_a_clock_that_is_set_back(tmp_path):
    "Ticks of an NTP daemon, and an hour: what a strategy hears, the rows and the gaps stay in order."
    said, heard, key = [], [], ("orderbook", "A/B")
    publish(events_frame("x", "orderbook", [(book("A/B", DAY, 1, [(1, 1)], []), None)]), tmp_path, "orderbook")
    async def main():
        recorder = live.Recorder(CaptureConfig(exchange="x", symbols=["A/B"], channels=["orderbook"],
                                               output=str(tmp_path)), heard.append, said.append)
        for i, at in enumerate((-5, 10, 8, -3_600_000_000, -3_600_000_000, 30)):
            found = {"symbol": "A/B", "nonce": i + 2, "bids": [[1.0, 1.0]], "asks": []}
            recorder.heard(recorder, found, "orderbook:A/B", DAY + at)
            if i == 1: recorder.rotation.lost([key], "disconnect")
        return recorder.rotation.take()["gaps"]
    gaps = asyncio.run(main())
    assert [e.at - DAY for e in heard] == [0, 10, 10, 10, 10, 30]
    assert gaps["from"].is_not_null().all() and (gaps["to"] >= gaps["from"]).all() and gaps.height == 2
    assert len(said) == 1 and "3,600.0 s behind" in said[0]


def test_two_processes_may_not_record_one_stream(market, tmp_path):
    with ReplayServer(market) as server:
        first = started(server, tmp_path, "--channels", "trades")
        wait_for(lambda: list(tmp_path.glob("trades/**/*.parquet")))
        with pytest.raises(ConfigError, match="binance trades BTC/USDT is being recorded by another process.*--output"):
            live.capture(config(server, tmp_path, channels=["orderbook", "trades"], duration_s=5))
        live.capture(config(server, tmp_path, channels=["orderbook"], duration_s=1))     # another stream
        first.kill()
        first.communicate()
        live.capture(config(server, tmp_path, channels=["trades"], duration_s=1))
        check_trades(tmp_path, server)
    assert leftovers(tmp_path) == []


SLOW = """
import sys, time
from daedalus_etl.sources import capture as live
write = live.publish
def slow(*args):
    print("writing", flush=True)
    time.sleep(1)
    return write(*args)
live.publish = slow
live.capture(live.CaptureConfig(exchange="binance", symbols=["BTC/USDT"], channels=["trades"], output=sys.argv[2],
    rotate_s=600, duration_s=2, endpoint=sys.argv[1]), say=lambda text: print(text, file=sys.stderr, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_last_rows_are_written_loses_none(market, tmp_path, number):
    with ReplayServer(market) as server:
        process = subprocess.Popen([sys.executable, "-c", SLOW, server.url, str(tmp_path)], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        check_trades(tmp_path, server)
    assert reasons(tmp_path, "trades") == ["start", "stop"]
    assert f"once more drops {rows(tmp_path, 'trades').height:,} rows" in err


def test_a_venue_that_is_never_there(market, tmp_path):
    with ReplayServer(market) as server: pass                       # nobody listens there any more
    process = started(server, tmp_path, "--duration", "1")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and "nothing was heard of binance" in err, err
    assert out.startswith(f"recording trades, orderbook, ticker of BTC/USDT at binance to {tmp_path}\n")


@pytest.mark.parametrize("flags", [("--symbols", " ,"), ("--channels", ""), ("--output", "s3://b/bronze")])
def test_what_is_refused_names_its_flag(flags):
    given = {"--exchange": "binance", "--symbols": "A/B"} | {flags[0]: flags[1]}
    done = cli("capture", *(w for pair in given.items() for w in pair))
    assert done.returncode == 2 and flags[0] in done.stderr.splitlines()[-1]
    assert not done.stdout
