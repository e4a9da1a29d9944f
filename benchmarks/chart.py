"""Draw the figures of `compare.py`. Runs in its own environment, which has matplotlib.

python benchmarks/chart.py docs/performance.json docs/performance.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "msgbubbles"  # the same figures give the same file

import matplotlib.pyplot as plt  # noqa: E402

OURS, OTHERS = "#2f6fde", "#b9c2d0"
PANELS = (
    ("first_seconds", "First load, seconds"),
    ("first_peak_mb", "First load, peak MB"),
    ("quiet_seconds", "Quiet run, seconds"),
    ("lost_for_good", "Rows of a changing account lost for good"),
)


def main(results: Path, chart: Path) -> None:
    figures = json.loads(results.read_text())
    names = list(figures["contestants"])[::-1]
    titles = [figures["contestants"][name]["title"] for name in names]
    figure, axes = plt.subplots(2, 2, figsize=(11, 5.2), layout="constrained")
    for axis, (key, title) in zip(axes.flat, PANELS, strict=True):
        values = [figures["contestants"][name][key] or 0 for name in names]
        bars = axis.barh(titles, values, color=[OURS if name == "ours" else OTHERS for name in names])
        axis.bar_label(bars, [f"{value:,.4g}" for value in values], padding=3, fontsize=9)
        axis.set_title(title, fontsize=10, loc="left")
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.xaxis.set_visible(False)
        axis.margins(x=0.15)
        axis.tick_params(length=0, labelsize=9)
    figure.suptitle(
        f"{figures['chats']:,} chats and {figures['messages']:,} messages; medians of {figures['repeats']}", fontsize=10
    )
    figure.savefig(chart, metadata={"Date": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
