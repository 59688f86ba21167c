"""How good are the clothes that hdit_pico_fashion makes? As nat_pico_fashion sees them.

python scripts/evaluate_samples.py                      # the packaged model makes 10,000: minutes
python scripts/evaluate_samples.py --samples file.npz   # with arrays `pixels` and `labels`
"""

from __future__ import annotations

import argparse

import numpy as np

from natten_zoo import load_pretrained
from natten_zoo.data.fashion_mnist import fashion_mnist
from natten_zoo.models import NAT, HDiT
from natten_zoo.tasks import sample
from natten_zoo.tasks.fidelity import frechet_distance, look


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="hdit_pico_fashion")
    parser.add_argument("--samples", help="images that were made before")
    parser.add_argument("--count", type=int, default=10_000, help="images of each kind")
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    labels = np.arange(args.count) % 10
    if args.samples:
        with np.load(args.samples) as file:
            pixels, labels = file["pixels"][: args.count], file["labels"][: args.count]
    else:
        model = load_pretrained(HDiT, args.model)
        pixels = sample(model, args.count, steps=args.steps, labels=labels, batch_size=500).pixels
    classifier = load_pretrained(NAT, "nat_pico_fashion")
    test, test_labels = (part[: args.count] for part in fashion_mnist("test"))
    train, train_labels = (part[-args.count :] for part in fashion_mnist("train"))
    truth = look(classifier, test[..., None])
    print(f"{'test images':24} agreement {truth.agreement(test_labels):.4f}")
    for name, images, meant in (
        ("training images", train[..., None], train_labels),
        ("samples", pixels, labels),
    ):
        seen = look(classifier, images)
        distance = frechet_distance(seen.features, truth.features)
        print(f"{name:24} agreement {seen.agreement(meant):.4f}  distance to test {distance:.3f}")


if __name__ == "__main__":
    main()
