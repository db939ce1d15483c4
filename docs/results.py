"""Make the README's table of results and its pictures: python docs/results.py

Runs module 07's digits and its long run for the seeds 0, 1 and 2 into outputs/results (about 8 minutes;
what lies there already is used), writes the table between the README's marks, and copies seed 0's samples and animation.
"""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER, SEEDS, PICTURES = ROOT / "outputs" / "results", (0, 1, 2), ("digits_samples.png", "digits_from_noise.gif")
BEGIN, END = "<!-- results: made by docs/results.py -->\n", "<!-- end of results -->"
ROWS = [  # what it is, the metric, the number that stands beside it and what that is
    (
        "Fréchet distance, from noise",
        "digits/energy: Frechet distance",
        ("digits/energy: Frechet distance", "reference"),
        "real images",
    ),
    ("the same, tuned mixture", "digits/mixture: Frechet distance", ("", ""), ""),
    ("the same, tuned mixture with labels", "digits/labelled mixture: Frechet distance", ("", ""), ""),
    (
        "the same, clusters at random",
        "digits/energy, clusters at random: Frechet",
        ("digits/energy, clusters at random: Frechet", "reference"),
        "mixture, likewise",
    ),
    (
        "two-sample accuracy (0.5: the same)",
        "digits/energy: two-sample accuracy",
        ("digits/energy: two-sample accuracy", "reference"),
        "mixture",
    ),
    (
        "class entropy (1: even)",
        "digits/energy: class entropy (ln 10)",
        ("digits/energy: class entropy (ln 10)", "reference"),
        "real images",
    ),
    (
        "nearest training image",
        "digits/energy: nearest training image",
        ("digits/mixture: nearest training image", "value"),
        "mixture",
    ),
    ("Fréchet distance after 5,000 steps", "longrun/after 5000 steps: Frechet distance", ("", ""), ""),
    ("accuracy of the judging classifier", "digits/the judge: accuracy", ("", ""), ""),
]


def results(seed):
    """Metrics of both sections for a seed; the second goes on from the first one's checkpoint."""
    checkpoint, metrics = FOLDER / f"trained_{seed}.pt", {}
    for section, flag in (("digits", "--checkpoint"), ("longrun", "--resume")):
        out = FOLDER / f"{section}_{seed}"
        if not (out / "metrics.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            flags = ["--section", section, "--seed", str(seed), flag, str(checkpoint), "--out", str(out)]
            subprocess.run([sys.executable, ROOT / "07_neural_ebms.py", *flags], check=True)
        metrics |= json.loads((out / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    return metrics


def table(runs):
    """The table as Markdown: every metric for each seed, mean and standard deviation, and what stands beside it."""
    head = ["8x8 digits, module 07", *(f"seed {seed}" for seed in SEEDS), "mean ± std", "beside it, mean"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, name, (other, key), kind in ROWS:
        values = [metrics[name]["value"] for metrics in runs]
        beside = f"{statistics.mean(metrics[other][key] for metrics in runs):.3g} ({kind})" if kind else ""
        mean = f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}"
        lines.append("| " + " | ".join([label, *(f"{value:.3g}" for value in values), mean, beside]) + " |")
    return "\n".join(lines) + "\n"


def main():
    """Run what is missing, and write."""
    runs = [results(seed) for seed in SEEDS]
    before, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    text = before + BEGIN + "\n" + table(runs) + "\n" + END + rest.partition(END)[2]
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    for picture in PICTURES:
        shutil.copy(FOLDER / f"digits_{SEEDS[0]}" / picture, ROOT / "docs" / picture)


if __name__ == "__main__":
    main()
