"""Lays the data of one case out as files: unpack.py ALL.json FILES FACTS REFUSALS."""

import json
import pathlib
import sys

source, files, facts, refusals = map(pathlib.Path, sys.argv[1:])
case = json.loads(source.read_text())
for name, value in case["expect"].items():
    path = files / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".json"):
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    else:
        text = value
    path.write_text(text if text.endswith("\n") else text + "\n")
facts.write_text("".join(f"{value is True}\t{name}\n" for name, value in case["holds"].items()))
refusals.write_text("".join(name + "\n" for name in case["refuses"]))
