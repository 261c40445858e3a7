"The command line: flags, default paths, exit codes, and what is on disk afterwards."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lakes
import polars as pl
import pytest
from lakes import ETH, cli, dataset, leaf, put, quotes, tape
from polars.testing import assert_frame_equal

from daedalus_etl import cli as commands
from daedalus_etl.core.config import FeatureConfig
from daedalus_etl.features.frames import features
from daedalus_etl.runners import run_bars, run_ticker_features, run_trades_features
from daedalus_etl.runners.options import config_of, filter_of

SAMPLES = Path(__file__).resolve().parents[1] / "data_samples" / "bronze"
RAW, OUT = "data/raw/ready/ccxt", "data/processed"
WINDOWS = ("5", "15", "60", "300", "900")


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A working directory with bronze data in the default place."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAEDALUS_CONFIG", raising=False)
    for day in (8, 9):
        put(tmp_path / RAW / "trades", tape(day), day)
        put(tmp_path / RAW / "ticker", quotes(day), day)
    put(tmp_path / RAW / "trades", tape(8, stream=ETH), 8, ETH)
    return tmp_path


def main(*args): return commands.main(list(map(str, args)))
def files(root): return sorted(p.relative_to(root).as_posix() for p in root.rglob("*.parquet"))


TRADES = [f"{leaf(8)}/part-0.parquet", f"{leaf(9)}/part-0.parquet", f"{leaf(8, ETH)}/part-0.parquet"]


# ---- the seed's commands

def test_trades_with_a_limit(home):
    done = cli("--limit", "10", module="daedalus_etl.runners.run_trades_features", cwd=home)
    assert done.returncode == 0, done.stderr
    assert not (home / OUT / "silver").exists()
    scratch = home / OUT / ".daedalus/scratch/silver/trades"
    assert dataset(scratch)["trade_id"].to_list() == tape()["trade_id"].head(10).to_list()
    assert ".daedalus/scratch/silver/trades" in done.stdout and " 10 " in done.stdout


def test_ticker_dry_run(home):
    done = cli("--dry-run", module="daedalus_etl.runners.run_ticker_features", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "2 new" in done.stdout and leaf(8) in done.stdout and not (home / OUT).exists()


def test_trades_of_one_symbol_then_bars(home):
    done = cli(
        "--exchange", "binance", "--symbol", "BTC/USDT", module="daedalus_etl.runners.run_trades_features", cwd=home
    )
    assert done.returncode == 0, done.stderr
    assert files(home / OUT / "silver/trades") == TRADES[:2]
    silver = dataset(home / OUT / "silver/trades")
    assert_frame_equal(silver, features(trades=pl.concat([tape(8), tape(9)]), config=FeatureConfig()), check_exact=True)
    done = cli(
        "--channel",
        "trades",
        "--output",
        OUT,
        "--durations",
        "60,300",
        module="daedalus_etl.runners.run_bars",
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    gold = home / OUT / "gold/trades_bars"
    assert sorted(p.name for p in gold.iterdir()) == ["300s", "60s"]
    assert files(gold / "60s") == files(gold / "300s") == TRADES[:2]
    assert dataset(gold / "300s")["volume"].sum() == pytest.approx(silver["amount"].sum())


def test_daedalus_run(home):
    done = cli("run", cwd=home)
    assert done.returncode == 0, done.stderr
    assert files(home / OUT / "silver/trades") == TRADES and files(home / OUT / "silver/ticker") == TRADES[:2]
    for d in (60, 300, 900, 3600):
        assert (
            files(home / OUT / f"gold/trades_bars/{d}s") == TRADES
            and files(home / OUT / f"gold/ticker_bars/{d}s") == TRADES[:2]
        )
    assert {f"vwap_{w}s" for w in WINDOWS} < set(dataset(home / OUT / "silver/trades").columns)
    assert lakes.leftovers(home / OUT) == []
    before = lakes.places(home / OUT)
    done = cli("run", cwd=home)
    assert done.returncode == 0 and "3 done" in done.stdout and lakes.places(home / OUT) == before


def test_daedalus_plan(home):
    done = cli("plan", cwd=home)
    assert done.returncode == 0, done.stderr
    rows = [[w.strip() for w in line.strip("│").split("┆")] for line in done.stdout.splitlines() if "┆" in line]
    for channel, n in (("trades", "3"), ("ticker", "2")):
        assert [channel, f"{channel}_features", "", "to do", n] in rows
        assert [f"{channel}_bars", "bars", channel, "to do", n] in rows      # of silver that does not exist yet
    assert not (home / OUT).exists()


def test_daedalus_features(home):
    done = cli("features", cwd=home)
    assert done.returncode == 0, done.stderr
    for name in ("vwap_900s", "is_buy", "segment_id", "Hasbrouck"): assert name in done.stdout
    assert "kyle_lambda" not in done.stdout


def test_the_installed_command(home):
    script = os.path.join(os.path.dirname(sys.executable), "daedalus")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, cwd=home)
    assert (done.returncode, done.stdout.strip()) == (0, "0.1.0")
    done = subprocess.run([script], capture_output=True, text=True, cwd=home)
    assert done.returncode == 2 and "usage" in done.stderr


# ---- the same in this process, which is faster

@pytest.mark.parametrize("channel", ["trades", "ticker", "trades_bars", "ticker_bars"])
def test_features_of_a_channel(home, capsys, channel):
    assert main("features", "--channel", channel, "--rolling-windows", "7") == 0
    shown = capsys.readouterr().out
    sample = {
        "trades": "tfi_7s",
        "ticker": "mid_price_std_7s",
        "trades_bars": "trade_imbalance",
        "ticker_bars": "min_spread",
    }
    assert sample[channel] in shown and "900s" not in shown


def test_default_folders_of_each_command(home):
    assert main("trades") == main("ticker") == 0
    assert main("bars", "--durations", "3600") == main("bars", "--channel", "ticker", "--durations", "3600") == 0
    assert sorted(
        x.relative_to(home / OUT).as_posix() for x in (home / OUT).glob("*/*") if x.parent.name[0] != "."
    ) == ["gold/ticker_bars", "gold/trades_bars", "silver/ticker", "silver/trades"]


def test_input_and_output(home):
    assert main("trades", "--input", f"{RAW}/trades", "--output", "elsewhere/lake") == 0
    assert files(home / "elsewhere/lake/silver/trades") == TRADES and not (home / OUT).exists()
    assert main("bars", "--output", "elsewhere/lake", "--durations", "3600") == 0
    assert files(home / "elsewhere/lake/gold/trades_bars/3600s") == TRADES
    assert main("bars", "--input", "elsewhere/lake/silver/trades", "--output", "third", "--durations", "3600") == 0
    assert files(home / "third/gold/trades_bars/3600s") == TRADES


def test_run_reads_the_channels_below_its_input(home):
    (home / RAW / "ticker").rename(home / "ticker")
    assert main("run", "--input", RAW, "--output", "x", "--durations", "900") == 0
    assert sorted(p.name for p in (home / "x/gold").iterdir()) == ["trades_bars"]
    assert main("run", "--input", home) == 0 and sorted(p.name for p in (home / OUT / "silver").iterdir()) == ["ticker"]
    assert main("run", "--input", home / "x/gold") == 2


@pytest.mark.parametrize(
    ("args", "streams"),
    [
        (["--symbol", "BTC/USDT,ETH/USDT", "--day", "8"], [0, 2]),
        (["--symbols", "ETH-USDT"], [2]),
        (["--exchange", "binance", "--day", "8"], [0, 2]),
        (["--year", "2024", "--month", "8", "--day", "8,9"], [0, 1, 2]),
        (["--start-date", "2024-08-08", "--end-date", "2024-08-08"], [0, 2]),
        (["--start-date", "2024-08-09", "--cold-start"], [1]),
        (["--end-date", "2024-08-09"], [0, 1, 2]),
    ],
)
def test_filters(home, args, streams):
    assert main("trades", *args, "--features", "is_buy") == 0
    assert files(home / OUT / "silver/trades") == [TRADES[i] for i in streams]


def parsed(*args): return commands.parser().parse_args(list(args))


def test_flags_to_configuration(home):
    def config(*args): return config_of(parsed("trades", *args)).features
    every = {"structural", "dynamic", "rolling"}
    assert config() == FeatureConfig()
    assert config("--rolling-windows", "60,5").rolling_windows == (5, 60)
    assert config("--categories", "structural,dynamic").categories == every - {"rolling"}
    assert config("--categories", "structural", "--rolling-windows", "7").categories == {"structural", "rolling"}
    assert config("--categories", "structural, dynamic,rolling,advanced").categories == every | {"advanced"}
    assert config("--features", "is_buy,tfi_60s").features == ("is_buy", "tfi_60s")
    assert config_of(parsed("bars", "--durations", "7,60")).features.bar_durations == (7, 60)
    (home / "config").mkdir()
    (home / "config/config.yaml").write_text(
        "features: {categories: [structural], max_gap_s: 9}\nstorage: {output_root: o, compression: gzip}\n"
    )
    assert config("--rolling-windows", "7") == FeatureConfig(
        categories={"structural", "rolling"}, rolling_windows=[7], max_gap_s=9
    )
    assert config_of(parsed("trades", "--output", "p")).storage.output_root == "p"
    assert config_of(parsed("trades")).storage.output_root == "o"
    (home / "other.yaml").write_text("features: {max_gap_s: 10}")
    assert config("--config", "other.yaml").max_gap_s == 10
    assert filter_of(parsed("trades")) is None
    spec = filter_of(parsed("trades", "--symbol", "A,B", "--exchange", "x", "--month", "7"))
    assert (spec.symbol, spec.exchange, spec.month) == (("A", "B"), ("x",), (7,))


def test_flags_that_the_design_names():
    common = (
        "--input --output --exchange --symbol --symbols --year --month --day --start-date --end-date --limit --dry-run "
        "--state-path --config --workers --debug"
    ).split()
    values = {
        "--dry-run": [],
        "--debug": [],
        "--limit": ["1"],
        "--year": ["2024"],
        "--month": ["1"],
        "--day": ["1"],
        "--workers": ["1"],
    }
    for command, own in (
        ("trades", ["--categories", "--features"]),
        ("ticker", ["--categories", "--features"]),
        ("bars", []),
    ):
        for flag in common + own: assert parsed(command, flag, *values.get(flag, ["x"])).command == command
    for module in (run_trades_features, run_ticker_features, run_bars): assert callable(module.main)


def test_rolling_windows_turn_rolling_on(home):
    (home / "c.yaml").write_text("features: {categories: [structural]}")
    assert main("trades", "--config", "c.yaml", "--symbol", "ETH-USDT") == 0
    assert not [c for c in dataset(home / OUT / "silver/trades").columns if c.endswith("s") and c.startswith("vwap")]
    assert main("trades", "--config", "c.yaml", "--symbol", "ETH-USDT", "--rolling-windows", "7,11") == 0
    silver = dataset(home / OUT / "silver/trades")
    assert [c for c in silver.columns if c.startswith("vwap")] == [
        "vwap_7s",
        "vwap_11s",
    ] and "log_return" not in silver.columns


def test_features_flag(home):
    assert main("trades", "--symbol", "ETH-USDT", "--features", "is_buy,vwap_60s") == 0
    silver = dataset(home / OUT / "silver/trades")
    assert set(silver.columns) - set(tape().columns) == {"segment_id", "segment_age_s", "is_buy", "vwap_60s"}


def test_features_flag_with_a_window_of_its_own(home, capsys):
    assert main("trades", "--symbol", "ETH-USDT", "--features", "tfl_120s") == 2
    assert "Did you mean 'tfi_120s'" in capsys.readouterr().err
    assert main("trades", "--symbol", "ETH-USDT", "--features", "tfi_120s") == 0
    silver = dataset(home / OUT / "silver/trades")
    assert set(silver.columns) - set(tape().columns) == {"segment_id", "segment_age_s", "tfi_120s"}


def test_state_path(home):
    assert main("trades", "--day", "8", "--state-path", "states") == 0
    assert [p.name for p in (home / "states").rglob("*.state")] == ["end.state"] * 2
    assert main("trades", "--day", "9", "--state-path", "states", "--output", "other") == 0
    assert main("trades", "--output", "whole") == 0
    one, whole = (home / root / "silver/trades" / leaf(9) / "part-0.parquet" for root in ("other", "whole"))
    assert one.read_bytes() == whole.read_bytes()


def test_limit_of_a_run(home, capsys):
    assert main("run", "--limit", "5") == 0
    assert not (home / OUT / "silver").exists() and not (home / OUT / "gold").exists()
    assert "waits for" in capsys.readouterr().out


def test_workers(home):
    assert main("trades", "--workers", "1") == 0 and files(home / OUT / "silver/trades") == TRADES


@pytest.mark.parametrize("fmt", ["csv", "ndjson"])
def test_input_format(home, fmt):
    put(home / "b", tape(8), name=f"x.{fmt}")
    assert main("trades", "--input", home / "b", "--input-format", fmt, "--features", "is_buy") == 0
    assert dataset(home / OUT / "silver/trades").height == 480


# ---- exit codes

@pytest.mark.parametrize(("args", "code", "text"), [
    (["trades", "--input", "nowhere"], 2, "no such folder"), (["ticker", "--input", "nowhere"], 2, "no such folder"),
    (["bars"], 2, "no such folder"), (["run", "--input", "nowhere"], 2, "none of the folders"),
    (["trades", "--symbol", "XRP/USDT"], 2, "XRP/USDT"), (["trades", "--start-date", "2024-09-01"], 2, "2024-08-08"),
    (["trades", "--start-date", "yesterday"], 2, "yesterday"), (["trades", "--month", "13"], 2, "13"),
    (["trades", "--limit", "0"], 2, "limit"), (["trades", "--features", "vvap_60s"], 2, "vwap_60s"),
    (["trades", "--categories", "structurel"], 2, "structural"), (["bars", "--durations", "0"], 2, "bar_durations"),
    (["trades", "--rolling-windows", "-5"], 2, "rolling_windows"), (["trades", "--day", "9"], 3, "--cold-start"),
    (["trades", "--config", "none.yaml"], 2, "none.yaml")])
def test_exit_codes(home, capsys, args, code, text):
    assert main(*args) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and text in err and "Traceback" not in err


@pytest.mark.parametrize(
    "args",
    [
        ["trade"],
        [],
        ["trades", "--limit", "ten"],
        ["trades", "--nonsense"],
        ["bars", "--channel", "x"],
        ["trades", "--rolling-windows", "a"],
        ["trades", "--input-format", "xlsx"],
    ],
)
def test_usage_errors(home, args):
    with pytest.raises(SystemExit) as caught: main(*args)
    assert caught.value.code == 2


def test_failure_is_one_and_the_rest_is_done(home, capsys):
    put(home / RAW / "trades", tape(8).drop("price"), 8)
    assert main("trades") == 1
    out, err = capsys.readouterr()
    assert files(home / OUT / "silver/trades") == [TRADES[2]]
    assert (
        "1 failed" in out and "1 skipped" in out and "1 written" in out and "'price'" in err and "Traceback" not in err
    )
    assert main("trades", "--debug") == 1 and "Traceback" in capsys.readouterr().err


def test_run_goes_on_with_the_other_channels(home):
    "A broken channel stops neither the other channel nor the bars of what is whole."
    put(home / RAW / "trades", tape(8, stream=ETH).drop("price"), 8, ETH)
    assert main("run", "--durations", "900") == 1
    assert files(home / OUT / "silver/ticker") == TRADES[:2]
    assert files(home / OUT / "gold/ticker_bars/900s") == TRADES[:2]


def test_conflict_is_three(home, capsys):
    stranger = home / OUT / "silver/trades" / leaf(8) / "other.parquet"
    stranger.parent.mkdir(parents=True)
    tape().write_parquet(stranger)
    assert main("trades", "--symbol", "BTC-USDT") == 3 and "other.parquet" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, number):
    "The run stops at the next partition at the latest; what is published is whole."
    hours = [(d, h) for d in range(8, 14) for h in range(24)]
    for d, h in hours:
        put(tmp_path / RAW / "trades", tape(d, seconds=[h * 3600 + 10.0 * k for k in range(360)]), d, hour=h)
    job = subprocess.Popen(
        [sys.executable, "-m", "daedalus_etl.cli", "trades"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    silver, until = tmp_path / OUT / "silver/trades", time.monotonic() + 30
    while len(files(silver)) < 3 and job.poll() is None and time.monotonic() < until: time.sleep(0.01)
    job.send_signal(number)
    seen = len(files(silver))
    out, err = job.communicate(timeout=60)
    done = files(silver)
    assert job.returncode == 130, (out, err)
    assert "Traceback" not in err
    assert all(pl.read_parquet(silver / f, hive_partitioning=False).height == 360 for f in done)
    assert lakes.leftovers(tmp_path / OUT) == []
    assert len(done) <= seen + 8 < len(hours), f"{len(done)} partitions done, {seen} at the time of the signal"


def test_demo(tmp_path, monkeypatch, capsys):
    "The command that the README begins with."
    monkeypatch.chdir(tmp_path)
    assert main("demo", "--input", str(SAMPLES)) == 0
    said = capsys.readouterr().out
    assert "tfi_60s" in said and "annualized_vol" in said
    assert len(files(tmp_path / "data/demo/gold/trades_bars/300s")) == 4
    assert main("plan", "--input", str(SAMPLES), "--output", "data/demo") == 0
    assert "written" not in capsys.readouterr().out
