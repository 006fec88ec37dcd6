"""The default sampler: from what is cheap to know (costs, sensitivities, untrained networks) to the front.

encoding: policies as integers. cheap_front: a million policies by sums of sensitivities. gaussian, surrogate:
what trials have shown, carried to policies that were not tried. gain: how much hypervolume a policy may win.
proposing: the policy that promises most. sampler: all of it as one of Optuna's samplers.
"""
