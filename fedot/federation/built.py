"""What rounds start from: the bundle on disk, and an adapter on the full model and the emulator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedot.config import EmulatorConfig
from fedot.emulator.bundle import Bundle, read_bundle, write_bundle, write_signature
from fedot.evaluation.quality import Quality
from fedot.federation.student import student_of
from fedot.federation.work import Work, measured
from fedot.models.adapters import Adapter, attach
from fedot.models.plug_in import plug_in

__all__ = ["Models", "Sign", "build_bundle", "load_models"]

Sign = Callable[[bytes], bytes]
"""From a message to the model owner's signature of it."""


@dataclass(frozen=True, slots=True)
class Models:
    """What is in memory while rounds run: one full model, one emulator, an adapter on each."""

    on_full: Adapter
    on_emulator: Adapter
    bundle: Bundle


def build_bundle(work: Work, sign: Sign | None) -> Bundle:
    """Compress and distil the middle, and write what clients get; or take what is there.

    Args:
        work: the run.
        sign: signs the bundle; None leaves it as it is.
    """
    folder = work.run.path / "bundle"
    bundle = read_bundle(folder) if folder.exists() else _written(work)
    if sign is not None and bundle.signature is None:
        return write_signature(folder, sign)
    return bundle


def _written(work: Work) -> Bundle:
    parts, emulator, folder = work.parts, work.config.emulator, work.run.path / "bundle"
    if not isinstance(emulator, EmulatorConfig):
        built = {"method": "none: the full model is shared"}
        return write_bundle(folder, parts.model, parts.tokenizer, parts.kept, parts.adapter, built)
    student = student_of(work.config, parts, work.steering.progress)
    built = {"method": "uniform drop + distillation", **emulator.model_dump(mode="json")}
    return write_bundle(folder, student, parts.tokenizer, parts.kept, parts.adapter, built)


def load_models(work: Work, bundle: Bundle) -> tuple[Models, tuple[Quality, Quality] | None]:
    """Measure both models untuned, then put the adapter on each."""
    config, parts, journal = work.config, work.parts, work.run.journal
    emulator = bundle.load(config.model.dtype, parts.device)
    general = None
    if config.emulator != "none":
        measured(work, "emulator_zero_shot", emulator, work.yardstick.report)
        full = measured(work, "general_full", parts.model, parts.owner_held_out)
        small = measured(work, "general_emulator", emulator, parts.owner_held_out)
        general = (full, small) if full and small else None
    sizes = {
        "num_blocks": parts.model.config.num_hidden_layers,
        "parameters": emulator.num_parameters(),
        "full_parameters": parts.model.num_parameters(),
    }
    on_emulator = attach(emulator, bundle.adapter, bundle.layer_map)
    journal.note("adapter_parameters", on_emulator.num_parameters)
    journal.note("sizes", sizes)
    on_full = plug_in(parts.model, bundle.adapter, on_emulator.state())
    return Models(on_full, on_emulator, bundle), general
