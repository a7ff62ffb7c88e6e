"""The tables of a run, as text: what Markdown, LaTeX and the page show is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.benchmark.statistics import ORIENTED
from ir_env.metrics import find_metric

LABELS = {"psnr": "PSNR", "psnry": "PSNR-Y", "ssim_ycbcr": "SSIM", "ssim_yiq": "SSIM-YIQ", "clipiqa": "CLIPIQA", "clipiqa+": "CLIPIQA+"}
"""Of metrics as the papers write them; the others are in capitals."""
HEADS = {"gain": "gain", "normalised": "norm.", "regret": "regret", "worse": "worse", "tools": "tools", "executions": "run"}
HEADS |= {"calls": "calls", "seconds": "s"}
LEGEND = (
    "gain: in quality, the weighted sum of metrics that the rewards use, with its 95 % interval by photograph; norm.: sum over the metrics "
    "of what each gained in its standard deviations over the degraded images; regret: how much more the best plan that any policy here "
    "found for the image gained; worse: share of images that ended worse than they began; tools, run, calls: tools applied, tools run at "
    "all, and decisions asked for, per image; s: seconds per image of policy and tools, on this machine. PSNR is over RGB, PSNR-Y over Y "
    "of YCbCr (BT.601). Bold: the best."
)


@dataclass(frozen=True)
class Block:
    """One table."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = field(default=frozenset())
    """(row, column) of the best values."""
    note: str = ""
    shown: bool = False
    """Printed by the command, besides being written."""


def label(metric: str) -> str:
    return LABELS.get(metric, metric.upper())


def head(column: str) -> str:
    """Of a column, with the direction of a metric."""
    return HEADS.get(column) or f"{label(column)} {'↑' if find_metric(column).higher_is_better else '↓'}"


def sign_of(column: str) -> int:
    """+1 where more is better."""
    return ORIENTED.get(column) or (1 if find_metric(column).higher_is_better else -1)


def number(column: str, value: float | None) -> str:
    """A mean as it is printed."""
    if value is None:
        return ""
    if column == "worse":
        return f"{value:.0%}"
    if column in ("gain", "normalised"):
        return f"{value:+.2f}"
    if column in ("psnr", "psnry", "tools", "executions", "calls", "seconds", "regret", "musiq", "niqe", "piqe"):
        return f"{value:.2f}"
    return f"{value:.4f}"


def cell(column: str, told: Mapping[str, Any]) -> str:
    """A mean, with its interval where it is the gain."""
    text, ends = number(column, told["means"].get(column)), told["intervals"].get(column)
    return f"{text} [{ends[0]:+.2f}, {ends[1]:+.2f}]" if text and ends and column == "gain" else text


def policies_block(title: str, part: Mapping[str, Mapping[str, Any]], marks: Mapping[str, str] | None = None) -> Block:
    """Policies by columns, of one part of the images."""
    columns = list(dict.fromkeys(column for told in part.values() for column in told["means"]))
    rows = [(policy + (marks or {}).get(policy, ""), *[cell(column, told) for column in columns]) for policy, told in part.items()]
    bold = {
        (row, at)
        for at, column in enumerate(columns, start=1)
        if column not in ("tools", "executions", "calls", "seconds")
        for row in _best([told["means"].get(column) for told in part.values()], sign_of(column))
    }
    images, photographs = max((told["images"], told["photographs"]) for told in part.values())
    title = f"{title}: {images} images of {photographs} photographs"
    return Block(title, ("policy", *map(head, columns)), tuple(rows), frozenset(bold), shown=marks is not None)


def parts_block(title: str, scope: Mapping[str, Mapping[str, Mapping[str, Any]]], column: str) -> Block:
    """Parts of the images by policies, of one column: OPERA's table 8, turned so that policies are columns."""
    policies = list(dict.fromkeys(policy for part in scope.values() for policy in part))
    rows, bold = [], set()
    for at, (name, part) in enumerate(scope.items()):
        values = [part[policy]["means"].get(column) if policy in part else None for policy in policies]
        images = max(told["images"] for told in part.values())
        rows.append((name, str(images), *[number(column, value) for value in values]))
        bold |= {(at, 2 + index) for index in _best(values, sign_of(column))}
    return Block(f"{title}: {head(column)}", (title.rpartition(" ")[2], "images", *policies), tuple(rows), frozenset(bold))


def regret_block(rows: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> Block:
    """Policies by sets: how far each is from the best plan found."""
    parts = {**rows["set"], "all": rows["overall"]["all"]}
    policies = list(dict.fromkeys(policy for part in parts.values() for policy in part))
    values = [[part[policy]["means"].get("regret") if policy in part else None for policy in policies] for part in parts.values()]
    bold = {(row, 1 + at) for at, column in enumerate(values) for row in _best(column, sign_of("regret"))}
    cells = [(policy, *[number("regret", column[row]) for column in values]) for row, policy in enumerate(policies)]
    note = "How much more the best plan that any policy here found for an image gained, mean over the images."
    return Block("Regret by set", ("policy", *parts), tuple(cells), frozenset(bold), note, shown=True)


def against_block(results: Mapping[str, Any], names: Sequence[str]) -> Block:
    """Policies by those that they are set against: paired differences, and their executions in per cent of the other's."""
    means = {policy: told["means"] for policy, told in results["rows"]["overall"]["all"].items()}
    found = {(each["first"], each["second"], each["column"]): each for each in results["differences"]}
    rows = []
    for name in names:
        for policy in means:
            normalised, gain = (_signed(found, policy, name, column) for column in ("normalised", "gain"))
            if policy not in names and normalised and gain:
                share = means[policy]["executions"] / means[name]["executions"] if means[name]["executions"] else None
                rows.append((policy, name, *normalised, gain[0], "" if share is None else f"{share:.0%}"))
    heads = ("policy", "against", "norm. more", "p (Holm)", "gain more", "run, of its")
    note = "Paired by image, 95 % by photograph; run, of its: tools run, in per cent of those that the other one runs."
    return Block("Paired, policy by policy", heads, tuple(rows), note=note, shown=True)


def _signed(found: Mapping[tuple[str, str, str], Mapping[str, Any]], first: str, second: str, column: str) -> tuple[str, str] | None:
    """The difference of two policies with its interval, and p; None where they share no image."""
    sign = 1 if (first, second, column) in found else -1
    each = found.get((first, second, column)) or found.get((second, first, column))
    if each is None:
        return None
    ends = sorted(sign * end for end in each["interval"] or ())
    return f"{sign * each['mean']:+.2f}" + (f" [{ends[0]:+.2f}, {ends[1]:+.2f}]" if ends else ""), f"{each['p_holm']:.2g}"


def differences_block(differences: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Block:
    """Paired differences between policies."""
    rows = [
        (
            f"{each['first']} less {each['second']}",
            head(each["column"]),
            f"{each['mean']:+.3f}",
            f"[{each['interval'][0]:+.3f}, {each['interval'][1]:+.3f}]" if each["interval"] else "",
            f"{each['p']:.2g}",
            f"{each['p_holm']:.2g}",
        )
        for column in columns
        for each in differences
        if each["column"] == column
    ]
    note = "95 % by photograph; p: sign flips of photographs, two-sided; p (Holm): corrected for the number of pairs."
    return Block("Paired differences", ("policies", "column", "mean", "95 %", "p", "p (Holm)"), tuple(rows), note=note)


def blocks_of(results: Mapping[str, Any]) -> list[Block]:
    """All tables of a run."""
    rows, metrics = results["rows"], results["metrics"]
    marks = {name: " †" for name, told in results["policies"].items() if any(told["seen"].values())}
    blocks = [policies_block("Overall", rows["overall"]["all"], marks)]
    blocks.append(regret_block(rows))
    if against := results.get("against"):
        blocks.append(against_block(results, against))
    blocks += [policies_block(f"Set {name}", part) for name, part in rows["set"].items()]
    of_parts = [column for column in ("gain", "psnry", "ssim_ycbcr") if column == "gain" or column in metrics]
    for scope in ("combination", "degradation"):
        blocks += [parts_block(f"By {scope}", rows[scope], column) for column in of_parts if rows[scope]]
    if results["differences"]:
        blocks.append(
            differences_block(results["differences"], ["gain", *[name for name in ("psnr", "psnry") if name in metrics], "executions"])
        )
    return blocks


def notes_of(results: Mapping[str, Any]) -> list[str]:
    """What is told beneath the tables."""
    machine, told = results["machine"], [LEGEND]
    few = results["rows"]["overall"]["all"]
    if few and max(each["photographs"] for each in few.values()) < 10:
        told.append("There are too few photographs to trust the intervals.")
    for name, policy in results["policies"].items():
        if seen := [f"{share:.0%} of {test}" for test, share in policy["seen"].items() if share]:
            told.append(f"† {name}: its training saw {' and '.join(seen)} of the combinations, which are out of domain for others.")
        if unknown := [test for test, share in policy["seen"].items() if share is None]:
            told.append(f"{name}: what its training saw is not known, so nobody knows whether it met what {' and '.join(unknown)} hold.")
        if policy["needs_reference"]:
            told.append(f"{name} looks at the clean image.")
    told += _reordered(results["policies"])
    failures = sum(each["failures"] for each in few.values())
    if failures:
        told.append(f"{failures} restorations ended with a tool's failure.")
    if results["undefined"]:
        told.append(
            f"{results['undefined']} scores are not defined, of images too small or too flat, and count as the worst of their metric."
        )
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ", no GPU"
    told.append(
        f"Seed {results['image_seed']} of the images, {results['seed']} of the policies; {machine['cpu']}, {machine['cores']} cores{gpus}; "
        f"{results['processes']} processes, tools run by {results['executor']}; "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + "."
    )
    return told


def _reordered(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the trainings saw of the out-of-domain sets in another order, policies with the same shares in one line."""
    alike: dict[str, list[str]] = {}
    for name, policy in policies.items():
        if shares := [f"{share:.0%} of {test}" for test, share in policy.get("reordered", {}).items() if share]:
            alike.setdefault(" and ".join(shares), []).append(name)
    return [
        f"The trainings of {', '.join(names)} saw the degradations of {shares} together in another order than the set's, in that one never."
        for shares, names in alike.items()
    ]


def _best(values: Sequence[float | None], sign: int) -> list[int]:
    known = [sign * value for value in values if value is not None]
    return [index for index, value in enumerate(values) if value is not None and len(known) > 1 and sign * value == max(known)]


# -- as text -------------------------------------------------------------------------------------------------------------------------


def to_markdown(blocks: Sequence[Block], notes: Sequence[str] = ()) -> str:
    told = []
    for block in blocks:
        lines = ["| " + " | ".join(map(_markdown, block.heads)) + " |", "| --- |" + " ---: |" * (len(block.heads) - 1)]
        for at, row in enumerate(block.rows):
            cells = [f"**{_markdown(text)}**" if (at, column) in block.bold else _markdown(text) for column, text in enumerate(row)]
            lines.append("| " + " | ".join(cells) + " |")
        told.append("\n".join([f"## {_markdown(block.title)}", "", *lines, *(["", block.note] if block.note else [])]))
    return "\n\n".join([*told, *map(_markdown, notes)]) + "\n"


def _markdown(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


_LATEX = {"\\": r"\textbackslash{}", **{each: f"\\{each}" for each in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$"}


def to_latex(blocks: Sequence[Block], notes: Sequence[str] = ()) -> str:
    """Tables that need no package, to be put into a document."""
    told = []
    for block in blocks:
        lines = [" & ".join(map(_latex, block.heads)) + r" \\ \hline"]
        for at, row in enumerate(block.rows):
            cells = [rf"\textbf{{{_latex(text)}}}" if (at, column) in block.bold else _latex(text) for column, text in enumerate(row)]
            # a bracket at a line's beginning would be taken for an argument of the line break before it
            lines.append(" & ".join(cells) + r" \\{}")
        body = "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(block.heads) - 1)}}} \hline", *lines, r"\hline \end{tabular}"])
        told.append(
            "\n".join([r"\begin{table}", rf"\caption{{{_latex(' '.join([block.title + '.', block.note]).strip())}}}", body, r"\end{table}"])
        )
    return "\n\n".join([*told, *[f"% {note}" for note in notes]]) + "\n"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
