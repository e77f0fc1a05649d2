"""What `plan` prints for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..estimate.memory import KINDS
from ..run.forecast.planning import OUTSIDE, SLACK


def table(answer: dict[str, Any]) -> Iterator[str]:
    yield (
        f"ESTIMATE of {' '.join((answer['recipe'], *answer['overrides']))} on {answer['ranks']} GPU(s) in "
        f"{answer['nodes']} node(s), {answer['gpu']}"
    )
    networks = answer["plan"]["networks"]
    policies = "; ".join(f"{name} {network['policy']}" for name, network in networks.items() if "policy" in network)
    yield (
        f"plan {answer['plan']['plan']}{f' ({policies})' if policies else ''}, {answer['plan']['precision']}, "
        f"recompute {answer['plan']['recompute']}"
    )
    for phase in answer["phases"]:
        yield ""
        if len(answer["phases"]) > 1:
            yield f"phase {phase['name']}"
        yield from _memory(phase["memory"])
        yield from _traffic(phase)
        yield from _time(phase)
    verdict = "fits" if answer["fits"] else "DOES NOT FIT"
    yield ""
    yield (
        f"{verdict}: {amount(answer['needed_bytes'])} of {amount(answer['gpu_memory_bytes'])}, as the peak x "
        f"{SLACK} for the allocator, and {amount(OUTSIDE)} for CUDA and NCCL"
    )
    yield from _layouts("what would make it fit, each checked by the same estimate" if not answer["fits"] else
                        "what would make it faster, and fits", answer.get("advice"))
    yield from _layouts("layouts that no other one beats in both memory and time", answer.get("search"))
    if answer["measured_to_estimated"] is not None:
        yield f"seconds are the estimate's times {answer['measured_to_estimated']:.3g}, by the recipe that was measured"
    yield from (f"note: {note}" for note in answer["notes"])


def _layouts(title: str, found: Sequence[dict[str, Any]] | None) -> Iterator[str]:
    if found is None:
        return
    yield ""
    yield f"{title}:" if found else f"{title}: none was found"
    for row in found:
        settings = " ".join(row["settings"]) or f"--ranks {row['ranks']}"
        if "refused" in row:
            yield f"  {settings}: cannot be: {row['refused']}"
        else:
            low, high = row["seconds_per_step"]
            verdict = "fits" if row["fits"] else "too large"
            yield (
                f"  {settings}: {amount(row['needed_bytes'])}, {verdict}, {low:.3g} to {high:.3g} s a step "
                f"({row['why']})"
            )


def _memory(memory: dict[str, Any]) -> Iterator[str]:
    """Bytes by network and kind at the peak, with what lies there between steps."""
    peak, parts = memory["peak"], memory["peak"]["parts"]
    split = {tuple(name.split(" ", 1)): size for name, size in parts.items()}
    networks = sorted({network for network, _ in split})
    yield f"memory of rank 0; the peak is in the {peak['mover']}'s {peak['when']}"
    yield f"{'':22}" + "".join(f"{name:>15}" for name in (*networks, "all"))
    for kind in KINDS:
        sizes = [split.get((network, kind), 0) for network in networks]
        if sum(sizes):
            yield f"{kind:22}" + "".join(f"{amount(size) if size else '-':>15}" for size in (*sizes, sum(sizes)))
    blank = " " * 15 * len(networks)
    yield f"{'peak':22}{blank}{amount(peak['bytes']):>15}"
    yield f"{'between steps':22}{blank}{amount(memory['rest']['bytes']):>15}"
    others = ", ".join(
        f"{turn['mover']}'s {turn['when']} {amount(turn['bytes'])}" for turn in memory["turns"]
        if turn["mover"] != "none"
    )
    yield f"highest in: {others}"


def amount(size: float) -> str:
    """Bytes in the unit that suits them."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:,.2f} {name}"


def _traffic(phase: dict[str, Any]) -> Iterator[str]:
    links = ", ".join(f"{name} {amount(size)}" for name, size in phase["links"].items() if size)
    yield f"sent in a step, whole tensors: {links or 'nothing'}"
    total = sum(phase["operations"].values())
    parts = ", ".join(f"{name} {found / total:.0%}" for name, found in phase["operations"].items() if found)
    yield f"operations of a rank in a step: {total / 1e12:.4g} TFLOP ({parts})"


def _time(phase: dict[str, Any]) -> Iterator[str]:
    low, high = phase["seconds_per_step"]
    yield f"seconds of a step: {low:.3g} to {high:.3g}"
    if phase["gpu_hours"] is not None:
        hours = _range(phase["gpu_hours"])
        cost = "" if phase["cost"] is None else f", cost {_range(phase['cost'])}"
        yield f"GPU hours for {phase['steps']:,} steps: {hours}{cost}"


def _range(ends: Sequence[float]) -> str:
    return " to ".join(f"{end:,.3g}" if end < 100 else f"{end:,.0f}" for end in ends)
