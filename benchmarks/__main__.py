"""The suite's command line: `python -m benchmarks`, or `daedalus bench` in a clone.

Runs cases in turns against floors and peers, prints a table for each; with --out it writes results.json and results.md.
Exit code 1 if one of our own sides failed."""
from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks import cost, harness, report
from benchmarks.cases import choose
from benchmarks.scripts import SCRIPTS, script
from daedalus_etl.core.errors import ConfigError, DaedalusError
from daedalus_etl.runners.bench import add_flags

SCHEMA = 1
LIBRARIES = ("daedalus_etl", "polars", "pyarrow", "numba", "numpy", "altair", "duckdb", "pandas", "dataframely",
             "pandera", "finmlkit", "distributed", "obstore")


def machine() -> dict:
    "What the run ran on."
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3 if hasattr(os, "sysconf") else 0.0
    return {"cpu": cpu_model(), "cores": os.cpu_count() or 1, "ram_gib": ram, "system": platform.system(),
            "kernel": platform.release(), "arch": platform.machine()}


def cpu_model() -> str:
    try: lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError: return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def versions(pythons: Mapping[str, str]) -> dict:
    "Python's and of every library that is there; of a peer with an interpreter of its own as that one tells it."
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try: found[name] = metadata.version(name)
        except metadata.PackageNotFoundError: found[name] = None
    for name, python in pythons.items():
        code = f"import json; from importlib.metadata import version; print(json.dumps({{'v': version({name!r})}}))"
        found[name] = harness.last_json([python, "-c", code]).get("v", found.get(name))
    return found


def commit() -> str | None:
    "The commit that was measured; `+` if files differ from it."
    def git(*words):
        return subprocess.run(["git", *words], cwd=harness.ROOT, capture_output=True, text=True, check=True).stdout
    try: return git("rev-parse", "--short", "HEAD").strip() + "+" * bool(git("status", "--porcelain", "-uno").strip())
    except (OSError, subprocess.CalledProcessError): return None


def measure(cases: Mapping, options: harness.Options, scripts: list[str]) -> dict:
    "Run it all: what results.json holds, but for the command."
    def tell(line):
        if sys.stderr.isatty(): print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    load, before, done = os.getloadavg()[0], harness.calibrate(), {}
    # a quick run measures nothing, so its cases may disturb one another
    with ThreadPoolExecutor((os.cpu_count() or 1) if options.quick else 1) as pool:
        running = pool.map(lambda c: harness.run_case(c, options, tell), cases.values())
        telling = pool.map(lambda s: script(s, options.quick), scripts)
        for name, result in zip(cases, running):
            done[name] = result
            tell("")
            print(report.lined(result), flush=True)
        told = dict(zip(scripts, telling))
    others = [(c["others_cores"], c["seconds"]) for c in done.values() if c["others_cores"] is not None]
    spent = sum(s for _, s in others)
    noise = {"load_before": load, "load_after": os.getloadavg()[0], "calibration_before": before,
             "calibration_after": harness.calibrate(),
             "others_cores": sum(o * s for o, s in others) / spent if spent else None}
    noise["warnings"] = harness.warnings(noise, os.cpu_count() or 1)
    results = {"schema": SCHEMA, "quick": options.quick, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
               "provisional": options.quick or bool(noise["warnings"]), "commit": commit(), "machine": machine(),
               "versions": versions(options.pythons), "noise": noise, "cases": done, "scripts": told}
    return results | {"cost": cost_of(results)}


def cost_of(results: Mapping) -> dict | None:
    "The model over what was measured; a quick run has measured nothing."
    measured = None if results["quick"] else cost.measured_of(results)
    return cost.estimate(measured) if measured else None


def write(results: Mapping, out: Path) -> None:
    "results.json and results.md below `out`."
    out.mkdir(parents=True, exist_ok=True)
    texts = {"results.json": json.dumps(results, indent=1) + "\n", "results.md": report.markdown(results)}
    for name, text in texts.items():
        part = out / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, out / name)


def prepare(cases: Mapping, options: harness.Options) -> int:
    "Make the inputs of all cases; they are kept, and do not need a quiet machine."
    for case in (c for c in cases.values() if c.inputs):
        made = harness.child(case, case.sides[:1], options, task="inputs")[case.sides[0].name]
        print(f"{case.name}: {'ready' if 'made' in made else made}", flush=True)
        if "made" not in made: return 1
    return 0


def page() -> None:
    "Execute the site's page in place, so that it shows results.json as it is now."
    from execnb.shell import CaptureShell
    notebook = harness.ROOT / "nbs" / "benchmarks.ipynb"
    os.chdir(notebook.parent)
    CaptureShell().execute(str(notebook), str(notebook), exc_stop=True)
    subprocess.run(["nbdev_clean", "--fname", str(notebook)], check=True, cwd=harness.ROOT)


def redraw(folder: Path) -> int:
    "results.md and the page from results.json as it is."
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    write(results | {"cost": cost_of(results)}, folder)
    page()
    return 0


def options_of(args: argparse.Namespace) -> harness.Options:
    data = Path(args.data or Path(tempfile.gettempdir()) / "daedalus-bench").absolute()
    reference = Path(args.reference).absolute() if args.reference else None
    if odd := [p for p in args.python if "=" not in p]:
        raise ConfigError(f"--python {odd[0]}", expected="NAME=PATH, such as finmlkit=/venvs/finmlkit/bin/python")
    pythons = dict(p.split("=", 1) for p in args.python)
    return harness.Options(data, args.quick, args.rounds, reference, pythons)


def run(args: argparse.Namespace) -> int:
    "What the flags ask for."
    wanted = [w for w in (args.case or "").split(",") if w]
    scripts = [s for s in SCRIPTS if not wanted or s in wanted]
    wanted = [w for w in wanted if w not in SCRIPTS]
    cases, options = choose(wanted) if wanted or not args.case else {}, options_of(args)
    if args.list: return print("\n".join(f"{n:<20} {c.title}" for n, c in cases.items()), *scripts, sep="\n") or 0
    if args.prepare: return prepare(cases, options)
    if args.redraw: return redraw(harness.ROOT / "benchmarks")
    results = measure(cases, options, scripts) | {"command": said(args), "options": told(options)}
    for w in results["noise"]["warnings"]: print(f"warning: {w}: do not trust wall seconds", file=sys.stderr)
    if args.out: write(results, Path(args.out))
    if args.page: page()
    failed = [f"{n}: {s['failed'].splitlines()[-1]}" for n, c in results["cases"].items() for s in c["sides"].values()
              if "failed" in s and s["role"] != harness.PEER]
    print(*(f"failed: {f}" for f in failed), sep="\n", file=sys.stderr, end="\n" if failed else "")
    return int(bool(failed))


def said(args: argparse.Namespace) -> str:
    "The command that repeats this, without this machine's paths."
    words = [f"--{k}" for k in ("quick",) if getattr(args, k)]
    words += ["--case", args.case] * bool(args.case) + ["--rounds", str(args.rounds)] * (not args.quick)
    words += [w for p in args.python for w in ("--python", p.split("=")[0] + "=PYTHON")]
    return shlex.join(["python", "-m", "benchmarks", *words, *["--reference", "PATH"] * bool(args.reference)])


def told(options: harness.Options) -> dict:
    return {k: v for k, v in asdict(options).items() if k in ("quick", "rounds")}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    args = add_flags(parser).parse_args(argv)
    try: return run(args)
    except DaedalusError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__": sys.exit(main())
