"""[model], [train], [calibration]: the network and its fit."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from recsys.config.section import Counts, Fraction, Positive, Section


class Model(Section):
    """The network: each hidden layer is dense, then normalisation, activation and dropout, as far as they are on."""

    hidden: Counts = (512, 256, 128)
    """Units of each hidden layer, in order."""
    activation: Literal["relu", "gelu", "sigmoid", "tanh"] = "relu"
    """What follows each hidden layer; gelu is the exact one, by erf."""
    normalisation: Literal["batch", "layer"] | None = None
    """What each hidden layer is normalised by before its activation. Batch: by the weighted moments of the whole global batch, however
    many workers share it. Absent: none."""
    dropout: Fraction = 0.2
    """Share of units dropped after each hidden layer, in training only."""
    initialiser: Literal["random_uniform", "random_normal", "glorot_uniform", "he_normal"] = "glorot_uniform"
    """How every dense layer's weights begin: within +-0.05, with deviation 0.05, by Glorot and Bengio 2010 (Xavier), or by He et al.
    2015."""
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


class TrainPrivacy(Section):
    """Differential privacy of the weights, for whole users: DP-SGD (Abadi et al. 2016, McMahan et al. 2018). Fits cost several times
    what they cost without, differ from run to run, and keep the last epoch: what users did decides nothing. Epsilon stands in the
    bundle, on its card and in jobs.bundles list. Signals, scaling, vocabularies and calibration are not covered."""

    noise: Annotated[float, Field(gt=0)]
    """Deviation of the noise on each step's sum of gradients, over clip."""
    clip: Annotated[float, Field(gt=0)]
    """The longest that one user's gradient may be; longer ones are scaled down."""
    delta: Annotated[float, Field(gt=0, lt=1)]
    """The chance that epsilon may fail to hold; below 1 over the number of users, better a tenth of it."""
    users: Positive = 256
    """How many users a step draws on average, each alike and alone; in place of train.batch_size."""
    rows: Positive = 64
    """How many rows of one user a step takes at most, drawn anew each time."""


class Train(Section):
    """How the network is fitted, and by how many workers."""

    loss: Literal["binary_crossentropy", "mean_squared_error"] = "binary_crossentropy"
    """What the fit makes small, and what val_loss says: cross-entropy in nats, or the squared error of the probability (Brier
    score)."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, Adam with decoupled weight decay, or stochastic gradient descent with momentum."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Step size of the optimizer; the highest that the schedule reaches."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate goes on: constant, or down to 0 over epochs along half a cosine (Loshchilov and Hutter 2017)."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Over so many epochs, which may be a fraction of one, the learning rate first rises in equal steps."""
    momentum: Fraction = 0.9
    """Momentum of sgd; the other optimizers have their own."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of adamw, per step times the learning rate. Biases and normalisation have none."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Penalty on the sum of squares of every dense layer's weights, added to what is made small. The loss that is printed is without
    it."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """The gradient of the whole global batch is scaled down to this norm where it is longer. Absent: never."""
    class_weights: Annotated[Literal["balanced"] | tuple[float, float] | None, BeforeValidator(_class_weights)] = None
    """Factors on the weight of training rows with label 0 and with label 1, or "balanced": both labels weigh the same in all.
    Validation stays as it is. Absent: none."""
    even_groups: str | None = None
    """A column of fairness.user_groups: training rows are weighted so that all its values weigh the same in all, however many users
    have them; rows of users without a value stay as they are, and so does validation. It becomes no feature by it. Only in the shop's
    file. Absent: every row weighs the same."""
    epochs: Positive = 10
    """The most epochs; the validation loss decides how many are kept."""
    patience: Positive | None = 2
    """The fit stops after so many epochs without a better validation loss. As many as epochs: it never stops early."""
    refit: bool = True
    """After validation chose the number of epochs, fit again from the start on all rows, those of validation too. false keeps the
    weights of the best epoch."""
    batch_size: Positive = 1024
    """Rows of one step, over all workers together."""
    workers: Annotated[int | tuple[int, int], BeforeValidator(_workers)] = 2
    """How many training workers; each has the same share of every batch. [fewest, most] starts with what there is and grows or shrinks
    with the cluster, at the price that two runs no longer give equal weights."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What each worker computes on. GPUs sum their gradients through NCCL. Never run on a GPU yet."""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    """mixed_bfloat16: products in bfloat16, weights and sums in float32, for GPUs with bfloat16 units (compute capability 8.0 on).
    There is no float16: it needs loss scaling, and bfloat16 has float32's range."""
    checkpoint_seconds: Positive = 600
    """Seconds between two checkpoints inside an epoch. Every epoch ends with one."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How many failures of workers are taken up again from the last checkpoint before the fit gives up."""

    privacy: TrainPrivacy | None = None
    """Absent: none. Only in the shop's file."""

    @property
    def fewest_workers(self) -> int:
        """What the fit can start with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @model_validator(mode="after")
    def _choices_fit_together(self) -> "Train":
        if self.privacy is not None and self.class_weights == "balanced":
            raise ValueError('train.privacy: class_weights "balanced" counts labels of users; give two factors or remove it')
        if self.precision != "float32" and self.device == "cpu":
            raise ValueError(
                f'train.precision "{self.precision}" needs train.device "gpu", got "cpu", where it is slower than float32; '
                "set train.device or remove train.precision"
            )
        if self.privacy is not None and self.even_groups is not None:
            raise ValueError("train.privacy: even_groups counts users of each group; remove one of them")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"train.warmup_epochs must be at most train.epochs ({self.epochs}), got {self.warmup_epochs:g}; lower it")
        return self


class PairsTrain(Train):
    """How the network is fitted on feature rows. The defaults are those of the single-machine system that this one replaced."""

    batch_size: Positive = 64
    """Rows of one step, over all workers together. Large tables train faster with some thousands."""
    patience: Positive | None = None
    """The fit stops after so many epochs without a better validation loss. Absent: it never stops early."""
    refit: bool = False
    """As train.refit of the shop's file. Off: the validation rows are never trained on."""


class Calibration(Section):
    """What turns the model's raw outputs into the published chances."""

    max_users: Positive = 20_000
    """It is fitted on the candidates of so many users in the newest label window: all, or about so many chosen by hash."""
