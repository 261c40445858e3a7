"""The kernels against `naive` on arrays, small enough to run three ways: as machine code, as plain Python
(NUMBA_DISABLE_JIT=1) and with NUMBA_BOUNDSCHECK=1 (and a NUMBA_CACHE_DIR of its own: numba's cache does not tell
checked code from unchecked).

Sums of n values are held to n eps of the sum of absolute values; a running mean to 32 eps of the largest value merged.
"""
import math
import random
import sys

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import SECOND
from numba import config as numba_config

from daedalus_etl.features import streaming
from daedalus_etl.features.bar_clocks import new_clock, time_batch
from daedalus_etl.features.bar_record import BASE, bar_rows, base_batch
from daedalus_etl.features.bars import QUOTE_BAR, quote_bar_batch, settle
from daedalus_etl.features.processor import count_signs, replay
from daedalus_etl.features.streaming import (
    STEP, Rows, Tape, held_window_batch, merge_moments, new_window, room, step_batch, suffix_moments, suffix_sums,
    sum_window_batch)
from daedalus_etl.features.ticker import quote_batch, quote_rows_batch, quote_window_batch
from daedalus_etl.features.trades import trade_rows_batch, trade_window_batch

PLAIN, CHECKED = bool(numba_config.DISABLE_JIT), bool(numba_config.BOUNDSCHECK)
EPS, RTOL, T0 = sys.float_info.epsilon, 1e-12, 1_723_248_000 * SECOND     # T0: a multiple of every width below
WIDTHS = (1, 5, 60, 300, 100_000)                                        # seconds; the last one longer than the data
few = settings(max_examples=15 if PLAIN else 50)


# ---- inputs and the slow truth

def clocks_of(seconds) -> np.ndarray:
    return np.array([T0 + round(s * SECOND) for s in seconds], np.int64)


US = 1e-6
CLOCKS = {
    "one row": [0],
    "one clock": [3.5] * 9,
    "exact window edges": [0, 5 - US, 5, 5 + US, 10, 60, 60 + US, 65, 300, 360],
    "block edges": [k * 5 + e for k in range(1, 13) for e in (-US, 0, US)],
    "jumps over blocks": [1, 6, 8, 17, 18, 33, 34, 59, 61, 185, 186, 301],
    "jumps of one width": [0, 5, 10, 15, 75, 135, 195, 495, 795],
    "gaps of exactly 300 s": [0, 300, 600 + US, 900 + US, 900 + US, 1200 + 2 * US],
    "before 1970": [-1_723_248_000 - 7 + k * 1.3 for k in range(20)],
}
by_clocks = pytest.mark.parametrize("t", [pytest.param(clocks_of(c), id=name) for name, c in CLOCKS.items()])


def values(n, k=1, seed=3) -> np.ndarray:
    "Random values of both signs and of scales from 1e-6 to 1e6."
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, k)) * 10.0 ** rng.integers(-6, 7, (n, k))


def segments(t, gap_s=300):
    return naive.segments([int(c) for c in t], gap_s)


def fresh_of(segs) -> np.ndarray:
    return np.array([n == 0 or segs[n] != segs[n - 1] for n in range(len(segs))], np.uint8)


def rows_of(t, x, gap_s=300) -> Rows:
    return Rows(t, np.ascontiguousarray(x), fresh_of(segments(t, gap_s)), np.zeros((t.size, 3), np.int64))


def window_of(width_s, n):
    return new_window(width_s, n)


def sums(width_s, rows, cuts=()):
    "Window sums (k, n) and first rows inside, batch by batch; `cuts`: where one batch ends."
    win, n, k = window_of(width_s, rows.x.shape[1]), rows.t.size, rows.x.shape[1]
    out, head = np.empty((k, n)), np.empty(n, np.int64)
    edges = [0, *sorted(cuts), n]
    for lo, hi in zip(edges, edges[1:]):
        part, first = np.empty((k, hi - lo)), np.empty(hi - lo, np.int64)
        win = win._replace(suffix=sum_window_batch(win, rows, lo, hi, part, first))
        out[:, lo:hi], head[lo:hi] = part, first
    return out, head


def moments(width_s, rows, cuts=()):
    "Time-weighted means and deviations (k, n), batch by batch."
    win, n, k = window_of(width_s, 3 * rows.x.shape[1]), rows.t.size, rows.x.shape[1]
    mean, std = np.empty((k, n)), np.empty((k, n))
    edges = [0, *sorted(cuts), n]
    for lo, hi in zip(edges, edges[1:]):
        a, b = np.empty((k, hi - lo)), np.empty((k, hi - lo))
        win = win._replace(suffix=held_window_batch(win, rows, lo, hi, a, b))
        mean[:, lo:hi], std[:, lo:hi] = a, b
    return mean, std


def check_sums(t, x, width_s, gap_s=300):
    rows, c = rows_of(t, x, gap_s), [int(v) for v in t]
    out, head = sums(width_s, rows)
    segs = segments(t, gap_s)
    for n in range(t.size):
        seen = naive.window(c, segs, n, width_s)
        assert head[n] == seen[0]
        for k in range(x.shape[1]):
            size = math.fsum(abs(x[i, k]) for i in seen)
            assert abs(out[k, n] - math.fsum(x[i, k] for i in seen)) <= len(seen) * EPS * size
    return out


def check_moments(t, x, width_s, gap_s=300):
    rows, c = rows_of(t, x, gap_s), [int(v) for v in t]
    mean, std = moments(width_s, rows)
    segs = segments(t, gap_s)
    for k in range(x.shape[1]):
        column = [None if math.isnan(v) else float(v) for v in x[:, k]]
        for n in range(t.size):
            spans = naive.held(column, c, segs, n, width_s)
            atol = 32 * EPS * max((abs(v) for _, v in spans), default=0.0)
            near(mean[k, n], naive.tw_mean(spans, column[n]), atol)
            near(std[k, n], naive.tw_std(spans), atol)
    return mean, std


def near(got, want, atol=0.0):
    if want is None: assert math.isnan(got)
    else: assert math.isclose(got, want, rel_tol=RTOL, abs_tol=atol), (got, want)


def same(a, b):
    "The same bits, NaN included."
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


STEPS = st.one_of(st.sampled_from([0, 0, 1, SECOND - 1, SECOND, 5 * SECOND, 5 * SECOND - 1, 5 * SECOND + 1, 60 * SECOND,
                                   299 * SECOND, 300 * SECOND, 300 * SECOND + 1, 1000 * SECOND]),
                  st.integers(0, 12 * SECOND))
NUMBERS = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.1, 1e12, 1e-12]), st.floats(-1e6, 1e6))


@st.composite
def streams(draw, undefined=False):
    "Clocks, and values (n, 1), NaN among them if `undefined`."
    steps = draw(st.lists(STEPS, max_size=40))
    t = np.cumsum([draw(st.sampled_from((T0, T0 - 1, T0 + 1_234_567))), *steps]).astype(np.int64)
    number = st.one_of(NUMBERS, NUMBERS, st.just(math.nan)) if undefined else NUMBERS
    return t, np.array(draw(st.lists(number, min_size=t.size, max_size=t.size)))[:, None]


# ---- the mode is what its name says

def test_bounds_are_checked_where_they_should_be():
    "An output that is too short: an IndexError in plain Python and in checked code; else the run proves nothing."
    if not (PLAIN or CHECKED): pytest.skip("machine code does not check bounds: NUMBA_BOUNDSCHECK=1 does")
    rows = rows_of(clocks_of([0, 1, 2]), values(3))
    with pytest.raises(IndexError):
        sum_window_batch(window_of(5, 1), rows, 0, 3, np.empty((1, 2)), np.empty(3, np.int64))


def test_kernels_are_compiled_unless_told_not_to():
    assert hasattr(streaming.sum_window_batch, "py_func") is not PLAIN


# ---- sums

@by_clocks
@pytest.mark.parametrize("width_s", WIDTHS)
def test_sums_at_edges(t, width_s):
    check_sums(t, values(t.size, 2), width_s)


@few
@given(streams(), st.sampled_from(WIDTHS), st.sampled_from((5, 300, 10**6)))
def test_sums_on_random_clocks(stream, width_s, gap_s):
    check_sums(*stream, width_s, gap_s)


@few
@given(streams(), st.sampled_from(WIDTHS), st.data())
def test_sums_do_not_depend_on_batches(stream, width_s, data):
    rows = rows_of(*stream)
    whole = sums(width_s, rows)
    cuts = data.draw(st.lists(st.integers(0, rows.t.size), max_size=5))
    for got in (sums(width_s, rows, cuts), sums(width_s, rows, range(1, rows.t.size))):
        for a, b in zip(got, whole): same(a, b)


def test_sum_of_a_window_depends_on_its_rows_alone():
    "The bits are those of a stream that begins with the window's block, whatever came before."
    t, x = clocks_of([k * 0.7 for k in range(60)]), values(60)
    whole, _ = sums(5, rows_of(t, x))
    other, _ = sums(5, rows_of(t, np.where(np.arange(60)[:, None] < 30, 1e12, x)))
    first = int(np.searchsorted(t, t[30] + 5 * SECOND))
    same(whole[:, first:], other[:, first:])


@pytest.mark.parametrize("width_s", (1, 5, 60))
def test_an_outlier_leaves_no_trace_in_sums(width_s):
    t, x = clocks_of([k * 0.9 for k in range(200)]), np.abs(values(200))
    spiked = x.copy()
    spiked[20] = 1e12
    clean, _ = sums(width_s, rows_of(t, x))
    after = (t > t[20] + width_s * SECOND - 1) | (t < t[20])
    same(clean[:, after], sums(width_s, rows_of(t, spiked))[0][:, after])
    assert after.sum() > 30 and after.sum() < 200


def test_no_rows_at_all():
    none = rows_of(np.empty(0, np.int64), np.empty((0, 2)))
    assert [a.shape for a in sums(5, none)] == [(2, 0), (0,)]
    assert [a.shape for a in moments(5, none)] == [(2, 0), (2, 0)]


def test_suffix_arrays_grow():
    small = np.full((2, 1), 7.0)
    assert np.shares_memory(room(small, 2), small)
    assert room(small, 3).shape == (4, 1) and room(small, 9).shape == (9, 1)
    assert room(np.empty((0, 2)), 1).shape == (1, 2)
    x = values(9, 2)
    grown = suffix_sums(np.empty((0, 2)), x, 2, 8)
    for i in range(2, 8):
        for k in range(2): near(grown[i - 2, k], math.fsum(x[i:8, k]), 6 * EPS * np.abs(x[2:8, k]).sum())


def test_a_suffix_array_that_must_grow_gives_the_same_sums():
    "Blocks of 1, 2, 4, .. rows: the array grows at each, and is used again where the blocks are smaller."
    seconds = [b * 5 + (k + 1) / 64 for b, n in enumerate((1, 2, 4, 9, 20, 41, 3, 1, 50)) for k in range(n)]
    t = clocks_of(seconds)
    check_sums(t, values(t.size), 5)
    check_moments(t, values(t.size), 5)


@pytest.mark.skipif(PLAIN or CHECKED, reason="a million rows are for machine code")
@pytest.mark.parametrize("width_s", (5, 300, 3600))
def test_a_long_run_does_not_drift(width_s):
    "After 1e6 rows a sum is as good as after ten: within 1e-12 of the absolute sum (measured: a few eps)."
    rng = np.random.default_rng(11)
    n = 1_000_000
    t = T0 + np.cumsum(rng.exponential(0.05 * SECOND, n).astype(np.int64))
    x = (rng.normal(size=n) * 10.0 ** rng.integers(-6, 7, n))[:, None]
    x[rng.integers(0, n, 50)] = 1e12
    out, head = sums(width_s, rows_of_large(t, x))
    for i in [*rng.integers(0, n, 40), n - 1]:
        inside = x[head[i]:i + 1, 0]
        assert t[head[i]] > t[i] - width_s * SECOND and (head[i] == 0 or t[head[i] - 1] <= t[i] - width_s * SECOND)
        assert abs(out[0, i] - math.fsum(inside)) <= 1e-12 * math.fsum(np.abs(inside))


def rows_of_large(t, x):
    fresh = np.zeros(t.size, np.uint8)
    fresh[0] = 1
    return Rows(t, x, fresh, np.zeros((t.size, 3), np.int64))


# ---- time-weighted moments

@by_clocks
@pytest.mark.parametrize("width_s", WIDTHS)
def test_moments_at_edges(t, width_s):
    x = values(t.size, 2)
    x[1::3, 1] = np.nan
    check_moments(t, x, width_s)


@few
@given(streams(undefined=True), st.sampled_from(WIDTHS), st.sampled_from((5, 300, 10**6)))
def test_moments_on_random_clocks(stream, width_s, gap_s):
    check_moments(*stream, width_s, gap_s)


@few
@given(streams(undefined=True), st.sampled_from(WIDTHS), st.data())
def test_moments_do_not_depend_on_batches(stream, width_s, data):
    rows = rows_of(*stream)
    whole = moments(width_s, rows)
    cuts = data.draw(st.lists(st.integers(0, rows.t.size), max_size=5))
    for got in (moments(width_s, rows, cuts), moments(width_s, rows, range(1, rows.t.size))):
        for a, b in zip(got, whole): same(a, b)


@pytest.mark.parametrize("width_s", (1, 5, 60))
def test_an_outlier_leaves_no_trace_in_moments(width_s):
    t, x = clocks_of([k * 0.9 for k in range(200)]), np.abs(values(200))
    spiked = x.copy()
    spiked[20] = 1e12
    after = (t >= t[21] + width_s * SECOND) | (t < t[20])      # row 20 holds until row 21
    clean, other = moments(width_s, rows_of(t, x)), moments(width_s, rows_of(t, spiked))
    for a, b in zip(clean, other): same(a[:, after], b[:, after])
    assert 30 < after.sum() < 200


def test_the_value_at_the_left_edge_counts():
    "10 holds from 0 to 4, 20 from 4 to 7: at 7 the window of 5 s has 2 s of 10 and 3 s of 20."
    mean, std = moments(5, rows_of(clocks_of([0, 4, 7]), np.array([[10.0], [20.0], [99.0]])))
    assert mean[0].tolist() == [10.0, 10.0, 16.0]
    assert std[0].tolist() == pytest.approx([math.nan, 0.0, math.sqrt(24.0)], nan_ok=True)


def test_equal_values_deviate_by_exactly_nothing():
    t = clocks_of([k * 0.31 for k in range(100)])
    mean, std = moments(5, rows_of(t, np.full((100, 1), 61_234.56)))
    assert set(mean[0]) == {61_234.56} and set(std[0, 1:]) == {0.0}


def test_merging_moments():
    "Two triples merged are those of all values; nothing merged changes nothing."
    w, v = [3.0, 1.0, 5.0, 2.0], [10.0, -4.0, 7.5, 1e3]
    a, b = np.zeros(3), np.zeros(3)
    for i in (0, 1): merge_moments(a, 0, w[i], v[i], 0.0)
    for i in (2, 3): merge_moments(b, 0, w[i], v[i], 0.0)
    merge_moments(a, 0, b[0], b[1], b[2])
    near(a[1], naive.tw_mean(list(zip(w, v)), None))
    near(math.sqrt(a[2] / a[0]), naive.tw_std(list(zip(w, v))))
    before = a.copy()
    merge_moments(a, 0, 0.0, 123.0, 0.0)
    same(a, before)


def test_suffix_moments():
    t, x = clocks_of([0, 1, 4, 4, 9, 10]), values(6)
    suffix = suffix_moments(np.empty((0, 3)), rows_of(t, x), 1, 5)
    for i in range(1, 5):
        spans = [(int(t[j + 1] - t[j]), float(x[j, 0])) for j in range(i, 5) if t[j + 1] > t[j]]
        atol = 32 * EPS * np.abs(x).max()
        assert suffix[i - 1, 0] == sum(w for w, _ in spans)
        near(suffix[i - 1, 1], naive.tw_mean(spans, None), atol)
        near(math.sqrt(suffix[i - 1, 2] / suffix[i - 1, 0]), naive.tw_std(spans), atol)


# ---- the tape

def feed(tape, windows, t, x, segs, batch, held):
    "Feed rows batch by batch through `tape`; returns the results of each window (2, n)."
    fresh, out = fresh_of(segs), {w: [] for w in windows}
    for at in range(0, t.size, batch):
        part = slice(at, min(at + batch, t.size))
        lo, hi = tape.extend(part.stop - part.start, list(windows.values()))
        rows = tape.rows
        rows.t[lo:hi], rows.x[lo:hi], rows.fresh[lo:hi], rows.count[lo:hi] = t[part], x[part], fresh[part], 0
        for w, win in windows.items():
            a, b = np.empty((1, hi - lo)), np.empty((1, hi - lo))
            if held: suffix = held_window_batch(win, rows, lo, hi, a, b)
            else: suffix = sum_window_batch(win, rows, lo, hi, a, b[0])
            windows[w] = win._replace(suffix=suffix)
            out[w].append(np.concatenate([a, b]))
    return {w: np.concatenate(parts, axis=1) for w, parts in out.items()}


@pytest.mark.parametrize("held", (False, True))
@pytest.mark.parametrize("batch", (1, 2, 7, 1000))
def test_a_tape_that_drops_rows_gives_the_same_bits(held, batch):
    "Windows of 1, 5 and 60 s over 15 minutes with two gaps: the tape must let go of rows and keep what is in sight."
    rng = np.random.default_rng(2)
    moves = [0, 1, SECOND, 3 * SECOND, 20 * SECOND, 301 * SECOND]
    t = T0 + np.cumsum(rng.choice(moves, 150, p=[.2, .1, .4, .2, .08, .02]))
    x, segs = values(t.size), segments(t)
    k = 3 if held else 1
    tape, windows = Tape(60, 1, 3), {w: new_window(w, k) for w in (1, 5, 60)}
    got, rows = feed(tape, windows, t, x, segs, batch, held), rows_of(t, x)
    for w in windows:
        if held: same(got[w], np.concatenate(moments(w, rows)))
        else: same(got[w][:1], sums(w, rows)[0])
    if batch < 10: assert tape.rows.t.size < t.size              # it did let go
    first = tape.first_visible()
    left = max(t[-1] - 60 * SECOND, segs[-1])
    assert first == 0 or tape.rows.t[first] <= left
    assert tape.end - first <= np.sum(t >= left) + 1             # and the state holds nothing that is out of sight


def test_an_empty_tape():
    tape = Tape(60, 1, 3)
    assert (tape.first_visible(), tape.extend(0, []), tape.first_visible()) == (0, (0, 0), 0)
    assert tape.extend(3, []) == (0, 3) and tape.extend(0, []) == (3, 3)


def test_a_tape_without_windows_keeps_one_row():
    tape = Tape(0, 1, 3)
    for k in range(100):
        lo, hi = tape.extend(1, [])
        tape.rows.t[lo], tape.rows.fresh[lo], tape.rows.count[lo] = T0 + k, k == 0, 0
    assert tape.rows.t.size < 10


@pytest.mark.parametrize("held", (False, True))
@pytest.mark.parametrize("cut", (0, 1, 17, 60, 99, 100))
def test_replaying_the_rows_in_sight_restores_a_window(held, cut):
    "A window that has taken in only what the tape still shows goes on with the same bits."
    rng = np.random.default_rng(4)
    t, x = T0 + np.cumsum(rng.choice([0, 1, SECOND, 4 * SECOND], 100)), values(100)
    tape, whole = Tape(60, 1, 3), rows_of(t, x)
    lo, hi = tape.extend(cut, [])
    tape.rows.t[:cut], tape.rows.fresh[:cut] = t[:cut], whole.fresh[:cut]
    first = tape.first_visible()
    rows = rows_of(t[first:], x[first:]) if cut < 100 or first < 100 else whole
    for w in (1, 5, 60):
        win = new_window(w, 3 if held else 1)
        win = win._replace(suffix=replay(win.rec, win.acc, win.suffix, rows, cut - first, held))
        a, b = np.empty((1, 100 - cut)), np.empty((1, 100 - cut))
        if held: held_window_batch(win, rows, cut - first, 100 - first, a, b)
        else: sum_window_batch(win, rows, cut - first, 100 - first, a, b[0])
        want = moments(w, whole) if held else sums(w, whole)
        same(a, np.ascontiguousarray(want[0][:, cut:]))
        if held: same(b, np.ascontiguousarray(want[1][:, cut:]))


# ---- steps

def step(t, value, gap_s=300, cuts=()):
    s, n = np.zeros(1, STEP), t.size
    s["value"] = np.nan
    segment, fresh, r, dt = np.empty(n, np.int64), np.empty(n, np.uint8), np.empty(n), np.empty(n)
    edges = [0, *cuts, n]
    for a, b in zip(edges, edges[1:]):
        p = slice(a, b)
        step_batch(s[0], t[p], value[p], gap_s * SECOND, segment[p], fresh[p], r[p], dt[p])
    return segment, fresh, r, dt


@by_clocks
def test_steps(t):
    "Segments, returns from the segment's last defined value, seconds since the row before."
    value = np.abs(values(t.size)[:, 0]) + 1e-3
    value[2::4] = np.nan
    segment, fresh, r, dt = step(t, value)
    segs = segments(t)
    assert segment.tolist() == segs and fresh.tolist() == fresh_of(segs).tolist()
    for n in range(t.size):
        defined = [float(value[i]) for i in range(n) if segs[i] == segs[n] and value[i] == value[i]]
        now = float(value[n]) if value[n] == value[n] else None
        near(r[n], naive.log_ratio(now, defined[-1] if defined else None))
        near(dt[n], None if fresh[n] else (int(t[n]) - int(t[n - 1])) / SECOND)
    for a, b in zip(step(t, value, cuts=range(1, t.size)), (segment, fresh, r, dt)): same(a, b)


def test_a_gap_of_exactly_max_gap_is_none():
    t = clocks_of([0, 300, 600 + US])
    assert step(t, np.ones(3))[1].tolist() == [1, 0, 1]


# ---- trades

SIDES = ("buy", "sell", "", None)


def trade_dicts(t, seed=6):
    rng, price, out = random.Random(seed), 100.0, []
    for c in t:
        price *= rng.choice((1.0, 1.001, 0.999, 1.5, 0.6))
        amount = rng.choice((0.0, 0.1, rng.random()))
        out.append({"capture_ts": int(c), "side": rng.choice(SIDES), "price": price, "amount": amount})
    return out


def columns_of(rows, *names):
    return [np.array([math.nan if r[k] is None else r[k] for r in rows], np.float64) for k in names]


def signs_of(rows):
    return np.array([naive.side_sign(r) or 0 for r in rows], np.int8)


@by_clocks
@pytest.mark.parametrize("width_s", (5, 300))
def test_trade_windows(t, width_s):
    made, n = trade_dicts(t), t.size
    want = naive.trades(made, (width_s,))
    price, amount = columns_of(made, "price", "amount")
    rows = Rows(t, np.empty((n, 5)), fresh_of(segments(t)), np.empty((n, 3), np.int64))
    count_signs(rows.count, 0, signs_of(made))
    trade_rows_batch(rows, 0, price, amount, step(t, price)[2])
    out, count = np.empty((6, n)), np.empty(n, np.uint32)
    trade_window_batch(new_window(width_s, 5), rows, 0, n, out, count)
    names = ("vwap", "volume", "dollar_volume", "buy_ratio", "tfi", "realized_var")
    for i, row in enumerate(want):
        assert count[i] == row[f"trade_count_{width_s}s"]
        for k, name in enumerate(names):
            near(out[k, i], row[f"{name}_{width_s}s"], count[i] * EPS if name == "tfi" else 0.0)   # B - S cancels


def test_signs_are_counted_from_any_row():
    sign = np.array([1, 0, -1, -1, 1, 0, 1], np.int8)
    whole, parts = np.empty((7, 3), np.int64), np.empty((7, 3), np.int64)
    count_signs(whole, 0, sign)
    for k in range(7): count_signs(parts, k, sign[k:k + 1])
    same(whole, parts)
    assert whole[:, 0].tolist() == [0, 1, 1, 1, 1, 2, 2] and whole[:, 1].tolist() == [0, 1, 1, 2, 3, 4, 4]


# ---- quotes

def quote_dicts(t, seed=8):
    rng, out = random.Random(seed), []
    for c in t:
        mid = 100 * math.exp(rng.gauss(0, 0.01))
        bid, ask = rng.choice(((mid - 0.1, mid + 0.1), (mid, mid), (mid, mid - 1), (None, mid), (mid, None), (0.0, mid),
                               (-1.0, mid)))
        out.append({"capture_ts": int(c), "bid": bid, "ask": ask, "bid_volume": rng.choice((None, 0.0, rng.random())),
                    "ask_volume": rng.choice((None, 0.0, rng.random()))})
    return out


def quotes_of(made):
    out = np.empty((6, len(made)))
    quote_batch(*columns_of(made, "bid", "ask", "bid_volume", "ask_volume"), out)
    return out


def test_quotes():
    made = quote_dicts(clocks_of(range(300)))
    out = quotes_of(made)
    for i, row in enumerate(made):
        for k, (name, want) in enumerate(naive.quote(row).items()):
            assert name in ("mid_price", "spread", "relative_spread", "spread_bps", "microprice", "volume_imbalance")
            near(out[k, i], want)


#: the largest value that a window of `quote_dicts` merges; 0: the mean is of that size itself
SCALES = {"mid_price_mean": 0, "mid_price_std": 110, "spread_mean": 0, "vol_imbalance_mean": 1}


@by_clocks
@pytest.mark.parametrize("width_s", (5, 300))
def test_quote_windows(t, width_s):
    made, n = quote_dicts(t), t.size
    want, quotes = naive.ticker(made, (width_s,)), quotes_of(made)
    rows = Rows(t, np.empty((n, 3)), fresh_of(segments(t)), np.empty((n, 3), np.int64))
    quote_rows_batch(rows, 0, quotes)
    out = np.empty((4, n))
    quote_window_batch(new_window(width_s, 9), rows, 0, n, out)
    for i, row in enumerate(want):
        for k, (name, scale) in enumerate(SCALES.items()): near(out[k, i], row[f"{name}_{width_s}s"], 32 * EPS * scale)


# ---- bars

def closed_bars(kernel, dtype, n, call, cuts=()):
    "Bar records that close over the batches, and the open one at the end."
    bar, out = np.zeros(1, dtype), []
    edges = [0, *cuts, n]
    for a, b in zip(edges, edges[1:]):
        made = np.zeros(b - a + 1, dtype)
        out.append(made[:kernel(bar, *call(slice(a, b)), made)])
    return np.concatenate(out), bar


def trade_bars_of(t, made, width_s, cuts=()):
    price, amount = columns_of(made, "price", "amount")
    r, sign, clock = step(t, price)[2], signs_of(made), new_clock()
    def kernel(bar, edges, *rows, out):
        edges = edges[:time_batch(clock, width_s * SECOND, rows[0], edges)]
        base_batch(bar, np.zeros(1, BASE), bar_rows(edges, *rows), out[:edges.size])
        return edges.size
    return closed_bars(lambda *a: kernel(*a[:-1], out=a[-1]), BASE, t.size,
                       lambda p: (np.empty(t[p].size, np.int64), t[p], price[p], amount[p], sign[p], r[p]), cuts)


@by_clocks
@pytest.mark.parametrize("width_s", (60, 300))
def test_trade_bars(t, width_s):
    made = trade_dicts(t)
    got, want = np.concatenate(trade_bars_of(t, made, width_s)), naive.trade_bars(made, width_s)
    width = width_s * SECOND
    assert [int(b["start"]) // width * width for b in got] == [b["bar_start"] for b in want]
    names = {k: k for k in ("open", "high", "low", "close", "volume")}
    names |= {"dollar": "dollar_volume", "bought": "buy_volume", "sold": "sell_volume", "n": "trade_count"}
    for b, w in zip(got, want):
        for k, name in names.items(): near(float(b[k]), w[name])
        near(float(b["r2"]) if b["returns"] else math.nan, w["realized_variance"])
        near(b["buys"] / (b["buys"] + b["sells"]) if b["buys"] + b["sells"] else math.nan, w["buy_ratio"])
    pieces, end = trade_bars_of(t, made, width_s, range(1, t.size))
    same(np.concatenate([pieces, end]), got)


def quote_bars_of(t, made, width_s, cuts=()):
    quotes = quotes_of(made)[:3]
    _, fresh, r, _ = step(t, quotes[0])
    steps = np.stack([fresh.astype(np.float64), r])
    def call(p):
        return width_s * SECOND, 300 * SECOND, t[p], *(np.ascontiguousarray(a[:, p]) for a in (quotes, steps))
    return closed_bars(quote_bar_batch, QUOTE_BAR, t.size, call, cuts)


@by_clocks
@pytest.mark.parametrize("width_s", (60, 300))
def test_quote_bars(t, width_s):
    made = quote_dicts(t)
    got, want = np.concatenate(quote_bars_of(t, made, width_s)), naive.ticker_bars(made, width_s)
    settle(got[-1:][0], width_s * SECOND, 300 * SECOND, 2**62)
    assert [int(b["start"]) for b in got] == [b["bar_start"] for b in want]
    for b, w in zip(got, want):
        for k in ("open", "high", "low", "close"): near(float(b[k]), w[k])
        assert b["n"] == w["tick_count"]
        for k in ("min_spread", "max_spread"): near(float(b[k]) if math.isfinite(b[k]) else math.nan, w[k])
        near(float(b["mean_spread" if b["held"] > 0 else "own_spread"]), w["mean_spread"], 32 * EPS * 2)
        near(float(b["mean_relative" if b["held"] > 0 else "own_relative"]), w["mean_relative_spread"], 32 * EPS * 0.02)
        near(float(b["r2"]) if b["returns"] else math.nan, w["realized_variance"])
    pieces, end = quote_bars_of(t, made, width_s, range(1, t.size))
    settle(end[0], width_s * SECOND, 300 * SECOND, 2**62)
    same(np.concatenate([pieces, end]), got)


def test_an_outlier_leaves_no_trace_in_later_bars():
    t = clocks_of([k * 7 for k in range(40)])
    made = quote_dicts(t)
    spiked = [r | {"bid": 1e12, "ask": 1.5e12} if k == 3 else r for k, r in enumerate(made)]
    (a, _), (b, _) = (quote_bars_of(t, m, 60) for m in (made, spiked))
    assert a.size == b.size > 3
    for k in "mean_spread mean_relative min_spread max_spread open close held n".split(): same(a[k][2:], b[k][2:])
