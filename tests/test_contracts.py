"""Contracts to base units: every channel, every kind, each row once, and the trades of BitMEX computed by hand."""
import json
import math
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import lakes
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daedalus_etl.core.errors import ConfigError
from daedalus_etl.core.levels import LEVELS
from daedalus_etl.features.frames import features
from daedalus_etl.sources.contracts import Contracts, ContractSpec, load_contracts, to_base
from daedalus_etl.sources.simulated import simulate
from daedalus_etl.sources.simulator import SimulatorConfig
from daedalus_etl.sources.source import Batch
from daedalus_etl.storage.contract import UTC_US, bad_row_rules, check_schema, contract_for, split_bad

TARDIS = Path(__file__).resolve().parents[2] / "shared" / "data" / "raw" / "tardis"
INVERSE = Contracts({("bitmex", "XBTUSD"): ContractSpec(1, "inverse")})
PRICES = st.integers(1, 10**7).map(lambda ticks: ticks / 100)
COUNTS = st.integers(1, 10**9).map(float)


def tape(price, amount, symbol="XBTUSD", exchange="bitmex", **more) -> Batch:
    "Trades with the given columns."
    columns = {"price": price, "amount": amount, "side": "buy", "exchange": exchange, "symbol": symbol}
    frame = pl.DataFrame(columns | more, schema_overrides={"price": pl.Float64, "amount": pl.Float64})
    return Batch("trades", frame.with_columns(pl.lit(1_583_020_803_307_160).cast(UTC_US).alias("capture_ts")))


def nearest(exact: Fraction) -> float: return exact.numerator / exact.denominator    # Python rounds this correctly


@settings(max_examples=200, deadline=None)
@given(count=COUNTS, size=st.sampled_from([1, 0.1, 0.01, 0.001, 1e-6, 10, 100, 0.25, 5]), price=PRICES)
def test_a_linear_amount_is_the_double_nearest_to_the_decimal_product(count, size, price):
    made = to_base(tape([price], [count]), Contracts({("*", "*"): ContractSpec(size, "linear")})).frame
    assert made["amount"].item() == nearest(Fraction(count) * Fraction(Decimal(repr(size))))
    assert made["contracts"].item() == count and made["contract_size"].item() == size


@settings(max_examples=200, deadline=None)
@given(count=COUNTS, size=st.sampled_from([1, 10, 100]), price=PRICES)
def test_an_inverse_amount_is_the_rounded_quotient_and_its_dollars_are_within_a_bit(count, size, price):
    made = to_base(tape([price], [count]), Contracts({("*", "*"): ContractSpec(size, "inverse")})).frame
    amount, cost = made["amount"].item(), made["cost"].item()
    assert amount == nearest(Fraction(count) * size / Fraction(price))
    assert cost == count * size and abs(price * amount - cost) <= math.ulp(cost)


def test_what_is_converted_stays_so():
    once = to_base(tape([8531.5, 8531.5], [2152, 1]), INVERSE)
    assert to_base(once, INVERSE).frame.equals(once.frame)
    mixed = pl.concat([once.frame, tape([8531.5], [2152]).frame], how="diagonal")
    again = to_base(Batch("trades", mixed), INVERSE).frame
    assert again["amount"].to_list() == [2152 / 8531.5, 1 / 8531.5, 2152 / 8531.5]
    assert again["contracts"].to_list() == [2152, 1, 2152]


def test_spot_stays_and_is_marked():
    specs = Contracts({("bitmex", "*"): ContractSpec()})
    made = to_base(tape([10.0], [3.0]), specs).frame
    assert made.select("amount", "contract_size", "contract_type").row(0) == (3.0, 1.0, "spot")
    assert "contracts" not in made.columns and "cost" not in made.columns


def test_streams_of_one_batch_keep_their_order_and_rows_set_aside_are_not_touched():
    linear = {("bitmex", "XBTUSDT"): ContractSpec(1e-6, "linear")}
    specs = Contracts(INVERSE.specs | linear | {("binance", "*"): ContractSpec()})
    names = ["XBTUSD", "XBTUSDT", "BTC-USDT", "XBTUSD"]
    bad = pl.DataFrame({"row": [5], "reason": ["bad_line"], "column": [None], "value": ["?"]})
    venues = ["bitmex", "bitmex", "binance", "bitmex"]
    batch = tape([100.0] * 4, [50.0, 50.0, 50.0, 25.0], names, venues, row=[1, 2, 3, 4])
    made = to_base(batch._replace(bad=bad), specs)
    assert made.bad is bad and made.channel == "trades"
    assert made.frame.select("row", "amount").rows() == [(1, 0.5), (2, 0.00005), (3, 50.0), (4, 0.25)]
    assert made.frame["contracts"].to_list() == [50.0, 50.0, None, 25.0]


@pytest.mark.parametrize("price", [None, 0.0, -1.0, math.nan])
def test_a_row_without_a_price_is_set_aside_for_its_price(price):
    made = to_base(tape([price, 10.0], [5.0, 5.0]), INVERSE).frame
    good, bad = split_bad(made, bad_row_rules("trades", columns=made.columns))
    assert good["amount"].to_list() == [0.5] and bad["reason"].to_list() == ["bad_price"]
    assert bad["contracts"].to_list() == [5.0]


def test_books_and_quotes_are_converted_level_by_level():
    side = pl.Series([[{"price": 100.0, "size": 50.0}, {"price": 99.0, "size": 0.0}], [], None], dtype=LEVELS)
    frame = pl.DataFrame({"bids": side, "asks": side, "exchange": "bitmex", "symbol": "XBTUSD"})
    made = to_base(Batch("orderbook", frame), INVERSE).frame
    assert made["asks"].to_list() == [[{"price": 100.0, "size": 0.5}, {"price": 99.0, "size": 0.0}], [], None]
    assert made.schema["bids"] == LEVELS
    assert not check_schema(made.schema | {"capture_ts": UTC_US}, "orderbook")
    quotes = pl.DataFrame({"bid": [100.0, None], "ask": [200.0, 0.0], "bid_volume": [50.0, 50.0], "exchange": "bitmex",
                           "ask_volume": [50.0, 50.0], "base_volume": [1e6, 1e6], "symbol": "XBTUSD"})
    made = to_base(Batch("ticker", quotes), INVERSE).frame
    assert made.select("bid_volume", "ask_volume", "base_volume").rows() == [(0.5, 0.25, 1e6), (None, None, 1e6)]


def test_series_have_the_unit_of_their_name():
    series = Batch("series", pl.DataFrame({"name": ["open_interest"], "value": [5e8]}))
    assert to_base(series, INVERSE) is series


def test_a_symbol_that_nobody_names_stops_the_import():
    with pytest.raises(ConfigError, match="do not name 'XBTUSDT' of 'bitmex'.*Did you mean 'XBTUSD'"):
        to_base(tape([1.0], [1.0], "XBTUSDT"), INVERSE)
    empty = tape([], [], "XBTUSDT")
    assert to_base(empty, INVERSE) is empty


def test_markets_of_ccxt_by_symbol_as_list_and_by_exchange(tmp_path):
    market = {"id": "BTCUSD_PERP", "symbol": "BTC/USD:BTC", "contract": True, "linear": False, "inverse": True,
              "contractSize": 100.0}
    other = market | {"id": "X", "symbol": "X/USDT:USDT", "linear": True, "inverse": False, "contractSize": None}
    path = tmp_path / "markets.json"
    for content, exchange in [({market["symbol"]: market, other["symbol"]: other}, "any"), ([market, other], "any"),
                              ({"binancecoinm": {market["symbol"]: market, other["symbol"]: other}}, "binancecoinm"),
                              ({"binancecoinm": [market, other]}, "binancecoinm")]:
        path.write_text(json.dumps(content))
        specs = load_contracts(path)
        found = {specs.of(exchange, n) for n in ("BTC/USD:BTC", "BTC-USD-BTC", "BTCUSD_PERP")}
        assert found == {ContractSpec(100, "inverse")}
        with pytest.raises(ConfigError, match="contract size is None"): specs.of(exchange, "X/USDT:USDT")


def test_the_dollars_of_bitmex_are_right_in_silver():
    path = TARDIS / "bitmex_trades_XBTUSD.csv"
    if not path.exists(): pytest.skip(f"{path} is absent: recorded data is not part of the project")
    raw = pl.read_csv(path, infer_schema=False)
    frame = raw.select(
        "exchange", "symbol", "side", pl.col("id").alias("trade_id"), pl.col("price", "amount").cast(pl.Float64),
        pl.col("local_timestamp").cast(pl.Int64).cast(UTC_US).alias("capture_ts"))
    made = to_base(Batch("trades", frame), INVERSE).frame
    with localcontext(prec=60):
        by_hand = [float(Decimal(a) / Decimal(p)) for a, p in raw.select("amount", "price").rows()]
    assert made["amount"].to_list() == by_hand and by_hand[0] == 2152 / 8531.5
    silver = features(trades=made, features=["dollar_volume"])
    for dollars, counted in zip(silver["dollar_volume"], raw["amount"], strict=True):
        assert abs(dollars - float(counted)) <= math.ulp(float(counted))
    assert not check_schema(made.schema, contract_for("trades"))
    assert {"contracts", "contract_size", "contract_type"} <= set(silver.columns)      # they pass through


NOTES = {"seq_gap": pl.Int64, "contracts": pl.Float64, "contract_size": pl.Float64, "contract_type": pl.String}


@pytest.mark.parametrize("channel", ["trades", "ticker", "orderbook"])
def test_what_the_source_knew_passes_through_to_silver(tmp_path, channel):
    "Gaps and contracts are in silver as they were in bronze, from the day on which they are there, and change nothing."
    frames = simulate(SimulatorConfig(), 30.0, lakes.day_start(9), exchange="binance", symbol="BTC-USDT")
    plain, notes = frames[channel], [n for n in NOTES if n in contract_for(channel).schema]
    told = plain.with_columns(*(pl.lit(1, t).alias(n) if t != pl.String else pl.lit("linear").alias(n)
                                for n, t in NOTES.items() if n in notes))
    for name, rows in (("plain", plain), ("told", told)):
        lakes.put(tmp_path / name / "bronze", plain.with_columns(pl.col("capture_ts").dt.offset_by("-1d")), 8)
        lakes.put(tmp_path / name / "bronze", rows, 9)
        made = getattr(lakes, channel)(tmp_path / name / "bronze", tmp_path / name)
        assert lakes.statuses(lakes.run(made, workers=1)) == ["written"] * 2
    files = {n: sorted((tmp_path / n / f"silver/{channel}").rglob("*.parquet")) for n in ("plain", "told")}
    before, after = (pl.concat([pl.read_parquet(p, hive_partitioning=False) for p in files[n]], how="diagonal")
                     for n in ("plain", "told"))
    assert after.select(notes)[-plain.height:].equals(told.select(notes))
    assert after.drop(notes).equals(before) and not set(notes) & set(before.columns)
    assert len(notes) == (4 if channel == "trades" else 3)


GATE = [{"id": "BTC_USDT", "symbol": "BTC/USDT", "contract": False},
        {"id": "BTC_USDT", "symbol": "BTC/USDT:USDT", "contract": True, "linear": True, "contractSize": 0.0001}]
HTX = [{"id": "btcusdt", "symbol": "BTC/USDT", "contract": False},
       {"id": "BTC-USDT", "symbol": "BTC/USDT:USDT", "contract": True, "linear": True, "contractSize": 0.001}]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("markets", "doubtful", "size"), [(GATE, "BTC_USDT", 0.0001), (HTX, "BTC-USDT", 0.001)])
def test_a_name_of_several_markets_is_none_and_their_symbols_stay(tmp_path, markets, doubtful, size, turned):
    path = tmp_path / "markets.json"
    path.write_text(json.dumps(markets[::-1] if turned else markets))
    specs = load_contracts(path)
    assert specs.of("x", "BTC/USDT") == ContractSpec()
    assert specs.of("x", "BTC/USDT:USDT") == specs.of("x", "BTC-USDT-USDT") == ContractSpec(size, "linear")
    with pytest.raises(ConfigError, match=r"several markets, .*BTC.* and .*BTC.*YAML"): specs.of("x", doubtful)


def test_markets_that_agree_share_a_name_and_one_that_is_unusable_spoils_it(tmp_path):
    path, spot = tmp_path / "markets.json", {"id": "X", "symbol": "X/USDT", "contract": False}
    path.write_text(json.dumps([spot, spot | {"symbol": "X/USD"}]))
    assert load_contracts(path).of("x", "X") == ContractSpec()
    quanto = spot | {"symbol": "X/USD:BTC", "contract": True, "quanto": True}
    for both in ([spot, quanto], [quanto, spot]):
        path.write_text(json.dumps(both))
        with pytest.raises(ConfigError, match="third currency"): load_contracts(path).of("x", "X")
    both = Contracts({("x", "A"): ContractSpec()}, {("x", "A"): "it is not known"})
    with pytest.raises(ConfigError, match="not known"): both.of("x", "A")


def test_the_very_spelling_comes_first_in_yaml(tmp_path):
    path = tmp_path / "contracts.yaml"
    path.write_text("x:\n  BTC/USDT: {type: spot}\n  BTC-USDT: {size: 0.001, type: linear}\n")
    specs = load_contracts(path)
    assert specs.of("x", "BTC/USDT").type == "spot" and specs.of("x", "BTC-USDT").type == "linear"


def test_what_the_source_has_converted_gets_its_size_and_cost():
    frame = tape([50_000.0, 40_000.0, 40_000.0], [0.02, 0.025, 10.0], contracts=[10.0, 10.0, None],
                 contract_type=["inverse", "inverse", None]).frame
    specs = Contracts({("bitmex", "XBTUSD"): ContractSpec(100, "inverse")})
    made = to_base(Batch("trades", frame), specs).frame
    assert made["amount"].to_list() == [0.02, 0.025, 0.025] and made["contracts"].to_list() == [10.0] * 3
    assert made["cost"].to_list() == [1000.0] * 3 and made["contract_size"].to_list() == [100.0] * 3
    paid = to_base(Batch("trades", frame.with_columns(cost=7.0, contract_size=pl.lit(10.0))), specs).frame
    assert paid["cost"].to_list() == [7.0, 7.0, 1000.0] and paid["contract_size"].to_list() == [10.0, 10.0, 100.0]
    spot = to_base(Batch("trades", frame), Contracts({("*", "*"): ContractSpec()})).frame
    assert spot["contract_size"].to_list() == [None, None, 1.0] and spot["contract_type"][0] == "inverse"
