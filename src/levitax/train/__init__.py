"""Training as pure functions over one PyTree of state. Needs `pip install "levitax[train]"`."""

from ._loss import cross_entropy as cross_entropy
