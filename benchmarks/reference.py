"""The public reference implementation on our inputs, from a path that is given (`--reference PATH`), if it imports.

Its own child process puts PATH in front of everything else, so that no other code is taken for it. What it lacks is the
reason why it is skipped."""
from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

from benchmarks import inputs
from benchmarks.harness import Env, Side, Skip

PACKAGES = ("etl", "daedalus.etl", "src.etl")
TRANSFORMS = {"trades": "TradesFeatureTransform", "orderbook": "OrderbookFeatureTransform"}
MOST = {"trades": 1_000_000, "orderbook": 10_000}     # rows: it is slow
WANTED = {"core.executor": ("TransformExecutor",),
          "core.config": ("FeatureConfig", "InputConfig", "OutputConfig", "TransformConfig")}


def load(path, channel: str) -> SimpleNamespace:
    "Its names that a job needs; `Skip` with the reason if one of them is not there."
    if path is None: raise Skip("no path to it was given (--reference PATH)")
    if not path.is_dir(): raise Skip(f"no such folder: {path}")
    sys.path.insert(0, str(path))
    root = next((p for p in PACKAGES if (path / p.replace(".", "/")).is_dir()), None)
    if root is None: raise Skip(f"{path} has no package {' or '.join(PACKAGES)}")
    transform, found = TRANSFORMS[channel], SimpleNamespace()
    for name, wanted in (WANTED | {f"transforms.{channel}": (transform,)}).items():
        try: there = importlib.import_module(f"{root}.{name}")
        except Exception as e:       # whatever its import raises is why it cannot be measured
            raise Skip(f"{root}.{name} does not import: {type(e).__name__}: {e}") from e
        lacks = [w for w in wanted if not hasattr(there, w)]
        if lacks: raise Skip(f"{root}.{name} has no {', '.join(lacks)}")
        vars(found).update({w: getattr(there, w) for w in wanted})
    found.transform = getattr(found, transform)
    return found


def reference(channel: str) -> Side:
    "The reference implementation's job for `channel`, on the first rows of the same bronze."
    source = {"trades": inputs.trades, "orderbook": inputs.books}[channel]
    def work(env: Env) -> int:
        theirs = load(env.reference, channel)
        given = theirs.InputConfig(name=channel, path=str(source(env.data, env.rows) / channel))
        config = theirs.TransformConfig(
            name=f"{channel}_features", inputs={channel: given},
            outputs={"silver": theirs.OutputConfig(name="silver", path=str(env.scratch / "reference"))})
        executor = theirs.TransformExecutor(feature_config=theirs.FeatureConfig())
        done = executor.execute(transform=theirs.transform(config), limit_rows=env.most)
        return int(done["write_stats"]["silver"]["rows"])
    return Side("reference", work, most=MOST[channel], passes=1)
