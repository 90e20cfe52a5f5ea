#!/usr/bin/env python3
"""docs/quickstart.svg from runs' metrics: docs/plot.py runs/quickstart/metrics.jsonl [MORE...] > docs/quickstart.svg

One curve of val/accuracy a file, drawn without any library."""
import json
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 52, 96, 28, 44
COLORS = ["#1f6f8b", "#c8553d", "#588157", "#7d5ba6"]


def curve(path):
    """[(step, accuracy)] of the steps that were validated."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [(row["step"], row["val/accuracy"]) for row in rows if "val/accuracy" in row]


def main(paths):
    curves = {Path(path).parent.name: curve(path) for path in paths}
    last = max(step for points in curves.values() for step, _ in points)

    def x(step):
        return LEFT + step / last * (WIDTH - LEFT - RIGHT)

    def y(value):
        return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="18" fill="#333">Accuracy on held-out sums, greedy</text>']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#666">{tick:.2f}</text>')
    for step in range(0, last + 1, max(1, last // 5)):
        out.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#666">{step}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#666">steps</text>')
    for (name, points), color in zip(curves.items(), COLORS):
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="3" fill="{color}"/>' for step, value in points]
    # Names at the curves' ends, apart from each other.
    ends = sorted(zip(curves.items(), COLORS), key=lambda item: item[0][1][-1][1], reverse=True)
    label = 0.0
    for (name, points), color in ends:
        label = max(label + 14, y(points[-1][1]) + 4)
        out.append(f'<text x="{x(points[-1][0]) + 8:.1f}" y="{label:.1f}" fill="{color}">{name} {points[-1][1]:.2f}</text>')
    print("\n".join(out + ["</svg>"]))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
