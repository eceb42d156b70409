"""The settings that every task shares: one dataclass per block, each key with its default, unit and help.

The names are NVIDIA NeMo 1.x's, so that its users' command lines work as written. The string under a field is
its help; `megabert config TASK` prints it. A task adds its own blocks in its own file by subclassing `Settings`
and `ModelSettings`. How a command line becomes an instance of these is in `config.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def choice(default: str | None, *options: str) -> Any:
    """Declare a field whose value is one of `options` (or None where that is the default)."""
    return field(default=default, metadata={"choices": options})


@dataclass
class TrainerSettings:
    """How long, how precisely and on what to train."""

    max_epochs: int = 3
    """Passes over the training data; -1: as many as max_steps takes."""
    max_steps: int = -1
    """Stop after this many optimizer steps, whatever max_epochs says; -1: no such limit."""
    accelerator: str = choice("auto", "auto", "gpu", "cpu")
    """Where to compute: auto takes a GPU where there is one."""
    devices: int = 1
    """Processes on each machine, one a device; -1: one for each GPU that is there. More than one are started by the
    command itself, unless torchrun or SLURM did."""
    num_nodes: int = 1
    """Machines; for more than one start the command with torchrun or srun on each."""
    precision: str = choice("auto", "auto", "32", "bf16", "16", "fp8", "bf16-mixed", "16-mixed", "32-true")
    """What the encoder computes in; the weights that are trained stay float32. auto: bf16 on a GPU that has it,
    else 32. 16 scales the loss. fp8: bf16, with the layers' matrix products in 8 bits (Hopper, Ada)."""
    compile: bool | None = None
    """Compile the encoder's layers with torch.compile: some seconds at the start, faster steps; null: on a GPU."""
    cuda_graph: bool = True
    """On a GPU record each step once and launch it as a whole, with all micro-batches filled up to one size."""
    accumulate_grad_batches: int = 1
    """Micro-batches whose gradients make one optimizer step."""
    gradient_clip_val: float = 0.0
    """Largest 2-norm of all gradients together; 0: no clipping."""
    val_check_interval: int | float = 1.0
    """When to validate. A fraction (0.25) counts in epochs, a whole number in micro-batches; 0: only at the end."""
    log_every_n_steps: int = 10
    """Write a line to metrics.jsonl and TensorBoard every so many optimizer steps."""
    enable_progress_bar: bool = True
    """Show loss, rate, tokens/s and time left on the terminal."""


@dataclass
class ParallelSettings:
    """How trainer.devices x trainer.num_nodes processes share the work; what is left of them shares the texts."""

    tensor: int = 1
    """Processes that share each layer and the vocabulary; heads and MLP width must divide by it."""
    fsdp: int = 1
    """Processes among which weights, gradients and optimizer state are spread (FSDP); -1: all that tensor leaves."""
    sequence: bool = False
    """With tensor > 1: also share norms and dropout between layers, token by token, which saves memory."""
    activation_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again in the backward pass: less memory, a third more work."""
    timeout: int = 1800
    """Seconds that a process waits for the others before it gives up. One that dies is noticed within 30 seconds."""


@dataclass
class CheckpointSettings:
    """Which checkpoints of a run are kept."""

    monitor: str | None = None
    """The validation figure that says which checkpoint is best; null: the task's main score."""
    mode: str | None = choice(None, "max", "min")
    """Whether a larger (max) or a smaller (min) figure is better; null: min for a loss, max for all else."""
    save_top_k: int = 1
    """How many of the best checkpoints to keep, besides the last."""
    every_n_train_steps: int = 0
    """Also save after every so many optimizer steps; 0: at each validation and at the end only."""


@dataclass
class ExperimentSettings:
    """Where a run is kept, and whether to take it up again."""

    exp_dir: str = "runs"
    """Folder of all runs."""
    name: str | None = None
    """The run's name, a folder in exp_dir; null: the task's name."""
    version: str | None = None
    """A folder in exp_dir/name; null: date and time, none where resume_if_exists is set."""
    explicit_log_dir: str | None = None
    """The run folder itself, instead of exp_dir/name/version."""
    resume_if_exists: bool = False
    """Take up the run in the folder at its last checkpoint; without one, start."""
    resume_past_end: bool = False
    """Let resume_if_exists go on from a run that came to its end (with larger max_epochs or max_steps)."""
    resume_ignore_no_checkpoint: bool = True
    """With resume_if_exists and no checkpoint there: start anew (true) or stop with an error (false)."""
    create_tensorboard_logger: bool = True
    """Write TensorBoard event files where the package is installed."""
    create_checkpoint_callback: bool = True
    """Write checkpoints while training; false: only at the end."""
    checkpoint_callback_params: CheckpointSettings = field(default_factory=CheckpointSettings)


@dataclass
class TokenizerSettings:
    """How text becomes token ids."""

    vocab_file: str | None = None
    """WordPiece vocabulary, one token a line, or GPT-2's vocab.json; null: the one that comes with the checkpoint."""
    merges_file: str | None = None
    """GPT-2's merges.txt; null: the one beside vocab_file."""
    do_lower_case: bool | None = None
    """Lower-case the text and strip accents; null: as the checkpoint's files, its name or the vocabulary say."""


@dataclass
class LanguageModelSettings:
    """The encoder to start from."""

    pretrained_model_name: str | None = "megatron-bert-345m-uncased"
    """A published name (`megabert models` lists them), or a checkpoint file or folder; null: random weights
    of the shape in config."""
    lm_checkpoint: str | None = None
    """Checkpoint file or folder, instead of the one that the name stands for (--bert_checkpoint)."""
    config_file: str | None = None
    """JSON file with the network's shape, for checkpoints that do not hold it (--bert_config)."""
    config: dict[str, Any] = field(default_factory=dict)
    """The same, given here: hidden_size, num_layers, num_attention_heads, ...; config_file wins over it."""
    qkv_layout: str | None = choice(None, "3_heads_dim", "heads_dim_3", "heads_3_dim")
    """Order of the fused query-key-value rows in a Megatron-LM file; null: as the file's version and arguments say."""
    hidden_dropout: float | None = None
    """Dropout after embeddings, attention and MLP; null: as a Hugging Face config.json says, else 0.1."""
    attention_dropout: float | None = None
    """Dropout on attention weights; null: as a Hugging Face config.json says, else 0.1."""


@dataclass
class ScheduleSettings:
    """How the learning rate moves; NeMo 1.x's names and formulas."""

    name: str = choice(
        "WarmupAnnealing",
        "WarmupAnnealing",
        "SquareRootAnnealing",
        "SquareAnnealing",
        "CosineAnnealing",
        "PolynomialDecayAnnealing",
        "PolynomialHoldDecayAnnealing",
        "InverseSquareRootAnnealing",
        "NoamAnnealing",
        "WarmupPolicy",
        "WarmupHoldPolicy",
    )
    """Shape of the curve after the warm-up. WarmupAnnealing falls linearly to 0, WarmupPolicy stays."""
    warmup_steps: int | None = None
    """Optimizer steps of linear warm-up; give this or warmup_ratio."""
    warmup_ratio: float | None = None
    """The same as a fraction of all steps."""
    hold_steps: int = 0
    """Steps at the full rate after the warm-up (the two Hold schedules)."""
    min_lr: float = 0.0
    """Lowest rate."""
    power: float = 1.0
    """Exponent of the two Polynomial schedules."""


@dataclass
class OptimizerSettings:
    """How gradients move weights."""

    name: str = choice("adamw", "adamw", "adam", "sgd", "adamax", "adagrad", "adadelta", "rmsprop", "rprop")
    """PyTorch's optimizer of that name."""
    lr: float = 3e-5
    """Largest learning rate."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay of the two moment averages (adam, adamw, adamax)."""
    eps: float = 1e-8
    """Added to the root of the second moment (adam, adamw, adamax, adagrad, adadelta, rmsprop)."""
    momentum: float = 0.0
    """Momentum of sgd and rmsprop."""
    weight_decay: float = 0.01
    """Decay of weight matrices."""
    decay_norm_and_bias: bool = False
    """Also decay biases and layer norms, as NeMo 1.x does."""
    sched: ScheduleSettings = field(default_factory=ScheduleSettings)


def linear_decay(lr: float) -> Callable[[], OptimizerSettings]:
    """Make the default of an optimizer block: a linear warm-up over a tenth of the steps, then a linear fall."""
    return lambda: OptimizerSettings(
        lr=lr, weight_decay=0.01, sched=ScheduleSettings(name="WarmupAnnealing", warmup_ratio=0.1)
    )


@dataclass
class DataSettings:
    """One set of data."""

    file: str | None = None
    """Path of the data file."""
    batch_size: int = 24
    """Texts (windows of long texts count singly) in a micro-batch; to evaluate, as many tokens as so many of the
    longest texts."""
    num_samples: int = -1
    """Use only the first so many examples; -1: all."""


@dataclass
class TrainDataSettings(DataSettings):
    """The training data."""

    shuffle: bool = True
    """A new order each epoch, a function of the seed, the epoch and nothing else."""
    drop_last: bool = False
    """Leave out an epoch's last step where it has not all its texts; false: share them out among all steps."""
    use_cache: bool = True
    """Keep the tokenized texts in megabert's cache folder, under a name made of all that they depend on."""


@dataclass
class HeadSettings:
    """What every task's head has."""

    reset: bool = False
    """With pretrained_model: keep its encoder only, and make a new head, for the labels of the training data."""


@dataclass
class ModelSettings:
    """The network, its data and its optimizer. Tasks add `dataset` and their head."""

    head: HeadSettings = field(default_factory=HeadSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    train_ds: TrainDataSettings = field(default_factory=TrainDataSettings)
    validation_ds: DataSettings = field(default_factory=DataSettings)
    test_ds: DataSettings = field(default_factory=DataSettings)
    optim: OptimizerSettings = field(default_factory=OptimizerSettings)


@dataclass
class Settings:
    """All settings of a run."""

    seed: int = 1234
    """Seeds weights of new parts, data order and dropout."""
    do_training: bool = True
    """false: do not train, only evaluate pretrained_model on model.test_ds."""
    pretrained_model: str | None = None
    """A run folder to start from, its head included; null: a new head on the language model."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    exp_manager: ExperimentSettings = field(default_factory=ExperimentSettings)
