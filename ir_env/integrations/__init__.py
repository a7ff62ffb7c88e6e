"""Other projects' environments made of ours; each needs its extra. Engines that need prompts are in ``policies/integrations``."""
