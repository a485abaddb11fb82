"""What a run's numbers mean, in sentences that a stranger understands.

Design note: console and page say the same words, so they stand here once. A sentence claims no
more than the files say: a difference within two of its standard errors (paired, over records) is
called no difference, and a number that is missing is followed by the run's own reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedot.report.formats import counted, epsilon_text, percent, signed
from fedot.report.run_files import Quality, Summary

__all__ = [
    "LABELS",
    "MEASURED_ON",
    "KeyNumber",
    "absent",
    "alerts",
    "headline",
    "key_numbers",
    "meaning_of",
    "other_notes",
    "client_level_sentence",
    "privacy_sentence",
    "privacy_unit",
]

LABELS = {
    "emulator_zero_shot": "emulator zero-shot",
    "full_zero_shot": "full zero-shot",
    "emulator_tuned": "emulator tuned",
    "plug_in": "plug-in",
    "full_tuned": "full tuned",
}

MEASURED_ON = {
    "records": "held-out records",
    "proxy": "the model owner's proxy set",
    "nothing": "nothing (there was no proxy set)",
}
"""What losses are about, by `Summary.measured_on`."""

_MEANINGS = {
    "emulator_zero_shot": "what data owners receive",
    "full_zero_shot": "the closed model, untuned",
    "emulator_tuned": "what data owners could keep",
    "plug_in": "the closed model, tuned by fedot",
    "full_tuned": "ceiling: all records pooled",
}


@dataclass(frozen=True, slots=True)
class KeyNumber:
    """A number with its plain meaning.

    Attributes:
        value: as a reader sees it; "not known" where it could not be had.
        unit: of the value, empty where it has none.
        meaning: one sentence, or the reason why the number is not known.
        more: what else a reader with time should know; may be empty.
    """

    name: str
    label: str
    value: str
    unit: str
    meaning: str
    more: str = ""


def headline(summary: Summary) -> str:
    """What happened, in one sentence."""
    return f"{_who(summary)}; {_gain(summary)}; {_cost(summary)}."


def alerts(summary: Summary) -> list[str]:
    """What a reader must not miss; empty where there is nothing of the kind."""
    found = [_privacy_alert(summary), _overspent(summary), _given_away(summary), _no_gain(summary)]
    if summary.emulator is None:
        found.append(
            "No emulator was used: data owners received the full model itself, so nothing of it "
            "was kept closed."
        )
    if summary.failures:
        missed = counted(summary.failures, "update").capitalize()
        found.append(f"{missed} that the model owner asked for did not arrive.")
    return [sentence for sentence in found if sentence]


def key_numbers(summary: Summary) -> list[KeyNumber]:
    """Recovery, plug-in advantage, leak margin and general gap, each with its meaning."""
    return [
        _recovery(summary),
        _in_nats(summary, "plug_in_advantage", "plug-in advantage", _advantage),
        _in_nats(summary, "leak_margin", "leak margin", _leak),
        _in_nats(summary, "general_gap", "general gap", _gap),
    ]


def meaning_of(summary: Summary, name: str) -> str:
    """What one of the five numbers is, and why it is not known where it is not."""
    meaning = _MEANINGS[name]
    if summary.emulator is None:
        meaning = meaning.replace("closed model", "model")
    if summary.quality.get(name) is None and name in summary.notes:
        meaning += f" (not known: {summary.notes[name].rstrip('.')})"
    return meaning


def absent(summary: Summary, *names: str) -> str:
    """Why a number is not known, in the run's own words where it gave any.

    Args:
        summary: of the run.
        names: of notes; the first that is there counts.
    """
    reason = next((summary.notes[name] for name in names if summary.notes.get(name)), None)
    if reason is None:
        return "The run recorded no reason."
    first = reason.split()[0].rstrip(".")
    # A key of the config is written as the config has it.
    return reason if {".", "_", ":"} & set(first) else reason[:1].upper() + reason[1:]


def other_notes(summary: Summary) -> list[str]:
    """Notes that stand beside no number of `key_numbers`."""
    shown = {key for key in _KEYS if getattr(summary, key) is None}
    shown |= {name for name in LABELS if summary.quality.get(name) is None}
    return [
        text if key == "privacy" else f"{_note_label(key)}: {text}"
        for key, text in summary.notes.items()
        if key not in shown
    ]


def privacy_sentence(summary: Summary) -> str:
    """What differential privacy bounds in this run, or that nothing does."""
    privacy = summary.privacy
    if privacy.unit == "none":
        return (
            "Differential privacy was off (unit none): nothing bounds what an update reveals about "
            "a record."
        )
    if privacy.unit == "client":
        return client_level_sentence(summary)
    relation = f", neighbouring data: {privacy.neighbouring}" if privacy.neighbouring else ""
    return f"Unit of privacy: {privacy_unit(summary)}{relation}."


def client_level_sentence(summary: Summary) -> str:
    """What noise at the server bounds; empty where there is none."""
    if summary.privacy.unit not in ("client", "both"):
        return ""
    level = summary.privacy.client_level
    if level is None or level.epsilon is None:
        return "What the model owner's noise cost is not recorded, so nothing is claimed for it."
    relation = f" ({level.neighbouring})" if level.neighbouring else ""
    target = "" if level.target_epsilon is None else f" of {level.target_epsilon:g}"
    delta = "not recorded" if level.delta is None else f"{level.delta:g}"
    return (
        f"Noise that the model owner added bounds what the adapter reveals about one client's "
        f"whole data{relation}: epsilon {epsilon_text(level.epsilon)}{target}, delta {delta}. "
        f"{level.assumes or ''}"
    ).strip()


def privacy_unit(summary: Summary) -> str:
    """What one epsilon is about: "one record; delta 1e-05"."""
    privacy = summary.privacy
    unit = "one record"
    if privacy.unit == "client":
        unit = "one client's whole data"
    return f"{unit}; delta {'not recorded' if privacy.delta is None else f'{privacy.delta:g}'}"


_KEYS = ("recovery", "plug_in_advantage", "leak_margin", "general_gap")


def _note_label(key: str) -> str:
    return LABELS.get(key, key.replace("_", " "))


def _who(summary: Summary) -> str:
    owners = counted(summary.clients, "data owner").capitalize()
    if summary.privacy.unit == "none":
        return f"{owners} tuned this model by sending updates instead of records"
    return f"{owners} tuned this model without showing their records"


def _gain(summary: Summary) -> str:
    share, before, after = summary.recovery, _number(summary, "full_zero_shot"), None
    if share is not None and share > 1:
        return f"the plugged-in model gained {percent(share)} of what full fine-tuning did"
    if share is not None and share > 0:
        return (
            f"the plugged-in model got back {percent(share)} of what full fine-tuning on pooled "
            "records would have gained"
        )
    after = _number(summary, "plug_in")
    if before is None or after is None:
        return "how good the plugged-in model is could not be measured"
    if not _clear(summary.plug_in_gain, summary.plug_in_gain_se):
        return "the plugged-in model is no better than the untuned one"
    verb = "fell" if after.loss < before.loss else "rose"
    return f"the model's loss {verb} from {before.loss:.3f} to {after.loss:.3f} nats per token"


def _cost(summary: Summary) -> str:
    privacy = summary.privacy
    if privacy.unit == "none":
        return "without differential privacy, the updates may reveal what they were trained on"
    level = privacy.client_level
    if privacy.unit == "client" and level is not None and level.epsilon is not None:
        most = epsilon_text(level.epsilon)
        return (
            f"for each owner's whole data it cost epsilon {most}, towards all but the model owner"
        )
    if not privacy.spent:
        return "what it cost in privacy is not recorded"
    most = epsilon_text(max(privacy.spent.values()))
    if len(privacy.spent) < summary.clients:
        return f"no owner with a recorded budget spent more than epsilon {most}"
    return f"{'the' if summary.clients == 1 else 'each'} owner spent at most epsilon {most}"


def _recovery(summary: Summary) -> KeyNumber:
    name, value = "recovery", summary.recovery
    if value is None:
        return KeyNumber(name, name, "not known", "", absent(summary, name))
    if value <= 0:
        meaning = "Tuning did not help: plug-in is no better than the untuned model."
    elif value > 1:
        meaning = "More than full fine-tuning on pooled records gained."
    else:
        meaning = "Part of full fine-tuning's gain, had without seeing the records."
    return KeyNumber(name, name, percent(value), "", meaning)


def _in_nats(
    summary: Summary, name: str, label: str, meaning: Callable[[Summary, float], tuple[str, str]]
) -> KeyNumber:
    value: float | None = getattr(summary, name)
    if value is None:
        return KeyNumber(name, label, "not known", "", absent(summary, name))
    if summary.emulator is None:
        said = ("No emulator was used: data owners hold the model itself.", "")
    else:
        said = meaning(summary, value)
    return KeyNumber(name, label, signed(value), "nats per token", *said)


def _advantage(summary: Summary, value: float) -> tuple[str, str]:
    if value <= 0:
        return "At or below zero: the closed model has been given away for this task.", ""
    if not _clear(value, summary.plug_in_advantage_se):
        return "Within two standard errors: the closed model may add nothing to the emulator.", ""
    return (
        "What a data owner lacks who keeps the tuned emulator and leaves.",
        "Measured for the emulator as tuned here; one who tunes harder may lack less.",
    )


def _leak(summary: Summary, value: float) -> tuple[str, str]:
    if not _clear(value, summary.leak_margin_se):
        return "About zero: the tuned emulator is as good as the closed model untuned.", ""
    if value < 0:
        return (
            "Below zero: the tuned emulator beats the closed model untuned.",
            "Usual when the domain is new; to be known, not hidden.",
        )
    return "Above zero: the tuned emulator stays behind even the untuned closed model.", ""


def _gap(summary: Summary, value: float) -> tuple[str, str]:
    if value <= 0:
        return "The untuned emulator is as good as the closed model on its owner's own text.", ""
    return (
        "How much worse the untuned emulator is on the model owner's own text.",
        "Near zero, the emulator alone would be as good as the closed model.",
    )


def _privacy_alert(summary: Summary) -> str:
    if summary.privacy.unit == "none":
        return privacy_sentence(summary)
    if summary.privacy.unit == "client":
        return "" if _client_level_spent(summary) else client_level_sentence(summary)
    if not summary.privacy.spent:
        return f"No spent epsilon is recorded, so nothing is claimed. {absent(summary, 'privacy')}"
    return ""


def _client_level_spent(summary: Summary) -> float | None:
    level = summary.privacy.client_level
    return None if level is None else level.epsilon


def _overspent(summary: Summary) -> str:
    target = summary.privacy.target_epsilon
    over = [name for name, spent in summary.privacy.spent.items() if target and spent > target]
    # What a site reports is over all runs on its data set; the target is this run's.
    if not over or summary.privacy.reported_by_sites:
        return ""
    return f"{counted(len(over), 'client').capitalize()} spent more than the target epsilon."


def _given_away(summary: Summary) -> str:
    value = summary.plug_in_advantage
    if value is None or value > 0 or summary.emulator is None:
        return ""
    return (
        f"The tuned emulator is as good as the plugged-in model or better (by "
        f"{-value:.3f} nats per token): whoever keeps it needs the closed model no more for "
        "this task."
    )


def _no_gain(summary: Summary) -> str:
    before, after = _number(summary, "full_zero_shot"), _number(summary, "plug_in")
    if before is None or after is None:
        return ""
    if not _clear(summary.plug_in_gain, summary.plug_in_gain_se):
        return "The plugged-in model cannot be told from the untuned one (two standard errors)."
    return "The plugged-in model is worse than the untuned one." if after.loss > before.loss else ""


def _number(summary: Summary, name: str) -> Quality | None:
    return summary.quality.get(name)


def _clear(difference: float | None, standard_error: float | None) -> bool:
    """Whether a difference can be told from none; without its error it cannot."""
    if difference is None or standard_error is None:
        return False
    return abs(difference) > 2 * standard_error
