"""TIR-Agent at nano scale and at 8B: the stages, each a script of its own, and ``__main__``, which runs them all."""
