"""What a run leaves: results.parquet, results.json, table.md, table.tex."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmark.statistics import Row, completed, differences, summarise
from experiments.benchmark.tables import blocks_of, notes_of, to_latex, to_markdown
from ir_env.evaluation import save_json
from tool_actors.errors import IrEnvError
from tool_actors.extras import need

NAMES = ("results.parquet", "results.json", "table.md", "table.tex")


def write_results(rows: Sequence[Mapping[str, Any]], told: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Write all four; returns what is in results.json."""
    whole = completed(rows)
    results = {
        **told,
        "rows": summarise(whole, told["sets"], told["metrics"]),
        "differences": differences(whole, told["sets"], told["metrics"]),
    }
    save_parquet(whole, out / "results.parquet")
    save_json(results, out / "results.json")
    blocks, notes = blocks_of(results), notes_of(results)
    (out / "table.md").write_text(to_markdown(blocks, notes))
    (out / "table.tex").write_text(to_latex(blocks, notes))
    return results


def save_parquet(rows: Sequence[Row], path: Path) -> None:
    """One line per policy and image; the metrics of the degraded image are the columns ``before_NAME``."""
    need("pyarrow")
    import pyarrow
    import pyarrow.parquet

    flat = []
    for row in rows:
        before = {f"before_{name}": value for name, value in row["before"].items()}
        flat.append({name: value for name, value in row.items() if name != "before"} | before)
    names = list(dict.fromkeys(name for row in flat for name in row))
    table = pyarrow.table({name: [row.get(name) for row in flat] for name in names})
    pyarrow.parquet.write_table(table, path)


def load_results(run: Path) -> tuple[dict[str, Any], list[Row]]:
    """What :func:`write_results` wrote: results.json, and the rows; raises :class:`IrEnvError` where there is none."""
    need("pyarrow")
    import pyarrow.parquet

    try:
        results = json.loads((run / "results.json").read_text())
        flat = pyarrow.parquet.read_table(run / "results.parquet").to_pylist()
    except (OSError, ValueError) as error:
        raise IrEnvError(f"{run}: holds no results of `ir-env bench` ({error}). Give the folder that was its --out.") from error
    rows = []
    for each in flat:
        before = {name.removeprefix("before_"): value for name, value in each.items() if name.startswith("before_") and value is not None}
        own = {name: value for name, value in each.items() if not name.startswith("before_") and value is not None}
        rows.append({**own, "before": before})
    return results, rows
