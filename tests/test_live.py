"""Live is batch: rows pushed one by one give what the executor writes of the same bronze, bit for bit."""
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import lakes
import polars as pl
import pytest
from lakes import day_start
from polars.testing import assert_frame_equal
from test_shared_data import STREAMS, part

from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.core.state import dump_state, load_state
from daedalus_etl.features.bars import BOOK_ROW
from daedalus_etl.features.frames import feature_frame
from daedalus_etl.features.state import BarBuilder, SymbolState
from daedalus_etl.sources.simulated import simulate
from daedalus_etl.sources.simulator import SimulatorConfig

FEATURES = FeatureConfig(categories={"structural", "dynamic", "rolling", "advanced"}, bar_durations=(10, 60),
                         vpin_bucket_size=0.5)
BARS = {"orderbook": FEATURES, "trades": FeatureConfig(**dict(FEATURES) | {"bars": ("tick:50", "volume:5")})}
STREAM = ("binance", "BTC-USDT")


def through_bytes(state: dict) -> dict: return load_state(dump_state(state))[0]


def messages(books: pl.DataFrame, trades: pl.DataFrame) -> Iterator[tuple[str, dict]]:
    "Rows of both channels as a socket brings them: by clock, at one clock trades before books."
    trades = trades.sort("capture_ts", "timestamp", pl.col("trade_id").cast(pl.Int64), maintain_order=True)
    rows = [("trades", r) for r in trades.to_dicts()] + [("orderbook", r) for r in books.to_dicts()]
    yield from sorted(rows, key=lambda m: m[1]["capture_ts"])


class Live:
    "Features and bars of one stream, message by message; `restart` hands all states on through bytes."
    def __init__(self):
        self.books, self.builders = SymbolState(FEATURES), {c: BarBuilder(c, f) for c, f in BARS.items()}
        self.rows, self.bars = [], {(c, k): [] for c, b in self.builders.items() for k in b.bars.keys}

    def take(self, channel: str, message: dict) -> None:
        if channel == "trades":
            self.books.push_trades(message)
            return self._bars("trades", message)
        made = self.books.push(message)
        if made is None: return
        self.rows.append(message | made)
        self._bars("orderbook", {c: self.rows[-1][c] for c in ("capture_ts", *BOOK_ROW)})

    def _bars(self, channel: str, row: dict) -> None:
        for key, closed in self.builders[channel].push(row).items(): self.bars[channel, key].append(closed)

    def restart(self) -> None:
        self.books = SymbolState(FEATURES, state=through_bytes(self.books.state()))
        self.builders = {c: BarBuilder(c, BARS[c], state=through_bytes(b.state())) for c, b in self.builders.items()}


def replay(books: pl.DataFrame, trades: pl.DataFrame, restarts: int = 0) -> Live:
    "A live session over the rows, broken off and gone on with `restarts` times."
    live, told = Live(), list(messages(books, trades))
    stops = {len(told) * (k + 1) // (restarts + 1) for k in range(restarts)}
    for i, (channel, message) in enumerate(told):
        if i in stops: live.restart()
        live.take(channel, message)
    return live


def batch(bronze, root):
    "Silver and gold of the same bronze, by the executor."
    for channel in ("orderbook", "trades"):
        lakes.run(getattr(lakes, channel)(bronze / channel, root), features=FEATURES)
        lakes.run(lakes.bars(root / f"silver/{channel}", root, channel), features=BARS[channel])
    return root


def label(key) -> str: return f"{key}s" if isinstance(key, int) else key


def check(live: Live, root, stream, days) -> None:
    "Every column of every row that was pushed, and every bar that was closed, is what the batch wrote."
    silver = pl.concat([part(root, "silver/orderbook", stream, d) for d in days])[:len(live.rows)]
    made = [c for c in silver.columns if c in live.rows[0] and c not in ("bids", "asks")]
    assert len(made) > 150 and {"tfi_60s", "vpin", "ofi_beta", "spread_percentile", "segment_id"} <= set(made)
    got = pl.DataFrame({c: [r[c] for r in live.rows] for c in made}, schema={c: silver.schema[c] for c in made})
    assert_frame_equal(got, silver.select(made), check_exact=True)
    for (channel, key), closed in live.bars.items():
        gold = pl.concat([part(root, f"gold/{channel}_bars/{label(key)}", stream, d) for d in days])
        assert closed, (channel, key)
        bars = pl.concat(closed)
        last = bars["available_at"].max()
        expected = gold.filter(pl.col("available_at") <= last).select(bars.columns)
        assert_frame_equal(bars, expected[:bars.height], check_exact=True)
        assert expected.height == bars.height, (channel, key)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    "Bronze of a simulated market around midnight, and the lake that the executor made of it."
    root = tmp_path_factory.mktemp("simulated")
    start = datetime(2024, 8, 8, 23, 58, 30, tzinfo=UTC)
    frames = simulate(SimulatorConfig(snapshot_s=0.5), 180.0, start, seed=5, exchange=STREAM[0], symbol=STREAM[1])
    for channel in ("orderbook", "trades"):
        for day in (8, 9):
            rows = frames[channel].filter(pl.col("capture_ts").dt.truncate("1d") == day_start(day))
            assert rows.height > 100
            lakes.put(root / "bronze" / channel, rows, day, STREAM)
    return frames, batch(root / "bronze", root / "lake")


@pytest.mark.parametrize("restarts", [0, 3])
def test_a_simulated_market_across_midnight(simulated, restarts):
    frames, lake = simulated
    live = replay(frames["orderbook"], frames["trades"], restarts)
    assert len(live.rows) == frames["orderbook"].height
    check(live, lake, STREAM, (8, 9))


def test_a_live_session_goes_on_where_another_was_and_repeats_change_nothing(simulated):
    "A venue sends the last messages again after a reconnect: the rows are those of a session without a break."
    frames, lake = simulated
    live, told = Live(), list(messages(frames["orderbook"], frames["trades"]))
    cut = next(i for i, (c, _) in enumerate(told) if i > len(told) // 2 and c == "orderbook")
    for channel, message in told[:cut + 1]: live.take(channel, message)
    live.restart()
    assert live.books.push(told[cut][1]) is None
    seen = [m for c, m in told[:cut + 1] if c == "trades"][-3:]
    fresh = [m for m in seen if m["capture_ts"] >= told[cut][1]["capture_ts"]]
    assert live.books.push_trades(fresh) == 0
    for channel, message in told[cut + 1:]: live.take(channel, message)
    check(live, lake, STREAM, (8, 9))


FLOW = FeatureConfig(features=("tfi_60s", "vpin"), rolling_windows=(60,), vpin_bucket_size=20.0)


def quiet_books(day: int, until_s: int) -> pl.DataFrame:
    "A book each half minute of the day up to then."
    at = [day_start(day) + timedelta(seconds=s) for s in range(30, until_s, 30)]
    side = {"bids": [{"price": 100.0, "size": 1.0}], "asks": [{"price": 101.0, "size": 1.0}]}
    rows = [{"capture_ts": t, "nonce": k, "exchange": STREAM[0], "symbol": STREAM[1], **side} for k, t in enumerate(at)]
    return pl.DataFrame(rows, schema_overrides={"capture_ts": pl.Datetime("us", "UTC")})


def tape_of(rows: list[tuple]) -> pl.DataFrame:
    "Trades from (day, second of receipt, id): what else they have follows from the id, as it does in a repeat."
    made = [{"capture_ts": day_start(day) + timedelta(seconds=s), "exchange": STREAM[0], "symbol": STREAM[1],
             "timestamp": 1_723_075_200_000 + sum(map(ord, name)), "trade_id": name,
             "side": "sell" if sum(map(ord, name)) % 3 else "buy", "price": 100.0 + sum(map(ord, name)) % 5,
             "amount": 1.0 + sum(map(ord, name)) % 7 / 3} for day, s, name in rows]
    return pl.DataFrame(made, schema_overrides={"capture_ts": pl.Datetime("us", "UTC")})


def live_is_batch(tmp_path, trades: pl.DataFrame, until_s: int, restart: int | None = None) -> int:
    "Of messages in the order of their receipt, trades of one receipt in one push; returns how many were new."
    books = {day: quiet_books(day, until_s) for day in (8, 9)}
    for day in (8, 9):
        lakes.put(tmp_path / "bronze/orderbook", books[day], day, STREAM)
        own = trades.filter(pl.col("capture_ts").dt.truncate("1d") == day_start(day))
        if own.height: lakes.put(tmp_path / "bronze/trades", own, day, STREAM)
    lakes.run(lakes.orderbook(tmp_path / "bronze/orderbook", tmp_path), features=FLOW)
    told = [(t, 0, own.to_dicts()) for (t,), own in trades.group_by("capture_ts", maintain_order=True)]
    told += [(r["capture_ts"], 1, r) for b in books.values() for r in b.to_dicts()]
    live, rows, new = SymbolState(FLOW), [], 0
    for k, (_, is_book, message) in enumerate(sorted(told, key=lambda m: m[:2])):
        if k == restart: live = SymbolState(FLOW, state=through_bytes(live.state()))
        if is_book: rows.append(live.push(message))
        else: new += live.push_trades(message)
    silver = pl.concat([part(tmp_path, "silver/orderbook", STREAM, d) for d in (8, 9)])
    for name in FLOW.features: assert [r[name] for r in rows] == silver[name].to_list(), name
    assert any(r["tfi_60s"] for r in rows)
    return new


@pytest.mark.parametrize("restart", [None, 185])
@pytest.mark.parametrize("ids", [[str(k) for k in range(60)], [f"t{k:02}" for k in range(60)],
                                 [str(k * 7 % 60) for k in range(60)]])
def test_what_comes_again_hours_later_on_the_same_day_counts_once(tmp_path, ids, restart):
    "As in the day's file; on the next day it counts unless it is within the window, which each repeat begins anew."
    rows = [(8, 30 * k + 7, name) for k, name in enumerate(ids)]
    again = [(8, 4000 + 31 * k, name) for k, name in enumerate(ids[10:20])]
    midnight = [(8, 86_000, ids[3]), (9, 300, ids[3]), (9, 1100, ids[3]), (9, 50, ids[5]), (9, 2000, ids[5])]
    assert live_is_batch(tmp_path, tape_of(sorted(rows + again + midnight, key=lambda r: r[:2])), 5000, restart) == 61


def test_a_repeat_keeps_its_id_in_the_state_as_a_batch_does(tmp_path):
    "Bytes of both states are the same while the window holds all of the day."
    trades, states = tape_of([(8, 1, "1"), (8, 2, "2"), (8, 40, "1"), (8, 50, "3")]), {}
    books = quiet_books(8, 100)
    feature_frame("orderbook", books.lazy(), FLOW, states, trades=trades.lazy()).collect()
    live = SymbolState(FLOW)
    live.push(books.to_dicts(), trades.to_dicts())
    assert dump_state(live.state()) == dump_state(states["|".join(STREAM)])


def test_trades_of_one_receipt_are_taken_in_the_order_of_a_batch(tmp_path):
    "Whatever order the message has them in; bars, too."
    rows = [(8, 30 * (k // 5) + 7, str(1000 + (k ^ 3))) for k in range(300)]
    trades = tape_of(rows)
    assert live_is_batch(tmp_path, trades, 2000) == 300
    bars, config = BarBuilder("trades", durations=[60], bars=["tick:7"]), FeatureConfig(bars=("tick:7",))
    closed = [bars.push(own.to_dicts()) for _, own in trades.group_by("capture_ts", maintain_order=True)]
    ordered = trades.sort("capture_ts", "timestamp", pl.col("trade_id").cast(pl.Int64), maintain_order=True)
    whole = BarBuilder("trades", config, durations=[60]).push(ordered)
    for key in (60, "tick-7"): assert pl.concat([c[key] for c in closed if key in c]).equals(whole[key]), key


@pytest.fixture(scope="module")
def recorded(shared_bronze, tmp_path_factory):
    "The lake that the executor makes of all recorded books and trades."
    return batch(shared_bronze, tmp_path_factory.mktemp("recorded"))


def recorded_rows(root, channel, stream, day):
    path = root / channel / lakes.leaf(day, stream) / "data.parquet"
    return pl.read_parquet(path, hive_partitioning=False)


def test_the_first_minute_of_a_recorded_day(recorded, shared_bronze):
    books, trades = (recorded_rows(shared_bronze, c, STREAM, 8) for c in ("orderbook", "trades"))
    end = books["capture_ts"][0] + pl.duration(seconds=75)
    books, trades = (f.filter(pl.col("capture_ts") < end) for f in (books, trades))
    check(replay(books, trades, restarts=1), recorded, STREAM, (8,))


@pytest.mark.slow
@pytest.mark.parametrize("stream", STREAMS)
def test_whole_recorded_days(recorded, shared_bronze, stream):
    books, trades = (pl.concat([recorded_rows(shared_bronze, c, stream, d) for d in (8, 9)])
                     for c in ("orderbook", "trades"))
    live = replay(books, trades, restarts=2)
    check(live, recorded, stream, (8, 9))
    assert len(live.rows) == books.height
