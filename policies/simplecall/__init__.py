"""A SimpleCall-style policy: features of the image and the history of actions into an MLP actor-critic (arXiv 2512.18599)."""
