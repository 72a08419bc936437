"""What a feature source wants done before training, with what the console shows of it."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console

from dflash.assemble.run import bar
from dflash.data.modules import DistillationDataModule
from dflash.data.single import SingleRows
from dflash.training.module import DistillationModule


def prepare_features(module: DistillationModule, data: DistillationDataModule, console: Console) -> None:
    """Hand every row of ``data`` to the module's feature source; a progress bar appears once there is progress."""

    def rows() -> SingleRows:
        data.setup()
        return SingleRows(data.rows.rows, length=data.length, pad_id=data.pad_id)

    with ExitStack() as stack:
        bars = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(bar(console, "features of the target", unit="rows")))
            bars[0](done, total)

        module.features.prepare(
            module.target,
            rows,
            module.draft.shape.taps,
            with_last=module.objective.needs_target,
            say=lambda sentence: console.print(sentence, soft_wrap=True),
            progress=progress,
        )
