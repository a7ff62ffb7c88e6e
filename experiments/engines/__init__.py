"""Trainings of our episodes in other engines; docs/trl.md and docs/verl.md say how they go."""
