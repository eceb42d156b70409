"""The settings that all tasks share: one dataclass per block, each key with its type, default, unit and help.

The names are those of NVIDIA NeMo 1.x, so that its users' command lines work as written. The string under a field is
its help text; `megabert config TASK` prints it. A task adds its own blocks in its own file by subclassing `Settings`
and `ModelSettings`. `parser.compose` turns a command line into an instance.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError


def choice(default: str | None, *options: str) -> Any:
    """Declare a field whose value is one of `options`, or None if that is the default."""
    return field(default=default, metadata={"choices": options})


ACCELERATORS = ("auto", "gpu", "cpu")


def check_accelerator(name: object) -> None:
    """Raise ConfigError for a device type that is none of ACCELERATORS."""
    if name not in ACCELERATORS:
        raise ConfigError(f"accelerator is {name!r:.40}; choose one of {', '.join(ACCELERATORS)}.")


@dataclass
class TrainerSettings:
    """How long, at which precision and on which devices to train."""

    max_epochs: int = 3
    """Number of epochs (passes over the training data); -1: no limit, max_steps decides."""
    max_steps: int = -1
    """Stop after this many optimizer steps, whatever max_epochs is; -1: no limit."""
    accelerator: str = choice("auto", *ACCELERATORS)
    """Device type; auto: a GPU if there is one, else the CPU."""
    devices: int = 1
    """Processes per machine, one per device; -1: one per GPU. The command starts them, unless torchrun or SLURM did."""
    device_ids: list[int] | None = None
    """Numbers of the machine's GPUs to use, one per process; devices=[1,3] sets this. null: the first ones."""
    num_nodes: int = 1
    """Number of machines. For more than one, start the command on each with torchrun or srun."""
    precision: str = choice("auto", "auto", "32", "bf16", "16", "fp8", "bf16-mixed", "16-mixed", "32-true")
    """Compute precision of the encoder; the trained weights stay float32. auto: bf16 on a GPU that supports it, else
    32. 16: float16 with loss scaling. fp8: bf16 with the layers' matmuls in 8 bits (Hopper and Ada GPUs)."""
    compile: bool | None = None
    """Compile the encoder's layers with torch.compile: seconds at the start, then faster steps; null: on a GPU only."""
    cuda_graph: bool = True
    """Capture each training step in a CUDA graph and replay it; micro-batches are padded to one size. GPU only."""
    accumulate_grad_batches: int = 1
    """Gradient accumulation: micro-batches per optimizer step."""
    gradient_clip_val: float = 0.0
    """Gradient clipping: maximum 2-norm of all gradients together; 0: no clipping."""
    val_check_interval: int | float = 1.0
    """Validation interval: a fraction (0.25) counts epochs, an integer counts micro-batches; 0: only at the end."""
    log_every_n_steps: int = 10
    """Optimizer steps between two log entries in metrics.jsonl and TensorBoard."""
    enable_progress_bar: bool = True
    """Show loss, learning rate, tokens/s and time left on the terminal."""


@dataclass
class ParallelSettings:
    """How trainer.devices x trainer.num_nodes processes are divided; what remains is data parallelism."""

    tensor: int = 1
    """Tensor parallelism: processes that shard each layer and the vocabulary; must divide heads and MLP width."""
    fsdp: int = 1
    """FSDP: processes over which optimizer state and, where they do not fit, weights are sharded; -1: all / tensor."""
    sequence: bool = False
    """Sequence parallelism, with tensor > 1: also shard layer norms and dropout over the tokens, which saves memory."""
    activation_checkpointing: bool = False
    """Keep only each layer's input and recompute the rest in the backward pass: less memory, a third more compute."""
    timeout: int = 1800
    """Seconds that a process waits for the others before it fails; one that dies is detected within 30 seconds."""


@dataclass
class CheckpointSettings:
    """Which checkpoints of a run are kept."""

    monitor: str | None = None
    """Validation metric that selects the best checkpoint; null: the task's main score."""
    mode: str | None = choice(None, "max", "min")
    """Whether a larger (max) or a smaller (min) metric is better; null: min for a loss or perplexity, else max."""
    save_top_k: int = 1
    """Number of best checkpoints to keep, besides the last one; -1: all."""
    every_n_train_steps: int = 0
    """Also save a checkpoint every so many optimizer steps; 0: only at each validation and at the end."""


@dataclass
class EarlyStoppingSettings:
    """When a training that no longer improves is ended."""

    monitor: str | None = None
    """Validation metric; null: the one that selects the best checkpoint."""
    mode: str | None = choice(None, "max", "min")
    """Whether a larger (max) or a smaller (min) metric is better; null: min for a loss or perplexity, else max."""
    min_delta: float = 0.001
    """Smallest change of the metric that counts as an improvement."""
    patience: int = 10
    """Validations in a row without improvement after which training stops."""


@dataclass
class ExperimentSettings:
    """Where a run is written, and whether to resume it."""

    exp_dir: str = "runs"
    """Parent folder of all runs."""
    name: str | None = None
    """Name of the run, a folder in exp_dir; null: the task's name."""
    version: str | None = None
    """Folder of the run in exp_dir/name; null: date and time, or exp_dir/name itself with resume_if_exists."""
    explicit_log_dir: str | None = None
    """Run folder, instead of exp_dir/name/version."""
    resume_if_exists: bool = False
    """Resume from the last checkpoint in the run folder; without one, start from scratch."""
    resume_past_end: bool = False
    """With resume_if_exists: continue a run that has finished, with larger max_epochs or max_steps."""
    resume_ignore_no_checkpoint: bool = True
    """With resume_if_exists but no checkpoint: start from scratch (true) or stop with an error (false)."""
    create_tensorboard_logger: bool = True
    """Write TensorBoard event files, if the package tensorboard is installed."""
    create_checkpoint_callback: bool = True
    """Write checkpoints during training; false: only at the end."""
    checkpoint_callback_params: CheckpointSettings = field(default_factory=CheckpointSettings)
    create_early_stopping_callback: bool = False
    """Early stopping: end the training when the validation metric no longer improves."""
    early_stopping_callback_params: EarlyStoppingSettings = field(default_factory=EarlyStoppingSettings)


@dataclass
class TokenizerSettings:
    """How text becomes token ids."""

    vocab_file: str | None = None
    """WordPiece vocabulary, one token per line, or GPT-2's vocab.json; null: the checkpoint's own."""
    merges_file: str | None = None
    """GPT-2's merges.txt; null: the one beside vocab_file."""
    do_lower_case: bool | None = None
    """Lower-case the input and strip accents; null: according to the checkpoint's files, its name or the vocabulary."""


@dataclass
class LanguageModelSettings:
    """The encoder to start from."""

    pretrained_model_name: str | None = "megatron-bert-345m-uncased"
    """Published name (see `megabert models`), file, folder, or org/name of the hub; null: random weights."""
    lm_checkpoint: str | None = None
    """Checkpoint file or folder that replaces the published weights (--bert_checkpoint)."""
    config_file: str | None = None
    """JSON file with the architecture, for checkpoints that do not contain it (--bert_config)."""
    config: dict[str, Any] = field(default_factory=dict)
    """The architecture itself: hidden_size, num_layers, num_attention_heads, ...; config_file takes precedence."""
    qkv_layout: str | None = choice(None, "3_heads_dim", "heads_dim_3", "heads_3_dim")
    """Row order of a Megatron-LM checkpoint's fused query-key-value weights; null: by its version and arguments."""
    first_layers: int | None = None
    """Keep only the first so many layers of the checkpoint: faster, and enough for many a small task; null: all."""
    ignored_arguments: list[str] = field(default_factory=list)
    """Arguments in the checkpoint or its configuration that are refused, but have no effect on this network."""
    hidden_dropout: float | None = None
    """Dropout probability after embeddings, attention and MLP; null: that of a Hugging Face config.json, else 0.1."""
    attention_dropout: float | None = None
    """Dropout probability of attention weights; null: that of a Hugging Face config.json, else 0.1."""


@dataclass
class ScheduleSettings:
    """Learning rate schedule; names and formulas of NeMo 1.x."""

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
    """Curve after the warm-up. WarmupAnnealing decays linearly to 0, WarmupPolicy stays constant."""
    warmup_steps: int | None = None
    """Optimizer steps of linear warm-up; set this or warmup_ratio."""
    warmup_ratio: float | None = None
    """Warm-up as a fraction of all optimizer steps."""
    hold_steps: int = 0
    """Optimizer steps at the peak learning rate after the warm-up (the two Hold schedules)."""
    min_lr: float = 0.0
    """Minimum learning rate."""
    power: float = 1.0
    """Exponent of the two Polynomial schedules."""


@dataclass
class OptimizerSettings:
    """Optimizer and its hyperparameters."""

    name: str = choice("adamw", "adamw", "adam", "sgd", "adamax", "adagrad", "adadelta", "rmsprop", "rprop")
    """Optimizer, as PyTorch implements it."""
    lr: float = 3e-5
    """Peak learning rate."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay rates of the first and second moment estimates (adam, adamw, adamax)."""
    eps: float = 1e-8
    """Term added to the denominator for numerical stability (adam, adamw, adamax, adagrad, adadelta, rmsprop)."""
    momentum: float = 0.0
    """Momentum (sgd, rmsprop)."""
    weight_decay: float = 0.01
    """Weight decay of the weight matrices."""
    decay_norm_and_bias: bool = False
    """Also apply weight decay to biases and layer norms, as NeMo 1.x does."""
    sched: ScheduleSettings = field(default_factory=ScheduleSettings)


def linear_decay(lr: float) -> Callable[[], OptimizerSettings]:
    """Make the default of an optimizer block: linear warm-up over a tenth of the steps, then linear decay to 0."""
    return lambda: OptimizerSettings(
        lr=lr, weight_decay=0.01, sched=ScheduleSettings(name="WarmupAnnealing", warmup_ratio=0.1)
    )


@dataclass
class DataSettings:
    """One data set."""

    file: Any = None
    """Path of the data file, or several: a list, or a pattern such as data/*.jsonl. Compressed ones (gz, bz2, xz, zst)
    are decompressed."""
    max_expansion: int = 200
    """Largest size of a decompressed file, in multiples of its compressed size; up to 256 MiB are always read."""
    batch_size: int = 24
    """Sequences (windows count singly) per micro-batch; in evaluation, the token budget: this many sequences of maximum
    length."""
    num_samples: int = -1
    """Use only the first so many examples; -1: all."""


@dataclass
class TrainDataSettings(DataSettings):
    """The training data."""

    shuffle: bool = True
    """Shuffle the examples in each epoch, in an order that depends on the seed and the epoch only."""
    drop_last: bool = False
    """Drop an epoch's last step if it is incomplete; false: distribute the sequences evenly over all steps."""
    use_cache: bool = True
    """Cache the tokenized sequences in megabert's cache folder, under a hash of everything that they depend on."""
    held_out_fold: str | None = None
    """Leave out the I-th of N parts of the examples, given as I/N, for cross-validation; null: none."""


@dataclass
class HeadSettings:
    """What the heads of all tasks share."""

    reset: bool = False
    """With pretrained_model: keep only its encoder, and initialize a new head for the labels of the training data."""


@dataclass
class LoraSettings:
    """Low-rank adapters (LoRA)."""

    adapter_dim: int = 16
    """Rank of the adapters."""
    alpha: float = 32.0
    """The adapters' products are scaled by alpha / adapter_dim."""
    adapter_dropout: float = 0.0
    """Dropout probability of the adapters' inputs."""
    target_modules: list[str] = field(default_factory=lambda: ["all"])
    """Linear layers with an adapter: attention_qkv, attention_dense, mlp_fc1, mlp_fc2; attention, mlp, all."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(adapter_dim) instead."""


@dataclass
class PeftSettings:
    """Parameter-efficient fine-tuning: the encoder is frozen, adapters and the head are trained."""

    peft_scheme: str | None = choice(None, "lora")
    """lora: train low-rank adapters; null: train all weights."""
    restore_from_path: str | None = None
    """Folder in PEFT's format to start from; it determines rank, alpha and layers."""
    lora_tuning: LoraSettings = field(default_factory=LoraSettings)


@dataclass
class DistillationSettings:
    """Distillation: the network, a student, also learns what a larger one, its teacher, predicts."""

    teacher: str | None = None
    """Run of the same task, or a Hugging Face folder with its head; null: learn from the labels alone."""
    weight: float = 0.5
    """Share of the teacher in the loss, 0 to 1; the labels have the rest."""
    temperature: float = 2.0
    """Logits of both are divided by it; regressions and margins of rankings have none."""
    hidden_weight: float = 0.0
    """Weight of the squared differences of the last hidden states, which must have the same size; 0: none."""
    unlabelled: Any = None
    """More data, without labels or with labels that are not read, from which the student learns by the teacher alone:
    a path, a list or a pattern."""
    student_layers: int | None = None
    """Start from the teacher's weights with so many of its layers, evenly spaced with the first and the last (6 of 12:
    1, 3, 5, 8, 10, 12); null: from model.language_model."""


@dataclass
class ModelSettings:
    """Model, data and optimizer. Tasks add `dataset` and their head."""

    head: HeadSettings = field(default_factory=HeadSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    train_ds: TrainDataSettings = field(default_factory=TrainDataSettings)
    validation_ds: DataSettings = field(default_factory=DataSettings)
    test_ds: DataSettings = field(default_factory=DataSettings)
    optim: OptimizerSettings = field(default_factory=OptimizerSettings)
    peft: PeftSettings = field(default_factory=PeftSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)


@dataclass
class Settings:
    """All settings of a run."""

    seed: int = 1234
    """Random seed of new weights, data order and dropout."""
    do_training: bool = True
    """false: do not train, only evaluate pretrained_model on model.test_ds."""
    pretrained_model: str | None = None
    """Run folder to start from, including its head; null: a new head on the language model."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    exp_manager: ExperimentSettings = field(default_factory=ExperimentSettings)
