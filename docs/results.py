"""Make the README's tables of results and its pictures: python docs/results.py

Runs sections of modules 07 to 10 over several seeds into outputs/results (a good half hour on one quiet core; what lies
there already is used), writes the tables between the README's marks, and copies seed 0's samples and animation.
"""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FOLDER, PICTURES = ROOT / "outputs" / "results", ("digits_samples.png", "digits_from_noise.gif")
END = "<!-- end of results -->"


class Row(NamedTuple):
    """A line of a table: what it is, its metric, and what stands beside it: the metric, "value" or "reference", a word."""

    label: str
    metric: str
    beside: tuple = ()


class Table(NamedTuple):
    """A table of the README: its first cell, the module's file, its seeds, the flags of each section, its rows."""

    heading: str
    path: str
    seeds: tuple
    sections: dict
    rows: list

    def mark(self):
        """The line in the README after which the table stands."""
        return f"<!-- results of {self.path[:2]}: made by docs/results.py -->\n"


MODELS = {"energy (07)": "energy of module 07", "mixture": "tuned Gaussian mixture"}
MODELS |= {name: name for name in ("CoopNets", "EBGAN", "JEM", "VAE")}
MODELS["amortised"] = "VAE, then amortised"
REAL = "reference", "real images"
TABLES = [
    Table(
        "8x8 digits, module 07",
        "07_neural_ebms.py",
        (0, 1, 2, 3, 4),
        {"digits": ["--checkpoint", "trained.pt"], "longrun": ["--resume", "trained.pt"]},
        [
            Row("Fréchet distance, from noise", "digits/energy: Frechet distance", REAL),
            Row("the same, tuned mixture", "digits/mixture: Frechet distance"),
            Row("the same, tuned mixture with labels", "digits/labelled mixture: Frechet distance"),
            Row(
                "the same, clusters at random",
                "digits/energy, clusters at random: Frechet",
                ("reference", "mixture, likewise"),
            ),
            Row(
                "two-sample accuracy (0.5: alike; less: copies)",
                "digits/energy: two-sample accuracy",
                ("reference", "mixture"),
            ),
            Row("class entropy (1: even)", "digits/energy: class entropy (ln 10)", REAL),
            Row("nearest training image", "digits/energy: nearest training image", REAL),
            Row("the same, tuned mixture", "digits/mixture: nearest training image", REAL),
            Row("Fréchet distance after 5,000 steps", "longrun/after 5000 steps: Frechet distance"),
            Row("accuracy of the judging classifier", "digits/the judge: accuracy"),
        ],
    ),
    Table(
        "8x8 digits, module 08",
        "08_cooperative_training.py",
        (0, 1, 2),
        {"coopnets": [], "jem": [], "amortised": [], "comparison": ["--n-compared", "2250"]},
        [
            Row("generator alone: Fréchet distance", "coopnets/generator alone: Frechet distance", REAL),
            Row("and 10 Langevin steps", "coopnets/generator + 10 steps: Frechet distance", REAL),
            Row("and 30 Langevin steps", "coopnets/generator + 30 steps: Frechet distance", REAL),
            Row(
                "clusters' Gaussians, untrained, and 10 steps",
                "coopnets/cluster Gaussian + 10 steps: Frechet",
                ("reference", "from the generator"),
            ),
            Row("steps from noise that do as much as 10", "coopnets/steps from noise that do as much as 10"),
            Row("and 30: two-sample accuracy", "coopnets/generator + 30 steps: told from real"),
            Row("and 30: class entropy", "coopnets/generator + 30 steps: class entropy", ("reference", "even")),
            *(
                Row(f"JEM: {what}", f"jem/JEM: {what}", ("reference", "regularised"))
                for what in ("accuracy", "NLL (nats)", "Brier score")
            ),
            Row("JEM: calibration error (ECE)", "jem/JEM: ECE", ("reference", "95 % of calibrated ones below")),
            Row("JEM, five labels a class: accuracy", "jem/five labels a class: JEM", ("reference", "label spreading")),
            Row(
                "25 Gaussians: KL of shares (nats)",
                "amortised/with entropy: KL of shares (nats)",
                ("reference", "a perfect sampler"),
            ),
            *(Row(f"{MODELS[m]}: Fréchet distance", f"comparison/{m}: Frechet distance", REAL) for m in MODELS),
            *(Row(f"{MODELS[m]}: two-sample accuracy", f"comparison/{m}: told from real") for m in MODELS),
        ],
    ),
    Table(
        "labels put together, module 09",
        "09_ebm_applications.py",
        (0, 1, 2),
        {"composition": []},
        [
            Row("the judge on real digits", "composition/judge: accuracy on real test images"),
            *(
                Row(f"success, {labels}: {way}", f"composition/{labels}, {key}: success", ("reference", "chance"))
                for labels, key, way in (
                    ("class", "sum", "its energy"),
                    ("class, bold", "sum", "energies added"),
                    ("class, bold", "mean", "their mean"),
                    ("class, bold, leaning", "sum", "energies added"),
                    ("class, bold, leaning", "at once", "one energy of all"),
                )
            ),
        ],
    ),
    Table(
        "8x8 digits, module 10: Fréchet distance",
        "10_advanced_ebm_topics.py",
        (0, 1, 2),
        {"diffusion": [], "recovery": [], "latent": []},
        [
            *(
                Row(f"noise levels, {label}", f"diffusion/{name}: Frechet distance", REAL)
                for label, name in (
                    ("probability flow", "probability flow"),
                    ("reverse SDE", "reverse SDE"),
                    ("annealed Langevin", "annealed Langevin"),
                    ("a fifth of the time", "a fifth: energy"),
                    ("a fifth, without clusters", "a fifth: without clusters"),
                    ("a fifth, a free network", "a fifth: free network"),
                )
            ),
            Row("mixture of 60", "diffusion/mixture: Frechet distance", REAL),
            Row("bits a dimension of the flow", "diffusion/flow: bits a dimension", ("reference", "mixture tuned for bits")),
            *(
                Row(f"recovery: {name}", f"recovery/{name}: Frechet distance", REAL)
                for name in ("six rungs, 120 steps", "no rungs, 120 steps", "no rungs, 400 steps")
            ),
            *(Row(name, f"latent/{name}: Frechet distance") for name in ("VAE", "VAE + mixture", "VAE + energy")),
        ],
    ),
]


def results(table, seed):
    """The metrics of a table's sections for a seed; a section may go on from the checkpoint of the one before it."""
    metrics = {}
    for section, flags in table.sections.items():
        out = FOLDER / f"{table.path[:2]}_{section}_{seed}"
        if not (out / "metrics.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            flags = [str(FOLDER / f"seed_{seed}_{flag}") if flag.endswith(".pt") else flag for flag in flags]
            command = [sys.executable, ROOT / table.path, "--section", section, "--seed", str(seed), "--out", str(out)]
            subprocess.run(command + flags, check=True)
        metrics |= json.loads((out / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    return metrics


def markdown(table, runs):
    """The table as Markdown: every metric for each seed, mean and standard deviation, and the mean of what stands beside."""
    head = [table.heading, *(f"seed {seed}" for seed in table.seeds), "mean ± std", "beside it, mean"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, name, beside in table.rows:
        values = [metrics[name]["value"] for metrics in runs]
        mean = f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}"
        other = f"{statistics.mean(metrics[name][beside[0]] for metrics in runs):.3g} ({beside[1]})" if beside else ""
        lines.append("| " + " | ".join([label, *(f"{value:.3g}" for value in values), mean, other]) + " |")
    return "\n".join(lines) + "\n"


def main():
    """Run what is missing, and write."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for table in TABLES:
        before, mark, rest = text.partition(table.mark())
        made = markdown(table, [results(table, seed) for seed in table.seeds])
        text = before + mark + "\n" + made + "\n" + END + rest.partition(END)[2]
    (ROOT / "README.md").write_text(text, encoding="utf-8")
    for picture in PICTURES:
        shutil.copy(FOLDER / "07_digits_0" / picture, ROOT / "docs" / picture)


if __name__ == "__main__":
    main()
