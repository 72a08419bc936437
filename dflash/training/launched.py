"""Which process of several this one is, asked before Lightning has set anything up."""

from __future__ import annotations

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment


def launched() -> tuple[int, int]:
    """(rank, number) of the processes that torchrun or Slurm started together; (0, 1) alone, and for those that
    Lightning starts itself, once the first has come as far as training.

    Raises ValueError where Slurm was asked for its tasks in a way that Lightning cannot follow.
    """
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            try:
                found = environment()
            except RuntimeError as error:
                raise ValueError(str(error)) from error
            return found.global_rank(), found.world_size()
    return 0, 1
