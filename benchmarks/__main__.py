"""`python -m benchmarks`: run the cases, print the table, write it with every sample to benchmarks/results/."""

from __future__ import annotations
import argparse
import compileall
import json
import os
import re
import sys
import traceback
from datetime import date
from typing import Any
from .cases import CASES
from .measure import ROOT, Row, machine

HEAD = ["case", "what", "ours", "theirs", "ratio (middle half)", "target", "met", "note"]


def table(rows: dict[str, list[Row]], failed: dict[str, str]) -> list[str]:
    cells = [[name, *row.cells()] for name, group in rows.items() for row in group]
    cells += [[name, f"**failed**: {reason}", *[""] * (len(HEAD) - 2)] for name, reason in failed.items()]
    clean = [[c.replace("|", "\\|").replace("\n", " ") for c in line] for line in (HEAD, ["---"] * len(HEAD), *cells)]
    return ["| " + " | ".join(line) + " |" for line in clean]


def write(facts: dict[str, Any], lines: list[str], rows: dict[str, list[Row]], only: list[str]) -> None:
    parts = [str(date.today()), facts.get("gpu", facts["cpu"]), f"{facts['threads']} threads", *only]
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    content = {"machine": facts, "rows": [{"case": name, **vars(row)} for name, group in rows.items() for row in group]}
    (folder / f"{slug}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    (folder / f"{slug}.md").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"\nwritten to benchmarks/results/{slug}.md and .json", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="darkroom and diffusers side by side.")
    parser.add_argument("--only", action="append", choices=list(CASES), default=[], help="run this case; may be repeated")
    parser.add_argument("--quick", action="store_true", help="few rounds on small networks; writes no file")
    parser.add_argument("--device", default="cpu", help='where networks run: "cpu" or "cuda"')
    parser.add_argument("--threads", type=int, default=1, help="threads of every process")
    parser.add_argument("--folder", help="where `large` keeps its checkpoints (10 GB); a temporary folder if not given")
    options = parser.parse_args()
    # before torch is imported, here and in every child
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

    compileall.compile_dir(ROOT / "src", quiet=2)  # as installing does: the reference is compiled

    facts = machine(options)
    lines = [", ".join(f"{k} {v}" for k, v in facts.items() if k != "idle"), ""]
    if not facts["idle"]:
        lines[:0] = ["**The machine was busy at the start: do not trust these figures.**", ""]
    rows: dict[str, list[Row]] = {}
    failed: dict[str, str] = {}
    for name in options.only or CASES:
        run, target, way = CASES[name]
        print(f"{name}: target {target}; {way}", file=sys.stderr)
        rows[name] = []
        try:
            for row in run(options):
                rows[name].append(row)
                print("   ", *filter(None, row.cells()), sep="  ", file=sys.stderr)
        except Exception as error:  # the other cases still count
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"[:300]
    lines += table(rows, failed)
    print("\n".join(lines))
    if not options.quick:
        write(facts, lines, rows, options.only)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
