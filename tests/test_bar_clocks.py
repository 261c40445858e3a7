"""Bar clocks against their definitions in plain Python, on tapes cut anywhere, and against finmlkit."""
import math
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import config as numba_config

from daedalus_etl.core.errors import BadDataError, ConfigError, SchemaError, StateError
from daedalus_etl.core.feature_config import BarSpec
from daedalus_etl.core.state import dump_state, load_state
from daedalus_etl.features.bar_clocks import GAIN, RANGE, BarClock, first_at
from daedalus_etl.features.streaming import US

PLAIN = bool(numba_config.DISABLE_JIT)
COUNTS = ("tick", "volume", "dollar")
FIXED = ("cusum", *COUNTS, *(f"{c}_{of}" for c in COUNTS for of in ("imbalance", "runs")))
ADAPTIVE = FIXED[4:]


def spec(kind: str, threshold: float, adaptive: bool = False) -> BarSpec:
    return BarSpec(type=kind, threshold=threshold, adaptive=adaptive)


# ---- the slow truth: a list of trades (t, price, amount, sign) to edges, from the formulas

def naive_edges(clock, rows: list[tuple]) -> list[int]:
    if isinstance(clock, int):
        bars = [t // (clock * US) for t, *_ in rows]
        return [i for i in range(1, len(rows)) if bars[i] != bars[i - 1]]
    if clock.type == "cusum": return naive_cusum(rows, clock.threshold)
    sizes, sides = naive_sizes(clock.type.split("_")[0], rows), naive_sides(rows)
    if clock.adaptive: return naive_adaptive(sizes, sides, clock.threshold, clock.type.endswith("runs"))
    if "_" not in clock.type: return naive_counts(sizes, clock.threshold)
    edges, first = [], 0
    for i in range(len(rows)):
        if reach(sizes[first:i + 1], sides[first:i + 1], clock.type.endswith("runs")) >= clock.threshold:
            edges.append(first := i + 1)
    return edges


def naive_sizes(count, rows) -> list[float]:
    return [{"tick": 1.0, "volume": q, "dollar": p * q}[count] for _, p, q, _ in rows]


def naive_sides(rows) -> list[int]:
    "What the venue says, else whether the last price unlike this one was lower or higher."
    sides = []
    for i, (_, price, _, sign) in enumerate(rows):
        other = next((p for _, p, *_ in reversed(rows[:i]) if p != price), price)
        sides.append(sign or (price > other) - (price < other))
    return sides


def naive_counts(sizes, threshold) -> list[int]:
    edges, carried = [], 0.0
    for i, x in enumerate(sizes):
        carried += x
        if carried >= threshold:
            carried -= threshold
            edges.append(i + 1)
    return edges


def naive_cusum(rows, threshold) -> list[int]:
    "The book's snippet, which resets the side that reached the threshold."
    edges, up, down = [], 0.0, 0.0
    for i in range(1, len(rows)):
        r = math.log(rows[i][1] / rows[i - 1][1])
        up, down = max(0.0, up + r), min(0.0, down + r)
        if up >= threshold: up = 0.0
        elif -down >= threshold: down = 0.0
        else: continue
        edges.append(i + 1)
    return edges


def reach(sizes, sides, runs: bool) -> float:
    "theta of a bar, added in order."
    if runs: return max(total(x for x, b in zip(sizes, sides) if b == s) for s in (1, -1))
    return abs(total(x * b for x, b in zip(sizes, sides)))


def total(values) -> float:
    "The sum in order; the interpreter's own is compensated from Python 3.12 on."
    out = 0.0
    for v in values: out += v
    return out


def naive_adaptive(sizes, sides, target, runs) -> list[int]:
    "Looks at the end of bars and of every `target` trades; a look knows the trades since the one before."
    edges, first, since, bound, c, buy, sell = [], 0, 0, None, 0.0, 0.0, 0.0
    for i in range(len(sizes)):
        n, theta = i + 1 - since, reach(sizes[first:i + 1], sides[first:i + 1], runs)
        due = n >= math.ceil(target)
        ends = due if bound is None else theta > 0 and theta >= bound
        if not (due or ends): continue
        means = [total(x for x, b in zip(sizes[since:i + 1], sides[since:i + 1]) if b == s) / n for s in (1, -1)]
        w = 1.0 if bound is None else 1.0 - math.exp(-n / (10 * target))
        if bound is not None: c = min(max(c + 0.1 * (ends - n / target), -8.0), 8.0)
        buy, sell = buy + w * (means[0] - buy), sell + w * (means[1] - sell)
        chance = math.hypot(target * (buy - sell), math.sqrt(target) * (buy + sell))
        bound, since = math.exp(c) * (target * max(buy, sell) if runs else chance), i + 1
        if ends: edges.append(first := i + 1)
    return edges


# ---- tapes

def arrays(rows) -> tuple:
    t, p, q, s = zip(*rows) if rows else ((),) * 4
    return np.array(t, np.int64), np.array(p, float), np.array(q, float), np.array(s, np.int8)


def rising(rows) -> list[tuple]:
    "Rows of (seconds since the one before, price, amount, sign) on a clock that begins before 1970."
    t, out = -100 * US, []
    for gap, *rest in rows: out.append((t := t + round(gap * US), *rest))
    return out


tapes = st.lists(st.tuples(
    st.sampled_from([0, 1e-6, 0.5, 1, 7, 60, 200]), st.sampled_from([99.5, 100.0, 100.25, 101.0, 140.0]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 25.0, 1e4]), st.sampled_from([1, -1, 0])), max_size=60).map(rising)
CLOCKS = [
    1, 7, 60, *(spec("tick", h) for h in (1, 2, 7)), *(spec("cusum", h) for h in (1e-4, 0.0075, 0.3)),
    *(spec(k, h) for k in FIXED[2:] for h in (0.1, 3, 250.0)),
    *(spec(k, h, True) for k in ADAPTIVE for h in (1, 3.5, 10))]
clocks = st.sampled_from(CLOCKS)


def walk(n: int, seed: int = 1) -> tuple:
    "A market of `n` trades, no two of them at one clock and none on a full second."
    rng = np.random.default_rng(seed)
    t = 1_700_000_000 * US + np.cumsum(rng.integers(1, 200_000, n)) * 2
    price = np.round(30_000 * np.exp(np.cumsum(rng.normal(0, 5e-5, n))), 1)
    return t + (t % US == 0), price, rng.exponential(0.2, n), rng.choice([-1, 1], n).astype(np.int8)


def closed(clock, rows, cuts=()) -> tuple[list[int], bytes]:
    "Edges from batches that end at `cuts`, each by a new clock from a saved state; and the last state."
    edges, state, bounds = [], None, [0, *sorted(cuts), rows[0].size]
    for lo, hi in zip(bounds, bounds[1:]):
        one = BarClock(clock, state)
        edges += (one.close(*(a[lo:hi] for a in rows)) + lo).tolist()
        state, _ = load_state(dump_state(one.state()))
    return edges, dump_state(state)


# ---- definitions, splits, causality

@given(tapes)
def test_edges_are_those_of_the_definition(rows):
    for clock in CLOCKS:
        found = BarClock(clock).close(*arrays(rows))
        assert found.dtype == np.int64 and found.tolist() == naive_edges(clock, rows), clock


@given(clocks, tapes, st.lists(st.integers(0, 60), max_size=8))
def test_splits_change_neither_edges_nor_state(clock, rows, cuts):
    whole = arrays(rows)
    assert closed(clock, whole, [min(c, len(rows)) for c in cuts]) == closed(clock, whole)


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_long_tape_row_by_row_in_batches_and_whole(kind, adaptive):
    if adaptive and kind not in ADAPTIVE: pytest.skip("has a fixed threshold")
    threshold = 40 if adaptive else {"cusum": 0.0005, "dollar": 90_000, "volume": 3}.get(kind.split("_")[0], 12)
    rows, clock = walk(1500), spec(kind, threshold, adaptive)
    whole = closed(clock, rows)
    assert 5 < len(whole[0]) < 1000 and whole[0] == sorted(set(whole[0]))
    assert closed(clock, rows, range(1, 1500)) == closed(clock, rows, [700, 700, 701, 1499]) == whole
    assert whole[0] == naive_edges(clock, list(zip(*(a.tolist() for a in rows))))


@given(clocks, tapes, st.integers(0, 60))
def test_an_edge_knows_no_later_trade(clock, rows, n):
    some = BarClock(clock).close(*arrays(rows[:n])).tolist()
    more = BarClock(clock).close(*arrays(rows)).tolist()
    assert some == more[:len(some)] and all(e >= min(n, len(rows)) for e in more[len(some):])


@given(st.lists(st.integers(-50, 50), max_size=30).map(sorted), st.integers(0, 30), st.integers(-60, 60))
def test_first_at_is_a_search(t, lo, end):
    lo = min(lo, len(t))
    assert first_at(np.array(t, np.int64), lo, end) == next((i for i in range(lo, len(t)) if t[i] >= end), len(t))


@given(st.sampled_from(COUNTS[1:]), st.lists(st.integers(0, 400), max_size=80), st.integers(1, 60))
def test_bars_keep_up_with_the_volume(kind, eighths, h):
    "Exact in binary: what was traded is the threshold times the bars and what is carried."
    amount = np.array(eighths, float) / 8
    clock = BarClock(spec(kind, h / 4))
    edges = clock.close(np.arange(amount.size), np.full(amount.size, 1.0), amount, np.ones(amount.size, np.int8))
    assert len(edges) * h / 4 + clock.state()["total"] == amount.sum()


# ---- states and inputs that are refused

def test_a_state_belongs_to_its_clock():
    state = BarClock(spec("volume", 10)).state()
    for other in (60, spec("volume", 11), spec("dollar", 10)):
        with pytest.raises(StateError, match="cannot go on from the state of 'volume-10'"): BarClock(other, state)
    adaptive = BarClock(spec("tick_runs", 10, True)).state()
    with pytest.raises(StateError): BarClock(spec("tick_runs", 10), adaptive)
    with pytest.raises(StateError): BarClock(spec("volume", 10), {k: v for k, v in state.items() if k != "total"})


@pytest.mark.parametrize("clock", [0, -1, True, 1.5, "60s", spec("tick", 2.5), spec("tick_runs", 0.5, True)])
def test_no_clock_of_nonsense(clock):
    with pytest.raises(ConfigError): BarClock(clock)


def test_arrays_are_checked():
    t, p, q, s = walk(10)
    for rows in ((t.astype(float), p, q, s), (t, p.astype(np.float32), q, s), (t, p, q[:9], s), (t, p, q, s * 1.0)):
        with pytest.raises(SchemaError): BarClock(60).close(*rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("clock", [
    spec("cusum", 1e9), *(spec(k, 1e-3) for k in FIXED[2:] if "tick" not in k),
    *(spec(k, 3, True) for k in ADAPTIVE if "tick" not in k)], ids=lambda c: BarClock(c).label)
def test_no_number_is_counted_as_one(clock, bad):
    if PLAIN and clock.type == "cusum": pytest.skip("Python's own logarithm raises another error")
    t, p, q, s = walk(60)
    for at in (0, 30, 59):
        here = np.arange(60) == at
        rows = t, np.where(here, bad, p), np.where(here, bad, q), s
        if clock.type == "cusum" and at == 0: continue                    # the first price has no return
        with pytest.raises(BadDataError, match="is nan|is inf"): BarClock(clock).close(*rows)


# ---- adaptive bars are as long as they should be, whatever flows

def drawn(rng, shares) -> np.ndarray:
    return np.where(rng.random(shares.size) < shares, 1, -1).astype(np.int8)


def stretches(rng, n: int, mean: float, levels) -> np.ndarray:
    "`n` values, each of `levels` for a random time of `mean` on average."
    count = int(3 * n / mean) + 50
    return np.repeat(rng.choice(levels, count), rng.geometric(1 / mean, count))[:n]


def hawkes(rng, n: int, feedback: float = 0.8, decay: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    "Sides and sizes of mutually exciting buys and sells: after a trade more of its side, and larger ones, follow."
    sides, sizes, heat, u = np.empty(n, np.int8), np.empty(n), [0.0, 0.0], rng.random(n)
    for i in range(n):
        buy, sell = (0.5 * decay + feedback * h for h in heat)
        sides[i], sizes[i] = (1 if u[i] * (buy + sell) < buy else -1), 1.0 + buy + sell
        heat = [h * (1 - decay) + decay * (sides[i] == s) for h, s in zip(heat, (1, -1))]
    return sides, sizes * rng.exponential(1.0, n)


def flow_of(name: str, n: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    "Sides and sizes of `n` trades."
    rng = np.random.default_rng(7)
    small, half = rng.exponential(1.0, n), np.full(n, 0.5)
    match name:
        case "walk": return drawn(rng, half), small
        case "p 0.6": return drawn(rng, half + 0.1), small
        case "p 0.7": return drawn(rng, half + 0.2), small
        case "buys alone": return np.ones(n, np.int8), small
        case "to and fro": return np.where(np.arange(n) % 2, 1, -1).astype(np.int8), np.ones(n)
        case "hawkes": return hawkes(rng, n)
        case "split orders":
            return np.repeat(drawn(rng, half), np.minimum(rng.pareto(1.5, n) + 1, n).astype(int))[:n], small
        case "regimes": return drawn(rng, stretches(rng, n, 30 * target, [0.1, 0.3, 0.5, 0.5, 0.7, 0.9])), small
        case "waves": return drawn(rng, half), small * stretches(rng, n, 200 * target, [1.0, 100.0])
        case "pareto 1.5": return drawn(rng, half), rng.pareto(1.5, n) + 1
        case "pareto 1.1": return drawn(rng, half + 0.1), rng.pareto(1.1, n) + 1
        case "lognormal": return drawn(rng, half), rng.lognormal(0, 2.5, n)
        case _: raise KeyError(name)


FLOWS = ("walk", "p 0.6", "p 0.7", "buys alone", "to and fro", "hawkes", "split orders", "regimes", "waves",
         "pareto 1.5", "pareto 1.1", "lognormal")


@pytest.mark.skipif(PLAIN, reason="a hundred thousand trades are for machine code")
@pytest.mark.parametrize("kind", ADAPTIVE)
@pytest.mark.parametrize("flow", FLOWS)
def test_adaptive_bars_follow_their_target(flow, kind):
    for target in (10, 100):
        n = 1300 * target
        sides, sizes = flow_of(flow, n, target)
        clock = BarClock(spec(kind, target, True))
        edges = clock.close(np.arange(n), np.full(n, 2.0), sizes, sides)
        lengths = np.diff(edges[:1000], prepend=0) / target
        assert lengths.size == 1000 and 0.8 < lengths.mean() < 1.2
        assert lengths.max() < 50
        for part in lengths.reshape(10, 100): assert 0.5 < part.mean() < 2           # at no time it ran away


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_the_number_of_bars_is_conserved(kind):
    "Bars less trades over target are the change of the correction, over the gain; exactly, but for rounding."
    target, rows = 25, walk(4000)
    clock = BarClock(spec(kind, target, True))
    bars = len(clock.close(*rows))
    after = 4000 - target - clock.state()["seen"]                  # trades looked at since the first bar
    drift = clock.state()["drift"]
    assert abs(drift) < RANGE
    assert drift / GAIN == pytest.approx(bars - 1 - after / target, abs=1e-9)


# ---- finmlkit

THEIRS = """
import sys
import numpy as np
from finmlkit.bar import logic
a = np.load(sys.argv[1])
t, price, amount, ones = a["t"] * 1000, a["price"], a["amount"], np.ones(a["t"].size)
sigma = np.full(t.size, 1.0)
made = {"time": logic._time_bar_indexer(t, 60.0)[1], "tick": logic._tick_bar_indexer(t, 700),
        "whole": logic._volume_bar_indexer(ones, 700.0), "volume": logic._dollar_bar_indexer(ones, amount, 50.0),
        "dollar": logic._dollar_bar_indexer(price, amount, 1e6),
        "cusum": logic._cusum_bar_indexer(t, price, sigma, 1e-9, 0.003)}
np.savez(sys.argv[2], **{k: np.array(v, np.int64) for k, v in made.items()})
"""


@pytest.fixture(scope="module", params=[500_000, *[10_000_000] * bool(os.environ.get("DAEDALUS_NIGHTLY"))])
def finmlkit(request, tmp_path_factory):
    "Trades, and the rows that end finmlkit's bars of them; it may need another Python, $FINMLKIT_PYTHON."
    python = os.environ.get("FINMLKIT_PYTHON") or (find_spec("finmlkit") and sys.executable)
    if not python: pytest.skip("finmlkit is not installed, and FINMLKIT_PYTHON names no interpreter that has it")
    folder, rows = tmp_path_factory.mktemp("finmlkit"), walk(request.param)
    np.savez(folder / "rows.npz", **dict(zip(("t", "price", "amount", "sign"), rows)))
    words = [python, "-c", THEIRS, str(folder / "rows.npz"), str(folder / "made.npz")]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return rows, dict(np.load(folder / "made.npz"))


@pytest.mark.skipif(PLAIN, reason="half a million trades are for machine code")
@pytest.mark.parametrize(("theirs", "clock"), [
    ("tick", spec("tick", 700)), ("dollar", spec("dollar", 1_000_000)), ("cusum", spec("cusum", 0.003)),
    ("volume", spec("volume", 50)),                        # its dollar bars at price 1: its volume bars carry nothing
    ("whole", spec("tick", 700))])                         # its volume bars of trades of 1: nothing to be carried
def test_the_same_bars_as_finmlkit(finmlkit, theirs, clock):
    rows, made = finmlkit
    edges = BarClock(clock).close(*rows)
    assert len(edges) > 100 and edges.tolist() == (made[theirs][1:] + 1).tolist()     # its first marks the first trade


@pytest.mark.skipif(PLAIN, reason="half a million trades are for machine code")
def test_the_same_minutes_as_finmlkit(finmlkit):
    "It lists all minutes from before the first trade to after the last one; those without a trade repeat a position."
    rows, made = finmlkit
    ends = np.unique(made["time"]) + 1
    assert BarClock(60).close(*rows).tolist() == ends[(ends > 0) & (ends < rows[0].size)].tolist()
