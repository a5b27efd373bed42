"""Matplotlib figures of attention weights and biases. Needs `pip install "levitax[plot]"`."""

from ._attention import attention_biases as attention_biases, attention_maps as attention_maps
