"""Verbs for what comes after a run: the plugged-in model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedot.console import Console

__all__ = ["add_to"]


class Form(StrEnum):
    """What `fedot plug-in` writes."""

    checkpoint = "checkpoint"
    peft = "peft"


def add_to(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command("plug-in")(plug_in)
    app.command()(generate)


def plug_in(
    model: Annotated[str, typer.Option(help="Directory or hub id of the full model.")],
    adapter: Annotated[Path, typer.Option(help="RUN/adapter or RUN/adapter-best.")],
    out: Annotated[Path, typer.Option(help="A directory that does not exist yet.")],
    form: Annotated[
        Form, typer.Option(help="A plain checkpoint, or an adapter directory for PEFT (LoRA).")
    ] = Form.checkpoint,
) -> None:
    """Put a run's adapter into the full model and write it."""
    from fedot.federation.finished import write_plugged_in

    with Console() as console:
        write_plugged_in(model, adapter, out, form.value)
        console.info(f"wrote {out}")


def generate(
    run: Annotated[Path, typer.Argument(help="A finished run's directory.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to add at most.")] = 60,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=5.0, help="0 takes the likeliest token each time.")
    ] = 0.0,
) -> None:
    """Continue a prompt with the full model, the tuned emulator and the plugged-in model."""
    from fedot.federation.finished import generate as continue_prompt

    with Console() as console:
        console.side_by_side(prompt, continue_prompt(run, prompt, tokens, temperature))
