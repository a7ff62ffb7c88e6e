"""A start for OPERA's small planner: it imitates demonstrations before GRPO, as a published model brings knowledge along.

How to run
----------
    python -m experiments.opera.clone --photos FOLDER --out results/opera_start.safetensors
    python -m experiments.opera.clone --demos results/demos --out results/opera_start.safetensors
    uv run rllib train file experiments/opera/planner.py --set model_config.start=results/opera_start.safetensors ...

With ``--photos`` a policy that looks again after every tool (``--teacher``) shows what it applies to crops of these photographs; its plans
are kept beside ``--out``. ``--demos`` are those of TIR-Agent (``experiments.tir_agent.demos``: an agent that is told the degradations, and
judges tools by the clean image); it is repeatable, and both kinds are taken together. The network learns the degradations and the plan from
the degraded image alone, by their likelihood; one image in ten is held out, and the best epoch on these is kept.

Results to expect
-----------------
2,668 plans of the teacher for 3,000 crops (train set of BSDS500; some 12 minutes of a core, most of it for the plans): log-likelihood of
one held out -26.3 before, -4.2 after 14 epochs. On 160 whole test photographs the planner then gains +1.63 with one decision, where its
teacher, the policy that came with the encoder before this one, gained +1.65 by looking after every tool. 2,481 of TIR-Agent's
demonstrations had taught an earlier planner +1.23 (with an encoder that had met no whole photographs).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SMALL = 256
HELD_OUT = 10
"""Every so many-th image is held out."""


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demos", type=Path, action="append", default=[], help="folder that experiments.tir_agent.demos wrote; repeatable")
    parser.add_argument("--photos", help="folder of clean photographs, for the teacher")
    parser.add_argument("--teacher", default="simplecall", help="whose plans are imitated on these: a policy as for ir-env restore")
    parser.add_argument("--combos", action="append", help="degradations of the teacher's images; repeatable (A,B,C and opera:1:3:5)")
    parser.add_argument("--images", type=int, default=1200, help="degraded crops that the teacher plans for, of each --combos")
    parser.add_argument("--out", type=Path, default=Path("results/opera_start.safetensors"))
    parser.add_argument("--max-plan", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=1e-2, help="of the weights (AdamW)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    import torch
    from safetensors.torch import save_file

    from ir_env.actions import ActionTable
    from policies.opera.network import PlanNetwork
    from policies.opera.rl_module import COMBOS
    from tool_actors.threads import limit_threads
    from tool_actors.toolboxes import load_toolbox

    limit_threads(1)
    torch.manual_seed(options.seed)
    toolbox, images = demonstrations(options)
    # the demonstrations are crops of 256 pixels and whole photographs: what is smaller is of low resolution
    actions = ActionTable(load_toolbox(toolbox), low_resolution_below=SMALL)
    network = PlanNetwork(actions.n, options.max_plan, tasks=[each.task for each in actions], tools=[each.tool for each in actions])
    observation, tokens, mask = examples(network, actions, images, options.max_plan)
    held = torch.arange(len(tokens)) % HELD_OUT == 0
    train, optimiser = torch.nonzero(~held)[:, 0], torch.optim.AdamW(trained(network), options.lr, weight_decay=options.decay)

    def likelihood(rows: torch.Tensor) -> torch.Tensor:
        logp, _ = network.score({name: each[rows] for name, each in observation.items()}, tokens[rows])
        return (logp * mask[rows]).sum(1).mean()

    told = {"before": validate(likelihood, held)}
    best, kept = -float("inf"), {}
    for epoch in range(1, options.epochs + 1):
        for rows in train[torch.randperm(len(train))].split(options.batch):
            optimiser.zero_grad()
            (-likelihood(rows)).backward()
            torch.nn.utils.clip_grad_norm_(trained(network), 1.0)
            optimiser.step()
        reached = validate(likelihood, held)
        if reached > best:
            best, told["epoch"] = reached, float(epoch)
            kept = {name: value.clone() for name, value in network.state_dict().items() if not name.startswith("encoder.")}
    told["after"] = best
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # what it learned from, so that the benchmark can tell what it has not seen
    save_file(kept, options.out, metadata={COMBOS: ",".join(sorted({"+".join(combo) for _, combo, _ in images}))})
    print(
        f"{options.out}: {len(train)} demonstrations; log-likelihood of one held out {told['before']:.2f} before, {best:.2f} after "
        f"{told['epoch']:.0f} epochs"
    )
    return told


def demonstrations(options: argparse.Namespace) -> tuple[list, list[tuple[np.ndarray, list[str], list[str]]]]:
    """The toolbox, and (degraded image, degradations, tools) of all that the options name."""
    from tool_actors.errors import IrEnvError

    if not (options.demos or options.photos):
        raise IrEnvError("nothing to imitate: give --photos for a teacher's plans, --demos, or both")
    sources = [read_demonstrations(options.demos)] if options.demos else []
    if options.photos:
        sources.append(taught(options))
    [toolbox, *others] = [each for each, _ in sources]
    if any(other != toolbox for other in others):
        raise IrEnvError("the demonstrations and the teacher have different toolboxes; give those of one")
    return toolbox, [each for _, images in sources for each in images]


def taught(options: argparse.Namespace) -> tuple[list, list[tuple[np.ndarray, list[str], list[str]]]]:
    """As :func:`read_demonstrations`, by the teacher's plans for crops of the photographs."""
    from rich.progress import Progress

    from experiments.opera.plans import make_plans
    from ir_env.process import RestorationProcess
    from policies.loading import load_policy
    from tool_actors.toolboxes import load_toolbox

    planner, images = load_policy(options.teacher), []
    toolbox = load_toolbox(planner.toolbox or "default")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as progress:
        for combos in options.combos or ("A,B,C", "opera:1:3:5"):
            dataset = {"photos": options.photos, "split": "all", "crop_size": SMALL, "combos": combos}
            process = RestorationProcess(dataset, toolbox, metrics=["psnr"], max_steps=options.max_plan, cache_bytes=0)
            path = options.out.with_name(f"{options.out.stem}.{combos.replace(',', '_').replace(':', '_')}.plans.json")
            task = progress.add_task(f"planning for {combos}", total=options.images)
            told = partial(_advance, progress, task)
            planned = make_plans(process, planner, options.images, options.seed, path, told)
            treated = [each for each in planned if each.tools]
            images += [(process.dataset.load(each.sample).degraded, list(each.sample.combo), list(each.tools)) for each in treated]
    return toolbox.references, images


def _advance(progress: Any, task: Any, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def read_demonstrations(folders: list[Path]) -> tuple[list, list[tuple[np.ndarray, list[str], list[str]]]]:
    """The toolbox of the demonstrations, and (degraded image, degradations, tools) of those that have a tool."""
    from experiments.tir_agent.demos import load_demonstrations
    from tool_actors.errors import IrEnvError

    toolboxes, told = [], []
    for folder in folders:
        splits, made_with = load_demonstrations(folder)
        toolboxes.append(made_with["toolbox"])
        told += [(np.asarray(row["degraded"]), row["combo"].split("+"), row["tools"]) for row in splits["train"] if row["tools"]]
    if any(toolbox != toolboxes[0] for toolbox in toolboxes):
        raise IrEnvError("the demonstrations were made with different toolboxes; give those of one")
    return toolboxes[0], told


def examples(network: Any, actions: Any, images: list, max_plan: int):
    """Observations with the encoder's features, plans in the index form, and which of their tokens count."""
    import torch

    from ir_env.observation import observe_state
    from ir_env.plan_answer import PlanAnswer, to_indices
    from tool_actors.tasks import DEGRADATIONS

    seen, rows, counted = [], [], []
    for start in range(0, len(images), 64):
        part = images[start : start + 64]
        observed = []
        for image, combo, tools in part:
            observed.append(observe_state([image], (), actions.mask(image.shape[:2], ()), network.encoder.view, max_plan))
            plan = tuple(map(actions.index, tools))[:max_plan]
            rows.append(to_indices(PlanAnswer(plan, tuple(combo)), actions, max_plan))
            length = min(len(plan) + 1, max_plan)
            counted.append([1.0] * (len(DEGRADATIONS) + length) + [0.0] * (max_plan - length))
        seen.append(network.encode_once({key: torch.from_numpy(np.stack([each[key] for each in observed])) for key in observed[0]}))
    observation = {key: torch.cat([part[key] for part in seen]) for key in seen[0]}
    return observation, torch.from_numpy(np.stack(rows)), torch.tensor(counted)


def trained(network: Any) -> list:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def validate(likelihood: Any, held: Any) -> float:
    import torch

    with torch.no_grad():
        return float(likelihood(torch.nonzero(held)[:, 0]))


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(lambda: 0 if main() else 1))
