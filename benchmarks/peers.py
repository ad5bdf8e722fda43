"""The same training with TRL's trainers and with this project, on one thread.

    python -m benchmarks.peers                 # both models, both trainers; about 45 minutes
    python -m benchmarks.peers --models small --peers DDPO
    python -m benchmarks.peers --quick         # two policies, two steps, small model, no peer

Both load the same random Stable Diffusion and train rank-4 adapters on its attention projections.
Images, denoising steps (eta 1), guidance in sampling and training, prompts and the single optimiser
step are the same. TRL 0.23.1 is the newest release with the trainers. It runs unchanged, with the
same libraries as this project, in a virtual environment that this script makes. Each is called at
its own entry points: `step` for TRL, and `Trainer.draw`, `advantages` and `update` for this
project. TRL trains six policies one after another in one process, and this project trains six
agents together.

- DDPO: `DDPOTrainer`, towards small JPEG files. This project trains in a single pass
  (`train.single_pass`): with one optimiser step per epoch, gradients taken while sampling are the
  same up to rounding. Sampling and training separately are shown with two passes.
- AlignProp: `AlignPropTrainer`, towards colourful pictures, along the reward's gradient through the
  last K = 2 steps. This project's counterpart is `train.update_rule="reward_gradient"`.

This project's rows per pass differ by model (`OWN`); TRL has no such setting.

- Counted: CPU time of all threads of the process during an epoch: prompts, denoising, decoding,
  rewards, advantages, update, and the bookkeeping of each.
- Not counted: loading, and files, which TRL writes only at the end of some epochs.
- Peak memory is measured for each process.

The last line is JSON: TRL's CPU time for an epoch of six policies over this project's, with one
sample per pass and with the best number.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common
from benchmarks.models import MODELS, save_random_pipeline
from benchmarks.worker import Worker, virtual_environment
from config.settings.files import path

PACKAGES = (
    "torch==2.13.0",
    "trl==0.23.1",
    "diffusers==0.42.1",
    "transformers==5.23.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
)
POLICIES = 6
IMAGES = 8  # per policy
GUIDANCE = 5.0
BATCHES = (1, 2, 4, 8)  # samples per pass in the peer's training
GRADIENT_STEPS = 2  # K of AlignProp
# UNet rows per pass in this project, without and with gradient: the most with which training has
# about the peer's peak memory.
OWN = {"small": ("36", "36"), "larger": ("36", "24")}
ALONE, TWICE = "this project, one agent, two passes", "this project, all agents, two passes"
TOGETHER = "this project, all agents, single pass"
GRADIENT = "this project, all agents, gradient of the reward"
PEERS = {"DDPO": "trl_worker.py", "AlignProp": "align_prop_worker.py"}


def measure(
    workers: dict[str, Worker], batches: tuple[int, ...], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Answers to "epoch" of every case, one per round, after one that is not counted.

    A peer's answer is the sum over six policies, one after another.
    """
    out: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            if name not in PEERS:
                out.setdefault(name, []).append(worker.ask("epoch"))
                continue
            for batch in batches:
                runs = [worker.ask("epoch", batch=batch) for _ in range(POLICIES if number else 1)]
                total = {key: sum(run[key] for run in runs) for key in runs[0]}
                total["peak_mb"] = runs[-1]["peak_mb"]
                out.setdefault(f"TRL's {name}, {batch} per pass", []).append(total)
        common.say(f"round {number} of {rounds}")
    return {name: answers[1:] for name, answers in out.items()}


def compare(name: str, peer: str, steps: int, rounds: int, python: Path | None) -> dict[str, float]:
    """One of TRL's trainers and this project on one model; returns the headline figures."""
    policies = POLICIES if python else 2
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        model, prompts = Path(temporary) / name, Path(temporary) / "prompts.txt"
        save_random_pipeline(name, model)
        prompts.write_text("\n".join("abcdefgh"), encoding="utf-8")
        sizes = (str(IMAGES), str(steps), str(GUIDANCE))
        is_ddpo = peer == "DDPO"
        cases = (
            [(ALONE, 1, "two"), (TWICE, policies, "two"), (TOGETHER, policies, "single")]
            if is_ddpo
            else [(GRADIENT, policies, f"gradient-{GRADIENT_STEPS}")]
        )
        workers = {
            title: Worker.own(
                "own_worker.py", [str(model), str(prompts), str(agents), *sizes, *OWN[name], how]
            )
            for title, agents, how in cases
        }
        if python:
            extra = [] if is_ddpo else [str(GRADIENT_STEPS)]
            workers[peer] = Worker(python, PEERS[peer], [str(model), *sizes, *extra])
        for worker in workers.values():
            stack.enter_context(worker)
        answers = measure(workers, BATCHES, rounds)
    return report(name, TOGETHER if is_ddpo else GRADIENT, steps, policies, answers)


def report(
    name: str, own: str, steps: int, policies: int, answers: dict[str, list[dict[str, Any]]]
) -> dict[str, float]:
    """Print one model's table; returns the headline figures.

    Args:
        name: of the model.
        own: the case of this project that the others are compared with.
        steps: denoising steps.
        policies: trained.
        answers: by case.
    """
    ours = answers[own]
    ratios = {
        case: median(
            theirs["seconds"] / mine["seconds"] for theirs, mine in zip(runs, ours, strict=True)
        )
        for case, runs in answers.items()
    }
    rows = []
    for case, runs in answers.items():
        middle = {key: median(run[key] for run in runs) for key in runs[0]}
        images = IMAGES * (1 if case == ALONE else policies)
        epoch = [middle["seconds"], ratios[case]] if case != ALONE else ["", ""]
        separate: list[Any] = ["", ""]  # where sampling and training are one pass
        if middle["sampling"] and case != TOGETHER:
            separate = [images / middle["sampling"], images * steps / middle["training"]]
        rows.append(
            [
                case,
                *separate,
                *epoch,
                int(middle["unet_rows"]) // images,
                round(middle["peak_mb"]),
            ]
        )
    common.say(f"\n## {name}: {IMAGES} images per policy, {steps} guided steps\n")
    common.print_table(
        [
            "",
            "sampling [images/s]",
            "training [samples x steps/s]",
            f"epoch of {policies} policies [s]",
            "time / agents together",
            "UNet rows per image",
            "peak memory [MB]",
        ],
        rows,
    )
    peers = {case: ratio for case, ratio in ratios.items() if case.startswith("TRL")}
    if not peers:
        return {}
    peak = {case: max(run["peak_mb"] for run in runs) for case, runs in answers.items()}
    return {
        "epoch_speedup_batch1": next(
            ratio for case, ratio in peers.items() if case.endswith(", 1 per pass")
        ),
        "epoch_speedup_best": min(peers.values()),
        "memory_ratio": peak[own] / min(peak[case] for case in peers),
    }


def main() -> None:
    """Print the tables and the headline."""
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--cache", type=path, default=common.CACHE, help="for the peer's packages")
    arguments = parser.parse_args()
    common.pin_to_one_thread()
    common.print_header("Six policies: TRL's trainers and this project")
    if arguments.quick:
        headline = {"small": {p: compare("small", p, 2, 1, python=None) for p in arguments.peers}}
    else:
        python = virtual_environment("peers", PACKAGES, arguments.cache)
        common.say(f"TRL's environment: {', '.join(PACKAGES)}\n")
        headline = {
            name: {
                peer: compare(name, peer, arguments.steps, arguments.rounds, python)
                for peer in arguments.peers
            }
            for name in arguments.models
        }
    common.print_headline(headline)


if __name__ == "__main__":
    main()
