"""The command line: `fedot VERB`. Every error that a user can cause is one line and exit code 2."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from importlib.metadata import PackageNotFoundError, version

import typer
from typer import exceptions as typer_errors

from fedot.cli import audit, budget, emulator, job, network, pki, run
from fedot.console import Console
from fedot.errors import FedotError

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedot",
    help="Tune a closed language model on private records: neither side shows the other theirs.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: rich would cost more time than everything else.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# What typer makes of Ctrl-C.
_TYPER_INTERRUPTED = 130

run.add_to(app)
emulator.add_to(app)
budget.add_to(app)
network.add_to(app)
job.add_to(app)
audit.add_to(app)
pki.add_to(app)


def main() -> None:
    """Entry point of the `fedot` command."""
    sys.exit(_run())


def _run() -> int:
    console = Console()
    try:
        _refuse_namesake()
        _quieten_libraries()
        code = app(standalone_mode=False)
        if code == _TYPER_INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except FedotError as error:
        console.error(str(error))
    except typer_errors.TyperException as error:
        console.error(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        console.error(
            "interrupted. What was finished is kept: give the same command again, with --resume "
            "where it has one and its --out is there."
        )
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        what = error.filename or "a file"
        console.error(f"cannot read or write {what}: {error.strerror or error}.")
    except sqlite3.OperationalError as error:
        console.error(f"the run's journal cannot be written: {error}. Free some space; --resume.")
    except Exception as error:
        if os.environ.get("FEDOT_DEBUG"):
            raise
        console.error(
            f"internal error: {type(error).__name__}: {error}. This is a bug in fedot; set "
            "FEDOT_DEBUG=1 to see where, and please report it."
        )
        return 1
    return 2


def _refuse_namesake() -> None:
    """On PyPI `fedot` is an unrelated AutoML package with the same import name."""
    try:
        namesake = version("fedot")
    except PackageNotFoundError:
        return
    raise FedotError(
        f"the AutoML package 'fedot' {namesake} is installed over fedot-offsite-tuning; both are "
        "imported as fedot. Run: pip uninstall fedot fedot-offsite-tuning && "
        "pip install fedot-offsite-tuning"
    )


def _quieten_libraries() -> None:
    """Libraries' own bars and hints would tear ours apart."""
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
