"""Turn pytest-benchmark's JSON into the report form that every benchmark target writes."""

import json
import sys
from pathlib import Path


def main() -> None:
    """Read the first file named, write the second."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    benchmarks = json.loads(source.read_text())["benchmarks"]
    figures = {
        row["fullname"]: {"median_s": row["stats"]["median"], "rounds": row["stats"]["rounds"]}
        | row["extra_info"]
        for row in benchmarks
    }
    report = {"name": "bench", "ok": bool(figures), "figures": figures, "targets": {}}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
