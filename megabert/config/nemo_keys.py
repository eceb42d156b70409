"""Setting names of NeMo 1.x: keys that have another name here, that have no effect, and that stand for another way.

`{ds}` in a key stands for train_ds, validation_ds and test_ds, `{head}` for each task's head. A key of a group, such as
`hydra`, stands for all keys in it. Source: the configurations of NeMo 1.0.2's example scripts, and those of 1.5 to 1.23
where they differ.
"""

import itertools
from collections.abc import Mapping
from typing import Any

# A value for one of these blocks is its file: NeMo's documentation writes `model.validation_ds=FILE`.
FILE_BLOCKS = ("model.train_ds", "model.validation_ds", "model.test_ds")
_NAMES = {
    "ds": ("train_ds", "validation_ds", "test_ds"),
    "head": ("head", "classifier_head", "punct_head", "capit_head", "token_classifier"),
}


def _expand(table: Mapping[str, str]) -> dict[str, str]:
    """Write out the rows of {ds} and {head}; in a row's key and value they stand for the same name."""
    expanded = {}
    for key, value in table.items():
        for ds, head in itertools.product(_NAMES["ds"], _NAMES["head"]):
            expanded[key.format(ds=ds, head=head)] = value.format(ds=ds, head=head)
    return expanded


# NeMo's key -> the keys here, of which the first that the task has is meant.
RENAMED = _expand({
    "trainer.gpus": "trainer.devices",
    "trainer.row_log_interval": "trainer.log_every_n_steps",
    "exp_manager.root_dir": "exp_manager.exp_dir",
    "exp_manager.checkpoint_callback_params.save_best_k": "exp_manager.checkpoint_callback_params.save_top_k",
    "model.dataset.use_cache": "model.train_ds.use_cache",
    "model.dataset.drop_last": "model.train_ds.drop_last",
    "model.{ds}.file_path": "model.{ds}.file",
    "model.{ds}.file_name": "model.{ds}.ds_item model.{ds}.file",
    "model.train_ds.max_seq_length": "model.dataset.max_seq_length",
    "model.validation_ds.max_seq_length": "model.dataset.max_seq_length",
    "model.train_ds.mask_prob": "model.dataset.masked_lm_prob",
    "model.train_ds.short_seq_prob": "model.dataset.short_seq_prob",
    "model.max_seq_length": "model.dataset.max_seq_length",
    "model.dataset.max_passage_length": "model.dataset.max_seq_length",
    "model.mask_prob": "model.dataset.masked_lm_prob",
    "model.short_seq_prob": "model.dataset.short_seq_prob",
    "model.pretrained_model_name": "model.language_model.pretrained_model_name",
    "model.language_model.max_seq_length": "model.dataset.max_seq_length",
    "model.language_model.bert_checkpoint": "model.language_model.lm_checkpoint",
    "model.language_model.bert_config_file": "model.language_model.config_file",
    "model.language_model.bert_config": "model.language_model.config",
    "model.tokenizer.merge_file": "model.tokenizer.merges_file",
    "model.data.data_prefix": "model.dataset.data_prefix",
    "model.data.splits_string": "model.dataset.splits_string",
    "model.data.seq_length": "model.dataset.max_seq_length",
    "model.data.masked_lm_prob": "model.dataset.masked_lm_prob",
    "model.data.short_seq_prob": "model.dataset.short_seq_prob",
    "model.data.eod_mask_loss": "model.dataset.eod_mask_loss",
    "model.bert_binary_head": "model.dataset.sentence_order",
    "model.punct_head.punct_num_fc_layers": "model.punct_head.num_fc_layers",
    "model.capit_head.capit_num_fc_layers": "model.capit_head.num_fc_layers",
    "model.optim.args.params.betas": "model.optim.betas",
    "model.optim.args.params.weight_decay": "model.optim.weight_decay",
    "model.optim.args.params.eps": "model.optim.eps",
    "model.optim.sched.args.params.warmup_steps": "model.optim.sched.warmup_steps",
    "model.optim.sched.args.params.warmup_ratio": "model.optim.sched.warmup_ratio",
    "model.optim.sched.args.params.min_lr": "model.optim.sched.min_lr",
})  # fmt: skip

_WORKERS = "data is prepared without worker processes"
_PINNED = "on a GPU, pinned memory is always used"
_LABELS = "labels are collected from the training data and saved with the run"
_INDEX = "`megabert dictionary build` and `embed` make the index"
_RUN = "the run folder contains the model"
_SCHEDULE = "the schedule's length is that of the training, and a resumed run continues it"
_CHECKPOINTS = "checkpoints have names and places of their own"
_VOCABULARY = "the vocabulary is the checkpoint's or model.tokenizer.vocab_file"
_TARRED = "data are read from plain files"
_QUESTIONS = "services may have any number of intents, slots and values"

# NeMo's key without effect here -> the reason, for the notice; null and false give none.
IGNORED = _expand({
    "hydra": "only the run folder is written",
    "name": "exp_manager.name is the run's name",
    "supported_tasks": "model.task_name is the task",
    "model.supported_tasks": "model.task_name is the task",
    "model.output_dir": "predictions are written to the run folder",
    "model.nemo_path": _RUN,
    "model.raw_data": "`megabert dictionary build` reads the UMLS",
    "model.index": _INDEX,
    "index": _INDEX,
    "model.infer_samples": "`megabert predict RUN` classifies texts",
    "trainer.amp_level": "trainer.precision sets the precision",
    "trainer.amp_backend": "trainer.precision sets the precision",
    "trainer.strategy": "trainer.devices, trainer.num_nodes and parallel set the layout",
    "trainer.distributed_backend": "trainer.devices, trainer.num_nodes and parallel set the layout",
    "trainer.plugins": "trainer.devices, trainer.num_nodes and parallel set the layout",
    "trainer.replace_sampler_ddp": "each process gets its share of the data",
    "trainer.checkpoint_callback": "exp_manager sets which checkpoints are written",
    "trainer.enable_checkpointing": "exp_manager sets which checkpoints are written",
    "trainer.logger": "metrics.jsonl is always written",
    "trainer.num_sanity_val_steps": "the data is checked before training starts",
    "trainer.sync_batchnorm": "there is no batch norm",
    "trainer.benchmark": "there are no convolutions",
    "exp_manager.use_datetime_version": "exp_manager.version names the run's folder",
    "exp_manager.summary_writer_kwargs": "event files have no options",
    "exp_manager.create_wandb_logger": "metrics.jsonl and TensorBoard's event files are written",
    "exp_manager.wandb_logger_kwargs": "metrics.jsonl and TensorBoard's event files are written",
    "exp_manager.files_to_copy": "the run folder has the settings and versions",
    "exp_manager.log_local_rank_0_only": "rank 0 writes the log",
    "exp_manager.log_global_rank_0_only": "rank 0 writes the log",
    "exp_manager.checkpoint_callback_params.save_last": "the last checkpoint is always saved",
    "exp_manager.checkpoint_callback_params.always_save_nemo": _RUN,
    "exp_manager.early_stopping_callback_params.verbose": "early stopping is always reported",
    "exp_manager.early_stopping_callback_params.strict": "a metric that does not exist is always an error",
    "exp_manager.early_stopping_callback_params.check_finite": "a metric that is not finite is no improvement",
    "exp_manager.checkpoint_callback_params.save_best_model": "the best checkpoint is always saved",
    "exp_manager.checkpoint_callback_params.save_weights_only": "a run can always be resumed",
    "exp_manager.checkpoint_callback_params.dirpath": _CHECKPOINTS,
    "exp_manager.checkpoint_callback_params.filename": _CHECKPOINTS,
    "exp_manager.checkpoint_callback_params.prefix": _CHECKPOINTS,
    "exp_manager.checkpoint_callback_params.postfix": _CHECKPOINTS,
    "exp_manager.checkpoint_callback_params.period": "a checkpoint is saved at each validation",
    "model.tokenizer.tokenizer_name": _VOCABULARY,
    "model.tokenizer.pretrained_model_name": _VOCABULARY,
    "model.tokenizer.special_tokens": _VOCABULARY,
    "model.tokenizer.data_file": _VOCABULARY,
    "model.tokenizer.sample_size": _VOCABULARY,
    "model.tokenizer.vocab_size": _VOCABULARY,
    "model.class_labels": _LABELS,
    "model.label_ids": _LABELS,
    "model.punct_label_ids": _LABELS,
    "model.capit_label_ids": _LABELS,
    "model.common_dataset_parameters": _LABELS,
    "model.pad_label": "tokens without a label are excluded from the loss",
    "model.dataset.pad_label": "O is the label of a word without a mark",
    "model.dataset.do_lower_case": "the checkpoint's files or model.tokenizer.do_lower_case decide, as in NeMo",
    "model.dataset.num_classes": "the classes are those of the training data",
    "model.dataset.dialogues_example_dir": "questions on dialogues are made when they are needed",
    "model.dataset.max_num_cat_slot": _QUESTIONS,
    "model.dataset.max_num_noncat_slot": _QUESTIONS,
    "model.dataset.max_value_per_cat_slot": _QUESTIONS,
    "model.dataset.max_num_intent": _QUESTIONS,
    "model.dataset.num_tasks": "the kinds of questions are those of SGD-QA",
    "model.dataset.num_workers": _WORKERS,
    "model.dataset.pin_memory": _PINNED,
    "model.dataset.sentence_1_column": "columns are found by the names in the header",
    "model.dataset.sentence_2_column": "columns are found by the names in the header",
    "model.dataset.label_column": "columns are found by the names in the header",
    "model.{ds}.num_workers": _WORKERS,
    "model.{ds}.pin_memory": _PINNED,
    "model.{ds}.shuffle": "validation and evaluation keep the file's order",
    "model.{ds}.drop_last": "every example is scored",
    "model.{ds}.use_cache": "model.train_ds.use_cache sets it",
    "model.{ds}.max_seq_length": "model.train_ds.max_seq_length sets it",
    "model.{ds}.mask_prob": "model.train_ds.mask_prob sets it",
    "model.{ds}.short_seq_prob": "model.train_ds.short_seq_prob sets it",
    "model.{ds}.max_predictions_per_seq": "model.dataset.masked_lm_prob sets the share of masked tokens",
    "model.{ds}.output_prediction_file": "predictions are written to the run folder",
    "model.{ds}.output_nbest_file": "predictions are written to the run folder",
    "model.{ds}.tokens_in_batch": "batch_size sets the tokens of a batch",
    "model.{ds}.n_jobs": _WORKERS,
    "model.{ds}.tar_shuffle_n": _TARRED,
    "model.{ds}.psg_cache_format": "passages are read once, without a cache of their own",
    "model.language_model.sim_score_dropout": "similarities have no dropout",
    "model.{ds}.repack_batches_with_shuffle_every_epoch": "batches are always packed anew",
    "model.{head}.use_transformer_init": "heads are initialized as in Megatron-LM",
    "model.{head}.log_softmax": "the loss takes logits",
    "model.{head}.num_classes": "the task determines the number of outputs",
    "model.num_tok_classification_layers": "the heads are those of Megatron-LM's pre-training",
    "model.num_seq_classification_layers": "the heads are those of Megatron-LM's pre-training",
    "model.optim.args.name": "model.optim has the options",
    "model.optim.sched.args.name": "model.optim.sched has the options",
    "model.optim.sched.args.params.last_epoch": _SCHEDULE,
    "model.optim.sched.last_epoch": _SCHEDULE,
    "model.optim.sched.max_steps": _SCHEDULE,
    "model.optim.sched.iters_per_batch": _SCHEDULE,
    "model.optim.sched.monitor": "the learning rate depends on the step only",
    "model.optim.sched.reduce_on_plateau": "the learning rate depends on the step only",
})  # fmt: skip

# NeMo's key whose value, unless null or false, must not be passed over -> what to do instead.
ELSEWHERE = _expand({
    "trainer.resume_from_checkpoint": "Continue a run by `megabert train TASK --resume RUN`",
    "model.tokenizer.tokenizer_model": "SentencePiece is not supported. Give a WordPiece vocabulary: "
    "model.tokenizer.vocab_file=FILE",
    "model.{ds}.data_file": "`megabert corpus build` makes token files from text. Name their prefix: "
    "model.{ds}.file=PREFIX",
    "model.{ds}.ds_item": "Give model.dataset.data_dir and the files in it, model.{ds}.text_file and labels_file",
    "model.{ds}.use_tarred_dataset": "Unpack the data, and give its files: model.{ds}.text_file and labels_file",
    "model.{ds}.tar_metadata_file": "Unpack the data, and give its files: model.{ds}.text_file and labels_file",
})  # fmt: skip

# PyTorch Lightning's names of strategies, which NeMo 1.x writes as accelerator.
_STRATEGIES = ("ddp", "dp", "ddp2", "ddp_spawn", "ddp_cpu", "horovod")


def translate(key: str, value: Any) -> tuple[str, Any, str | None]:
    """Translate a key whose value has another meaning here; returns key, value and the notice, None if it is the same.

    trainer.gpus=0 is the CPU, accelerator=ddp a strategy, and only_mlm_loss the opposite of sentence_order.
    """
    if key == "trainer.gpus" and value in (0, "0", []):
        return "trainer.accelerator", "cpu", "trainer.gpus=0 is named trainer.accelerator=cpu here."
    if key == "trainer.accelerator" and value in _STRATEGIES:
        return key, "auto", f"trainer.accelerator={value} has no effect: {IGNORED['trainer.strategy']}."
    if key == "model.only_mlm_loss" and isinstance(value, bool):
        return "model.dataset.sentence_order", not value, f"{key} is the opposite of model.dataset.sentence_order here."
    return key, value, None
