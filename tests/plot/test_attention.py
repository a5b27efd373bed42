import io
import pickle
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import levitax
from levitax import plot


def shown(figure) -> list[np.ndarray]:
    """Returns the topmost array of each panel that is not empty."""
    return [np.asarray(panel.images[-1].get_array()) for panel in figure.axes if panel.images]


def titles(figure) -> list[str]:
    return [panel.get_title() for panel in figure.axes if panel.images]


def framed(panel) -> list[float]:
    """Returns left, top, right and bottom of the frame around the query."""
    (frame,) = panel.patches
    return frame.get_bbox().extents.tolist()


def test_biases_are_seen_from_a_token_in_the_middle(make, randomise):
    model, _ = randomise(*make(depth=2))
    for block in (0, 1, -1):
        figure = plot.attention_biases(model, block=block)
        assert titles(figure) == ["stage 1, head 1", "stage 2, head 1", "stage 2, head 2"]
        maps = shown(figure)
        assert [map.shape for map in maps] == [(7, 7), (3, 3), (3, 3)]
        # The first block of the second stage downsamples, so its grid is that of the first stage.
        biases = [model.stages[0].blocks[block].attention.bias, model.stages[1].blocks[block % 2 + 1].attention.bias]
        for map, bias in zip(maps, (biases[0].table[0], *biases[1].table), strict=True):
            middle = np.array(map.shape) // 2
            for row, column in np.ndindex(map.shape):
                down, right = np.abs(np.array((row, column)) - middle)
                assert map[row, column] == bias[down, right]


def test_biases_are_drawn_as_they_are_added_to_the_scores():
    model, _ = eqx.nn.make_with_state(levitax.LeViT)(
        image_size=16, stages=2, dim=(16, 24), depth=1, heads=(1, 2), patch_size=4, key_dim=9,
        network="vit_pytorch", key=jax.random.key(0),
    )  # fmt: skip
    added = model.stages[0].blocks[0].attention.bias()
    first = shown(plot.attention_biases(model))[0]
    # The biases of the first token, in the corner, are the lower right quarter of the map around the centre.
    np.testing.assert_allclose(first[3:, 3:].ravel(), added[0, 0], rtol=1e-6)


def test_colours_are_alike_in_a_stage_and_a_fresh_model_is_white(make, randomise):
    fresh, state = make()
    model, _ = randomise(fresh, state)
    for panel in plot.attention_biases(fresh).axes:
        for image in panel.images:
            assert image.get_clim() == (-1, 1) and not np.any(image.get_array())
    limits = [image.get_clim() for panel in plot.attention_biases(model).axes for image in panel.images]
    tables = [stage.blocks[-1].attention.bias.table for stage in model.stages]
    reach = [float(jnp.abs(table).max()) for table in tables]
    assert limits == [(-reach[0], reach[0])] + 2 * [(-reach[1], reach[1])]


@pytest.mark.parametrize("channels", (1, 3))
def test_maps_lie_over_the_image(channels):
    image = np.linspace(0, 1, 24 * 32 * channels).reshape(24, 32, channels)
    weights = np.random.default_rng(0).dirichlet(np.ones(12), size=(2, 12))
    figure = plot.attention_maps(image, weights, grid=(3, 4), query=6)
    assert titles(figure) == ["head 1", "head 2"]
    for head, panel in enumerate(figure.axes):
        below, above = panel.images
        assert below.get_extent() == above.get_extent()
        np.testing.assert_allclose(np.asarray(below.get_array()).reshape(image.shape), image, rtol=1e-6)
        np.testing.assert_allclose(np.asarray(above.get_array()), weights[head, 6].reshape(3, 4), rtol=1e-6)
        # The third token of the second row; tokens have 8x8 pixels.
        assert framed(panel) == [16, 8, 24, 16]


def test_without_a_query_the_mean_is_drawn_and_nothing_is_framed():
    weights = np.random.default_rng(0).dirichlet(np.ones(12), size=(2, 12))
    figure = plot.attention_maps(np.zeros((24, 32, 1)), weights, grid=(3, 4))
    np.testing.assert_allclose(shown(figure), weights.mean(1).reshape(2, 3, 4), rtol=1e-5)
    assert not any(panel.patches for panel in figure.axes)


@pytest.mark.slow
def test_the_maps_of_every_block_are_drawn_and_queries_framed_where_they_are(make, randomise, images):
    # Odd grids, so that the last row and column of queries is that of the last tokens.
    model, state = randomise(*make(image_size=(20, 12)))
    image = jax.nn.sigmoid(images(20, 12, 3))
    first, second = model.attention_maps(image, state)
    grid = model.config.grid(0)
    assert grid == (5, 3)
    figure = plot.attention_maps(image, first[0], grid=grid, query=14)
    assert framed(figure.axes[0]) == [8, 16, 12, 20]
    shrinking = plot.attention_maps(image, second[0], grid=grid, query=5)
    assert framed(shrinking.axes[0]) == [8, 16, 12, 20]
    plot.attention_maps(image, second[1], grid=model.config.grid(1), query=5)


def test_figures_have_a_transparent_background_and_can_be_saved(make, randomise, tmp_path):
    from PIL import Image

    model, _ = randomise(*make())
    plot.attention_biases(model).savefig(tmp_path / "biases.png")
    with Image.open(tmp_path / "biases.png") as image:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    assert alpha[0, 0] == 0 and alpha.max() == 255


def test_a_notebook_shows_figures_at_the_end_of_a_cell(make):
    from PIL import Image

    figure: Any = plot.attention_biases(make()[0])
    shown = Image.open(io.BytesIO(figure._repr_png_()))
    assert shown.format == "PNG" and shown.size == tuple(figure.get_size_inches() * figure.dpi)
    assert np.asarray(shown.convert("RGBA"))[0, 0, 3] == 0


def test_ipython_finds_the_image_of_a_figure(make):
    formatters = pytest.importorskip("IPython.core.formatters")
    assert formatters.PNGFormatter()(plot.attention_biases(make()[0])).startswith(b"\x89PNG")


def test_figures_can_be_pickled(make):
    figure = plot.attention_biases(make()[0])
    assert type(pickle.loads(pickle.dumps(figure))) is type(figure)


def test_no_window_and_no_global_figure_is_made(make):
    import matplotlib.pyplot as plt

    plot.attention_biases(make()[0])
    assert not plt.get_fignums()


def test_arguments_that_cannot_be_drawn_are_refused(make, unchecked):
    model, state = make()
    with pytest.raises(TypeError, match=r"`Predictor`; expected a `levitax.LeViT`"):
        plot.attention_biases(levitax.fuse(model, state))  # type: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="fused and has no table of biases; pass the model from before fusing"):
        plot.attention_biases(levitax.fuse(model, state).model)
    with pytest.raises(ValueError, match="`block` is 1; expected less than 1, the number of blocks in stage 1"):
        plot.attention_biases(model, block=1)
    with pytest.raises(ValueError, match="`block` is -2; expected an integer of at least -1"):
        plot.attention_biases(model, block=-2)
    with pytest.raises(TypeError, match=r"`block` is 0\.5; expected an integer"):
        plot.attention_biases(model, block=0.5)  # type: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"image": np.zeros((1, 24, 32, 1))}, r"`image` has shape \(1, 24, 32, 1\); expected the axes height, width"),
        ({"weights": np.zeros((12, 12))}, r"`weights` has shape \(12, 12\); expected the axes heads, queries, tokens"),
        ({"image": np.zeros((3, 24, 32))}, "`image` has 32 channels; expected 1 or 3"),
        (
            {"image": np.full((24, 32, 1), 2.5)},
            r"values from 2.5 to 2.5; .* in \[0, 1\]\. Pass the image from before its norm",
        ),
        ({"image": np.full((24, 32, 1), np.nan)}, r"values from nan to nan; .* in \[0, 1\]"),
        ({"grid": (4, 4)}, r"`grid` is 4x4, but `weights` has 12 tokens; pass `model.config.grid\(stage\)`"),
        ({"weights": np.zeros((0, 12, 12))}, r"`weights` has shape \(0, 12, 12\); expected the axes"),
        ({"weights": np.full((2, 12, 12), np.nan)}, "`weights` has values that are not finite"),
        ({"query": 12}, "`query` is 12; expected a number from 0 to 11"),
        ({"query": -1}, "`query` is -1; expected an integer of at least 0"),
    ),
)
def test_maps_that_do_not_fit_are_refused(change, message, unchecked):
    arguments = {"image": np.zeros((24, 32, 1)), "weights": np.zeros((2, 12, 12)), "grid": (3, 4)} | change
    with pytest.raises(ValueError, match=message):
        plot.attention_maps(**arguments)


def test_a_list_of_maps_is_refused_where_one_belongs(unchecked):
    maps: Any = (np.zeros((2, 12, 12)),)
    with pytest.raises(TypeError, match=r"`weights` is of type `tuple`; .*\[stage\]\[block\]"):
        plot.attention_maps(np.zeros((24, 32, 1)), maps, grid=(3, 4))


def test_without_matplotlib_the_error_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'`levitax.plot` needs matplotlib: run `pip install "levitax\[plot\]"`'
    ):
        plot.attention_biases(make()[0])
