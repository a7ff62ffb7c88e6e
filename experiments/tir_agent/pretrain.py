"""TIR-Agent at nano scale, before its first stage: nano learns to see degradations, as a published model has learned to see.

How to run
----------
    python -m experiments.tir_agent.pretrain --photos FOLDER --out results/nano
    python -m experiments.tir_agent.sft --demos results/demos --model results/nano --out results/sft

The vision tower learns, with a linear head that is dropped afterwards, what the encoder of the SimpleCall-style policy learns, from
the same examples (``experiments/pretrain_encoder.py``): which degradations are there, and what every tool would gain next. The text layers
stay as they were drawn. ``--out`` is then the folder of a vision-language model like any other. The examples are kept in ``--work``.

Results to expect
-----------------
Not measured yet with overview and glimpses.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.pretrain_encoder import COMBOS, add_examples_arguments, describe, evaluate, fit, joined, make_sets
from ir_env.actions import ActionTable
from policies.vlm.model import VisionLanguageModel
from policies.vlm.nano import NANO
from policies.vlm.planner import PolicySettings
from policies.vlm.prompts import Prompter
from tool_actors.tasks import DEGRADATIONS
from tool_actors.threads import limit_threads
from tool_actors.toolboxes import load_toolbox


class Seeing(nn.Module):
    """The vision tower of a Qwen3-VL with a head for degradations and gains, on the means of its visual tokens.

    Args:
        vlm: its tower is trained in place.
        prompter: how it is shown what there is to see, on one sheet.
        tools: how many gains it tells.
    """

    def __init__(self, vlm: VisionLanguageModel, prompter: Prompter, tools: int):
        super().__init__()
        self.prompter = prompter
        self.processor, self.tower = vlm.processor.image_processor, vlm.model.model.visual
        vision = vlm.model.config.vision_config
        width = vision.out_hidden_size * (1 + len(vision.deepstack_visual_indexes))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(DEGRADATIONS) + tools))

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """What a view shows (:meth:`ir_env.view.View.look`), B rows of each -> float32 (B, 8 + tools): logits of the degradations, then
        gains of the tools in units of the reward."""
        rows = [{name: each.numpy() for name, each in zip(seen, row, strict=True)} for row in zip(*seen.values(), strict=True)]
        sheets = [picture for row in rows for picture in self.prompter.pictures(row)]
        inputs = self.processor(images=sheets, return_tensors="pt")
        # half precision is the slower one here: attention runs image by image
        with torch.autocast("cpu", enabled=False):
            output = self.tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
            levels = [output.pooler_output, *output.deepstack_features]
        pooled = [level.unflatten(0, (len(sheets), -1)).mean(1) for level in levels]
        return self.head(torch.cat(pooled, dim=1)).float()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_examples_arguments(parser)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("results/nano"))
    options = parser.parse_args(arguments)

    start = time.monotonic()
    toolbox = load_toolbox(options.toolbox)
    settings = PolicySettings.of(NANO)
    train, apart = make_sets(options, settings.view, toolbox.references)
    heldout = joined(list(apart.values()))
    limit_threads(options.threads)
    prompter = settings.prompter(ActionTable(toolbox))
    vlm = VisionLanguageModel.load(NANO, prompter, seed=options.seed)
    torch.manual_seed(options.seed)
    network = Seeing(vlm, prompter, len(toolbox))
    fit(network, train, heldout, options.epochs, options.batch, options.lr, options.seed)
    vlm.save(options.out)
    settings.after(*COMBOS).save(options.out)
    report = evaluate(network.eval(), heldout)
    (options.out / "report.json").write_text(json.dumps({"held_out": report, "seconds": round(time.monotonic() - start)}, indent=2) + "\n")
    print(f"{options.out}: {describe(report)}")


if __name__ == "__main__":
    main()
