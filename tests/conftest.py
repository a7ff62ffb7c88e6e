import contextlib
import io
import os
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from experiments.cli.common import prepare_ray, start_ray
from ir_env.datasets import BuiltinPhotos
from tool_actors.threads import limit_threads

# the tests start some hundred processes; where bytecode is not kept, each compiles all of torch and Ray that it imports
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
prepare_ray()  # before a test imports ray
# its workers run as the tests do that wait for them; at Ray's lower priority they hardly start on a busy machine
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
os.environ["COLUMNS"] = "160"  # of the commands' tables


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    limit_threads(1)


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A clean photograph, uint8 (300, 448, 3)."""
    return BuiltinPhotos("heldout").load("chelsea")


@pytest.fixture(scope="session")
def crop(photo) -> np.ndarray:
    """Part of it, uint8 (64, 64, 3)."""
    return np.ascontiguousarray(photo[96:160, 160:224])


@pytest.fixture(scope="session")
def basicsr():
    """BasicSR, what some of our results are compared with; it looks for a module that torchvision no longer has."""
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType("torchvision.transforms.functional_tensor")
    vars(module).update(rgb_to_grayscale=rgb_to_grayscale)
    sys.modules.setdefault(module.__name__, module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("basicsr")


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray of this machine alone; more CPUs on paper than there are, so that small actors fit side by side."""
    import ray

    start_ray(address="local", num_cpus=8)
    yield ray
    ray.shutdown()


class Said(NamedTuple):
    """What a command ended with."""

    returncode: int
    stdout: str
    stderr: str


def run_command(main, *arguments, cwd) -> Said:
    """A command of this project as its user runs it in a folder, but in this process, which has imported already what it needs."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as end:
            code = end.code
    return Said(code, out.getvalue(), errors.getvalue())


@pytest.fixture(scope="session")
def command():
    """Runs ``ir-env`` or ``rllib``: ``command("rllib", "evaluate", folder, cwd=tmp_path)``, see :func:`run_command`."""
    from experiments.cli import ir_env, rllib

    mains = {"ir-env": ir_env.main, "rllib": rllib.main}
    return lambda name, *arguments, cwd: run_command(mains[name], *arguments, cwd=cwd)


@pytest.fixture(scope="session")
def small() -> tuple:
    """The arguments of ``rllib`` that train ``experiments/simplecall_ppo.py`` in seconds, with real parts all the same."""
    settings = (
        "num_env_runners=0",
        "num_cpus_for_main_process=1",
        "num_envs_per_env_runner=8",
        "train_batch_size_per_learner=32",
        "minibatch_size=32",
        "num_epochs=1",
        "env_config.max_steps=2",
        "env_config.metrics=[psnry, gmsd]",
        "env_config.reward=delta_psnr",
        "env_config.toolbox=[tv.denoise, dcp.strong, gamma.brighten]",
        "env_config.executor=local",
    )
    experiment = Path(__file__).parents[1] / "experiments/simplecall_ppo.py"
    return "train", "file", experiment, *(f"--set={setting}" for setting in settings)


class Trained(NamedTuple):
    """A run that came to its end."""

    storage: Path
    folder: Path
    said: Said


@pytest.fixture(scope="session")
def trained(ray_cluster, command, small, tmp_path_factory) -> Trained:
    """Two iterations of ``experiments/simplecall_ppo.py`` and its closing table, small, as the run ``mine``; look at it and leave it."""
    storage = tmp_path_factory.mktemp("runs")
    said = command("rllib", *small, "--samples=6", "--storage=.", "--name=mine", "--stop=training_iteration=2", cwd=storage)
    assert said.returncode == 0, said.stdout + said.stderr
    return Trained(storage, storage / "mine", said)


@contextlib.contextmanager
def run_server(app):
    """The guarded application of `ir-env serve` behind its real server, in a thread."""
    from experiments.measurements.serve import Service
    from experiments.serve.command import listening, server_of

    with listening("127.0.0.1", 0) as socket:
        server = server_of(app)
        thread = threading.Thread(target=server.run, args=([socket],))
        thread.start()
        try:
            yield Service("127.0.0.1", socket.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def running():
    """``with running(app) as server``, see :func:`run_server`."""
    return run_server


@pytest.fixture(scope="session")
def served(ray_cluster):
    """`ir-env serve` as it comes, but for the rate and for smaller bounds."""
    from experiments.cli.ir_env import build_parser
    from experiments.serve.command import service

    bounds = ("--max-megabytes=4", "--max-megapixels=2", "--rate=100000", "--timeout=240", "--instances=1")
    with service(build_parser().parse_args(["serve", "--policy=simplecall", "--policy=random", *bounds])) as app, run_server(app) as made:
        yield made
