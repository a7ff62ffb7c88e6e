"""Tools between what they were and what they became by learning together: weights on the line between two toolboxes.

How to run
----------
    python -m experiments.opera.interpolate --after results/cotrained/toolbox/toolbox.yaml --share 0.5 --out results/halfway

Tools that learn in chains forget some of what they did alone. Halfway back they have lost less of that than they have of what they gained
in chains (as networks fine-tuned to one task have of another: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022), at no
cost in training or in use. The result is a toolbox as that of :mod:`experiments.opera.cotrain`, which can go on from it (``--toolbox``).

Results to expect
-----------------
README's tools that learned together, and the same halfway back: PSNR on the groups A, B, C of held-out photographs +.67, +.63, +.34 and
+.38, +.53, +.25 dB; on their own degradation alone -.73 and -.15 dB. A second.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING

from tool_actors.errors import IrEnvError

if TYPE_CHECKING:
    from torch import nn

    from tool_actors.learned import LearnedTool


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default="default", help="the tools as they were")
    parser.add_argument("--after", required=True, help="the tools that learned together, under the same names")
    parser.add_argument("--share", type=float, default=0.5, help="of the way from before (0) to after (1)")
    parser.add_argument("--out", type=Path, default=Path("results/interpolated"))
    options = parser.parse_args(arguments)
    if not 0 < options.share <= 1:
        raise IrEnvError(f"--share is from more than 0 to 1, not {options.share}")
    print(interpolate(options.before, options.after, options.share, options.out))
    return 0


def interpolate(before: str, after: str, share: float, out: Path) -> Path:
    """Write the toolbox; returns its file. Tools that are the same in both are referred to."""
    from tool_actors.learned import LearnedTool
    from tool_actors.toolboxes import load_toolbox
    from tool_actors.trained_toolbox import write_toolbox

    first, last, mixed = load_toolbox(before), load_toolbox(after), {}
    for tool in last:
        name = tool.spec.name
        old = first[name] if name in first.names else None
        if not isinstance(tool, LearnedTool) or (old and old.spec.fingerprint == tool.spec.fingerprint):
            continue
        if not isinstance(old, LearnedTool):
            raise IrEnvError(f"tool {name!r} is a network in {after} alone, and none in {before}")
        mixed[name] = between(old, tool, share)
    if not mixed:
        raise IrEnvError(f"no network of {after} has other weights than that of the same name in {before}")
    return write_toolbox(last, mixed, out, f"{share:g} of the way from {before} to {after}.")


def between(first: LearnedTool, last: LearnedTool, share: float) -> nn.Module:
    """A network whose weights are this share of the way from one tool's to another's."""
    start, state = first.module.state_dict(), last.module.state_dict()
    if {key: value.shape for key, value in start.items()} != {key: value.shape for key, value in state.items()}:
        raise IrEnvError(f"tool {last.spec.name!r} is no network of one and the same form in both toolboxes")
    module = copy.deepcopy(last.module)
    module.load_state_dict({key: start[key].lerp(value, share) if value.is_floating_point() else value for key, value in state.items()})
    return module


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
