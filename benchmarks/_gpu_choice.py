"""The faster of Triton and CUDA by operator, dtype and size: python benchmarks/_gpu_choice.py RESULTS_FOLDER OUT.json

Reads the records of one GPU and writes the table that vidsmooth_fast/ops/_dispatch.py chooses by.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

KERNELS = ("triton", "cuda")


def _winner(cases: list[dict[str, float]]) -> str:
    """Of several cases of one size: who runs the most of them, and then whose sum is the least."""
    able = [name for name in KERNELS if any(name in case for case in cases)]
    return min(able, key=lambda name: (sum(name not in c for c in cases), sum(c.get(name, 0) for c in cases)))


def rows(records: list[dict]) -> list[dict]:
    """One row per run of sizes with the same winner; the last of an operator and dtype holds for any size.

    Attention in windows is another problem than a plain call of the same size, and does not decide for it.
    """
    measured: dict[tuple[str, str], dict[int, list[dict[str, float]]]] = {}
    for record in records:
        medians = {name: record["rows"][name]["median_us"] for name in KERNELS if name in record["rows"]}
        if medians and record.get("first_bytes") and not record.get("window"):
            sizes = measured.setdefault((record["operator"], record["dtype"]), {})
            sizes.setdefault(record["first_bytes"], []).append(medians)
    table = []
    for (operator, dtype), sizes in sorted(measured.items()):
        winners = [(size, _winner(cases)) for size, cases in sorted(sizes.items())]
        for i, (size, winner) in enumerate(winners):
            last = i + 1 == len(winners)
            if last or winners[i + 1][1] != winner:
                limit = None if last else size
                table.append({"operator": operator, "dtype": dtype, "bytes_up_to": limit, "backend": winner})
    return table


def main() -> None:
    folder, target = (Path(argument) for argument in sys.argv[1:3])
    records = [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
        if line.strip()
    ]
    records = [r for r in records if "rows" in r and r.get("device", "cpu") != "cpu"]
    if not records:
        sys.exit(f"{folder}: no records of a GPU, no table written")
    device = {key: records[0].get(key) for key in ("device", "driver", "torch", "triton", "commit", "date")}
    target.write_text(json.dumps({**device, "rows": rows(records)}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
