"""[model], [train], [calibration]: the network and its fit."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from recsys.config.section import Counts, Fraction, Positive, Section


class Model(Section):
    """The multilayer perceptron: each hidden layer is dense, then normalisation, activation and dropout, as far as they are on."""

    hidden: Counts = (512, 256, 128)
    """Units of each hidden layer, in order."""
    activation: Literal["relu", "gelu", "sigmoid", "tanh"] = "relu"
    """After each hidden layer; gelu is the exact one, by erf."""
    normalisation: Literal["batch", "layer"] | None = None
    """Of each hidden layer before its activation. Batch: by the weighted moments of the whole global batch, whatever the workers."""
    dropout: Fraction = 0.2
    """Share of units dropped after each hidden layer while training."""
    initialiser: Literal["random_uniform", "random_normal", "glorot_uniform", "he_normal"] = "glorot_uniform"
    """Of every dense layer's kernel: within +-0.05, with deviation 0.05, Glorot and Bengio 2010 (Xavier), or He et al. 2015."""
    max_embedding: Positive = 16
    """Width of the widest embedding; a smaller vocabulary gets a narrower one."""


def _workers(value: Any) -> Any:
    """A number of workers, or the fewest and the most of them."""
    elastic = isinstance(value, Sequence) and not isinstance(value, str)
    numbers: tuple[Any, ...] = tuple(value) if elastic else (value, value)
    # a truth value is an int to Python
    if len(numbers) != 2 or any(type(number) is not int for number in numbers) or not 0 < numbers[0] <= numbers[1]:
        raise ValueError(f"train.workers must be a whole number above 0, or [fewest, most], got {value!r}; mend it")
    return numbers if elastic else value


def _class_weights(value: Any) -> Any:
    """ "balanced", or the factors of label 0 and label 1."""
    if value is None or value == "balanced":
        return value
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not pair or any(type(factor) not in (int, float) for factor in value):
        raise ValueError(f'train.class_weights must be "balanced" or [factor of label 0, of label 1], got {value!r}; mend it')
    if not all(0 < factor < float("inf") for factor in value):
        raise ValueError(f"train.class_weights must be above 0 and finite, got {value!r}; mend it")
    return tuple(float(factor) for factor in value)


class Train(Section):
    """The fit."""

    loss: Literal["binary_crossentropy", "mean_squared_error"] = "binary_crossentropy"
    """What is made small, and what val_loss says: cross-entropy in nats, or the squared error of the probability (Brier score)."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, Adam with decoupled weight decay, or stochastic gradient descent with momentum."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of the optimizer; the highest that the schedule reaches."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate goes on: as it is, or down to 0 over `epochs` along half a cosine (Loshchilov and Hutter 2017)."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs, or a fraction of one, over which the learning rate first rises in equal steps."""
    momentum: Fraction = 0.9
    """Of sgd; the others have their own."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of adamw, per step times the learning rate; biases and normalisation have none."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Penalty on the sum of squares of every dense layer's kernel, added to the loss; `loss` in the history is without it."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """The whole gradient, of the global batch, is scaled down to this norm. Absent: never."""
    class_weights: Annotated[Literal["balanced"] | tuple[float, float] | None, BeforeValidator(_class_weights)] = None
    """Factors on the weight of training rows with label 0 and with label 1; "balanced": both labels weigh the same. Validation
    stays as it is."""
    epochs: Positive = 10
    """At most; validation loss decides how many are kept."""
    patience: Positive | None = 2
    """Epochs without a better validation loss before the fit stops. None, or as many as `epochs`: it never does."""
    refit: bool = True
    """After validation chose the number of epochs, fit again from the start on all rows, validation rows too; false keeps the best
    epoch's weights."""
    batch_size: Positive = 1024
    """The global batch, over all workers."""
    workers: Annotated[int | tuple[int, int], BeforeValidator(_workers)] = 2
    """Training workers, each with the same share of every batch; [fewest, most] starts with what there is and grows or shrinks with
    the cluster, at the price that two runs no longer give equal weights."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What each worker computes on; GPUs sum their gradients through NCCL."""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    """Mixed: products in bfloat16, weights and sums in float32; for GPUs with bfloat16 units (compute capability 8.0 on). float16 is
    not offered: it needs loss scaling, bfloat16 has float32's range."""
    checkpoint_seconds: Positive = 600
    """Time between two checkpoints inside an epoch; every epoch ends with one."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Worker failures that are retried from the last checkpoint."""

    @property
    def fewest_workers(self) -> int:
        """What the fit can start with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @model_validator(mode="after")
    def _choices_fit_together(self) -> "Train":
        if self.precision != "float32" and self.device == "cpu":
            raise ValueError(
                f'train.precision "{self.precision}" needs train.device "gpu", got "cpu", where it is slower than float32; '
                "set train.device or remove train.precision"
            )
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"train.warmup_epochs must be at most train.epochs ({self.epochs}), got {self.warmup_epochs:g}; lower it")
        return self


class PairsTrain(Train):
    """The fit of the pairs door; its defaults are the original system's."""

    batch_size: Positive = 64
    """The global batch, over all workers; large tables train faster with some thousands."""
    patience: Positive | None = None
    """Epochs without a better validation loss before the fit stops; absent, it never does."""
    refit: bool = False
    """As train.refit; off, the validation rows are never trained on."""


class Calibration(Section):
    """What turns the model's outputs into the published chances."""

    max_users: Positive = 20_000
    """Users whose candidates of the newest label window it is fitted on: all of them, or about that many chosen by hash."""
