"""Results as tables: a few lines in the terminal while a run goes on, and the Markdown that the site shows."""
from __future__ import annotations

from collections.abc import Mapping

from benchmarks.cases import GROUPS

CORE_ROWS = "| cores | chains at once | cores a chain | hours | between | core hours | MB/s |"


def number(x: float | None, digits: int = 3) -> str:
    "A figure with so many significant digits, thousands with commas; a dash for none."
    if x is None: return "-"
    if float(x).is_integer() or abs(x) >= 10 ** (digits - 1): return f"{x:,.0f}"
    return f"{x:#.{digits}g}".rstrip(".")


def rate(side: Mapping) -> str:
    "Rows per CPU second."
    return number(side["rows"] / side["cpu"]["median"]) if side.get("cpu", {}).get("median") else "-"


def cells(name: str, side: Mapping) -> list[str]:
    "A side's line: rows, wall with its range, CPU, rows per CPU second, times ours, memory."
    if why := side.get("skipped"): return [name, f"skipped: {why}", *[""] * 6]
    if why := side.get("failed"): return [name, f"failed: {why.splitlines()[-1]}", *[""] * 6]
    wall, times = side["wall"], [side.get(f"{k}_ratio") for k in ("wall", "cpu")]
    told = [number(side["rows"]), f"{number(wall['median'])} ({number(wall['min'])} .. {number(wall['max'])})",
            number(side["cpu"]["median"]), rate(side), *(number(t["median"]) if t else "-" for t in times),
            number(side["rss"]["median"])]
    return [name, *told]


HEAD = ["side", "rows", "wall s (range)", "CPU s", "rows / CPU s", "wall / ours", "CPU / ours", "peak MiB"]


def table(head: list[str], lines: list[list[str]]) -> str:
    "A Markdown table, its first column to the left."
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in (head, rule, *lines))


def lined(case: Mapping) -> str:
    "A case in the terminal."
    lines = [HEAD, *(cells(n, s) for n, s in case["sides"].items())]
    wide = [max(len(line[k]) if k != 1 or line[2] else 4 for line in lines) for k in range(len(HEAD))]
    def row(line): return "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(line, wide)))
    parts = "".join(f"\n    {p}: {n:.3f} s" for p, n in part_walls(case))
    return f"\n{case['title']}\n" + "\n".join("  " + row(line).rstrip() for line in lines) + parts


def part_walls(case: Mapping) -> list[tuple[str, float]]:
    "Parts of a case's sides with their wall seconds."
    return [(p, v["wall"]["median"]) for s in case["sides"].values() for p, v in s.get("parts", {}).items()]


def own_figures(case: Mapping) -> list[str]:
    "What else the sides tell: bytes read and written, latencies, fsyncs."
    told = []
    for name, s in case["sides"].items():
        if "bytes_out" in s and s["rows"]:
            each = [number(s[k] / s["rows"]) for k in ("bytes_in", "bytes_out")]
            told.append(f"{name}: {each[0]} bytes read and {each[1]} written per row.")
        if "push_us" in s:
            told.append(f"{name}: a push takes {number(s['push_us'])} us, p99 {number(s['push_p99_us'])} us.")
        if "fsyncs" in s: told.append(f"{name}: {s['fsyncs']:.0f} fsyncs a commit.")
    return told


def case_markdown(case: Mapping) -> str:
    rows = f"{number(case['rows'])} {case['unit']}, {case['rounds']} round{'s' if case['rounds'] != 1 else ''}"
    text = [f"### {case['title']}", "", f"{case['what']} *{rows}.*", "",
            table(HEAD, [cells(n, s) for n, s in case["sides"].items()])]
    if parts := part_walls(case): text += ["", table(["what", "wall s"], [[p, number(w)] for p, w in parts])]
    if told := own_figures(case): text += ["", " ".join(told)]
    return "\n".join(text)


def milliseconds(s: Mapping) -> str:
    least, median, greatest = (number(s[k] * 1e3) for k in ("min", "median", "max"))
    return f"{median} ms ({least} .. {greatest})"


def machine_markdown(results: Mapping) -> str:
    "Where and when, and how quiet it was."
    m, noise, v = results["machine"], results["noise"], results["versions"]
    where = f"{m['cpu']}, {m['cores']} cores, {number(m['ram_gib'])} GiB, {m['system']} {m['kernel']}, {m['arch']}"
    lines = [["machine", where],
             ["versions", ", ".join(f"{k} {x}" for k, x in v.items() if x)],
             ["measured", f"{results['date']}, commit {results['commit'] or 'unknown'}"],
             ["command", f"`{results['command']}`"],
             ["load average", f"{noise['load_before']:.2f} before, {noise['load_after']:.2f} after"],
             ["cores used by others", number(noise["others_cores"])],
             ["calibration loop", ", ".join(f"{when} {milliseconds(noise[f'calibration_{when}']['wall'])}"
                                            for when in ("before", "after"))]]
    said = [f"- {w}" for w in noise["warnings"]]
    if results["provisional"]:
        said.insert(0, "- **provisional**: from a quick run or a busy machine; these figures say that every case runs, "
                       "and nothing of speed")
    return "\n".join([table(["what", "value"], lines), "", *said]).rstrip()


def cost_markdown(cost: Mapping | None) -> str:
    "The cost model's tables."
    if cost is None: return "*This run is no ground for the model: it was a quick one, or lacks a case that is needed.*"
    plan, m = cost["plan"], cost["measured"]
    def between(w): return f"{number(w['low'])} .. {number(w['high'])}"
    lines = [[c, str(w["chains"]), str(w["cores_a_chain"]), number(w["hours"]), between(w), number(w["core_hours"]),
              number(w["mb_s"])] for c, w in cost["cores"].items()]
    overhead = "not measured here" if m["overhead_s"] is None else f"{number(m['overhead_s'] * 1e3)} ms"
    given = [["seconds of one core per million rows, silver and gold", " / ".join(map(number, m["seconds"]))],
             ["MB per million rows: bronze, silver, gold",
              " / ".join(number(m[f"{k}_mb"]) for k in ("bronze", "silver", "gold"))],
             ["one chain on two cores instead of one", f"{number(m['speedup'])} times as fast"],
             ["scheduling a unit", overhead]]
    stored = [[k, f"{v:,.2f} TB"] for k, v in cost["storage_tb"].items()]
    asked = [[k, f"{v:,}"] for k, v in cost["requests"].items()]
    about = (f"{plan['symbols']} symbols, {plan['days']} days, {plan['rows_a_day']:,} snapshots a day: "
             f"{plan['rows']:,} rows in {plan['units']:,} units.")
    return "\n\n".join([about, table(CORE_ROWS.strip("| ").split(" | "), lines), table(["measured", "value"], given),
                        table(["stored", "a year"], stored), table(["requests", "a year"], asked)])


def scripts_markdown(scripts: Mapping) -> str:
    "What the scripts that stand for themselves told."
    lines = []
    for name, s in scripts.items():
        if "result" in s: lines += [[f"{name}: {k}", word(v)] for k, v in flat(s["result"]).items()]
        else: lines.append([name, s.get("skipped") or s["failed"].splitlines()[-1]])
    return table(["what", "value"], lines)


def word(x) -> str: return str(x) if isinstance(x, str | bool) else number(x)


def flat(told: Mapping, at: str = "") -> dict:
    "Figures of a nested object by dotted names; lists and what is no figure or short word stay out."
    out = {}
    for k, v in told.items():
        if isinstance(v, Mapping): out |= flat(v, f"{at}{k}.")
        elif isinstance(v, int | float) or isinstance(v, str) and len(v) < 60: out[at + k] = v
    return out


def markdown(results: Mapping) -> str:
    "The whole of results.md; a section for each `## `."
    text = ["## Machine", "", machine_markdown(results)]
    for group, title in GROUPS.items():
        inside = [c for c in results["cases"].values() if c["group"] == group]
        if inside: text += ["", f"## {title}", "", "\n\n".join(map(case_markdown, inside))]
    if results["scripts"]: text += ["", "## Memory, partitions, cluster", "", scripts_markdown(results["scripts"])]
    return "\n".join([*text, "", "## A year of fifty symbols", "", cost_markdown(results["cost"]), ""])
