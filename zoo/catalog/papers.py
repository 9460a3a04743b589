"""Papers: title and address of what an architecture comes from, as timm's own files name it, and of a method."""

import re

from zoo.catalog.entry import Entry
from zoo.catalog.methods import METHODS

# Pattern of the first word of timm's name of an architecture, before its size → title and number on arXiv; the longest
# that fits counts.
_ARCHITECTURES = {
    "beit(?!3)": ("BEiT: BERT Pre-Training of Image Transformers", "2106.08254"),
    "cifar_wideresnet": ("Wide Residual Networks", "1605.07146"),
    "convformer": ("MetaFormer Baselines for Vision", "2210.13452"),
    "convnext": ("A ConvNet for the 2020s", "2201.03545"),
    "convnextv2": (
        "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders",
        "2301.00808",
    ),
    "deit": ("Training data-efficient image transformers & distillation through attention", "2012.12877"),
    "deit3": ("DeiT III: Revenge of the ViT", "2204.07118"),
    "densenet(blur)?": ("Densely Connected Convolutional Networks", "1608.06993"),
    "ecaresnet(light)?": ("ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", "1910.03151"),
    "efficientformerv2": ("Rethinking Vision Transformers for MobileNet Size and Speed", "2212.08059"),
    "efficientnet": ("EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", "1905.11946"),
    "fbnetv3": ("FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining", "2006.02049"),
    "inception_v3": ("Rethinking the Inception Architecture for Computer Vision", "1512.00567"),
    "mobilenetv1": (
        "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
        "1704.04861",
    ),
    "mobilenetv2": ("MobileNetV2: Inverted Residuals and Linear Bottlenecks", "1801.04381"),
    "mobilevitv2": ("Separable Self-attention for Mobile Vision Transformers", "2206.02680"),
    "poolformer(v2)?": ("MetaFormer Is Actually What You Need for Vision", "2111.11418"),
    "(cifar_)?resnet(aa|blur)?": ("Deep Residual Learning for Image Recognition", "1512.03385"),
    r"(cifar_)?resnet\d+_v2": ("Identity Mappings in Deep Residual Networks", "1603.05027"),
    "rexnetr?": ("Rethinking Channel Dimensions for Efficient Model Design", "2007.00992"),
    "shufflenet": (
        "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
        "1707.01083",
    ),
    "swinv2": ("Swin Transformer V2: Scaling Up Capacity and Resolution", "2111.09883"),
    "tf_efficientnetv2": ("EfficientNetV2: Smaller Models and Faster Training", "2104.00298"),
    "vgg": ("Very Deep Convolutional Networks for Large-Scale Image Recognition", "1409.1556"),
    "vit": ("An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", "2010.11929"),
}


def papers(entry: Entry, method: str | None = None) -> dict[str, str]:
    """What a model's architecture and method come from.

    Args:
        entry: of the model.
        method: how it was really made; None is the entry's own.

    Returns:
        `architecture` and `method` → title and address; what isn't known is left out.
    """
    architecture = entry.base.architecture if entry.base and entry.base.source else entry.architecture
    titles = {}
    if fits := [name for name in _ARCHITECTURES if re.match(rf"{name}(?=\d|_|$)", architecture)]:
        title, number = _ARCHITECTURES[max(fits, key=len)]
        titles["architecture"] = f"{title}, https://arxiv.org/abs/{number}"
    if known := METHODS.get(method or entry.recipe.method or ""):
        titles["method"] = f"{known.title}, {known.url}"
    return titles
