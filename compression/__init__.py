"""How a network is changed: cut, quantized, trained with distillation, exported.

``graph`` and ``policy`` hold the types that every other package shares and import none of the heavy
libraries; everything else here may import torch.
"""

from leanfront.compression import techniques as techniques
