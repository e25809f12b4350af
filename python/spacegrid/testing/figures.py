"""Figures of measurements: counts, percentiles, and what they are held against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Report", "Target", "percentile", "summary"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure is to reach.

    Attributes:
        figure: Its name in the report.
        most: Its highest good value.
        text: In words.
    """

    figure: str
    most: float
    text: str


@dataclass
class Report:
    """The figures of one run, as `build/reports/NAME.json` keeps them.

    Attributes:
        name: Of the run.
        figures: Name to figure; the unit is the end of the name.
        targets: What they are held against.
        violations: Broken promises; one is enough for the run to have failed.
        settings: What it was run with.
    """

    name: str
    figures: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    def missed(self) -> list[str]:
        """Targets that were measured and not reached, in words."""
        return [
            f"{target.text}: {target.figure} is {self.figures[target.figure]}, "
            f"to reach {target.most:g}"
            for target in self.targets
            if target.figure in self.figures and self.figures[target.figure] > target.most
        ]

    @property
    def ok(self) -> bool:
        """Whether it came to its end, nothing was violated and no target was missed."""
        return not (self.violations or self.interrupted or self.missed())

    def as_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "name": self.name,
            "ok": self.ok,
            "interrupted": self.interrupted,
            "figures": self.figures,
            "targets": {t.figure: {"most": t.most, "text": t.text} for t in self.targets},
            "missed": self.missed(),
            "violations": self.violations,
            "settings": self.settings,
        }

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(self.as_json(), indent=2) + "\n")
        new.replace(path)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values keep to; 0 where there are none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(name: str, seconds: Sequence[float]) -> dict[str, float | int]:
    """p50, p99, largest and count of durations, in milliseconds, by `name`."""
    return {
        f"{name}_p50_ms": round(percentile(seconds, 0.50) * 1000, 1),
        f"{name}_p99_ms": round(percentile(seconds, 0.99) * 1000, 1),
        f"{name}_max_ms": round(max(seconds, default=0.0) * 1000, 1),
        f"{name}_count": len(seconds),
    }
