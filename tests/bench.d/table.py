"""Prints what was measured beside its goal, and writes all figures to one file.

usage: table.py FOLDER [FILE], where FOLDER holds load.json and maybe operator.json
"""

import json
import pathlib
import sys

folder, file = pathlib.Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
figures = json.loads((folder / "load.json").read_text())
if (folder / "operator.json").exists():
    figures["operator"] = json.loads((folder / "operator.json").read_text())
if file:
    pathlib.Path(file).write_text(json.dumps(figures, indent=2) + "\n")

rows = []


def row(what, seen, goal):
    rows.append((what, seen, goal))


for rate in figures["checkins"]:
    how, goal = ("in sessions", "15,000") if rate["in_session"] else ("each signed", "8,000")
    what = f"check-ins a second, {rate['machines']:,} machines, {how}"
    row(what, f"{rate['per_second']:,.0f}", f"at least {goal}")
for waiting in figures["waiting"]:
    how, goal = ("TLS", 24) if waiting["tls"] else ("plain", 13)
    what = f"KiB of a waiting agent, {how}, {waiting['agents']:,} of them"
    row(what, f"{waiting['kib_each']:.1f}", f"at most {goal}")
for wake in figures["publish"]:
    machines = wake["machines"]
    goal = {1_000: "at most 0.25", 10_000: "at most 1.5"}.get(machines, "-")
    seen = f"{wake['sent_p99_ms'] / 1000:.2f}"
    row(f"s from a machine's publication until it holds it, {machines:,}, 99 %", seen, goal)
    seen = f"{wake['first_p99_ms'] / 1000:.2f}"
    row(f"s from the first of {wake['requests']} publications until {machines:,} hold theirs, 99 %", seen, "-")
    goal = {10_000: "at most 5"}.get(machines, "-")
    stored = (wake["sign_ms"] + wake["store_ms"]) / 1000
    row(f"s to sign, store and publish {machines:,}", f"{stored:.2f}", goal)
if followed := figures.get("followers"):
    row(
        f"check-ins with {followed['followers']} followers of {followed['machines']:,}, by those without",
        f"{followed['ratio']:.2f}",
        "at least 0.9",
    )
if herd := figures.get("herd"):
    what = f"{herd['machines']:,} of one address at once"
    row(f"{what}: closed", f"{herd['closed']:,}", "0")
    row(f"{what}: s until all are in", f"{herd['all_in_ms'] / 1000:.1f}", "at most 5")
if ready := figures.get("ready_ms"):
    row("s from a start until ready", f"{ready / 1000:.2f}", "at most 0.2")
goals = {
    "update of 100, all changed": "at most 1",
    "update of 1000, all changed": "at most 4",
    "status of 10000": "at most 0.3",
    "machines add among 10000": "at most 0.02",
}
for figure in figures.get("operator", {}).get("figures", []):
    seen = f"{figure['milliseconds'] / 1000:.3f}"
    row(f"s for muster {figure['name']}", seen, goals.get(figure["name"], "-"))
if rows:
    print(f"\n{'what':<72} {'seen':>10}  goal")
for what, seen, goal in rows:
    print(f"{what:<72} {seen:>10}  {goal}")
