"""How much memory a chain of tools takes to learn, by its length (OPERA, arXiv 2605.22104, appendix E, table 6).

How to run
----------
    python -m experiments.opera.chain_memory --out results/chain_memory
    python -m experiments.opera.chain_memory --toolbox opera --tool restormer.motion_deblur --tool restormer.derain      # on a GPU

Chains of 1 to 10 tools, those given in turn, each with and without activation checkpointing, at the paper's batch of 2 crops of 128
pixels. On a GPU the memory that a step takes beyond the weights is measured (``forward``: after the forward pass; ``peak``: the most). On a
CPU the tensors that the forward pass keeps for the backward one are counted: ``forward`` is their sum, ``peak`` adds what the largest tool
keeps where it is run again. The paper's numbers, with Restormer, X-Restormer and SwinIR on two H20, are printed beside ours.

Results to expect
-----------------
On a CPU, two images of 128 px, the project's networks: 11 MiB with one tool, 14 more with each; at ten tools 136, and checkpointed 19. The
paper's, of networks 300 times as large on a GPU: 7.4 to 42.8 GiB.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as RichTable

if TYPE_CHECKING:
    import torch

    from tool_actors.toolbox import Tool

PAPER = {(1, 2): (7.4, 18), (3, 4): (16.7, 26), (5, 5): (26.2, 34), (6, 7): (33.5, 41), (8, 10): (42.8, 56)}
"""Chain length -> GiB after the forward pass, and reserved at most."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toolbox", default="default")
    parser.add_argument("--tool", action="append", help="of the chains, in turn; repeatable (default: denoise, deblur, derain)")
    parser.add_argument("--longest", type=int, default=10)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("results/chain_memory"))
    options = parser.parse_args(arguments)

    import torch

    from ir_env.evaluation import save_json
    from tool_actors.toolboxes import load_toolbox

    names = options.tool or ["noise.gaussian25", "motion.short", "rain.light"]
    toolbox = load_toolbox(options.toolbox)
    tools = [toolbox[name] for name in names]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for length in range(1, options.longest + 1):
        chain = list(itertools.islice(itertools.cycle(tools), length))
        measured = {
            key: measure(chain, options.batch, options.crop, again, device) for key, again in (("plain", False), ("checkpointed", True))
        }
        rows.append({"length": length, **measured})
    _show(rows, device, Console())
    options.out.mkdir(parents=True, exist_ok=True)
    save_json({"device": device, "tools": names, "batch": options.batch, "crop": options.crop, "rows": rows}, options.out / "memory.json")
    return 0


def measure(chain: Sequence[Tool], batch: int, crop: int, checkpointing: bool, device: str) -> dict[str, int]:
    """Bytes that one step of a chain takes: ``forward`` and ``peak``, see above."""
    import torch

    from tool_actors.cotraining import run_chain

    images = torch.rand(batch, 3, crop, crop, device=device, generator=torch.Generator(device).manual_seed(0))
    if device == "cpu":
        kept = _kept(lambda: run_chain(chain, images, checkpointing=checkpointing))
        if not checkpointing:
            return {"forward": kept, "peak": kept}
        return {"forward": kept, "peak": kept + max(_kept(lambda tool=tool: tool(images)) for tool in dict.fromkeys(chain))}
    for tool in chain:
        tool(images[:1, :, :32, :32])  # moves the weights there
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    last = run_chain(chain, images, checkpointing=checkpointing)
    forward = torch.cuda.memory_allocated() - before
    last.mean().backward()
    peak = torch.cuda.max_memory_allocated() - before
    for tool in chain:
        tool.module.zero_grad(set_to_none=True)  # type: ignore[attr-defined]
    return {"forward": forward, "peak": peak}


def _kept(run: Any) -> int:
    """Bytes of the tensors that are kept for the backward pass, each counted once, without weights."""
    import torch

    # kept alive, so that no address is used twice
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _show(rows: Sequence[dict[str, Any]], device: str, console: Console) -> None:
    table = RichTable(
        "tools",
        "forward",
        "peak",
        "checkpointed: forward",
        "peak",
        "paper: forward",
        "reserved",
        title=f"MiB on {device}; the paper's in GiB",
    )
    for row in rows:
        cells = [f"{row[key][what] / 2**20:.1f}" for key in ("plain", "checkpointed") for what in ("forward", "peak")]
        paper = next((told for (low, high), told in PAPER.items() if low <= row["length"] <= high), None)
        table.add_row(str(row["length"]), *cells, *(map(str, paper) if paper else ("", "")))
    console.print(table)


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
