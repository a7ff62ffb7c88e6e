"""Who decides: training-free planners and learned policies, all called through the same :class:`policies.planners.Planner`."""
