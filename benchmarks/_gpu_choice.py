"""The faster of Triton and CUDA by operator, dtype and size: python benchmarks/_gpu_choice.py RESULTS_FOLDER OUT.json

Reads the records of one GPU and writes the table that vidsmooth_fast/ops/_dispatch.py chooses by.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

KERNELS = ("triton", "cuda")


def rows(records: list[dict]) -> list[dict]:
    """One row per run of sizes with the same winner; the last of an operator and dtype holds for any size."""
    measured: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for record in records:
        medians = {name: record["rows"][name]["median_us"] for name in KERNELS if name in record["rows"]}
        if medians and record.get("first_bytes"):
            sizes = measured.setdefault((record["operator"], record["dtype"]), {})
            total = sizes.setdefault(
                record["first_bytes"], {}
            )  # several cases of one size: their sum decides
            for name, median in medians.items():
                total[name] = total.get(name, 0.0) + median
    table = []
    for (operator, dtype), sizes in sorted(measured.items()):
        winners = [(size, min(medians, key=medians.__getitem__)) for size, medians in sorted(sizes.items())]
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
    records = [record for record in records if record.get("device", "cpu") != "cpu"]
    if not records:
        sys.exit(f"{folder}: no records of a GPU, no table written")
    device = {key: records[0].get(key) for key in ("device", "driver", "torch", "triton", "commit", "date")}
    target.write_text(json.dumps({**device, "rows": rows(records)}, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
