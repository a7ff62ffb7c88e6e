import pytest

from experiments.training.pool_placement import pool_settings, settle_executor
from tool_actors.errors import IrEnvError


@pytest.mark.parametrize(
    ("asked", "available", "wanted"),
    [
        ({"CPU": 2, "GPU": 0}, {"CPU": 2}, "local"),
        ({"CPU": 2, "GPU": 0}, {"CPU": 3}, "local"),
        ({"CPU": 2, "GPU": 0}, {"CPU": 8}, "pool:run"),
        ({"CPU": 7, "GPU": 1}, {"CPU": 8, "GPU": 4}, "pool:run"),
    ],
)
def test_auto_takes_a_pool_where_there_is_room(asked, available, wanted):
    config: dict = {}
    assert settle_executor(config, asked, available, "run") == (wanted != "local")
    assert config["executor"] == wanted


def test_what_is_asked_for_is_done():
    for executor, wanted, own in (("local", "local", False), ("pool", "pool:run", True), ("pool:shared", "pool:shared", False)):
        config = {"executor": executor}
        assert settle_executor(config, {"CPU": 1}, {"CPU": 64}, "run") == own and config["executor"] == wanted
    with pytest.raises(IrEnvError, match="write auto, local, pool"):
        settle_executor({"executor": "cluster"}, {}, {}, "run")


def test_instances_go_on_what_the_run_leaves_free():
    [placement] = pool_settings(["tv.denoise"], {}, {"CPU": 4, "GPU": 1}, {"CPU": 32, "GPU": 8})["placements"]
    assert placement == {"num_gpus": 0.5, "max_replicas": 14}
    [placement] = pool_settings(["tv.denoise"], {"max_batch": 4}, {"CPU": 4}, {"CPU": 7})["placements"]
    assert placement == {"max_replicas": 3}
    own = pool_settings(["tv.denoise"], {"placements": [{"replicas": 2}]}, {"CPU": 4}, {"CPU": 4})
    assert own == {"toolbox": ["tv.denoise"], "placements": [{"replicas": 2}]}
    with pytest.raises(IrEnvError, match="lower num_env_runners"):
        pool_settings(["tv.denoise"], {}, {"CPU": 2}, {"CPU": 2})
