"What a hostile name, file or configuration cannot do, and where a secret never turns up."
import ast
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import lakes
import polars as pl
import pytest
from lakes import cli, dataset, put, run, tape

from daedalus_etl.core.config import FeatureConfig, FilterSpec, InputConfig, ReadLimits
from daedalus_etl.core.errors import (
    BadDataError,
    ConfigError,
    CorruptFileError,
    DaedalusError,
    PartitionError,
    StateError,
)
from daedalus_etl.core.redact import redact
from daedalus_etl.core.registry import create_transform
from daedalus_etl.core.report import UnitReport
from daedalus_etl.core.state import dump_state, encode_leaf, load_state
from daedalus_etl.core.yaml import MAX_BYTES, load_yaml, parse_yaml
from daedalus_etl.storage.limits import check_limits
from daedalus_etl.storage.partitions import Partition, decode_value, discover, encode_value

PACKAGE = Path(__file__).resolve().parents[1] / "daedalus_etl"


@pytest.fixture
def lake(tmp_path): return tmp_path / "lake"


# ---- paths

NAMES = [
    "../../x", "/etc/passwd", "..\\..\\x", "a/../../b", "~root", "C:\\x", "%2e%2e%2fx", "....//x", "x;rm -rf", "$(id)"]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_the_root(tmp_path, lake, name):
    "Read from its encoded folder and written to one below the lake; nothing appears anywhere else."
    folder = Partition.of(exchange="binance", symbol=name, year=2024, month=8, day=8).path
    assert (tmp_path / "bronze" / folder).resolve().is_relative_to(tmp_path / "bronze")
    (tmp_path / "bronze" / folder).mkdir(parents=True)
    tape(8).with_columns(symbol=pl.lit(name)).write_parquet(tmp_path / "bronze" / folder / "a.parquet")
    run(lakes.trades(tmp_path / "bronze", lake), FilterSpec(symbol=name))
    written = {p for p in tmp_path.rglob("*") if p.is_file()} - {tmp_path / "bronze" / folder / "a.parquet"}
    assert written and all(p.resolve().is_relative_to(lake.resolve()) for p in written)
    assert decode_value(encode_value(name)) == name


@pytest.mark.parametrize("name", ["..", ".", "", "a\0b", "a\nb", "\x1b[31m", "\x7f", "u\u0308", "x" * 201])
def test_names_that_are_refused(name):
    "Parents, empty, control characters, other Unicode forms, over-long: no partition has such a value."
    with pytest.raises(PartitionError): Partition.of(exchange="binance", symbol=name)


@pytest.mark.parametrize("folder", ["%2e%2e", "%2E", "a%00b", "%0a", "", "%ff"])
def test_folders_that_are_refused(tmp_path, folder):
    "Percent-encoding hides nothing: the decoded value is judged."
    put(tmp_path, tape(8), stream=("binance", folder))
    with pytest.raises(PartitionError): discover(tmp_path)


def test_links_are_not_followed_on_reading(tmp_path):
    "A link to a folder or file outside of the root brings none of its rows in; the root itself may be a link."
    outside = put(tmp_path / "outside", tape(8, stream=("binance", "SECRET")), stream=("binance", "SECRET"))
    path = put(tmp_path / "bronze", tape(8))
    (tmp_path / "bronze/exchange=binance/symbol=SECRET").symlink_to(outside.parents[3])
    (path.parent / "linked.parquet").symlink_to(outside)
    with pytest.warns(UserWarning, match="symbolic link"): found = discover(tmp_path / "bronze")
    assert [p for pf in found for p in pf.paths] == [str(path)]
    (tmp_path / "root").symlink_to(tmp_path / "bronze")
    with pytest.warns(UserWarning): assert len(discover(tmp_path / "root")) == 1


def test_a_filter_is_no_pattern_and_no_path(tmp_path):
    "`*`, `..` and absolute paths in a filter match nothing but themselves."
    put(tmp_path, tape(8))
    for symbol in ("*", "BTC*", "../symbol=BTC-USDT", str(tmp_path)):
        with pytest.raises(DaedalusError, match="no input"): discover(tmp_path, FilterSpec(symbol=symbol))


def test_what_the_rows_say_does_not_choose_the_folder(tmp_path, lake):
    "A symbol among the rows that would lead elsewhere is held against the path, and refused."
    put(tmp_path / "bronze", tape(8).with_columns(symbol=pl.lit("../../../escaped")))
    with pytest.raises(PartitionError, match="escaped"): run(lakes.trades(tmp_path / "bronze", lake))
    assert not (lake / "silver").exists()


# ---- configuration

LEVELS = [("abcdefghi"[i], f"*{'abcdefghi'[i - 1]}" if i else "1") for i in range(9)]
BOMB = "".join(f"{name}: &{name} [{', '.join([inner] * 9)}]\n" for name, inner in LEVELS)


@pytest.mark.parametrize(("text", "message"), [
    (BOMB, "anchors and aliases"), ("a: !!python/object/apply:os.system ['id']", "tag"),
    ("a: !!python/name:os.system", "as python/name:os.system; expected text"), ("a: !!binary aGk=", "expected"),
    ("a: 1\na: 2", "twice"), ("a: {b: 1, b: 2}", "twice"), ("a: .nan", "found '.nan'"),
    ("a: 010", "leading zero"), ("1: x", "not text"), ("[" * 10_000, "nested"), ("a: ${HOME}", "ENV:NAME"),
    ("a: ${ENV:DAEDALUS_NO_SUCH_VARIABLE}", "not set"), ("a: \x00", "not allowed")])
def test_yaml_is_strict(text, message):
    "Every trick of YAML is an error that names the line, in no time."
    with pytest.raises(ConfigError, match=re.escape(message)): parse_yaml(text, "c.yaml")


@pytest.mark.parametrize(("text", "value"), [("no", "no"), ("12:30:00", "12:30:00"), ("on", "on"), ("0x10", "0x10")])
def test_yaml_words_mean_what_they_say(text, value):
    "No text turns into a boolean or a number behind one's back."
    assert parse_yaml(f"a: {text}")["a"] == value


def test_yaml_has_a_size(tmp_path):
    "A file above 1 MiB is refused before it is parsed."
    (tmp_path / "c.yaml").write_text("a: " + "x" * MAX_BYTES)
    with pytest.raises(ConfigError, match="1 MiB"): load_yaml(tmp_path / "c.yaml")


# ---- code

FORBIDDEN = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}


def risks(source: str):
    "(line, what) of imports that unpickle, calls that run text, and `allow_pickle=True`."
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom): names = [node.module or "", *(a.name for a in node.names)]
        else: names = []
        yield from ((line, n) for n in names if n.split(".")[0] in FORBIDDEN)
        if not isinstance(node, ast.Call): continue
        called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if isinstance(node.func, ast.Name) and called in CALLS: yield line, called
        if called in ("read_pickle", "to_pickle", "deserialize", "unsafe_load", "full_load"): yield line, called
        shells = [k for k in node.keywords if k.arg in ("allow_pickle", "shell") and getattr(k.value, "value", None)]
        yield from ((line, k.arg) for k in shells)


def test_no_pickle_and_no_code_from_data():
    "The package neither unpickles nor evaluates: a walk over its syntax."
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 40
    found = [(p.relative_to(PACKAGE).as_posix(), what)
             for p in files for _, what in risks(p.read_text(encoding="utf-8"))]
    assert found == [("core/travel.py", "pickle")]      # copies, made in memory, of what goes to worker processes


@pytest.mark.parametrize("source", [
    "import pickle", "from joblib import load", "import a, dill", "np.load(f, allow_pickle=True)", "eval(x)",
    "pl.LazyFrame.deserialize(x)", "yaml.unsafe_load(x)", "run(x, shell=True)"])
def test_the_walk_sees(source): assert len(list(risks(source))) == 1


@pytest.mark.parametrize("value", [object(), [1], {1, 2}, lambda: 0, pl.Series([object()], dtype=pl.Object)])
def test_states_hold_no_objects(value):
    "A state has plain values; what is not one is refused when it is written."
    with pytest.raises(StateError): encode_leaf(value)


@pytest.mark.parametrize("spoil", [lambda d: b"\x80\x04" + d, lambda d: d[:-1], lambda d: d + b"x", lambda d: b""])
def test_foreign_bytes_are_no_state(spoil):
    "A state is known by its first bytes and its length."
    with pytest.raises(StateError): load_state(spoil(dump_state({"a": 1, "b": "x"})))


# ---- limits

def capped(tmp_path, lake, channel="trades", **caps):
    transform = (lakes.trades if channel == "trades" else lakes.orderbook)(tmp_path / "bronze", lake)
    inputs = {channel: transform.config.inputs[channel].model_copy(update={"limits": ReadLimits(**caps)})}
    return create_transform(transform.config.name, transform.config.model_copy(update={"inputs": inputs}))


@pytest.mark.parametrize(("cap", "value"), [("max_file_bytes", 100), ("max_file_rows", 10), ("max_group_values", 10)])
def test_each_limit_names_its_setting(tmp_path, lake, cap, value):
    "A file above a cap is not read; the error names file, cap and setting."
    path = put(tmp_path / "bronze", tape(8))
    with pytest.raises(CorruptFileError, match=rf"{cap} = {value}.*storage\.limits\.{cap}") as caught:
        run(capped(tmp_path, lake, **{cap: value}))
    assert caught.value.path == str(path) and not (lake / "silver").exists()
    run(capped(tmp_path, lake))


def test_limits_of_the_configuration_file(tmp_path, lake):
    "The caps of the file reach the reader."
    put(tmp_path / "bronze", tape(8))
    (tmp_path / "c.yaml").write_text("storage: {limits: {max_file_rows: 7}}")
    done = cli("trades", "--input", tmp_path / "bronze", "--output", lake, "--config", "c.yaml", cwd=tmp_path)
    assert done.returncode == 1 and "max_file_rows = 7" in done.stderr


def test_gzip_bomb(tmp_path):
    "A stream that unfolds beyond its cap is stopped on the way, in little memory."
    import gzip
    put(tmp_path, gzip.compress(b"\n" * (80 << 20)), name="a.ndjson.gz")
    pf, = discover(tmp_path, fmt="ndjson")
    with pytest.raises(CorruptFileError, match=r"max_expansion = 250.*storage\.limits\.max_expansion"):
        check_limits(pf, ReadLimits(), InputConfig(name="x", path="x", format="ndjson").format)


def test_levels_have_a_cap(tmp_path, lake):
    "A book beyond max_levels is refused by the name of the parameter."
    level = pl.struct(price=pl.lit(100.0), size=pl.lit(1.0))
    at = lakes.day_start(8)
    bids, asks = pl.concat_list([level] * 12), pl.concat_list(level)
    books = pl.select(capture_ts=pl.lit(at).cast(lakes.UTC_US), bids=bids, asks=asks)
    put(tmp_path / "bronze", books)
    few = FeatureConfig(depth_levels=5, max_levels=10, ofi_levels=5)
    with pytest.raises(BadDataError, match="max_levels=10"):
        run(lakes.orderbook(tmp_path / "bronze", lake, ""), features=few)


# ---- secrets

CANARIES = {
    "environment": "canary-in-the-environment", "url": "canary%2Fpassword", "key": "AKIA" + "CANARY0123456789",
    "signature": "c0ffeecanary0signature", "option": "canary/Option+Value=="}
TEXT = (f"s3://reader:{CANARIES['url']}@bucket/lake?X-Amz-Signature={CANARIES['signature']}&x=1 "
        f"{{'aws_access_key_id': '{CANARIES['key']}', 'aws_secret_access_key': '{CANARIES['option']}'}}")


def leaks(text: str) -> list[str]: return [name for name, secret in CANARIES.items() if secret in text]


def test_redact(monkeypatch):
    "Everything that is a secret by form, by name or by the environment is hidden; the rest stays."
    monkeypatch.setenv("VENUE_API_SECRET", CANARIES["environment"])
    assert sorted(leaks(TEXT + CANARIES["environment"])) == sorted(CANARIES)
    hidden = redact(TEXT + f" {CANARIES['environment']} data/trades, column 'price', row 3")
    assert leaks(hidden) == [] and "bucket/lake" in hidden and "column 'price', row 3" in hidden


def kinds(base=DaedalusError): return [base, *(k for sub in base.__subclasses__() for k in kinds(sub))]


@pytest.mark.parametrize("kind", kinds(), ids=lambda k: k.__name__)
def test_no_error_shows_a_secret(kind):
    "All parts of a message are cleaned, also where it is shown by its parts."
    error = kind(TEXT, path=f"/lake/{CANARIES['key']}", column="c", expected=TEXT, fix=TEXT)
    assert leaks(str(error)) == leaks(repr(error)) == leaks(error.found) == []


class Odd(Exception):
    "Comes back as something else."
    def __reduce__(self): return ValueError, self.args


def test_no_error_travels_with_a_secret(monkeypatch):
    "From worker to client it is pickled with all that it holds; without a secret it stays what it is."
    monkeypatch.setenv("VENUE_API_SECRET", CANARIES["environment"])
    secret, noted = CANARIES["environment"], ValueError("plain")
    noted.add_note(f"with {CANARIES['environment']}")
    for error in (OSError(13, f"denied for {secret}"), OSError(13, "denied", f"/mnt/{secret}"), Odd(secret), noted):
        sent = pickle.dumps(UnitReport("p", "failed", error=error))
        assert secret.encode() not in sent
        back = pickle.loads(sent).error
        assert isinstance(back, RuntimeError) and ("***" in str(back) or error is noted)
    plain = pickle.loads(pickle.dumps(UnitReport("p", "failed", error=OSError(13, "denied", "/mnt/x")))).error
    assert type(plain) is PermissionError and plain.filename == "/mnt/x"


def test_no_report_shows_a_secret():
    "The reason of a failed unit may be an error of a plug-in."
    unit = UnitReport("day=08", "failed", f"ValueError: {TEXT}")
    assert leaks(unit.reason) == []


PLUGIN = '''
import polars as pl, sys
from daedalus_etl.cli import main
from daedalus_etl.core.errors import TransformError
from daedalus_etl.transforms.trades import TradesFeatureTransform
def transform(self, inputs, context): raise {kind}({text!r})
if {broken}: TradesFeatureTransform.transform = transform
sys.exit(main(sys.argv[1:]))
'''


def left_behind(lake: Path) -> str:
    "Names, bytes, footers and rows of all files below the lake, as one text."
    files = [p for p in lake.rglob("*") if p.is_file()]
    texts = [f"{p} {p.read_bytes().decode('latin-1')}" for p in files]
    tables = [p for p in files if p.suffix == ".parquet"]
    return "\n".join([*texts, *(f"{pl.read_parquet_metadata(p)} {pl.read_parquet(p).rows()}" for p in tables)])


@pytest.mark.parametrize(("kind", "broken"), [("TransformError", True), ("ValueError", True), ("ValueError", False)])
def test_canaries_stay_in_their_cage(tmp_path, lake, kind, broken):
    "No secret in output, traceback, states, footers, quarantine or anything else that a run leaves behind."
    put(tmp_path / "bronze", pl.concat([tape(8, n=3000), tape(9)[:1]]))
    put(tmp_path / "bronze", b"PAR1 cut", 9)
    (tmp_path / "c.yaml").write_text("storage: {input_root: '${ENV:VENUE_API_SECRET}/x', output_root: 'lake'}")
    (tmp_path / "job.py").write_text(PLUGIN.format(kind=kind, text=TEXT, broken=broken))
    env = os.environ | {"VENUE_API_SECRET": CANARIES["environment"], "AWS_SECRET_ACCESS_KEY": CANARIES["option"]}
    elsewhere = f"s3://u:{CANARIES['url']}@b/{CANARIES['environment']}"
    bronze = ["--input", str(tmp_path / "bronze")]
    for more in (bronze, [*bronze, "--quarantine-files"], ["--input", elsewhere], []):
        args = [sys.executable, "job.py", "trades", "--output", str(lake), "--config", "c.yaml", "--debug", *more]
        done = subprocess.run(args, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert leaks(done.stdout + done.stderr) == []
        assert (done.returncode == 0) is ("--quarantine-files" in more and not broken)
        assert ("Traceback" in done.stderr) is (done.returncode != 0)
    assert leaks(left_behind(lake)) == []
    assert broken or dataset(lake / "silver/trades").height == 3040


def test_a_refused_value_of_the_environment_is_not_shown(tmp_path, monkeypatch):
    "A value that came from `${ENV:NAME}` is named by that, whatever is wrong with it."
    monkeypatch.setenv("DEPTH", CANARIES["environment"])
    (tmp_path / "c.yaml").write_text("features:\n  depth_levels: '${ENV:DEPTH}'\n")
    from daedalus_etl.core.config import load_config
    with pytest.raises(ConfigError, match=r"\$\{ENV:DEPTH\}") as caught: load_config(tmp_path / "c.yaml")
    assert leaks(str(caught.value)) == []
