"""What `rllib train` is made of: reading an experiment, running it under Ray Tune, and showing how it goes."""
