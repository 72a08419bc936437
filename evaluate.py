"""python evaluate.py: decodes prompts with and without a trained draft, and reports what it buys. See --help."""

import sys

import hydra

from dflash.compose import check, current_run, launch, plain_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config):
    """prompt -> decode -> acceptance statistics -> report; the mean acceptance length."""
    with plain_errors():
        settings = check(config)
        from dflash.assemble.evaluate import evaluate  # torch and transformers: only once the settings are sound

        return evaluate(settings, current_run())


if __name__ == "__main__":
    sys.exit(launch(main, config_name="evaluate"))
