"""What importing costs: wall seconds of whole processes."""
from __future__ import annotations

import subprocess
import sys

from benchmarks.harness import FLOOR, OURS, Case, Env, Side

TIMES = 3                # processes of a pass


def process(*words: str):
    def work(env: Env) -> int:
        for _ in range(TIMES): subprocess.run([sys.executable, *words], check=True, capture_output=True)
        return TIMES
    return work


def imports(module: str, role: str = "variant") -> Side:
    return Side(f"import {module}", process("-c", f"import {module}"), role)


CASES = [Case("imports", "Starting a process", "Interpreters that import something and end; `daedalus --help` too. "
              "Rows are processes.", "start", TIMES,
              (imports("daedalus_etl", OURS), Side("python alone", process("-c", "pass"), FLOOR),
               Side("daedalus --help", process("-m", "daedalus_etl.cli", "--help"), "variant"),
               imports("daedalus_etl.transforms.trades"), imports("daedalus_etl.transforms.bars"),
               imports("polars", "peer"), Side("import pandas", process("-c", "import pandas"), needs=("pandas",))),
              unit="processes", quick=TIMES)]
