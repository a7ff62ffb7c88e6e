"""A small vision-language model learns the form of OPERA's answers from demonstrations, before GRPO.

How to run
----------
    python -m experiments.tir_agent.demos --photos FOLDER --out results/demos
    python -m experiments.opera.sft --demos results/demos --model results/nano --terse 0.25 --out results/opera_sft
    uv run rllib train file experiments/opera/planner_nano.py --set model_config.model=results/opera_sft/policy

OPERA needs no such stage: its model follows the prompt of table 14 from the first. ``nano`` has never read a text, so it learns from the
demonstrations of ``experiments/tir_agent/demos.py``: the degraded image alone, and as the answer a reasoning of two sentences, the
degradations, and the tools in their order. The arguments are those of ``experiments/tir_agent/sft.py``, whose perturbations it leaves out.

``--model`` is a nano that has learned to see (``experiments/tir_agent/pretrain.py``), or one that calls tools (``tir_agent/sft.py``): it is
given the vocabulary of these answers, in which a tool or a tag is one token, and keeps all that it has learned but its words. What this
script wrote is trained on as it is.

A share of the demonstrations, ``--terse``, has an empty reasoning. A published model writes all kinds of answers, nano those alone that it
was shown; without some that do not reason the consistency reward would have nothing to choose between.

Results to expect
-----------------
1,575 demonstrations (train set of BSDS500), from TIR-Agent's fine-tuned policy, with ``--model results/tir_agent/sft/policy --steps 200
--batch 16 --terse 0.25``: two epochs in 2.1 minutes of one core; the loss of a token falls from 3.4 (first 20 updates) to 0.24 (last 20).
An answer has 31 tokens on average, 45 at most; in the vocabulary of the model that it started from, 111 with two degradations. README has
what it plans.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.resumable import keep_settings, make_rows
from experiments.tir_agent.sft import CHUNK, RECIPES, build_parser, example_features, train

if TYPE_CHECKING:
    from policies.opera.vlm import PlanSettings


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = build_parser()
    parser.add_argument("--terse", type=float, default=0.0, help="share of the demonstrations without a reasoning")
    options = parser.parse_args(arguments)

    from experiments.tir_agent.demos import load_demonstrations
    from experiments.tir_agent.held_out import evaluate
    from ir_env.evaluation import save_json
    from policies.opera.vlm import PlanSettings, VLMPlanPlanner
    from policies.vlm.nano import NANO
    from policies.vlm.planner import PolicySettings
    from tool_actors.threads import limit_threads
    from tool_actors.toolboxes import load_toolbox

    demos, made_with = load_demonstrations(options.demos)
    taught = (Path(options.model) / PlanSettings.FILE).is_file()
    known = (PlanSettings if taught else PolicySettings).of(options.model)
    for name, value in RECIPES["nano" if known.compact else "paper"].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    kept = ("demos", "model", "epochs", "steps", "lr", "batch", "seed", "terse")
    keep_settings(options.out, {key: getattr(options, key) for key in kept})
    asked = known.compact, known.view, known.spectrum, load_toolbox(made_with["toolbox"]).references
    policy = PlanSettings(*asked, known.combos).after(made_with["combos"])
    options.out = options.out.resolve()
    count = len(demos["train"])
    told = {"demos": str(options.demos), "policy": policy, "terse": options.terse, "seed": options.seed}
    jobs = [{**told, "rows": range(at, min(at + CHUNK, count))} for at in range(0, count, CHUNK)]
    examples = make_rows(write_examples, jobs, example_features(), options.out / "examples", options.processes, "examples")
    print(f"{len(examples)} examples", flush=True)
    limit_threads(options.threads or 1)
    if known.compact and not taught and options.model != NANO:
        options.model = with_vocabulary(options.model, policy, options.out / "start", options.seed)
    train(options, policy)
    planner = VLMPlanPlanner.load(options.out / "policy")
    rows = demos["heldout"].select(range(min(options.heldout, len(demos["heldout"]))))
    row = evaluate("SFT", planner, rows, made_with)
    report = {**row.as_dict(), "answers": dict(planner.counts)}
    save_json(report, options.out / "report.json")
    formed = 1 - planner.counts["malformed"] / max(1, planner.counts["answers"])
    print(f"{options.out / 'policy'}: {formed:.1%} well-formed answers; gain {row.gain:+.3f} per held-out image, {row.tools:.2f} tools")
    return report


def write_examples(job: dict[str, Any]) -> list[dict]:
    """The examples of some demonstrations; those without a tool are left out, since an empty plan is none."""
    import numpy as np
    from PIL import Image

    from experiments.tir_agent.demos import load_demonstrations
    from ir_env.actions import ActionTable
    from tool_actors.toolboxes import load_toolbox

    rows, policy = load_demonstrations(job["demos"])[0]["train"].select(job["rows"]), job["policy"]
    prompter = policy.prompter(ActionTable(load_toolbox(policy.toolbox)))
    examples = []
    for index, row in zip(job["rows"], rows, strict=True):
        if row["tools"]:
            pictures = prompter.pictures(policy.view.look([np.asarray(row["degraded"])]))
            answer = prompter.reasoned(list(map(prompter.actions.index, row["tools"])), row["combo"].split("+"))
            if np.random.default_rng((job["seed"], index)).random() < job["terse"]:
                answer = replace(answer, think="")
            examples.append({"pictures": list(map(Image.fromarray, pictures)), "history": [], "text": prompter.write(answer)})
    return examples


def with_vocabulary(model: str, policy: PlanSettings, folder: Path, seed: int) -> str:
    """The folder of a nano that reads and writes whole plans, and has every other weight of the nano ``model``."""
    from ir_env.actions import ActionTable
    from policies.vlm.model import VisionLanguageModel
    from policies.vlm.nano import NANO
    from tool_actors.errors import IrEnvError
    from tool_actors.toolboxes import load_toolbox

    vlm = VisionLanguageModel.load(NANO, policy.prompter(ActionTable(load_toolbox(policy.toolbox or "default"))), seed=seed)
    words = {name for name, _ in vlm.model.named_parameters() if "embed_tokens" in name}
    learned = VisionLanguageModel.load(model).model.named_parameters()
    try:
        vlm.model.load_state_dict({name: value for name, value in learned if name not in words}, strict=False)
    except RuntimeError as error:
        raise IrEnvError(f"{model} is no nano of this size ({str(error).splitlines()[-1].strip()}); give what pretrain.py wrote") from error
    vlm.save(folder)
    return str(folder)


if __name__ == "__main__":
    main()
