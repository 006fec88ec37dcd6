"""Which changes are worth it: the search loop, the Pareto front and the command line.

``search.cli`` imports none of the heavy libraries (torch, optuna, pandas); commands load what they need.
"""
