"""Writes a third of the test digits as PNG files, in a folder of even and a folder of odd ones.

    python examples/digit_images.py

They stand in for images of your own in the guide "From an install".
"""

from pathlib import Path

from PIL import Image

from levitax.data import open_data


def main() -> None:
    digits = open_data("digits").validation
    for index in range(0, len(digits.labels), 3):
        folder = Path("images", ("even", "odd")[digits.labels[index] % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.read(index).squeeze()).save(folder / f"{index:03}.png")


if __name__ == "__main__":
    main()
