"""The same files through timm's own validation transform and loop: the same logits and predictions, to the bit."""

import pytest
import timm
import torch
from photographs import LABELS, NAMES, jpegs

import zoo
from zoo.tasks.classification import CLASSIFICATION
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import Seen, evaluate_together
from zoo.tasks.identity import Identified

BATCH = 8
SEEN = {"input_size": (3, 48, 48), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("photographs")
    for split in ("train", "validation"):
        for number, (content, label) in enumerate(zip(jpegs(), LABELS, strict=True)):
            (place / split / NAMES[label]).mkdir(parents=True, exist_ok=True)
            (place / split / NAMES[label] / f"{number:02d}.jpg").write_bytes(content)
    return place


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves its files open
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("crop", [{"crop_pct": 0.875}, {"crop_pct": 1.0, "interpolation": "bilinear"}], ids=str)
def test_logits_and_predictions_are_those_of_timms_own_loop(folder, crop):
    model = zoo.create(zoo.Base("timm/test_resnet", {"num_classes": 2}))
    model.pretrained_cfg = {**model.pretrained_cfg, "interpolation": "bicubic", **SEEN, **crop}
    seen, right, logits = [], 0, []
    files = timm.data.create_dataset("", str(folder / "validation"))
    config = timm.data.resolve_data_config(model=model)
    reference = timm.data.create_loader(files, batch_size=BATCH, use_prefetcher=False, num_workers=0, **config)
    with torch.inference_mode():
        for images, labels in reference:
            logits.append(model(images))
            right += int((logits[-1].argmax(1) == labels).sum())
    model.register_forward_hook(lambda module, images, outputs: seen.append(outputs))
    transform = Identified(CLASSIFICATION.evaluation_transform(model.pretrained_cfg))
    batches = CLASSIFICATION.loader(dataset(str(folder), "test"), transform, BATCH)
    (found,) = evaluate_together([Seen(model)], batches, task=CLASSIFICATION)

    assert torch.equal(torch.cat(seen), torch.cat(logits))
    assert found["top1"] == right / len(files) == right / 64
