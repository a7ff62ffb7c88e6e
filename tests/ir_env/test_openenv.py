"""OpenEnv's server and client on our episodes, over a socket."""

import contextlib
import socket
import threading

import gymnasium
import numpy as np
import pytest

import ir_env

pytest.importorskip("openenv.core", reason="extra openenv: it wants another Pillow than others allow")

PROCESS = {"dataset": {"combos": "A"}, "metrics": ["psnr", "piqe"], "reward": "delta_psnr", "max_steps": 3}
CALLS = ("noise.gaussian25", "no.such.tool", "rain.light")


@pytest.fixture(scope="module")
def address():
    """A server that runs in a thread."""
    import uvicorn

    from ir_env.integrations.openenv.app import make_app

    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(PROCESS, sessions=2), port=port, log_level="error"))
    ready = threading.Event()
    startup = server.startup

    async def started(*arguments, **named):
        await startup(*arguments, **named)
        ready.set()

    server.startup = started
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(60)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


def client(address):
    from ir_env.integrations.openenv.client import RestorationClient

    return RestorationClient(base_url=address, connect_timeout_s=60, message_timeout_s=120).sync()


def call(tool):
    from ir_env.integrations.openenv.messages import RestorationAction

    return RestorationAction(tool=tool)


def same(observation, env, info):
    """Whether the client's observation is the environment's."""
    return (
        np.array_equal(observation.pixels, env.unwrapped.episode.state.as_uint8())
        and observation.metrics == pytest.approx(info["metrics"])
        and (observation.sample, observation.combo, observation.invalid) == (info["sample"], info["combo"], info["invalid"])
    )


def test_an_equal_seed_gives_the_environments_episode(address):
    env = gymnasium.make("ir_env:ir_env/Restoration-v0", **PROCESS)
    with client(address) as session:
        for seed in (3, 8):
            result, (_, info) = session.reset(seed=seed), env.reset(seed=seed)
            assert same(result.observation, env, info) and result.reward is None and "noise.gaussian25" in result.observation.tools
            for tool in CALLS:
                result = session.step(call(tool))
                _, reward, terminated, truncated, info = env.unwrapped.step(
                    -1 if tool == "no.such.tool" else env.unwrapped.actions.index(tool)
                )
                assert same(result.observation, env, info)
                assert (result.reward, result.done, result.observation.truncated) == (reward, terminated or truncated, truncated)
            assert result.done and session.state().step_count == 3 and result.observation.calls[1] == "malformed"


def test_sessions_go_on_side_by_side(address):
    with client(address) as first, client(address) as second:
        seen = first.reset(seed=3).observation
        other = second.reset(seed=4).observation
        moved = first.step(call("rain.light")).observation
        assert not np.array_equal(moved.pixels, seen.pixels) and second.state().step_count == 0
        assert np.array_equal(second.reset(sample=other.sample).observation.pixels, other.pixels)
        # the server says why and closes, and the client tells of the latter alone
        with pytest.raises(Exception), client(address) as third:  # noqa: B017
            third.reset(seed=5)
        assert second.step(call("stop")).done, "those that were there go on"


def test_what_goes_wrong_is_said(address):
    with client(address) as session:
        with pytest.raises(Exception, match="server starts from its dataset"):
            session.reset(seed=0, image="/etc/hostname")
        with pytest.raises(Exception, match="did you mean 'combo'"):
            session.reset(seed=0, comb="rain")
        assert session.reset(seed=0, combo="rain+haze").observation.combo == "rain+haze"


def test_settings_come_from_the_environment():
    from ir_env.integrations.openenv.app import settings_of

    assert settings_of({"IR_ENV_OPENENV": '{"max_steps": 2}'}) == {"settings": {"max_steps": 2}, "sessions": 64}
    with pytest.raises(ir_env.IrEnvError, match="IR_ENV_OPENENV"):
        settings_of({"IR_ENV_OPENENV": "[1]"})
