"""The dataset that verl iterates: a row per episode, of which the episode itself makes prompt and images.

python -m policies.integrations.verl_rows --count 4000 --out train.parquet
python -m policies.integrations.verl_rows --count 128 --first 1000000 --out heldout.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tool_actors.extras import need

SEED, SOURCE = "seed", "ir_env"


def rows(count: int, first: int = 0, agent: str = SOURCE) -> list[dict]:
    """As verl's ``RLHFDataset`` reads them; the rollouts of a row begin from the same seed, and so from the same image.

    Args:
        count: how many.
        first: seed of the first; those that follow have the numbers that follow.
        agent: name of the agent loop.
    """
    return [
        {
            "prompt": [{"role": "user", "content": "Restore the photograph."}],
            "data_source": SOURCE,
            "agent_name": agent,
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": seed, SEED: seed},
        }
        for seed in range(first, first + count)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--first", type=int, default=0, help="seed of the first row")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    need("pyarrow")
    import pyarrow
    import pyarrow.parquet

    options.out.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(options.count, options.first)), options.out)


if __name__ == "__main__":
    main()
