import os
import subprocess
import sys

import pytest


# Devices are counted when JAX starts, so it starts anew.
CODE = """
import equinox as eqx, jax, jax.numpy as jnp, levitax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

assert jax.device_count() == 8
jax.config.update("jax_default_matmul_precision", "highest")
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
model, state = eqx.nn.make_with_state(levitax.LeViT)(
    image_size=16, num_classes=5, stages=2, dim=(16, 24), depth=1, heads=(1, 2), patch_size=4, key_dim=8,
    key=jax.random.key(0),
)
images = 2 + jax.random.normal(jax.random.key(1), (16, 16, 16, 3))
# Each device has images of its own kind: statistics of a part are not those of the whole.
images = images * jnp.linspace(0.5, 3, 16)[:, None, None, None]
step = eqx.filter_jit(lambda model, state, images: levitax.batched(model)(images, state))


def statistics(state):
    is_norm = lambda node: isinstance(node, levitax.nn.BatchNorm)
    norms = filter(is_norm, jax.tree.leaves(model, is_leaf=is_norm))
    # Together: behind a normalisation, the mean is zero but for rounding, and the variance gives the measure.
    return [jnp.stack(norm.running(jax.device_get(state))) for norm in norms]


def error(ours, theirs):
    pairs = zip(jax.tree.leaves(jax.device_get(ours)), jax.tree.leaves(jax.device_get(theirs)), strict=True)
    return np.max([abs(one - other).max() / abs(other).max() for one, other in pairs])


alone = step(model, state, images)
together = step(*eqx.filter_shard((model, state), everywhere), eqx.filter_shard(images, spread))
assert len(together[0].classification.sharding.device_set) == 8
print(error(together[0], alone[0]), error(statistics(together[1]), statistics(alone[1])))
"""


@pytest.mark.slow
def test_batch_statistics_over_eight_devices_are_those_of_one():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    outputs, statistics = map(float, result.stdout.split())
    assert outputs < 1e-6 and statistics < 1e-6
