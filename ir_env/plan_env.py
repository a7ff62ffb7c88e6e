"""``ir_env/RestorationPlan-v0``: one step, whose action is a whole plan (OPERA)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ir_env.env import RestorationEnv
from ir_env.episode import Outcome
from ir_env.plan_process import PlanProcess
from ir_env.plan_reward import PARTS
from ir_env.vector_env import RestorationVectorEnv
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS

__all__ = ["RestorationPlanEnv", "RestorationPlanVectorEnv"]

RESET = Outcome(parts=dict.fromkeys(PARTS, 0.0))


class RestorationPlanEnv(RestorationEnv):
    """Answer a degraded photograph with a whole plan; it is executed, and the episode has ended.

    ## Action Space
    ``MultiDiscrete([2] * 8 + [n + 1] * max_plan)``: which degradations are there, in the order of ``tool_actors.tasks.DEGRADATIONS``, then
    the plan as indices of ``env.unwrapped.actions``, ended by that of stop. Repeats, and tools for degradations that are not there, are
    allowed. A text is an action, too:

    >>> env = gymnasium.make("ir_env/RestorationPlan-v0", disable_env_checker=True)
    >>> observation, info = env.reset(seed=0)
    >>> seen = "<think>It is noisy, and there is haze.</think><degradation>['noise', 'haze']</degradation>"
    >>> observation, reward, terminated, truncated, info = env.step(seen + "<answer>['noise.gaussian25', 'dcp.light']</answer>")

    A malformed answer runs nothing, and its reward is 0; see :mod:`ir_env.plan_answer` for what is well-formed.

    ## Observation Space, Starting State, Information
    Those of :class:`ir_env.env.RestorationEnv`. ``info["parts"]`` has Rq, Rd, Rf and Rc as ``quality``, ``degradation``, ``format`` and
    ``consistency``; ``info["tool"]`` the tools of the plan, joined by ``+``.

    ## Rewards
    ``opera`` (R = Rq · Rd · Rf · Rc), ``opera_code`` (the form of its released code), or one of those of ``ir_env/Restoration-v0``; see
    :mod:`ir_env.plan_reward`.

    ## Arguments
    Those of :class:`ir_env.plan_process.PlanProcess`, ``view`` and ``render_mode``.

    ## References
    OPERA (arXiv 2605.22104), section 4.2.

    ## Version History
    * v0: initial version.
    """

    _make_process: Callable[..., Any] = PlanProcess
    _reset_outcome = RESET

    def action_masks(self) -> np.ndarray:
        """bool (16 + max_plan * (n + 1),): the choices of each degradation, then those of each place of the plan, one after another; a
        plan is not empty, so that its first place is not stop."""
        return plan_masks(super().action_masks(), self.process.max_steps)


def plan_masks(mask: np.ndarray, max_plan: int) -> np.ndarray:
    """That of a plan, from that of its first action, bool (n + 1,)."""
    first = mask.copy()
    first[-1] = False
    return np.concatenate([np.ones(2 * len(DEGRADATIONS), bool), first, *[mask] * (max_plan - 1)])


class RestorationPlanVectorEnv(RestorationVectorEnv):
    """N sub-environments of ``ir_env/RestorationPlan-v0``: plans run together, each common beginning once.

    Autoreset, groups and ``info`` are those of :class:`ir_env.vector_env.RestorationVectorEnv`.
    """

    _make_process: Callable[..., Any] = PlanProcess
    _reset_outcome = RESET

    def action_masks(self) -> np.ndarray:
        """bool (N, 16 + max_plan * (n + 1)), see :meth:`RestorationPlanEnv.action_masks`."""
        return np.stack([plan_masks(mask, self.process.max_steps) for mask in super().action_masks()])

    def _split(self, actions) -> list[Any]:
        # of indices (N, T), of texts a sequence
        listed = list(actions)
        if len(listed) != self.num_envs:
            raise IrEnvError(f"{len(listed)} plans for {self.num_envs} sub-environments")
        return [str(action) if isinstance(action, str | np.str_) else action for action in listed]
