"""How a network is changed: cut, quantized, trained with distillation, exported.

``compression.policy`` holds the types that every other package shares and imports none of the heavy
libraries; everything else here may import torch.
"""

import os

# Here, since every package that uses onnxruntime imports this one first: from 1.29 on PyPI's onnxruntime
# writes a device id under the home folder as soon as it is imported, and sends what it runs (names and hashes
# of models) to Microsoft, unless it was told not to before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
