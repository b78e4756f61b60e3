"""What noise pairings and objectives give a small flow over latents: runs of equal steps from one recipe, compared.

    python benchmarks/quality/learnable_flow.py [RECIPE] --out runs/flow_grid --steps 300 --set data.train=MANIFEST \
        --set data.valid=MANIFEST [--only none knn ...]

Each row is a run below --out; a run that was stopped goes on, one that is done is only measured again, and the table is
written to --out/table.md after each. "distilled" learns from the run "none", from whose weights it starts: it has had
twice the steps. Guidance is 0.7 throughout: two evaluations a step for the flows, learned into all others.

    error    L1 between generated and true latents, in units of their deviation, of the middles of 24 held-out
             recordings, from tokens and speaker vector alone. A model that gives the mean of all that is possible
             has the least error and a small spread; a sampler as good as can be has more.
    spread   deviation of the generated latents over that of the true ones: 1 is right.
    seconds  of processor time per training step.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from vokens.train.config import read_recipe, trainer_of

PLAIN = ("objective=flow", "contrastive=0.0")
SCRATCH = ("noise_pairing=none", "contrastive=0.0", "guidance=0.7", "time=logit_normal")
GRID: dict[str, tuple[str, ...]] = {
    "none": (*PLAIN, "noise_pairing=none"),
    "knn": (*PLAIN, "noise_pairing=knn"),
    "assignment": (*PLAIN, "noise_pairing=assignment"),
    "contrastive": ("objective=flow", "noise_pairing=none", "contrastive=0.05"),
    "knn, contrastive": ("objective=flow", "noise_pairing=knn", "contrastive=0.05"),
    "distilled": ("objective=intmeanflow", "noise_pairing=none", "contrastive=0.0"),
    "iMF": ("objective=imf", *SCRATCH),
    "alpha-Flow": ("objective=alpha", *SCRATCH),
    "MeanFlow": ("objective=meanflow", *SCRATCH),
}
STEPS = (1, 2, 10)


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Train a row, or what is left of it, and measure it."""
    folder = args.out / name.replace(", ", "_")
    changes = [*args.set, *GRID[name], f"out={folder}", f"steps={args.steps}"]
    changes += [f"validate_every={args.steps + 1}", "save_every=100", "keep=1"]
    if name == "distilled":
        teacher = args.out / "none" / "flow"
        if not teacher.exists():
            sys.exit(f"{teacher} is missing: train the row none first")
        changes += [f"distil.source={teacher}", f"init={teacher}"]
    config = read_recipe(args.recipe, changes)
    trainer = trainer_of(config.task)(config)
    trainer._resume()
    left, start = args.steps - trainer.step, time.process_time()
    trainer.run()
    if trainer.step < args.steps:
        sys.exit(f"{name} was stopped at step {trainer.step}: run the same command to go on")
    spent, previous = time.process_time() - start, folder / "measured.json"
    found = {key.removeprefix("valid/"): value for key, value in trainer.validate().items()}
    found["seconds"] = spent / left if left else json.loads(previous.read_text())["seconds"]
    previous.write_text(json.dumps(found))
    return found


def table(rows: dict[str, dict[str, float]], steps: int) -> str:
    heads = [f"{what}, {n}" for what in ("error", "spread") for n in STEPS]
    lines = [f"{steps} steps of training each; columns by steps of decoding.", ""]
    lines += [
        "| | " + " | ".join([*heads, "s / training step"]) + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for name, row in rows.items():
        values = [f"{row[f'{what}_{n}']:.3f}" for what in ("latent", "spread") for n in STEPS]
        values.append(f"{row['seconds']:.2f}")
        lines.append(f"| {name} | " + " | ".join(values) + " |")
    mean = next(iter(rows.values()))["latent_mean"]
    return "\n".join([*lines, "", f"The mean latent has an error of {mean:.3f}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", default="learnable_flow_mini")
    parser.add_argument("--out", type=Path, default=Path("runs/flow_grid"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs, name=value")
    parser.add_argument("--only", nargs="+", choices=tuple(GRID), default=list(GRID))
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for name in args.only:
        rows[name] = measure(name, args)
        text = table(rows, args.steps)
        (args.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
