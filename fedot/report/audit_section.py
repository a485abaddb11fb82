"""An audit as a section of a page: two pictures, three tables, and what all of it cannot show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from markupsafe import Markup

from fedot.report.audit_file import Attack, Audit, Game
from fedot.report.drawing import (
    BAR,
    EMULATOR,
    INK,
    MUTED,
    PLUG_IN,
    drawn_alike,
    new_figure,
    to_svg,
    trim,
)
from fedot.report.formats import epsilon_text, percent

__all__ = ["LIMITS", "AuditSection", "audit_section", "bounds_picture", "roc_picture", "verdict"]

LIMITS = (
    "Every epsilon here is a lower bound found by these attacks at the stated confidence: it can "
    "refute a claim and never prove one. A better attack may find more.",
    "The ceiling is what so many canaries could show if every guess were right. A claim above it "
    "cannot be refuted by this audit.",
    "The f-DP bound takes the mechanism for a Poisson-sampled Gaussian of unknown noise; the "
    "one-run bound does not, and shows less.",
    "All of it is a simulation on canaries and on records whose membership is known. Nothing was "
    "taken from a site's ledger.",
)
UNCAPPED = (
    "The games run without training.max_batch_size, with the same noise; what the cap costs is in "
    "the claim alone."
)
_ATTACKED = {
    "on": "DP on",
    "off": "DP off",
    "adapter": "this run, last adapter",
    "adapter-best": "this run, best adapter",
}
_LINES = {
    "on": (PLUG_IN, "-"),
    "off": (EMULATOR, "-"),
    "adapter": (INK, ":"),
    "adapter-best": (INK, "--"),
}
_HEIGHT_PT = 250.0
# Power below this is none.
_HARDLY = 0.05


@dataclass(frozen=True, slots=True)
class AuditSection:
    """What the template shows; rows are cells of text."""

    verdict: str
    findings: list[str]
    pictures: list[tuple[str, Markup, str]]
    games: list[tuple[str, ...]]
    power: str
    checks: list[tuple[str, str, str]]
    attacks: list[tuple[str, ...]]
    recoveries: list[tuple[str, ...]]
    limits: tuple[str, ...]


def audit_section(audit: Audit) -> AuditSection:
    """Everything about an audit, ready to be shown."""
    pictures = []
    bounds = bounds_picture(audit)
    if bounds is not None:
        caption = (
            "Bars are what the audit found, at 95 % confidence; the thin line ends where so many "
            "canaries could have shown at most. Found must stay left of claimed."
        )
        pictures.append(("Epsilon, claimed and found", Markup(bounds), caption))
    roc = roc_picture(audit.membership)
    if roc is not None:
        caption = "Members found against others accused; the diagonal is guessing."
        pictures.append(("Membership inference", Markup(roc), caption))
    return AuditSection(
        verdict=verdict(audit),
        findings=list(audit.findings),
        pictures=pictures,
        games=[_game_row(*pair) for pair in _games(audit)],
        power=_power(audit.gradient_canaries),
        checks=_checks(audit),
        attacks=[_attack_row(name, found) for name, found in audit.membership.items()],
        recoveries=[
            (
                f"{r.view}, {r.records} record{'s' if r.records > 1 else ''}, DP {r.dp}",
                percent(r.precision),
                percent(r.chance),
                str(r.tokens),
            )
            for r in audit.inversion
        ],
        limits=(*LIMITS, UNCAPPED) if audit.claim and audit.claim.max_batch_size else LIMITS,
    )


def verdict(audit: Audit) -> str:
    """One sentence."""
    if audit.claim is None:
        return "No privacy was claimed (privacy.unit is none), so there was no claim to refute."
    claimed = f"epsilon {epsilon_text(audit.claim.epsilon)} at delta {audit.claim.delta:g}"
    if audit.findings:
        return f"The claim of {claimed} for {audit.client} is refuted. Do not rely on it."
    game = audit.gradient_canaries
    if game is not None and game.power and max(game.power.values()) < _HARDLY:
        return (
            f"This audit could not have refuted the claim of {claimed} for {audit.client}: with "
            f"{game.canaries} canaries even a run without noise would hardly have been caught. "
            "Audit again with more (--canaries)."
        )
    return (
        f"Nothing that was tried refutes the claim of {claimed} for {audit.client}. That is no "
        "proof of it."
    )


def bounds_picture(audit: Audit) -> str | None:
    """Lower bounds as bars, ceilings as thin lines, the claim as a mark across."""
    rows = [
        (name, game.lower_bound, game.ceiling)
        for name, game in _games(audit)
        if game.lower_bound is not None and game.ceiling is not None
    ]
    claim, gradient = audit.claim, audit.gradient_canaries
    if claim is None or not rows:
        return None
    if gradient is not None and gradient.repeated is not None:
        again = gradient.repeated
        rows.append(("repeated games", again.lower_bound, again.ceiling))
    with drawn_alike():
        figure, axes = new_figure(_HEIGHT_PT)
        for place, (_, found, ceiling) in enumerate(rows):
            axes.plot([0, ceiling], [place, place], color=MUTED, linewidth=1.2, marker="|")
            axes.barh(place, found, height=0.42, color=EMULATOR, zorder=2)
        axes.axvline(claim.epsilon, color=PLUG_IN, label="claimed")
        axes.barh(0, 0, color=EMULATOR, label="found, at least")
        axes.plot([], [], color=MUTED, linewidth=1.2, marker="|", label="up to the ceiling")
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("epsilon")
        trim(axes, across="x")
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.6, borderpad=0)
        return to_svg(figure, "audit-bounds", "Epsilon, claimed and found")


def roc_picture(membership: Mapping[str, Attack]) -> str | None:
    """True against false positives of every attack."""
    drawn = {name: attack for name, attack in membership.items() if attack.curve}
    if not drawn:
        return None
    with drawn_alike():
        figure, axes = new_figure(_HEIGHT_PT)
        axes.plot([0, 1], [0, 1], color=BAR, linewidth=1.2)
        for name, attack in drawn.items():
            colour, dashes = _LINES.get(name, (MUTED, "-"))
            false, true = zip(*attack.curve, strict=True)
            label = f"{_ATTACKED.get(name, name)}: AUC {attack.auc:.3f}"
            axes.plot(false, true, color=colour, linestyle=dashes, label=label)
        axes.set_xlabel("others accused")
        axes.set_ylabel("members found")
        figure.legend(loc="outside upper left", ncols=2, columnspacing=1.6, borderpad=0)
        return to_svg(figure, "audit-roc", "Membership inference")


def _games(audit: Audit) -> Iterable[tuple[str, Game]]:
    if audit.gradient_canaries is not None:
        yield "gradient canaries", audit.gradient_canaries
    for name, game in audit.text_canaries.items():
        yield f"text canaries, DP {name}", game


def _game_row(name: str, game: Game) -> tuple[str, ...]:
    return (
        name,
        f"{game.correct} of {game.guesses} ({game.canaries} canaries)",
        _bound(game.lower_bound, game.ceiling),
        _bound(game.one_run_bound, game.one_run_ceiling),
    )


def _power(game: Game | None) -> str:
    """How likely the gradient canaries catch which bug; empty where they were not used."""
    if game is None or not game.power:
        return ""
    chances = ", ".join(f"{bug}: {percent(ratio)}" for bug, ratio in game.power.items())
    return f"Chance that the gradient canaries catch too little noise (simulated): {chances}."


def _bound(found: float | None, ceiling: float | None) -> str:
    # Found is rounded down: it is a lower bound.
    if found is None or ceiling is None:
        return "no claim"
    return f"{int(100 * found) / 100:.2f} of at most {int(100 * ceiling) / 100:.2f}"


def _checks(audit: Audit) -> list[tuple[str, str, str]]:
    rows = []
    if audit.gradient_canaries is not None and audit.gradient_canaries.repeated is not None:
        again = audit.gradient_canaries.repeated
        rows.append((
            "repeated games",
            f"{again.games} of one canary, Clopper-Pearson: epsilon at least "
            f"{_bound(again.lower_bound, again.ceiling)}",
            "at most the claim",
        ))  # fmt: skip
    if audit.mechanism is not None:
        ratio = audit.mechanism.sensitivity
        rows.append(("one record's pull", f"moves a step's sum by {ratio:.3f} C", "at most C"))
        sampling = audit.mechanism.sampling
        if sampling is not None:
            size = f"{sampling.size_variance_ratio:.2f} of the binomial variance"
            rows.append(("batch sizes", f"{size}, p = {sampling.p_value:.2g}", "Poisson sampling"))
    return rows


def _attack_row(name: str, attack: Attack) -> tuple[str, ...]:
    return (
        _ATTACKED.get(name, name),
        f"{attack.auc:.3f} ± {attack.auc_se:.3f}",
        f"{percent(attack.tpr)} ({percent(attack.tpr_low)} to {percent(attack.tpr_high)})",
        f"{attack.members} / {attack.others}",
    )
