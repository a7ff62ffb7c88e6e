"""OPERA: the planner, the study of all plans, tools that learn together, and the analyses of the paper."""
