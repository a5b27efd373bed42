"""Matplotlib figures of attention, training and results. Needs `pip install "levitax[plot]"`."""

from ._attention import attention_biases as attention_biases, attention_maps as attention_maps
from ._training import confusion as confusion, predictions as predictions, training_curves as training_curves
