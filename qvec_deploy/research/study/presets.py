"""What studies know by name: the released backbones, the bundled tasks, and the paper's 22."""

from __future__ import annotations

from dataclasses import dataclass

from qvec_deploy.datasets.spec import Split

BACKBONES = {
    "vit_b": "vit_base_patch16_224.orig_in21k",
    "vit_l": "vit_large_patch16_224.orig_in21k",
    "vit_h": "vit_huge_patch14_224.orig_in21k",
    "deit3_b": "deit3_base_patch16_224.fb_in1k",
    "deit3_l": "deit3_large_patch16_224.fb_in1k",
    "swin_b": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "swin_l": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
}
"""The backbones of arXiv 2604.03420 with released fine-tunes, by timm's exact identifiers."""

TINY_TASKS = ("realdigits", "lower", "upper", "symbols", "pairs", "outline")
"""The six bundled tasks; `tiny/mix` is what their base is trained on."""


@dataclass(frozen=True)
class PaperTask:
    """A task of the paper.

    Attributes:
        dataset: Its name for timm's factory, on the Hub.
        epochs: Of either fine-tune, and in the names of the released files.
        odd: Why it cannot be opened there as the paper did; empty where it can.
    """

    dataset: str
    classes: int
    epochs: int
    test: Split = "test"
    odd: str = ""


PAPER_TASKS = {
    "Cars": PaperTask("hfds/tanganke/stanford_cars", 196, 35),
    "DTD": PaperTask("hfds/tanganke/dtd", 47, 76),
    "EuroSAT": PaperTask("hfds/tanganke/eurosat", 10, 12),
    "GTSRB": PaperTask("hfds/tanganke/gtsrb", 43, 11),
    "MNIST": PaperTask("hfds/ylecun/mnist", 10, 5),
    "RESISC45": PaperTask("hfds/tanganke/resisc45", 45, 15),
    "SUN397": PaperTask("hfds/tanganke/sun397", 397, 14),
    "SVHN": PaperTask("hfds/ufldl-stanford/svhn", 10, 4, odd="it has two configurations"),
    "CIFAR10": PaperTask("hfds/uoft-cs/cifar10", 10, 6),
    "CIFAR100": PaperTask("hfds/uoft-cs/cifar100", 100, 6),
    "STL10": PaperTask("hfds/tanganke/stl10", 10, 60),
    "Food101": PaperTask("hfds/ethz/food101", 101, 4, test="val"),
    "Flowers102": PaperTask("hfds/dpdl-benchmark/oxford_flowers102", 102, 147),
    "FER2013": PaperTask("hfds/clip-benchmark/wds_fer2013", 7, 10, odd="its columns are called jpg and cls"),
    "PCAM": PaperTask("hfds/1aurent/PatchCamelyon", 2, 1),
    "OxfordIIITPet": PaperTask("hfds/timm/oxford-iiit-pet", 37, 82),
    "RenderedSST2": PaperTask("hfds/nateraw/rendered-sst2", 2, 39),
    "EMNIST": PaperTask(
        "hfds/tanganke/emnist_letters", 26, 2, odd="the paper turned its images by -90 degrees and flipped them"
    ),
    "FashionMNIST": PaperTask("hfds/zalando-datasets/fashion_mnist", 10, 5),
    "KMNIST": PaperTask("hfds/tanganke/kmnist", 10, 5),
    "TinyImageNet": PaperTask("hfds/zh-plus/tiny-imagenet", 200, 4, test="val"),
    "ImageNet": PaperTask("hfds/ILSVRC/imagenet-1k", 1000, 1, test="val"),
}
"""The paper's tasks by its names. Its validation images are a tenth of the training images, 5,000 at most: where a task
is opened on the Hub, training images choose here too; a folder has a val split of its own, and its images
must be as the fine-tunes saw them: those of EMNIST turned by -90 degrees and flipped."""
