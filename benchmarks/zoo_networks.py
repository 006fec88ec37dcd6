"""The networks of benchmarks/zoo.py: how each is built with random weights, and an input that it takes.

torchvision, timm and transformers are imported by what needs them: none is a dependency of leanfront.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Any, ...]]
"""A network and example inputs with a batch of one."""


@dataclass(frozen=True)
class Entry:
    """A network of the zoo. ``size``: the images that it needs; None: any, taken from --size."""

    name: str
    source: str
    make: Callable[[int], Built]
    size: int | None = None


def image(size: int, channels: int = 3) -> tuple[Tensor]:
    """Random pixels, a batch of one."""
    return (torch.randn(1, channels, size, size),)


# torchvision

_CLASSIFIERS = (
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121",
    "squeezenet1_1", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf",
    "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
)  # fmt: skip
_AT_224 = ("vit_b_16", "maxvit_t", "swin_t", "swin_v2_t")
_SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")


def _torchvision(name: str) -> Callable[[int], Built]:
    def make(size: int) -> Built:
        from torchvision import models

        options: dict[str, Any] = {"weights": None}
        if name in _SEGMENTATION:
            options |= {"weights_backbone": None}
            return models.get_model(name, **options), image(size)
        if name == "r3d_18":
            return models.get_model(name, **options), (torch.randn(1, 3, 8, size, size),)
        if name in ("googlenet", "inception_v3"):
            options |= {"init_weights": False}
        return models.get_model(name, **options), image(size)

    return make


# timm

_TIMM = (
    "resnet10t", "seresnet18", "mobilenetv1_100", "mobilenetv4_conv_small", "mixnet_s", "ghostnet_100",
    "hrnet_w18_small", "dla46_c", "ese_vovnet19b_dw", "cspresnet50", "repvgg_a0", "mobileone_s0",
    "convnextv2_atto", "mixer_s32_224", "gmlp_ti16_224", "poolformer_s12", "deit_tiny_patch16_224",
    "levit_128s", "edgenext_xx_small", "mobilevit_xxs", "pvt_v2_b0", "pit_ti_224", "nfnet_l0", "regnetz_b16",
    "lcnet_050", "starnet_s1", "inception_next_atto", "resnest14d", "skresnet18", "rexnet_100",
    "efficientformer_l1", "hgnetv2_b0",
)  # fmt: skip


def _timm(name: str) -> Callable[[int], Built]:
    def make(size: int) -> Built:
        import timm

        return timm.create_model(name, num_classes=100), image(size)

    return make


def _timm_size(name: str) -> int | None:
    fixed = ("levit", "efficientformer", "pvt", "mobilevit", "edgenext")
    return 224 if name.endswith("_224") or name.startswith(fixed) else None


# transformers

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_WORDS = {**_SMALL, "vocab_size": 100, "max_position_embeddings": 40}
_PICTURES = {**_SMALL, "image_size": 32, "patch_size": 8}
_TRANSFORMERS: Mapping[str, tuple[str, str, Mapping[str, Any], str]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", _WORDS, "words"),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", {**_WORDS, "pad_token_id": 0}, "words"),
    "electra": ("ElectraConfig", "ElectraForTokenClassification", {**_WORDS, "embedding_size": 16}, "words"),
    "albert": ("AlbertConfig", "AlbertForSequenceClassification", {**_WORDS, "embedding_size": 16}, "words"),
    "distilbert": (
        "DistilBertConfig", "DistilBertForSequenceClassification",
        {"vocab_size": 100, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4,
         "max_position_embeddings": 40}, "words",
    ),
    "t5_encoder": (
        "T5Config", "T5EncoderModel",
        {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, "words",
    ),
    "vit": ("ViTConfig", "ViTForImageClassification", _PICTURES, "image"),
    "deit": ("DeiTConfig", "DeiTForImageClassification", _PICTURES, "image"),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", _PICTURES, "image"),
    "hf_convnext": (
        "ConvNextConfig", "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 32}, "image",
    ),
    "hf_resnet": (
        "ResNetConfig", "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2], "layer_type": "bottleneck"},
        "image",
    ),
    "segformer": (
        "SegformerConfig", "SegformerForSemanticSegmentation",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
         "decoder_hidden_size": 16, "num_labels": 5}, "image64",
    ),
    "wav2vec2": (
        "Wav2Vec2Config", "Wav2Vec2ForSequenceClassification",
        {**_SMALL, "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2),
         "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
         "classifier_proj_size": 16}, "sound",
    ),
}  # fmt: skip


def _transformers(name: str) -> Callable[[int], Built]:
    def make(size: int) -> Built:
        import transformers

        config, kind, options, reads = _TRANSFORMERS[name]
        model = getattr(transformers, kind)(getattr(transformers, config)(**options))
        inputs = {
            "words": lambda: torch.randint(1, 100, (1, 16)),
            "image": lambda: torch.randn(1, 3, 32, 32),
            "image64": lambda: torch.randn(1, 3, 64, 64),
            "sound": lambda: torch.randn(1, 800),
        }
        return model, (inputs[reads](),)

    return make


# small ones for sound, sequences, images in and out, boxes, numbers


class KeywordSpotting(nn.Sequential):
    """Conv1d on spectra (40 bands, 50 frames)."""

    def __init__(self) -> None:
        def block(before: int, after: int, stride: int = 1) -> list[nn.Module]:
            return [
                nn.Conv1d(before, before, 5, stride, 2, groups=before), nn.Conv1d(before, after, 1),
                nn.BatchNorm1d(after), nn.ReLU(),
            ]  # fmt: skip

        super().__init__(
            nn.Conv1d(40, 32, 3, padding=1), nn.BatchNorm1d(32), nn.ReLU(), *block(32, 48, 2), *block(48, 48),
            nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(48, 12),
        )  # fmt: skip


class Recurrent(nn.Module):
    """A GRU or LSTM between linear layers, on (N, T, 16)."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.before, self.kept = nn.Linear(16, 24), kind(24, 32, batch_first=True)
        self.inner, self.head = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.kept(F.relu(self.before(x)))
        return self.head(F.relu(self.inner(x[:, -1])))


class UNet(nn.Module):
    """Two levels, transposed convolutions, concatenations."""

    def __init__(self) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())

        self.a, self.b, self.c = block(3, 16), block(16, 32), block(32, 48)
        self.up1, self.up2 = nn.ConvTranspose2d(48, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.d, self.e, self.head = block(64, 32), block(32, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        y = self.d(torch.cat([self.up1(c), b], 1))
        return self.head(self.e(torch.cat([self.up2(y), a], 1)))


class SuperResolution(nn.Sequential):
    """PReLU and PixelShuffle."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5, padding=2), nn.PReLU(16), nn.Conv2d(16, 16, 3, padding=1), nn.PReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 1, 3, padding=1),
        )  # fmt: skip


class Autoencoder(nn.Sequential):
    """Strided convolutions down, transposed ones up, a sigmoid at the end."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(24, 16, 3, 2, 1, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(16, 3, 3, 2, 1, output_padding=1), nn.Sigmoid(),
        )  # fmt: skip


class Regression(nn.Sequential):
    """Numbers in, one number out."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(12, 64), nn.BatchNorm1d(64), nn.LeakyReLU(),
            nn.Linear(64, 32), nn.ELU(), nn.Linear(32, 1),
        )  # fmt: skip


class Detector(nn.Module):
    """Boxes and classes of two scales, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.c, self.lateral = nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(32, 32, 1)
        self.boxes, self.classes = nn.Conv2d(32, 8, 1), nn.Conv2d(32, 10, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        b = F.silu(self.b(F.silu(self.a(x))))
        c = F.silu(self.c(b))
        b = F.silu(self.lateral(b) + F.interpolate(c, scale_factor=2.0, mode="nearest"))
        both = [b, c]
        return {
            "boxes": torch.cat([self.boxes(level).flatten(2) for level in both], 2).sigmoid(),
            "classes": torch.cat([self.classes(level).flatten(2) for level in both], 2),
        }


class TwoInputs(nn.Module):
    """An image and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(6, 16)
        self.inner, self.head = nn.Linear(32, 24), nn.Linear(24, 4)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        x = F.relu(self.image(image)).mean((2, 3))
        return self.head(F.relu(self.inner(torch.cat([x, F.relu(self.vector(vector))], 1))))


class TemporalConvolutions(nn.Module):
    """Dilated convolutions with weight_norm, padded on one side, with residual connections."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.first = norm(nn.Conv1d(8, 24, 3, dilation=1))
        self.second = norm(nn.Conv1d(24, 24, 3, dilation=2))
        self.third = norm(nn.Conv1d(24, 24, 3, dilation=4))
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.pad(x, (2, 0))))
        x = x + F.relu(self.second(F.pad(x, (4, 0))))
        x = x + F.relu(self.third(F.pad(x, (8, 0))))
        return self.head(x[:, :, -1])


class Encoder(nn.Module):
    """torch's own transformer layers on embedded words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.words(ids)).mean(1))


_OWN: Mapping[str, Callable[[], Built]] = {
    "keyword_spotting": lambda: (KeywordSpotting(), (torch.randn(1, 40, 50),)),
    "gru_classifier": lambda: (Recurrent(nn.GRU), (torch.randn(1, 20, 16),)),
    "lstm_classifier": lambda: (Recurrent(nn.LSTM), (torch.randn(1, 20, 16),)),
    "unet": lambda: (UNet(), image(32)),
    "super_resolution": lambda: (SuperResolution(), image(24, 1)),
    "autoencoder": lambda: (Autoencoder(), image(32)),
    "regression": lambda: (Regression(), (torch.randn(1, 12),)),
    "detector": lambda: (Detector(), image(64)),
    "two_inputs": lambda: (TwoInputs(), (torch.randn(1, 3, 32, 32), torch.randn(1, 6))),
    "temporal_convolutions": lambda: (TemporalConvolutions(), (torch.randn(1, 8, 40),)),
    "encoder": lambda: (Encoder(), (torch.randint(0, 50, (1, 12)),)),
}


def zoo(cases: Path | None = None) -> dict[str, Entry]:
    """All networks by name. ``cases``: a file with NETWORKS, name -> (class, shape without the batch)."""
    found = [Entry(n, "torchvision", _torchvision(n), 224 if n in _AT_224 else None) for n in _CLASSIFIERS]
    found += [Entry(name, "torchvision", _torchvision(name)) for name in (*_SEGMENTATION, "r3d_18")]
    found += [Entry(f"timm_{name}", "timm", _timm(name), _timm_size(name)) for name in _TIMM]
    found += [Entry(name, "transformers", _transformers(name)) for name in _TRANSFORMERS]
    found += [Entry(name, "own", lambda size, make=make: make()) for name, make in _OWN.items()]
    if cases is not None:
        spec = importlib.util.spec_from_file_location("cases", cases)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, (kind, shape) in module.NETWORKS.items():
            found.append(Entry(name, "cases", lambda _, k=kind, s=shape: (k(), (torch.randn(1, *s),))))
    return {entry.name: entry for entry in found}
