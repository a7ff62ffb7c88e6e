"""What a user runs: experiment files, benchmarks and the commands `rllib` and `ir-env`."""
