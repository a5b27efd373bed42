"""Draws LeViT-256, from its configuration: `python docs/draw_architecture.py`.

Boxes are coloured and everything else is grey, readable on light and dark pages.
"""

from pathlib import Path

import equinox as eqx
import jax

import levitax


IMAGE = Path(__file__).parent / "pages" / "architecture.svg"

CONVOLUTION, ATTENTION, MLP, HEAD, GREY = "#3f6fa0", "#a8503c", "#4f7a3a", "#74558f", "#808080"

WIDTH, HEIGHT = 740, 480


class Drawing:
    """Collects the shapes of an SVG file. `middle` is the y of the current row."""

    def __init__(self):
        self.shapes: list[str] = []
        self.middle = 0

    def text(self, x: float, y: float, string: str, *, size: int = 13, color: str = GREY, bold: bool = False) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.shapes.append(
            f'<text x="{x}" y="{self.middle + y}" font-size="{size}" fill="{color}"{weight}>{string}</text>'
        )

    def box(self, x: float, width: float, color: str, *lines: str, top: float = -34, height: float = 68) -> None:
        self.shapes.append(
            f'<rect x="{x}" y="{self.middle + top}" width="{width}" height="{height}" rx="5" fill="{color}"/>'
        )
        first = top + height / 2 - 8 * (len(lines) - 1) + 4.5
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + 16 * number, line, color="white")

    def frame(self, x: float, width: float, title: str) -> None:
        self.shapes.append(f'<rect x="{x}" y="{self.middle - 42}" width="{width}" height="122" rx="9" class="line"/>')
        self.text(x + width / 2, -52, title, bold=True)

    def arrow(self, x: float, length: float, *, y: float = 0) -> None:
        self.path(f"M{x} {self.middle + y}h{length - 6}")

    def path(self, steps: str) -> None:
        self.shapes.append(f'<path d="{steps}" class="line" marker-end="url(#head)"/>')


def main() -> None:
    IMAGE.write_text(draw())


def draw() -> str:
    model, _ = eqx.filter_eval_shape(levitax.levit_256, key=jax.random.key(0))
    drawing = Drawing()
    drawing.middle = 72
    draw_stages(drawing, draw_stem(drawing, 6, model), model, [0, 1])
    drawing.middle = 246
    draw_heads(drawing, draw_stages(drawing, 110, model, [2]), model)
    drawing.middle = 408
    draw_attention(drawing, 6, model.config)
    shapes = "\n".join(drawing.shapes)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" text-anchor="middle">
<title>LeViT-256: four convolutions, three stages of attention and MLP blocks, the mean token, two heads</title>
<style>.line {{ fill: none; stroke: {GREY}; stroke-width: 1.5 }}</style>
<marker id="head" viewBox="0 0 8 8" refX="2" refY="4" markerWidth="6" markerHeight="6" orient="auto">\
<path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker>
{shapes}
</svg>
"""


def draw_stem(drawing: Drawing, x: float, model: levitax.LeViT) -> float:
    """Draws the image and the stem from `x` on; like `draw_stages`, returns where the drawing ends."""
    height, width = model.config.image_size
    drawing.text(x + 30, -6, "image")
    drawing.text(x + 30, 11, f"{height}x{width}x{model.config.in_channels}", size=11)
    drawing.arrow(x + 64, 20)
    left = x = x + 86
    for convolution in model.stem.convolutions:
        height, width = -(-height // 2), -(-width // 2)
        drawing.box(x + 6, 42, CONVOLUTION, "conv", "3x3")
        drawing.text(x + 27, 53, f"{height}x{width}", size=11)
        drawing.text(x + 27, 68, str(convolution.weight.shape[0]), size=11)
        x += 46
    drawing.frame(left, x + 8 - left, "stem")
    return x + 8


def draw_stages(drawing: Drawing, x: float, model: levitax.LeViT, numbers: list[int]) -> float:
    config = model.config
    for number in numbers:
        drawing.arrow(x, 20)
        left = x + 22
        x = left + 7
        if number:
            heads = config.subsample_heads[number - 1]
            drawing.box(x, 76, ATTENTION, "downsampling", "attention", f"{heads} heads")
            drawing.box(x + 80, 40, MLP, "MLP")
            x += 124
        drawing.box(x, 66, ATTENTION, "attention", f"{config.heads[number]} heads")
        drawing.box(x + 70, 40, MLP, "MLP")
        drawing.text(x + 55, 53, f"{config.depth[number]} times", size=11)
        x += 117
        drawing.frame(left, x - left, f"stage {number + 1}")
        rows, columns = config.grid(number)
        drawing.text((left + x) / 2, 69, f"{rows}x{columns} tokens of {config.dim[number]}", size=11)
    return x


def draw_heads(drawing: Drawing, x: float, model: levitax.LeViT) -> None:
    drawing.arrow(x, 20)
    drawing.box(x + 22, 50, GREY, "mean")
    drawing.arrow(x + 72, 20)
    drawing.box(x + 94, 92, HEAD, "classifier", top=-42, height=38)
    drawing.box(x + 94, 92, HEAD, "distillation", top=4, height=38)
    drawing.text(x + 140, -52, "heads", bold=True)
    drawing.text(x + 140, 60, f"{model.config.num_classes} classes", size=11)


def draw_attention(drawing: Drawing, x: float, config: levitax.LeViTConfig) -> None:
    drawing.text(WIDTH / 2, -50, "attention", bold=True)
    drawing.text(x + 22, 4, "tokens")
    drawing.arrow(x + 46, 20)
    drawing.box(x + 68, 90, CONVOLUTION, "linear map,", "normalised")
    key_dim, value_dim = config.key_dim[0], config.value_dim[0]
    for row, sizes in enumerate((f"Q: {key_dim}", f"K: {key_dim}", f"V: {value_dim}")):
        drawing.arrow(x + 158, 50, y=24 * (row - 1))
        drawing.text(x + 180, 24 * (row - 1) - 4, sizes, size=11)
    drawing.box(x + 210, 182, ATTENTION, "softmax(Q Kᵀ / √d + bias) V", "bias: by head and distance")
    drawing.arrow(x + 392, 18)
    drawing.box(x + 412, 80, GREY, "hard-swish")
    drawing.arrow(x + 492, 18)
    drawing.box(x + 512, 90, CONVOLUTION, "linear map,", "normalised")
    drawing.arrow(x + 602, 20)
    drawing.shapes.append(f'<circle cx="{x + 634}" cy="{drawing.middle}" r="10" class="line"/>')
    drawing.text(x + 634, 5, "+", size=16)
    drawing.path(f"M{x + 54} {drawing.middle}v52h580v-36")
    drawing.text(x + 344, 66, "residual connection, but where the grid shrinks", size=11)
    drawing.arrow(x + 644, 22)
    drawing.text(x + 694, 4, "tokens")


if __name__ == "__main__":
    main()
