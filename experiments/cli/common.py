"""What the commands share."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable


def prepare_ray() -> None:
    """Settings that Ray reads when it is imported.

    Under `uv run` Ray would copy the working directory and build a second environment for its workers; they start at once in this one.
    """
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # paths in settings are those of the folder where the command was given
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Tune's newer display prints its own banner and table over ours
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")


def start_ray(attempts: int = 3, **options) -> None:
    """``ray.init``, quietly, and again where its processes did not come up: Ray gives them half a minute, too little on a busy machine."""
    import ray

    for attempt in range(attempts):
        try:
            ray.init(**{"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR", **options})
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == attempts - 1:
                raise


def guarded(command: Callable[[], int]) -> int:
    """Run a command; the project's own errors are printed without a traceback, and of a library that is not installed its extra."""
    from tool_actors.errors import IrEnvError
    from tool_actors.extras import missing_extra

    # the name of a file may hold what the terminal's encoding does not
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command()
    except IrEnvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if not (missing := missing_extra(error)):
            raise
        print(f"error: {missing}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
