"""The default sampler: from what is cheap to know (costs, sensitivities, untrained networks) to the front.

encoding: policies as integers. zero_cost_front: a million policies by sums of sensitivities. gaussian and
surrogate: what trials have shown, carried to policies that were not tried. expected_hypervolume: what a
policy may win.
acquisition: the policy that promises most. inherited_trials: policies that need no training of their own.
sampler: all of it as one of Optuna's samplers.
"""
