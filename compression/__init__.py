"""How a network is changed: cut, quantized, trained with distillation, exported.

``compression.policy`` holds the types that every other package shares and imports none of the heavy
libraries; everything else here may import torch.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # torch's exporter may import onnxruntime: latency_models
