"""Speed and memory against peers: same weights, same work, same run, contenders in turn.

Every contender lives in a process of its own (:mod:`benchmarks.worker`), because two thread pools in one process slow
each other, and because some peers cannot share an environment with the project. Modules that run there
(``worker``, ``workload``, ``contenders``) import nothing but the standard library and what their contender needs.
"""
