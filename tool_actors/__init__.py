"""Who acts on pixels: restoration tools, the toolbox that holds them, and the executors that run them.

Nothing in this package knows a reward, a policy or an environment.
"""
