"""python train.py: distils a DFlash draft from a frozen target and measures it. See --help."""

import sys

import hydra

from dflash.compose import build, check, current_run, launch, plain_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config):
    """Compose, check, assemble, run; the mean acceptance length, which a sweeper may maximise."""
    with plain_errors():
        settings = check(config)
        return build(settings["task"], "task")(settings, current_run())


if __name__ == "__main__":
    sys.exit(launch(main, config_name="train"))
