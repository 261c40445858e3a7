"The core: executor, transforms and their life cycle, registry, configuration, filters, enumerations, formats."
import dataclasses
import datetime as dt

import lakes
import numpy as np
import polars as pl
import pytest
from lakes import BTC, ETH, SMALL, dataset, leaf, put, run, statuses, tape
from polars.testing import assert_frame_equal

from daedalus_etl.config import load_config
from daedalus_etl.core import enums
from daedalus_etl.core.base import BaseTransform, Notes, StatefulTransform, TransformContext
from daedalus_etl.core.config import FeatureConfig, FilterSpec, InputConfig, OutputConfig, TransformConfig
from daedalus_etl.core.enums import CompressionCodec, DataFormat, FeatureCategory, ProcessingMode, WriteMode
from daedalus_etl.core.errors import (
    ConfigError,
    EmptyMatchError,
    StateError,
    TransformError,
    UnknownFeatureError,
    UnknownTransformError,
)
from daedalus_etl.core.executor import TransformExecutor
from daedalus_etl.core.registry import create_transform, get_transform, list_transforms, register_transform
from daedalus_etl.core.report import RunReport
from daedalus_etl.features.frames import features
from daedalus_etl.transforms.trades import TradesFeatureTransform


@pytest.fixture
def bronze(tmp_path):
    put(tmp_path / "bronze", tape(8))
    return tmp_path / "bronze"


@pytest.fixture
def lake(tmp_path): return tmp_path / "lake"


# ---- the executor

def test_seed_example(bronze, lake):
    config = TransformConfig(
        name="trades_features", description="Extract features from bronze trades data",
        inputs={"trades": InputConfig(name="trades", path=str(bronze), format=DataFormat.PARQUET)},
        outputs={"silver": OutputConfig(
            name="silver", path=str(lake / "silver/trades"), format=DataFormat.PARQUET,
            partition_cols=["exchange", "symbol", "year", "month", "day"], mode=WriteMode.OVERWRITE_PARTITION,
            compression=CompressionCodec.ZSTD, compression_level=3)})
    executor = TransformExecutor(feature_config=FeatureConfig(
        categories={FeatureCategory.STRUCTURAL, FeatureCategory.DYNAMIC}, depth_levels=20))
    result = executor.execute(
        transform=TradesFeatureTransform(config),
        filter_spec=FilterSpec(exchange="binance", symbol="BTC/USDT"),
        limit_rows=None,
        dry_run=False,
    )
    assert result["write_stats"]["silver"]["rows"] == tape().height == dataset(lake / "silver/trades").height
    assert isinstance(result, RunReport) and result.success and result["success"] is True
    stats = result.write_stats["silver"]
    assert (stats["files"], stats["path"]) == (1, str(lake / "silver/trades"))
    assert stats["bytes"] == (lake / "silver/trades" / leaf() / "part-0.parquet").stat().st_size
    assert set(result) == set(result.keys()) and "units" in dict(result)
    with pytest.raises(KeyError): result["nothing"]
    [unit] = result.units
    assert (unit.status, unit.rows_in, unit.rows, unit.duplicates, unit.quarantined) == (
        "written",
        480,
        {"silver": 480},
        0,
        0,
    )
    assert unit.partition == leaf() and len(unit.state) == 64 and unit.seconds > 0


def test_silver_is_the_input_and_the_features(bronze, lake):
    run(lakes.trades(bronze, lake))
    silver = dataset(lake / "silver/trades")
    assert_frame_equal(silver, features(trades=tape(), config=SMALL), check_exact=True)
    assert_frame_equal(silver.select(tape().columns), tape(), check_exact=True)


def test_from_config(tmp_path, bronze, lake, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TransformExecutor.from_config(load_config()).feature_config == FeatureConfig()
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("features:\n  categories: [structural]\n  rolling_windows: [7]\n")
    executor = TransformExecutor.from_config(load_config(), workers=1, progress=False)
    assert executor.feature_config == FeatureConfig(categories={"structural"}, rolling_windows=[7])
    executor.execute(lakes.trades(bronze, lake))
    assert not {"log_return", "vwap_7s"} & set(dataset(lake / "silver/trades").columns)


def test_from_config_reads_the_file_that_the_environment_names(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text("features: {max_gap_s: 17}")
    monkeypatch.setenv("DAEDALUS_CONFIG", str(path))
    assert TransformExecutor.from_config(load_config()).feature_config.max_gap_s == 17


def test_dry_run(bronze, lake):
    executor = TransformExecutor(SMALL, progress=False)
    for report in (
        executor.execute(lakes.trades(bronze, lake), dry_run=True),
        executor.plan(lakes.trades(bronze, lake)),
    ):
        assert report.dry_run and statuses(report) == ["new"] and not lake.exists()
        assert report["write_stats"]["silver"]["rows"] == 0


def test_limit_never_touches_the_real_target(bronze, lake):
    report = run(lakes.trades(bronze, lake), limit_rows=10)
    assert report["write_stats"]["silver"]["rows"] == 10
    scratch = report["write_stats"]["silver"]["path"]
    assert "scratch" in scratch and not (lake / "silver").exists()
    assert_frame_equal(dataset(scratch), features(trades=tape().head(10), config=SMALL), check_exact=True)
    run(lakes.trades(bronze, lake))
    before = lakes.places(lake / "silver"), sorted(p.name for p in (lake / ".daedalus/silver/trades").rglob("*"))
    report = run(lakes.trades(bronze, lake), limit_rows=20)
    assert report["write_stats"]["silver"]["rows"] == 20
    assert before == (
        lakes.places(lake / "silver"),
        sorted(p.name for p in (lake / ".daedalus/silver/trades").rglob("*")),
    )
    assert lakes.leftovers(lake) == []


def test_limit_takes_the_first_rows_in_order(tmp_path, lake):
    put(tmp_path / "b", tape().sample(fraction=1.0, shuffle=True, seed=1))
    report = run(lakes.trades(tmp_path / "b", lake), limit_rows=25)
    assert (
        dataset(report["write_stats"]["silver"]["path"])["trade_id"].to_list() == tape()["trade_id"].head(25).to_list()
    )


def test_limit_of_a_later_day_needs_no_state(bronze, lake):
    put(bronze, tape(9), 9)
    report = run(lakes.trades(bronze, lake), FilterSpec(day=9), limit_rows=5)
    assert report["write_stats"]["silver"]["rows"] == 5 and statuses(report) == ["written"]


def test_limit_over_several_days(bronze, lake):
    put(bronze, tape(9), 9)
    report = run(lakes.trades(bronze, lake), limit_rows=tape().height + 3)
    assert [u.rows["silver"] for u in report.units] == [tape().height, 3]


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one(bronze, lake, limit):
    with pytest.raises(ConfigError, match="limit_rows"): run(lakes.trades(bronze, lake), limit_rows=limit)


def test_no_match_is_an_error(bronze, lake):
    with pytest.raises(EmptyMatchError, match="DOGE"): run(lakes.trades(bronze, lake), FilterSpec(symbol="DOGE/USDT"))


# ---- symbols through the executor

@pytest.mark.parametrize(("folder", "stored"), [
    ("BTC-USDT", "BTC-USDT"), ("BTC-USDT", "BTC/USDT"), ("BTC%2FUSDT", "BTC/USDT")])
def test_symbol_filter_finds_each_spelling(tmp_path, lake, folder, stored):
    frame = tape().with_columns(symbol=pl.lit(stored))
    put(tmp_path / "b", frame, symbol=folder)
    put(tmp_path / "b", tape(stream=ETH), stream=ETH)
    report = run(lakes.trades(tmp_path / "b", lake), FilterSpec(symbol="BTC/USDT"))
    assert [u.partition for u in report.units] == [leaf(symbol=folder)]
    silver = dataset(lake / "silver/trades")
    assert silver.height == 480 and silver["symbol"].unique().to_list() == [stored]
    assert (lake / "silver/trades" / leaf(symbol=folder) / "part-0.parquet").is_file()


def test_exact_symbol_goes_before_the_sanitised_one(tmp_path, lake):
    for folder, stored in (("BTC-USDT", "BTC-USDT"), ("BTC%2FUSDT", "BTC/USDT")):
        put(tmp_path / "b", tape().with_columns(symbol=pl.lit(stored)), symbol=folder)
    def found(symbol):
        report = run(lakes.trades(tmp_path / "b", lake), FilterSpec(symbol=symbol), dry_run=True)
        return [u.partition for u in report.units]
    assert found("BTC/USDT") == [leaf(symbol="BTC%2FUSDT")]
    assert found("BTC-USDT") == [leaf(symbol="BTC-USDT")]
    report = run(lakes.trades(tmp_path / "b", lake))                  # two streams, never merged
    assert len(report.units) == 2 and all(u.rows_in == 480 for u in report.units)


# ---- life cycle

class Recorded(BaseTransform):
    "Notes what is called."
    calls: list

    def initialize(self, context): self.calls.append(("initialize", context.execution_id, context.dry_run))
    def finalize(self, context): self.calls.append(("finalize", context.execution_id, context.dry_run))

    def validate_inputs(self, inputs):
        self.calls.append("validate_inputs")
        super().validate_inputs(inputs)

    def validate_outputs(self, outputs):
        self.calls.append("validate_outputs")
        super().validate_outputs(outputs)

    def transform(self, inputs, context):
        self.calls.append(("transform", context))
        if self.fault: raise self.fault
        return {"silver": inputs["trades"].select("price")}


def recorded(bronze, lake, fault=None):
    made = Recorded(lakes.trades(bronze, lake).config)
    made.calls, made.fault = [], fault
    return made


def names(made): return [c[0] if isinstance(c, tuple) else c for c in made.calls]


def test_life_cycle(bronze, lake):
    put(bronze, tape(9), 9)
    made = recorded(bronze, lake)
    report = run(made, FilterSpec(exchange="binance"))
    assert names(made) == ["initialize", *["validate_inputs", "transform", "validate_outputs"] * 2, "finalize"]
    assert made.calls[0][1] == made.calls[-1][1] == report.execution_id
    contexts = [c[1] for c in made.calls if c[0] == "transform"]
    assert [c.partition.path for c in contexts] == [leaf(8), leaf(9)]
    for c in contexts:
        assert (c.stream, c.execution_id, c.feature_config) == (BTC, report.execution_id, SMALL)
        assert c.filter_spec == FilterSpec(exchange="binance") and c.limit_rows is None and not c.dry_run


@pytest.mark.parametrize("fault", [ValueError("boom"), KeyboardInterrupt("boom"), pl.exceptions.ComputeError("boom")])
def test_finalize_also_after_a_failure(bronze, lake, fault):
    made = recorded(bronze, lake, fault)
    with pytest.raises(type(fault), match="boom"): run(made)
    assert names(made)[0] == "initialize" and names(made)[-1] == "finalize" and names(made).count("finalize") == 1
    assert lakes.leftovers(lake) == []


def test_a_dry_run_computes_nothing(bronze, lake):
    made = recorded(bronze, lake)
    run(made, dry_run=True)
    assert names(made) == ["initialize", "finalize"] and made.calls[0][2] is True


def test_validate(bronze, lake):
    made = lakes.trades(bronze, lake)
    made.validate_inputs({"trades": None})
    made.validate_outputs({"silver": None})
    for check, found in ((made.validate_inputs, {}), (made.validate_inputs, {"trades": 1, "trade": 1}),
                         (made.validate_outputs, {}), (made.validate_outputs, {"silver": 1, "gold": 1})):
        with pytest.raises(TransformError, match="trades_features"): check(found)
    with pytest.raises(TransformError, match="Did you mean 'trades'"): made.validate_inputs({"trades": 1, "trade": 1})


def test_optional_input_may_be_absent(bronze, lake):
    inputs = {
        "trades": InputConfig(name="trades", path=bronze),
        "rates": InputConfig(name="rates", path=bronze, optional=True),
    }
    made = Recorded(TransformConfig(name="x", inputs=inputs, outputs=lakes.trades(bronze, lake).config.outputs))
    made.calls = []
    made.validate_inputs({"trades": None})
    with pytest.raises(TransformError, match="trades"): made.validate_inputs({"rates": None})


def test_abstract_transform(bronze, lake):
    with pytest.raises(TypeError): BaseTransform(lakes.trades(bronze, lake).config)


def test_context():
    context = TransformContext()
    assert context.feature_config == FeatureConfig() and context.notes == Notes() and not context.dry_run
    assert (context.stream, context.filter_spec, context.limit_rows) == (None, None, None)
    with pytest.raises(dataclasses.FrozenInstanceError): context.dry_run = True
    assert TransformContext().notes is not context.notes


# ---- states

class Summing(StatefulTransform):
    "Remembers a total."
    def transform(self, inputs, context):
        total = (
            self.get_state_value("total", default=0.0)
            + inputs["trades"].select(pl.col("amount").sum()).collect().item()
        )
        self.update_state("total", total)
        return {"silver": pl.LazyFrame({"total": [total]})}


def test_state_values(bronze, lake):
    made = Summing(lakes.trades(bronze, lake).config)
    assert (
        made.get_state_value("x") is None and made.get_state_value("x", default=3) == made.get_state_value("x", 3) == 3
    )
    made.update_state("x", 4)
    made.update_state("x", 5)
    assert made.get_state_value("x", default=3) == 5
    other = made.fork()
    other.update_state("x", 6)
    assert (made.get_state_value("x"), other.get_state_value("x")) == (5, 6)
    made.reset_state()
    assert made.get_state_value("x") is None


def test_state_without_files(bronze, lake):
    made = Summing(lakes.trades(bronze, lake).config)
    totals = [
        made.transform({"trades": tape().lazy()}, TransformContext())["silver"].collect()["total"][0] for _ in range(3)
    ]
    assert totals[1] == totals[0] + totals[0] and totals[2] == totals[1] + totals[0]


def test_state_is_saved_and_loaded_exactly(bronze, lake, tmp_path):
    values = {
        "none": None,
        "yes": True,
        "n": 2**70,
        "x": 0.1 + 0.2,
        "nan": float("nan"),
        "minus": -0.0,
        "text": "ünï\0",
        "empty": "",
        "array": np.array([1.5, np.nan, -0.0]),
        "ints": np.array([-(2**63), 2**63 - 1]),
        "flags": np.array([True, False]),
        "frame": tape().head(3),
        "nested": {"a": {"b": 1}, "c": "d"},
    }
    made = Summing(lakes.trades(bronze, lake).config)
    for k, v in values.items(): made.update_state(k, v)
    path = tmp_path / "deep/er/x.state"
    made.save_state(path)
    assert [p.name for p in path.parent.iterdir()] == ["x.state"]
    other = Summing(made.config)
    other.load_state(path)
    assert set(other.state) == set(values)
    for k in ("none", "yes", "n", "x", "text", "empty", "nested"): assert other.state[k] == values[k]
    assert np.isnan(other.state["nan"]) and str(other.state["minus"]) == "-0.0" and other.state["yes"] is True
    for k in ("array", "ints", "flags"):
        assert other.state[k].dtype == values[k].dtype and other.state[k].tobytes() == values[k].tobytes()
    assert_frame_equal(other.state["frame"], values["frame"], check_exact=True)
    again = tmp_path / "again.state"
    other.save_state(again)
    assert again.read_bytes() == path.read_bytes()


def test_damaged_and_foreign_states(bronze, lake, tmp_path):
    made, path = Summing(lakes.trades(bronze, lake).config), tmp_path / "x.state"
    made.update_state("x", "some text")
    made.save_state(path)
    whole = path.read_bytes()
    for bad in (b"", whole[:10], whole[:-1], whole + b"x", b"\x80\x04K\x01.", whole[:15] + b"\xff" * 8 + whole[23:]):
        path.write_bytes(bad)
        with pytest.raises(StateError, match=r"x\.state"): made.load_state(path)
    assert made.get_state_value("x") == "some text"


@pytest.mark.parametrize(
    "value", [object(), [1, 2], {"a": {1, 2}}, np.zeros((2, 2)), np.array(["a"], object), dt.date(2024, 1, 1)]
)
def test_states_hold_plain_values_only(bronze, lake, tmp_path, value):
    made = Summing(lakes.trades(bronze, lake).config)
    made.update_state("x", value)
    with pytest.raises(StateError, match=type(value.get("a") if isinstance(value, dict) else value).__name__):
        made.save_state(tmp_path / "x.state")
    assert list(tmp_path.glob("x.state*")) == []


def test_state_that_cannot_be_saved_fails_the_unit(bronze, lake):
    class Odd(StatefulTransform):
        def transform(self, inputs, context):
            self.update_state("x", object())
            return {"silver": inputs["trades"]}
    with pytest.raises(Exception, match="object"): run(Odd(lakes.trades(bronze, lake).config))
    assert lakes.leftovers(lake) == [] and not list((lake / "silver").rglob("*.parquet"))


def test_executor_hands_the_state_on(bronze, lake):
    put(bronze, tape(9), 9)
    made = Summing(lakes.trades(bronze, lake).config)
    made.update_state("total", 1e9)                        # the chain's state is its own
    run(made)
    totals = dataset(lake / "silver/trades")["total"].to_list()
    assert totals == [tape(8)["amount"].sum(), tape(8)["amount"].sum() + tape(9)["amount"].sum()]
    assert made.get_state_value("total") == 1e9


# ---- registry

def test_registry(bronze, lake):
    @register_transform("my_features_of_this_test")
    class MyFeatureTransform(BaseTransform):
        def transform(self, inputs, context):
            return {"silver": inputs["trades"].with_columns(twice=pl.col("price") * 2)}
    assert get_transform("my_features_of_this_test") is MyFeatureTransform
    assert {"my_features_of_this_test", "trades_features", "ticker_features", "bars"} <= set(list_transforms())
    made = create_transform("my_features_of_this_test", lakes.trades(bronze, lake).config)
    assert run(made)["write_stats"]["silver"]["rows"] == 480
    assert (dataset(lake / "silver/trades")["twice"] == tape()["price"] * 2).all()


def test_registry_refuses():
    with pytest.raises(UnknownTransformError, match="Did you mean 'trades_features'") as caught:
        get_transform("trade_features")
    assert caught.value.exit_code == 2
    with pytest.raises(TransformError, match="belongs to"): register_transform("trades_features")(Recorded)
    with pytest.raises(TransformError, match="one word"): register_transform("two words")
    with pytest.raises(TransformError, match="transform method"): register_transform("nothing")(object)


def test_a_changed_transform_is_stale(bronze, lake):
    def declare(factor):
        class Scaled(BaseTransform):
            def transform(self, inputs, context): return {"silver": inputs["trades"].select(pl.col("price") * factor)}
            def code_version(self): return str(factor)
        return Scaled(lakes.trades(bronze, lake).config)
    assert statuses(run(declare(1))) == ["written"] and statuses(run(declare(1))) == ["done"]
    assert [u.reason for u in run(declare(2)).units] == ["made by another code"]


# ---- configuration

@pytest.mark.parametrize(("make", "text"), [
    (lambda: FeatureConfig(depth_level=5), "Did you mean 'depth_levels'"),
    (lambda: FilterSpec(symbols="BTC"), "Did you mean 'symbol'"),
    (lambda: InputConfig(name="x", path="y", formats="csv"), "Did you mean 'format'"),
    (lambda: OutputConfig(name="x", path="y", compresion="zstd"), "Did you mean 'compression'"),
    (lambda: TransformConfig(name="x", inputs={}, output={}), "Did you mean 'outputs'")])
def test_unknown_keys(make, text):
    with pytest.raises(ConfigError, match=text): make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: InputConfig(name="", path="x"),
        lambda: InputConfig(name="x", path="x", format="xlsx"),
        lambda: InputConfig(name="x", path="x", extra="drop"),
        lambda: OutputConfig(name="x", path=""),
        lambda: OutputConfig(name="x", path="a/b", compression="zstd", compression_level=23),
        lambda: OutputConfig(name="x", path="a/b", compression="snappy", compression_level=3),
        lambda: OutputConfig(name="x", path="a/b", partition_cols=["day", "day"]),
        lambda: OutputConfig(name="x", path="a/b", mode="replace"),
        lambda: OutputConfig(name="x", path="a/b", row_group_size=0),
        lambda: TransformConfig(name="t", inputs={"a": InputConfig(name="b", path="x")}, outputs={}),
    ],
)
def test_wrong_values(make):
    with pytest.raises(ConfigError) as caught: make()
    assert caught.value.exit_code == 2


def test_defaults_of_inputs_and_outputs(tmp_path):
    i, o = InputConfig(name="x", path=tmp_path), OutputConfig(name="x", path=tmp_path / "silver/x")
    assert (i.format, i.extra, i.optional, i.path) == (DataFormat.PARQUET, "keep", False, str(tmp_path))
    assert (o.mode, o.compression, o.compression_level) == (WriteMode.OVERWRITE_PARTITION, CompressionCodec.ZSTD, 3)
    assert o.partition_cols == ("exchange", "symbol", "year", "month", "day")
    assert (o.lake, o.dataset) == (str(tmp_path), "silver/x")
    assert OutputConfig(name="x", path="x/y", compression="snappy").compression_level is None
    assert TransformConfig(name="x", inputs={}, outputs={}).mode is ProcessingMode.BATCH


def test_config_is_immutable(bronze, lake):
    for made in (lakes.trades(bronze, lake).config, FeatureConfig(), FilterSpec()):
        with pytest.raises((ConfigError, ValueError)): made.name = "x"


def test_feature_config():
    config = FeatureConfig(
        categories={FeatureCategory.STRUCTURAL, FeatureCategory.DYNAMIC, FeatureCategory.ROLLING},
        depth_levels=20,
        rolling_windows=[5, 15, 60, 300, 900],
        ofi_decay_alpha=0.5,
        vpin_bucket_size=1.0,
    )
    assert (
        config == FeatureConfig() and hash(config) == hash(FeatureConfig()) and config.hash() == FeatureConfig().hash()
    )
    assert FeatureConfig(rolling_windows=[60, 5, 60]).rolling_windows == (5, 60)
    assert FeatureConfig(categories=["Rolling", "STRUCTURAL"]).categories == {
        FeatureCategory.ROLLING,
        FeatureCategory.STRUCTURAL,
    }
    assert FeatureConfig(max_gap_s=1).hash(["rolling_windows"]) == config.hash(["rolling_windows"])
    assert FeatureConfig(max_gap_s=1).hash() != config.hash()


@pytest.mark.parametrize(
    "wrong",
    [
        {"categories": ["volume"]},
        {"depth_levels": 0},
        {"depth_levels": "20"},
        {"depth_levels": True},
        {"rolling_windows": [0]},
        {"rolling_windows": [1.5]},
        {"ofi_decay_alpha": float("nan")},
        {"ofi_decay_alpha": float("inf")},
        {"max_bad_fraction": 1.1},
        {"max_bad_fraction": -0.1},
        {"clock": "collected_at"},
        {"spread_tight_percentile": 0.9},
        {"output_dtype": "float16"},
        {"overrides": {"BTC-USDT": {"max_gap": 1}}},
        {"vpin_bucket_size": 0},
    ],
)
def test_feature_config_refuses(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))): FeatureConfig(**wrong)


def test_overrides_of_one_symbol():
    config = FeatureConfig(overrides={"BTC/USDT": {"max_gap_s": 10}})
    assert config.for_symbol("BTC/USDT").max_gap_s == config.for_symbol("BTC-USDT").max_gap_s == 10
    assert config.for_symbol("ETH-USDT").max_gap_s == 300 and config.for_symbol("BTC-USDT").overrides == {}


def test_unknown_feature(bronze, lake):
    with pytest.raises(UnknownFeatureError, match="Did you mean 'log_return'"):
        run(lakes.trades(bronze, lake), features=FeatureConfig(features=["log_returns"]))
    assert not (lake / "silver").exists() or not list((lake / "silver").rglob("*.parquet"))


def test_chosen_features_only(bronze, lake):
    run(lakes.trades(bronze, lake), features=FeatureConfig(features=["tfi_60s", "is_buy"]))
    silver = dataset(lake / "silver/trades")
    assert set(silver.columns) - set(tape().columns) == {"segment_id", "segment_age_s", "is_buy", "tfi_60s"}


def test_float32_output(bronze, lake):
    run(lakes.trades(bronze, lake), features=FeatureConfig(rolling_windows=(5, 60, 900), output_dtype="float32"))
    silver, full = dataset(lake / "silver/trades"), features(trades=tape(), config=SMALL)
    assert silver.schema["vwap_60s"] == pl.Float32 and silver.schema["price"] == pl.Float64
    assert_frame_equal(
        silver.select("vwap_60s", "log_return"),
        full.select(pl.col("vwap_60s", "log_return").cast(pl.Float32)),
        check_exact=True,
    )


def test_config_file_errors_name_the_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("features:\n  depth_levels: 10\n  rolling_window: [5]\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:3.*Did you mean 'rolling_windows'"): load_config(path)
    path.write_text("features:\n  depth_levels: ten\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:2.*depth_levels|depth_levels.*c\.yaml:2"): load_config(path)
    path.write_text("feature:\n  depth_levels: 10\n")
    with pytest.raises(ConfigError, match="Did you mean 'features'"): load_config(path)


# ---- filters

ROWS = pl.DataFrame(
    {
        "exchange": ["binance", "binance", "kraken", "binance"],
        "symbol": ["BTC-USDT", "BTC/USDT", "BTC-USDT", "ETH-USDT"],
        "year": [2025] * 4,
        "month": [11, 12, 12, 12],
        "day": [30, 1, 15, 16],
        "capture_ts": pl.Series(
            [
                dt.datetime(2025, 11, 30, 23, 59, 59, 999_999),
                dt.datetime(2025, 12, 1),
                dt.datetime(2025, 12, 15, 23, 59, 59, 999_999),
                dt.datetime(2025, 12, 16),
            ]
        ).dt.replace_time_zone("UTC"),
    }
)


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        (FilterSpec(), [0, 1, 2, 3]),
        (FilterSpec(exchange="binance"), [0, 1, 3]),
        (FilterSpec(exchange=["kraken", "okx"]), [2]),
        (FilterSpec(symbol="BTC/USDT"), [0, 1, 2]),
        (FilterSpec(symbol="BTC-USDT"), [0, 2]),
        (FilterSpec(symbol=("ETH-USDT", "X")), [3]),
        (FilterSpec(year=2025, month=12, day=[1, 16]), [1, 3]),
        (FilterSpec(month=[11]), [0]),
        (FilterSpec(start_date="2025-12-01", end_date="2025-12-15"), [1, 2]),
        (FilterSpec(start_date="2025-12-16"), [3]),
        (FilterSpec(end_date=dt.date(2025, 11, 30)), [0]),
        (FilterSpec(exchange="binance", start_date="2025-12-01", end_date="2025-12-01"), [1]),
    ],
)
def test_polars_filter(spec, rows):
    found = ROWS.with_row_index("i").lazy().filter(spec.to_polars_filter()).collect()["i"].to_list()
    assert found == rows


def test_polars_filter_by_the_exchange_clock():
    frame = ROWS.select(timestamp=pl.col("capture_ts").dt.epoch("ms"))
    spec = FilterSpec(start_date="2025-12-01", end_date="2025-12-15")
    assert frame.filter(spec.to_polars_filter("timestamp")).height == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_date": "2025-12-02", "end_date": "2025-12-01"},
        {"start_date": "yesterday"},
        {"month": 13},
        {"month": "12"},
        {"day": 0},
        {"symbol": ""},
        {"symbol": []},
        {"exchange": 5},
        {"hour": 24},
        {"start_date": dt.datetime(2025, 1, 1)},
    ],
)
def test_filters_refuse(wrong):
    with pytest.raises(ConfigError): FilterSpec(**wrong)


@pytest.mark.parametrize(
    ("spec", "days"),
    [
        (FilterSpec(start_date="2024-08-09", end_date="2024-08-10"), [9, 10]),
        (FilterSpec(day=[8, 11]), [8, 11]),
        (FilterSpec(end_date="2024-08-08"), [8]),
        (FilterSpec(year=2024, month=8, day=9), [9]),
        (FilterSpec(start_date="2024-08-11"), [11]),
    ],
)
def test_date_ranges_through_the_executor(tmp_path, lake, spec, days):
    for d in (8, 9, 10, 11): put(tmp_path / "b", tape(d, n=5), d)
    report = run(lakes.trades(tmp_path / "b", lake), spec, cold_start=True)
    assert [u.partition for u in report.units] == [leaf(d) for d in days] and set(statuses(report)) == {"written"}


def test_lists_through_the_executor(tmp_path, lake):
    for stream in (BTC, ETH, ("kraken", "BTC-USDT"), ("binance", "SOL-USDT")):
        put(tmp_path / "b", tape(stream=stream), stream=stream)
    spec = FilterSpec(exchange=["binance", "okx"], symbol=["BTC/USDT", "SOL-USDT"])
    report = run(lakes.trades(tmp_path / "b", lake), spec)
    assert [u.partition for u in report.units] == [leaf(), leaf(stream=("binance", "SOL-USDT"))]


# ---- enumerations

@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (enums.DataTier, "bronze silver gold label"),
        (enums.DataFormat, "parquet ndjson csv delta"),
        (enums.WriteMode, "append overwrite overwrite_partition merge"),
        (enums.CompressionCodec, "zstd snappy gzip lz4"),
        (enums.FeatureCategory, "structural dynamic rolling bars advanced label"),
        (enums.ProcessingMode, "batch streaming hybrid"),
    ],
)
def test_enums(kind, words):
    assert [m.value for m in kind] == words.split() and [m.name for m in kind] == words.upper().split()
    for m in kind:
        assert kind(m.value) is kind(m.name) is kind(f" {m.name.title()} ") is m and m == m.value and f"{m}" == m.value
    with pytest.raises(ValueError, match="expected one of"): kind("nothing")
    with pytest.raises(ValueError, match="Did you mean"): kind(words.split()[0] + "s")
    for wrong in (None, 1, ""):
        with pytest.raises(ValueError): kind(wrong)


# ---- formats and codecs

def test_formats_give_the_same_silver(tmp_path):
    made = {}
    for fmt in ("parquet", "ndjson", "csv"):
        put(tmp_path / fmt, tape(8), name=f"data.{fmt}")
        put(tmp_path / fmt, tape(9), 9, name=f"data.{fmt}")
        run(lakes.trades(tmp_path / fmt, tmp_path / f"lake_{fmt}", fmt=fmt))
        made[fmt] = dataset(tmp_path / f"lake_{fmt}/silver/trades")
    for fmt in ("ndjson", "csv"): assert_frame_equal(made[fmt], made["parquet"], check_exact=True)


def test_formats_of_quotes(tmp_path):
    made = []
    for fmt in ("parquet", "ndjson", "csv"):
        put(tmp_path / fmt, lakes.quotes(), name=f"data.{fmt}")
        run(lakes.ticker(tmp_path / fmt, tmp_path / f"lake_{fmt}", fmt=fmt))
        frame = dataset(tmp_path / f"lake_{fmt}/silver/ticker")
        made.append(frame.select(c for c in frame.columns if frame[c].null_count() < frame.height))
    assert_frame_equal(made[1], made[0], check_exact=True, check_column_order=False)
    assert_frame_equal(made[2], made[0], check_exact=True, check_column_order=False)


@pytest.mark.parametrize("codec", list(CompressionCodec))
def test_codecs(bronze, lake, codec):
    import pyarrow.parquet as pq
    run(lakes.trades(bronze, lake, compression=codec, row_group_size=100))
    path = lake / "silver/trades" / leaf() / "part-0.parquet"
    meta = pq.ParquetFile(path).metadata
    assert {meta.row_group(0).column(i).compression for i in range(meta.num_columns)} <= {
        codec.name,
        "LZ4_RAW" if codec == "lz4" else codec.name,
    }
    assert meta.num_row_groups == 5
    plain = features(trades=tape(), config=SMALL)
    assert_frame_equal(dataset(lake / "silver/trades"), plain, check_exact=True)
    assert pq.read_table(path, partitioning=None).num_rows == 480


@pytest.mark.parametrize("fmt", [DataFormat.CSV, DataFormat.NDJSON])
def test_outputs_are_parquet(bronze, lake, fmt):
    made = TradesFeatureTransform(lakes.trades(bronze, lake).config.model_copy(
        update={"outputs": {"silver": OutputConfig(name="silver", path=lake / "silver/trades", format=fmt)}}))
    with pytest.raises(ConfigError, match=fmt.value): run(made)
    assert not lake.exists()
