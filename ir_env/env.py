"""``ir_env/Restoration-v0``: one restoration action per step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import EzPickle

from ir_env.episode import Episode
from ir_env.observation import RESET, inform, observation_space, observe
from ir_env.process import RestorationProcess
from ir_env.rendering import film_strip, show, transcript
from ir_env.reset_options import start_episodes
from ir_env.view import View
from tool_actors.errors import IrEnvError

__all__ = ["RestorationEnv"]


class RestorationEnv(gymnasium.Env[dict[str, np.ndarray], int], EzPickle):
    """Choose restoration tools for a degraded photograph, one after another, and stop.

    ## Description
    A clean photograph has been degraded by several causes at once. At each step the agent applies one tool of the toolbox to the
    current image, or stops. Tools excel at their own degradation and harm images that do not have it, and their order matters.

    ## Action Space
    ``Discrete(n + 1)``: index i applies ``env.unwrapped.actions[i]``, a (task, tool) pair; the last index stops. Language models may
    also send ``ir_env.actions.MALFORMED`` (-1) for an answer that names no action.

    ## Observation Space
    ``Dict``, by default with V = S = 64 and K = 4 (``view`` may leave pictures out, or show a vision-language model the whole image):

    | key | space | meaning |
    | --- | --- | --- |
    | overview | ``Box(0, 255, (V, V, 3), uint8)`` | RGB, all of the image, area-reduced, its aspect kept |
    | glimpses | ``Box(0, 255, (K, S, S, 3), uint8)`` | squares of native pixels, from the flattest to the most textured |
    | size | ``Box(1, 1e6, (2,), float32)`` | height and width of the image in pixels |
    | history | ``MultiDiscrete([n + 2] * max_steps)`` | actions so far, as index + 1; 0 where none yet |
    | step | ``Box(0, max_steps, (1,), float32)`` | number of actions so far |
    | action_mask | ``MultiBinary(n + 1)`` | 1 where allowed; forbids only super-resolution, except once and on low-resolution images |

    ## Rewards
    By name: ``delta_iqa`` (default: weighted increment of the metrics), ``delta_psnr`` (dB), ``final_iqa`` (weighted metrics at the
    end); or a function of a :class:`ir_env.rewards.Transition`. A forbidden action leaves the image as it is, counts as a step and
    is rewarded with ``invalid_reward``, a malformed one with ``malformed_reward``.

    ## Starting State
    A sample of the dataset, drawn with the seed of ``reset``. ``options`` override it:

    * ``{"combo": "rain+haze"}`` fixes the degradations;
    * ``{"sample": id}`` replays an ``info["sample"]``;
    * ``{"image": path or uint8 array}`` starts from a user's image: with ``combo`` it is degraded first and is its own reference;
      without, it is restored as it is, which needs metrics that need no reference, with a weight each, and the size below which a
      photograph may be super-resolved:

    >>> env = gymnasium.make(
    ...     "ir_env/Restoration-v0", metrics=["niqe", "piqe"], reward_weights={"niqe": 1.0, "piqe": 0.1}, low_resolution_below=300
    ... )
    >>> observation, info = env.reset(options={"image": "photograph.png"})
    >>> observation, reward, terminated, truncated, info = env.step(env.unwrapped.actions.index("tv.denoise"))

    ## Episode End
    Terminates on stop, or when a tool fails (``info["error"]``); truncates after ``max_steps`` actions.

    ## Information
    ``metrics`` (one float per metric, in its own orientation), ``undefined`` (how many of them had no value and stand at their worst),
    ``sample``, ``combo``, ``group``, ``tool`` (of this step; "" at reset), ``tool_seconds``, ``invalid``, ``error``.

    ## Arguments
    Those of :class:`ir_env.process.RestorationProcess` (dataset, toolbox, metrics, reward, max_steps, ...) and:

    * ``view``: what is seen, see :class:`ir_env.view.View`; a mapping of its settings, or None for the usual one.
    * ``render_mode``: ``rgb_array`` (the strip before | steps | after, with captions), ``human`` (the same in a window), ``ansi``.

    A pickled environment is made anew from its arguments, and wants a ``reset``. :meth:`action_masks` is what MaskablePPO of sb3-contrib
    asks for.

    ## References
    RL-Restore (Yu et al., CVPR 2018); AgenticIR (Zhu et al., ICLR 2025); SimpleCall (arXiv 2512.18599).

    ## Version History
    * v0: initial version.
    """

    metadata = {"render_modes": ["rgb_array", "human", "ansi"], "render_fps": 2}

    def __init__(self, view: View | Mapping[str, Any] | None = None, render_mode: str | None = None, **process_arguments: Any):
        check_render_mode(render_mode, self.metadata)
        EzPickle.__init__(self, view, render_mode, **process_arguments)
        self.process = self._make_process(**process_arguments)
        self.actions = self.process.actions
        self.view, self.render_mode = View.of(view), render_mode
        self.observation_space = observation_space(self.actions, self.view, self.process.max_steps)
        self.action_space = self.process.action_space
        self.episode: Episode | None = None

    _make_process: Callable[..., Any] = RestorationProcess
    _reset_outcome = RESET

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        [self.episode] = start_episodes(self.process, [self.np_random], options)
        if self.render_mode == "human":
            self.render()
        return self._observation(self.episode), inform(self.episode, self.process.suite.names, self._reset_outcome)

    def step(self, action: int):
        if self.episode is None:
            raise IrEnvError("call reset() before step()")
        [outcome] = self.process.step([self.episode], [action])
        if self.render_mode == "human":
            self.render()
        info = inform(self.episode, self.process.suite.names, outcome)
        return self._observation(self.episode), outcome.reward, outcome.terminated, outcome.truncated, info

    def action_masks(self) -> np.ndarray:
        """bool (n + 1,): which actions are allowed now."""
        if self.episode is None:
            raise IrEnvError("call reset() before action_masks()")
        return self.episode.mask.astype(bool)

    # gymnasium's type variable of the frames belongs to the method, so that no override that returns frames can agree with it
    def render(self):  # pyrefly: ignore[bad-override]
        if self.episode is None or self.render_mode is None:
            return None
        if self.render_mode == "ansi":
            return transcript(self.episode, self.actions, self.process.suite.names)
        strip = film_strip(self.episode, self.actions, self.process.suite.names)
        return show(strip) if self.render_mode == "human" else strip

    def _observation(self, episode: Episode) -> dict[str, np.ndarray]:
        observation = observe(episode, self.view, self.process.max_steps)
        return {key: value.copy() for key, value in observation.items()}


def check_render_mode(render_mode: str | None, metadata: dict[str, Any]) -> None:
    if render_mode is not None and render_mode not in metadata["render_modes"]:
        raise IrEnvError(f"render_mode must be one of {metadata['render_modes']} or None, not {render_mode!r}")
