"""How a network is changed: cut, quantized, trained with distillation, exported.

``compression.policy`` holds the types that every other package shares and imports none of the heavy
libraries; everything else here may import torch.
"""
