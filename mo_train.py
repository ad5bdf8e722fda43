"""Multi-objective RL fine-tuning of Stable Diffusion: PGMORL over DDPO, one LoRA per agent.

    accelerate launch mo_train.py --config config/base.py --config.train.learning_rate=1e-3
    python mo_train.py --config config/base.py --dry_run    # what it would do and need
    python mo_train.py --config config/base.py --calibrate  # what the base model scores

`train` is the whole method. The search (`morl/`) sees numbers only. The agents (`ddpo/`) move
together: one UNet pass carries all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from run import command_line

if TYPE_CHECKING:
    from config.base import Settings
    from run.session import Publisher, Session
    from run.stop import Stop


def train(run: Session, publish: Publisher) -> None:
    """Run PGMORL's generations around DDPO's iterations; a run resumes at a generation's start."""
    search, trainer = run.search, run.trainer
    while (generation := search.ask()) is not None:  # warm-up first, then evolution
        trainer.load(search.parents(generation), search.weights(generation))  # K policies, K slots
        for iteration in range(generation.num_iterations):
            batch = trainer.draw(generation.index, iteration)  # one UNet pass for all, scored too
            advantages = trainer.advantages(batch)  # (K, N, M) rewards -> (K, N)
            stats = trainer.update(batch, advantages)  # PPO's clipped surrogate, or another rule
            run.record(batch, stats)
        offspring, excluded = run.evaluate(generation, trainer.policies())  # same noise for all
        search.tell(offspring, excluded)  # archive, buffer, history
        run.commit(generation)  # on disk from here on
        publish.generation(run)
    publish.front(run)  # measured again on prompts nobody trained on


def main(settings: Settings, stop: Stop | None = None) -> None:
    """Train, and publish the front.

    Args:
        settings: of the run, already checked.
        stop: knows whether a signal has asked the run to end; by default none does.

    Raises:
        UserError: if something is wrong that the user can mend; it says how.
    """
    from front.publish import FrontPublisher  # noqa: PLC0415 - slow, and settings come first
    from run.session import Session  # noqa: PLC0415

    with Session.open(settings, stop) as run:
        train(run, FrontPublisher())


if __name__ == "__main__":
    command_line.start(main, __doc__)
