"""Recorded websocket messages: books equal the truth after every kind of fault, and the recorded day bit for bit."""
import gzip
import json
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daedalus_etl.core.errors import BadDataError, ConfigError, CorruptFileError, TimeUnitError
from daedalus_etl.sources import binance_ws, diffs
from daedalus_etl.sources.binance_ws import FORMAT
from daedalus_etl.sources.book_replay import BookReplay, books_frame
from daedalus_etl.sources.importer import import_files
from daedalus_etl.sources.source import BAD, Head, Options
from daedalus_etl.storage.contract import check_schema, check_units, contract_for

RAW = Path(__file__).resolve().parents[2] / "shared" / "data" / "raw" / "binance" / "websocket_btcusdt_20240808.gz"
N = 1_723_161_254_000_000_000                                        # the first line's clock, ns
E = 1_723_161_255_000                                                # the exchange's, ms


# ---- the replay of level updates

def naive_books(messages, depth):
    "Books after each message with emit, by dictionaries; a message is (updates, emit, reset)."
    book, out = {1: {}, -1: {}}, []
    for updates, emit, reset in messages:
        if reset: book = {1: {}, -1: {}}
        for side, price, size in updates:
            if size: book[side][price] = size
            else: book[side].pop(price, None)
        if emit: out.append(tuple(sorted(book[s].items(), reverse=s > 0)[:depth] for s in (1, -1)))
    return out


UPDATE = st.tuples(st.sampled_from([1, -1]), st.integers(1, 12).map(lambda p: p / 10), st.integers(0, 3).map(float))
MESSAGES = st.lists(st.tuples(st.lists(UPDATE, max_size=6), st.booleans(), st.integers(0, 9).map(lambda x: x == 0)),
                    max_size=25)


def applied(replay, messages):
    flat = [u for m in messages for u in m[0]]
    side, price, size = zip(*flat) if flat else ((), (), ())
    offsets = np.cumsum([0, *(len(m[0]) for m in messages)])
    return books_frame(*replay.apply(offsets, side, price, size, [m[1] for m in messages], [m[2] for m in messages]))


def pairs(frame):
    return [tuple([(x["price"], x["size"]) for x in side] for side in row) for row in
            frame.select("bids", "asks").iter_rows()]


@given(MESSAGES, st.integers(1, 5), st.integers(0, 25))
def test_replay_equals_dictionaries_however_it_is_cut(messages, depth, cut):
    whole, first = BookReplay(depth), BookReplay(depth)
    expected = naive_books(messages, depth)
    assert pairs(applied(whole, messages)) == expected
    got = pairs(applied(first, messages[:cut]))
    second = BookReplay(depth, first.state())
    assert got + pairs(applied(second, messages[cut:])) == expected
    assert all(np.array_equal(a, b) for a, b in zip(whole.state().values(), second.state().values(), strict=True))


@pytest.mark.parametrize("update, column", [
    ((2, 1.0, 1.0), "side"), ((1, 0.0, 1.0), "price"), ((1, np.inf, 1.0), "price"), ((-1, 1.0, -1.0), "size"),
    ((-1, 1.0, np.nan), "size")])
def test_replay_refuses_what_no_book_holds_and_stays_as_it_was(update, column):
    replay = BookReplay(3)
    applied(replay, [([(1, 5.0, 1.0)], True, False)])
    with pytest.raises(BadDataError) as caught: applied(replay, [([(1, 6.0, 1.0), update], True, False)])
    assert (caught.value.column, caught.value.row) == (column, 1)
    assert replay.bids[0].tolist() == [5.0]


def test_replay_refuses_wrong_shapes_and_a_book_without_end(monkeypatch):
    replay = BookReplay(1)
    for args in (([0, 2], [1], [1.0], [1.0]), ([1, 1], [1], [1.0], [1.0]), ([0, 1], [1], [1.0], []),
                 ([0, 1], [1], [1.0], [1.0], [True, False])):
        with pytest.raises(ConfigError): replay.apply(*args)
    with pytest.raises(ConfigError): BookReplay(0)
    monkeypatch.setattr("daedalus_etl.sources.book_replay.MOST_LEVELS", 5)
    with pytest.raises(BadDataError, match="6 levels"):
        replay.apply([0, 6], [1] * 6, np.arange(1.0, 7.0), np.ones(6))


# ---- a venue that is recorded, with faults

class Venue:
    "A market whose book is known after each of its numbered changes."

    def __init__(self, seed, futures=False, symbol="BTCUSDT"):
        self.rng, self.futures, self.symbol = np.random.default_rng(seed), futures, symbol
        self.book, self.u, self.before = {"b": {}, "a": {}}, 100, 100
        self.truth = {}                                              # number -> copy of the book
        for k in range(1, 30): self.book["b"][1000 - k], self.book["a"][1000 + k] = k, k

    def diff(self):
        "The next update message, over one to four numbers."
        pu, U = self.u, self.u + (int(self.rng.integers(1, 4)) if self.futures else 1)
        self.u = U + int(self.rng.integers(0, 4))
        levels = {"b": {}, "a": {}}
        for _ in range(int(self.rng.integers(1, 6))):
            side = str(self.rng.choice(["b", "a"]))
            price = int(self.rng.integers(970, 1000) if side == "b" else self.rng.integers(1001, 1031))
            levels[side][price] = size = int(self.rng.integers(0, 4))
            if size: self.book[side][price] = size
            else: self.book[side].pop(price, None)
        self.truth[self.u] = {k: dict(v) for k, v in self.book.items()}
        text = {k: [[f"{p}.00", f"{q}.000"] for p, q in v.items()] for k, v in levels.items()}
        extra = {"pu": pu} if self.futures else {}
        return {"e": "depthUpdate", "E": E + self.u, "s": self.symbol, "U": U, "u": self.u, **extra, **text}

    def snapshot(self):
        "The whole book now."
        text = {k: [[f"{p}.0", f"{q}"] for p, q in v.items()] for k, v in self.book.items()}
        return {"lastUpdateId": self.u, "bids": text["b"], "asks": text["a"]}

    def best(self, u, depth):
        "The best levels that there were after number `u`."
        return tuple(sorted(((float(p), float(q)) for p, q in self.truth[u][k].items()), reverse=k == "b")[:depth]
                     for k in ("b", "a"))


def record(path, messages, wrap=True):
    "One line per message, 100 ms apart; a text stands for itself."
    lines = []
    for i, m in enumerate(messages):
        if isinstance(m, dict):
            stream = f"{m.get('s', '').lower()}@{m.get('e', 'bookTicker').replace('Update', '')}"
            m = json.dumps({"stream": stream, "data": m} if wrap and "s" in m else m, separators=(",", ":"))
            m = f"{N + i * 100_000_000} {m}"
        lines.append(m + "\n")
    Path(path).write_text("".join(lines))
    return Path(path)


def imported(path, kind="spot", **options):
    "(rows by channel, rows set aside and notes) of a file; each batch fits its channel's contract."
    rows, aside = {}, [pl.DataFrame(schema=BAD)]
    for batch in FORMAT.read(Path(path), kind, Options(**options)):
        contract = contract_for(batch.channel)
        assert check_schema(batch.frame.schema, contract) == []
        check_units(batch.frame, contract)
        rows.setdefault(batch.channel, []).append(batch.frame)
        if batch.bad is not None:
            assert batch.bad.schema == pl.Schema(BAD)
            aside.append(batch.bad)
        aside.append(pl.DataFrame([n[:4] for n in batch.notes], BAD, orient="row"))
    return {c: pl.concat(f) for c, f in rows.items()}, pl.concat(aside)


def reasons(aside): return aside.select("row", "reason").rows()


def expected_lines(received, futures):
    "Lines after which a book is due: those whose chain reaches back, without a hole, to under a snapshot before them."
    out, chain, snapshots, shown = [], [], [], None
    for line, m in enumerate(received, 1):
        if "lastUpdateId" in m:
            snapshots.append(m["lastUpdateId"])
            continue
        prev = m["pu"] if futures else m["U"] - 1
        if chain and m["u"] <= chain[-1][1]: continue
        chain = [*chain, (prev, m["u"])] if chain and prev == chain[-1][1] else [(prev, m["u"])]
        if any(chain[0][0] <= s <= m["u"] for s in snapshots):
            out.append((line, m["u"], None if shown is None else prev - shown))
            shown = m["u"]
    return out


@pytest.mark.parametrize("futures", [False, True], ids=["spot", "futures"])
@pytest.mark.parametrize("seed", range(6))
def test_books_equal_the_truth_through_losses_repeats_and_snapshots(tmp_path, monkeypatch, seed, futures):
    venue, rng, received, delayed = Venue(seed, futures), np.random.default_rng(seed), [], []
    for k in range(400):
        message = venue.diff()
        if k == 4 or rng.random() < 0.08: delayed.append((k + int(rng.integers(-2, 5)), venue.snapshot()))
        received += [m for due, m in delayed if due <= k]                                 # ahead of its update, or late
        delayed = [(due, m) for due, m in delayed if due > k]
        if rng.random() > 0.03: received.append(message)                                      # else it is lost
        if rng.random() < 0.05 and "u" in received[-1]: received.append(received[-1])         # sent again
    monkeypatch.setattr(binance_ws, "lines", partial(binance_ws.lines, block=3000))           # blocks of about 15 lines
    got, aside = imported(record(tmp_path / "f", received), "futures" if futures else "spot", depth=7)
    books = got["orderbook"]
    due = expected_lines(received, futures)
    assert books.select("row", "nonce", "seq_gap").rows() == due
    assert len(due) > 100 and any(gap for *_, gap in due)
    assert pairs(books) == [venue.best(u, 7) for _, u, _ in due]
    assert books["timestamp"].to_list() == [E + u for _, u, _ in due]
    assert {r for _, r in reasons(aside)} <= {"no_book", "repeated", "old_snapshot"}
    assert set(books["exchange"]) == {"binance-futures" if futures else "binance"}


# ---- each fault by itself

@pytest.fixture
def session():
    "(venue, messages): an update, a snapshot, and five updates that go on from it."
    venue = Venue(1)
    first, snapshot = venue.diff(), venue.snapshot()
    return venue, [first, snapshot, *(venue.diff() for _ in range(5))]


def test_a_dropped_update_ends_the_book(tmp_path, session):
    venue, m = session
    lost = m.pop(4)
    got, aside = imported(record(tmp_path / "f", m))
    assert got["orderbook"]["row"].to_list() == [3, 4]
    assert reasons(aside) == [(5, "no_book")]
    assert aside["value"][0].startswith("BTCUSDT: 2 depth updates of lines 5 to 6")
    later = [venue.snapshot(), venue.diff(), venue.diff()]                                 # ... and a snapshot mends it
    got, aside = imported(record(tmp_path / "f", m + later), depth=99)
    books = got["orderbook"]
    assert books["row"].to_list() == [3, 4, 8, 9]
    assert books["seq_gap"].to_list() == [None, 0, later[1]["U"] - lost["U"], 0]
    assert pairs(books)[-1] == venue.best(later[2]["u"], 99)
    assert reasons(aside) == [(5, "no_book")]


def test_a_repeated_update_is_dropped_and_counted(tmp_path, session):
    venue, m = session
    got, aside = imported(record(tmp_path / "f", [*m[:4], m[3], m[2], *m[4:]]))
    assert got["orderbook"]["row"].to_list() == [3, 4, 7, 8, 9]
    assert got["orderbook"]["seq_gap"].to_list() == [None, 0, 0, 0, 0]
    assert reasons(aside) == [(5, "repeated")]
    assert "2 depth updates" in aside["value"][0]


def test_updates_out_of_order_are_a_hole(tmp_path, session):
    venue, m = session
    m[3], m[4] = m[4], m[3]
    got, aside = imported(record(tmp_path / "f", [*m, venue.snapshot(), venue.diff()]))
    assert got["orderbook"]["row"].to_list() == [3, 9]
    assert ("no_book" in aside["reason"]) and pairs(got["orderbook"].tail(1)) == [venue.best(venue.u, 50)]


def test_a_snapshot_older_than_the_updates_makes_no_book(tmp_path, session):
    venue, m = session
    got, aside = imported(record(tmp_path / "f", [*m[2:4], m[1], *m[4:], ]))
    assert got["orderbook"]["row"].to_list() == [4, 5, 6]                                     # it fits the chain
    got, aside = imported(record(tmp_path / "f", [*m[3:5], m[1], *m[5:]]))
    assert got["trades"].is_empty() and "orderbook" not in got                                # m[2] was never received
    assert reasons(aside) == [(3, "old_snapshot"), (1, "no_book")]


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_a_snapshot_ahead_of_the_updates_waits_for_them(tmp_path, monkeypatch, block):
    monkeypatch.setattr(binance_ws, "lines", partial(binance_ws.lines, block=block))
    venue = Venue(4)
    m = [venue.diff(), venue.diff(), venue.snapshot(), venue.diff()]
    got, aside = imported(record(tmp_path / "f", [m[0], m[2], m[1], m[3]]))
    assert got["orderbook"]["row"].to_list() == [3, 4] and aside.is_empty()
    assert pairs(got["orderbook"]) == [venue.best(x["u"], 50) for x in (m[1], m[3])]


def test_a_venue_that_counts_anew(tmp_path, session):
    venue, m = session
    anew = Venue(2)
    anew.u = 7
    later = [anew.diff(), anew.snapshot(), anew.diff(), anew.diff()]
    for x in later: x.update({"E": x["E"] + 60_000} if "E" in x else {})
    got, _ = imported(record(tmp_path / "f", m + later))
    assert got["orderbook"]["row"].to_list() == [3, 4, 5, 6, 7, 10, 11]
    assert got["orderbook"]["seq_gap"].to_list() == [None, 0, 0, 0, 0, None, 0]


def test_at_most_one_book_in_so_many_ms(tmp_path, session):
    _, m = session
    got, _ = imported(record(tmp_path / "f", m), every_ms=200)
    assert got["orderbook"]["row"].to_list() == [3, 5, 7]
    assert got["orderbook"]["seq_gap"].to_list() == [None, 0, 0]


BROKEN = [("no clock at all", "bad_line"), (f'{N} {{"e":"trade",', "bad_json"), (f"{N} [1, 2]", "bad_line"),
          (f'{N} {{"stream":"btcusdt@tra', "unknown_message"),
          (f'{N} {{"e":"trade","E":1,"s":"BTCUSDT","t":5,"p":"1', "bad_json"),
          (f'{N} {{"e":"trade","E":1,"s":"BTCUSDT","t":5,"p":"1"}}', "missing_field"),
          (f'{N} {{"e":"trade","E":1,"s":"BTCUSDT","T":{E},"t":5,"p":"1,5","q":"1","m":true}}', "bad_number"),
          (f'{N} {{"e":"trade","E":1,"s":"BTCUSDT","T":"late","t":5,"p":"1","q":"1","m":true}}', "bad_json")]


@pytest.mark.parametrize("line, reason", BROKEN)
def test_a_broken_line_is_set_aside_by_itself(tmp_path, session, line, reason):
    _, m = session
    got, aside = imported(record(tmp_path / "f", [*m[:4], line, *m[4:]]))
    assert got["orderbook"]["row"].to_list() == [3, 4, 6, 7, 8]
    assert reasons(aside) == [(5, reason)]
    assert aside["value"][0] == line


def test_bytes_that_are_no_text_and_blank_lines(tmp_path, session):
    _, m = session
    path = record(tmp_path / "f", m)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines[:4], b"", b"\xff\xfe", *lines[4:]]))
    got, aside = imported(path)
    assert got["orderbook"]["row"].to_list() == [3, 4, 7, 8, 9]
    assert reasons(aside) == [(6, "bad_line")]


def test_a_level_that_is_no_number_makes_a_hole(tmp_path, session):
    _, m = session
    m[4]["b"] = [["1.0", "x"]]
    got, aside = imported(record(tmp_path / "f", m))
    assert got["orderbook"]["row"].to_list() == [3, 4]
    assert reasons(aside) == [(5, "bad_level"), (6, "no_book")]


def test_a_truncated_file_is_an_error_that_counts_the_good_bytes(tmp_path, session):
    _, m = session
    data = gzip.compress(record(tmp_path / "f", m * 50).read_bytes())
    (tmp_path / "cut.gz").write_bytes(data[:len(data) // 2])
    with pytest.raises(CorruptFileError, match="good bytes"): imported(tmp_path / "cut.gz")


def test_broken_lines_that_would_parse_together_do_not(tmp_path):
    trade = f'"e":"trade","E":1,"s":"BTCUSDT","T":{E},"t":5,"p":"1","q":"1","m":true'
    texts = [f'{{{trade}}}}},{{"q":{{"e":"trade"}}', f'{{{trade},"x":[{{"y":1', f'{{}}}}],"z":1,{trade}}}',
             f'{{{trade}}}']
    got, aside = imported(record(tmp_path / "f", [f"{N + k} {text}" for k, text in enumerate(texts)]))
    assert got["trades"]["row"].to_list() == [4]
    assert reasons(aside) == [(k, "bad_json") for k in (1, 2, 3)]


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_trades_count_what_is_missing_between_them(tmp_path, monkeypatch, block):
    monkeypatch.setattr(binance_ws, "lines", partial(binance_ws.lines, block=block))
    def trade(t, m, s="BTCUSDT"):
        return {"e": "trade", "E": E, "s": s, "t": t, "p": "10.10", "q": "0.30", "T": E + t, "m": m}
    m = [trade(5, True), trade(6, False), trade(9, None), trade(9, False), trade(10, True), trade(70, True, "ETHUSDT")]
    got, _ = imported(record(tmp_path / "f", m))
    trades = got["trades"]
    assert trades["seq_gap"].to_list() == [None, 0, 2, 0, 0, None]
    assert trades["side"].to_list() == ["sell", "buy", None, "buy", "sell", "sell"]
    assert trades.select("trade_id", "price", "amount", "timestamp").row(0) == ("5", 10.1, 0.3, E + 5)
    assert trades["symbol"].to_list() == ["BTCUSDT"] * 5 + ["ETHUSDT"]
    assert trades["capture_ts"].dt.epoch("us").to_list() == [N // 1000 + k * 100_000 for k in range(6)]
    with pytest.raises(ConfigError, match="BTCUSDT, ETHUSDT"): imported(tmp_path / "f", symbol="BTC-USDT")


def test_two_accounts_of_the_same_are_refused(tmp_path, session):
    _, m = session
    trade = {"e": "trade", "E": E, "s": "BTCUSDT", "t": 1, "p": "1", "q": "1", "T": E, "m": True}
    both = [trade, {**trade, "e": "aggTrade", "a": 1}]
    with pytest.raises(BadDataError, match="'trade' and 'aggTrade'"): imported(record(tmp_path / "f", both))
    shallow = f'{N} {{"stream":"btcusdt@depth20@100ms","data":{{"lastUpdateId":1,"bids":[],"asks":[]}}}}'
    record(tmp_path / "f", [*m, shallow])
    with pytest.raises(BadDataError, match="'depthUpdate' and 'partial'"): imported(tmp_path / "f")
    assert set(imported(tmp_path / "f", channel="ticker")[0]) <= {"trades"}                  # nothing of it is read


def test_shallow_books_stand_for_themselves(tmp_path):
    book = lambda u: f'"lastUpdateId":{u},"bids":[["9","1"],["10","{u}"],["8","0"]],"asks":[["11","2.50"]]'
    m = [f'{N + k * 10**8} {{"stream":"btcusdt@depth20@100ms","data":{{{book(k + 1)}}}}}' for k in range(4)]
    got, aside = imported(record(tmp_path / "f", m), depth=2, every_ms=200)
    assert pairs(got["orderbook"]) == [([(10.0, u), (9.0, 1.0)], [(11.0, 2.5)]) for u in (1.0, 3.0)]
    assert got["orderbook"]["nonce"].to_list() == [1, 3] and aside.is_empty()
    assert got["orderbook"]["symbol"].unique().to_list() == ["BTCUSDT"]
    futures = ('"e":"depthUpdate","E":1723161255000,"s":"BTCUSDT","U":3,"u":9,"pu":1,"b":[["10","1"]],"a":[["11","2"]]')
    m = [f'{N} {{"stream":"btcusdt@depth5@100ms","data":{{{futures}}}}}']
    got, _ = imported(record(tmp_path / "f", m), "futures")
    assert got["orderbook"].select("nonce", "timestamp").rows() == [(9, 1723161255000)]


def test_whose_snapshot_it_is(tmp_path, session):
    venue, m = session
    got, _ = imported(record(tmp_path / "f", [m[1], *m[2:]]))                               # before any symbol is known
    assert got["orderbook"]["row"].to_list() == [2, 3, 4, 5, 6]
    other = Venue(3, symbol="ETHUSDT")
    got, aside = imported(record(tmp_path / "f", [m[0], other.diff(), *m[1:]]))
    assert reasons(aside)[0] == (3, "snapshot_without_symbol") and "orderbook" not in got
    got, aside = imported(record(tmp_path / "f", [m[1]]))
    assert reasons(aside) == [(1, "snapshot_without_symbol")]


def test_other_messages_are_passed_over_and_counted(tmp_path, session):
    _, m = session
    kline = {"e": "kline", "E": E, "s": "BTCUSDT", "k": {"o": "1"}}
    got, aside = imported(record(tmp_path / "f", [*m, kline, kline, f'{N} {{"result":null,"id":1}}']))
    assert len(got["orderbook"]) == 5
    assert aside.rows() == [(8, "not_imported", "e", "2 messages 'kline'")]


@pytest.mark.parametrize("unit, divide", [("ns", 1), ("us", 10**3), ("ms", 10**6), ("s", 10**9)])
def test_the_clock_may_have_any_unit(tmp_path, session, unit, divide):
    _, m = session
    path = record(tmp_path / "f", m, wrap=False)                                             # bare messages, too
    text = [line.split(" ", 1) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{int(c) // divide} {rest}\n" for c, rest in text))
    got, _ = imported(path)
    first = got["orderbook"]["capture_ts"].dt.epoch("us")[0]
    assert first == (N + 200_000_000) // divide * divide // 1000
    path.write_text("".join(f"{int(c) // divide // 50} {rest}\n" for c, rest in text))
    with pytest.raises(TimeUnitError, match="lines begin with"): imported(path)


def test_whose_file_it_is(tmp_path, session):
    _, m = session
    kind = lambda messages, **k: FORMAT.looks_like(Head.of(record(tmp_path / "h", messages, **k)))
    trade = {"e": "aggTrade", "E": E, "s": "BTCUSDT", "a": 1, "p": "1", "q": "1", "T": E, "m": True}
    quote = {"u": 1, "s": "BTCUSDT", "b": "1", "B": "1", "a": "2", "A": "1"}
    assert kind(m) == kind(m, wrap=False) == "spot"
    assert kind([{**trade, "M": True}]) == "spot" and kind([trade]) == "futures"
    assert kind([quote], wrap=False) == "spot" and kind([{"e": "bookTicker", **quote, "E": E}]) == "futures"
    assert kind([Venue(1, futures=True).diff()]) == "futures"
    assert kind([json.dumps(m[0])]) is None                                                  # no clock
    assert kind([f'{N} {{"type":"l2update","changes":[]}}']) is None
    assert kind(["timestamp,price,amount", f"{N},1,2"]) is None
    with pytest.raises(BadDataError, match="'pu'"): imported(record(tmp_path / "f", m), "futures")


def test_memory_of_the_past_is_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr(diffs, "RECENT", 20)
    monkeypatch.setattr(binance_ws, "lines", partial(binance_ws.lines, block=2000))
    venue = Venue(5)
    snapshot, m = venue.snapshot(), [venue.diff() for _ in range(100)]
    seen = []
    recording = binance_ws.Recording(record(tmp_path / "f", [*m, snapshot]), "spot", Options())
    for first, block in binance_ws.lines(tmp_path / "f"):
        list(recording.read(first, block))
        seen.append(len(recording.books["BTCUSDT"].chain.pool.about))
    assert max(seen) < 50
    (last,) = recording.finish()
    assert [(n.row, n.reason, n.count, n.of) for n in last.notes[1:]] == [(1, "no_book", 100, 100)]


# ---- what a file is judged by

def judged(tmp_path, messages, **options):
    return import_files(record(tmp_path / "f", messages), tmp_path / "bronze", options=Options(**options)).files[0]


def trades(n): return [{"e": "trade", "E": E + i, "s": "BTCUSDT", "t": i, "p": "1", "q": "1", "T": E + i, "m": True,
                        "M": True} for i in range(n)]


def test_a_capture_that_lost_most_of_its_books_is_refused(tmp_path, session):
    venue, m = session
    venue.diff()                                                                              # is lost
    one = judged(tmp_path, [*m, *(venue.diff() for _ in range(400)), *trades(1500)])
    assert one.status == "failed" and isinstance(one.error, BadDataError) and one.error.row == 8
    assert "400 of 406 depth updates of BTCUSDT make no book" in str(one.error)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_hole_that_is_allowed_stands_in_the_report(tmp_path, session):
    venue, m = session
    shown = venue.u
    venue.diff()
    one = judged(tmp_path, [*m, *(venue.diff() for _ in range(3)), *trades(2)], max_bad=0.5)
    assert (one.status, one.counts.rows) == ("imported", {"trades": 2, "orderbook": 5})
    assert (one.counts.set_aside, one.counts.gaps, one.counts.missing) == (3, 1, venue.u - shown)
    (path,) = (tmp_path / "bronze").rglob("quarantine/**/rows.parquet")
    assert "orderbook" in path.parts and pl.read_parquet(path).select("row", "reason").rows() == [(8, "no_book")]
    assert [line.split(":")[0] for line in one.notes] == ["no_book"]


def test_repeats_and_other_messages_are_no_bad_rows(tmp_path, session):
    _, m = session
    kline = {"e": "kline", "E": E, "s": "BTCUSDT", "k": {"o": "1"}}
    one = judged(tmp_path, [*m[:4], m[3], *m[4:], kline, kline])
    assert (one.status, one.counts.rows, one.counts.set_aside, one.counts.duplicates) == (
        "imported", {"orderbook": 5}, 0, 1)
    assert one.notes == ["not_imported: 2 messages 'kline'",
                         "repeated: BTCUSDT: 1 depth updates of lines 5 to 5 came again and were dropped"]


# ---- the recorded day

@pytest.mark.parametrize("channel", ["orderbook", "trades", "ticker"])
def test_the_recorded_messages_are_the_recorded_bronze(shared_bronze, recorded, channel):
    got = recorded[0][channel]
    folder = shared_bronze / channel / "exchange=binance" / "symbol=BTC-USDT" / "year=2024" / "month=08" / "day=08"
    expected = pl.read_parquet(folder / "data.parquet", hive_partitioning=False).drop("year", "month", "day")
    assert got.select(expected.columns).equals(expected)
    assert set(got.columns) - set(expected.columns) <= {"row", "seq_gap"}
    if channel != "ticker": assert got["seq_gap"].fill_null(0).sum() == 0
    assert recorded[1].is_empty()


@pytest.fixture(scope="module")
def recorded():
    "The whole recording, by its own format's detection."
    if not RAW.is_file(): pytest.skip("recorded messages (../shared/data/raw) are not on this machine")
    kind = FORMAT.looks_like(Head.of(RAW))
    assert kind == "spot"
    return imported(RAW, kind, symbol="BTC-USDT")


def test_the_imported_recording_is_the_recorded_bronze(shared_bronze, tmp_path):
    if not RAW.is_file(): pytest.skip("recorded messages (../shared/data/raw) are not on this machine")
    assert not import_files(RAW, tmp_path / "bronze", options=Options(symbol="BTC-USDT")).failed
    day = Path("exchange=binance") / "symbol=BTC-USDT" / "year=2024" / "month=08" / "day=08"
    for channel in ("orderbook", "trades", "ticker"):
        (file,) = (tmp_path / "bronze" / channel / day).glob("*.parquet")
        expected = pl.read_parquet(shared_bronze / channel / day / "data.parquet", hive_partitioning=False)
        expected = expected.drop("year", "month", "day")
        assert pl.read_parquet(file, hive_partitioning=False).select(expected.columns).equals(expected)
