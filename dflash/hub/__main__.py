"""``python -m dflash.hub``: drafts in and out of the field's formats.

export CHECKPOINT --format zlab FOLDER   a run, a checkpoint file or a draft folder -> a folder that servers load
import FOLDER RUN --target TARGET        a draft folder -> a run for evaluate.py (which also takes folders as such)
inspect FOLDER                           what a draft folder holds, and all that is wrong with it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from dflash.hub.against import Sizes, target_findings
from dflash.hub.folder import FORMATS, examine, read_config, read_headers
from dflash.hub.keys import complain


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 2 with one message on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """Tells a wrong command line in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m dflash.hub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write a draft into a new folder")
    export.add_argument("checkpoint", help="run folder, checkpoint file, or draft folder of any format")
    export.add_argument("--format", required=True, choices=[form.name for form in FORMATS])
    export.add_argument("folder", help="to write; must not exist or be empty")
    export.add_argument("--target", help="the target's folder or hub id (default: what the checkpoint names)")
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored, exact")
    export.set_defaults(run=_export)
    imported = commands.add_parser("import", help="write a draft folder as a run")
    imported.add_argument("folder")
    imported.add_argument("run_folder", metavar="RUN", help="to write; must not exist")
    imported.add_argument("--target", required=True, help="the target's folder or hub id")
    imported.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="the target's")
    imported.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    imported.set_defaults(run=_import)
    inspect = commands.add_parser("inspect", help="what a draft folder holds")
    inspect.add_argument("folder")
    inspect.add_argument("--target", help="hold it against this target, too (folder or hub id)")
    inspect.set_defaults(run=_inspect)
    return parser


def _export(options: argparse.Namespace) -> None:
    from dflash.hub.transfer import export  # torch and transformers: only once the arguments are sound

    warnings = export(
        options.checkpoint, options.folder, format=options.format, target=options.target, dtype=options.dtype
    )
    _tell(warnings)
    sys.stdout.write(f"{options.folder}: written in the {options.format} format; README.md says how to serve it\n")


def _import(options: argparse.Namespace) -> None:
    from dflash.hub.transfer import import_folder

    _tell(
        import_folder(
            options.folder, options.run_folder, target=options.target, dtype=options.dtype, device=options.device
        )
    )
    sys.stdout.write(f"{options.run_folder}: written; python evaluate.py checkpoint={options.run_folder}\n")


def _inspect(options: argparse.Namespace) -> None:
    form, _ = read_config(options.folder)
    sizes = None if options.target is None else _sizes(options.target)
    known = examine(options.folder, num_target_layers=None if sizes is None else sizes.num_layers)
    against = [] if sizes is None else target_findings(known.shape, vocab_size=known.facts.vocab_size, sizes=sizes)
    headers, _ = read_headers(options.folder)
    lines = {"format": form.name} | known.shape.to_dict() | {"vocab_size": known.facts.vocab_size}
    lines["tensors"] = len(headers)
    lines["types"] = ", ".join(sorted({header.dtype for header in headers.values()}))
    if not known.findings:
        sys.stdout.write("".join(f"{key:24} {value}\n" for key, value in lines.items()))
    _tell([*known.notes, *form.warnings(known.shape)])
    complain(f"draft folder {Path(options.folder)}", [*known.findings, *against])


def _sizes(target: str) -> Sizes:
    from dflash.hub.target_folder import find_target
    from dflash.target.load import read_dims

    return read_dims(find_target(target))


def _tell(warnings: Iterable[str]) -> None:
    for warning in warnings:
        sys.stderr.write(f"warning: {warning}\n")


if __name__ == "__main__":
    sys.exit(main())
