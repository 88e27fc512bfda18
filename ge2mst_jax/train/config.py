"""What a training run is told."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Of one training run.

    >>> TrainConfig(epochs=2).batch_size
    64
    """

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 4e-3
    """Peak of AdamW's learning rate; linear warm-up, then a cosine to 1 % of it."""
    warmup_epochs: float = 1.0
    """Length of the warm-up."""
    weight_decay: float = 0.1
    """Of kernels alone: thresholds, gains, biases and leaks have none."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    max_shift: int = 1
    """Augmentation: random shift by up to this many pixels."""
    ema_decay: float = 0.98
    """Of the moving average of parameters and BatchNorm statistics, which is evaluated and deployed."""
    spike_budget: float | None = None
    """Mean spikes per neuron and image that the deployed network may spend; none leaves it free."""
    budget_gain: float = 5.0
    """Of the budget's controller: the spike penalty's weight for an error of 100 %."""
    seed: int = 0
    """Of parameters, order and augmentation."""

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("learning_rate", "budget_gain"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in ("warmup_epochs", "weight_decay", "max_shift"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: it must be at least 0 and below 1")
        if self.spike_budget is not None and not 0 < self.spike_budget <= 8:
            raise ValueError(f"spike_budget is {self.spike_budget}: it must be above 0, in spikes per neuron and image")
