"""``ir_env/Restoration-v0`` as an OpenEnv environment (extra ``openenv``): a server, and the client that drives it. See docs/openenv.md."""
