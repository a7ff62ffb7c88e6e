"""GRPO for restoration policies: whole groups of rollouts, advantages from several image-quality metrics, a clipped token loss.

``advantages`` and ``loss`` are plain numpy and torch; ``rollouts`` reads episodes; ``policy`` says what an RLModule must offer;
``env_runner``, ``learner``, ``config`` and ``algorithm`` bind them to RLlib.
"""
