"""NeMo 1.x's setting names: keys that have another name here, and keys without effect."""

# NeMo 1.x keys with another name here.
RENAMED = {
    "trainer.gpus": "trainer.devices",
    "model.dataset.do_lower_case": "model.tokenizer.do_lower_case",
    "model.dataset.use_cache": "model.train_ds.use_cache",
    "model.validation_ds.file_path": "model.validation_ds.file",
    "model.train_ds.file_path": "model.train_ds.file",
    "model.test_ds.file_path": "model.test_ds.file",
    "model.language_model.max_seq_length": "model.dataset.max_seq_length",
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
    "exp_manager.checkpoint_callback_params.save_best_k": "exp_manager.checkpoint_callback_params.save_top_k",
}


# NeMo 1.x keys that have no effect here, and why.
NEEDLESS = {
    "trainer.amp_level": "trainer.precision chooses the arithmetic",
    "trainer.strategy": "trainer.devices and trainer.num_nodes choose the layout",
    "trainer.checkpoint_callback": "checkpoints are written by exp_manager's settings",
    "trainer.enable_checkpointing": "checkpoints are written by exp_manager's settings",
    "trainer.logger": "metrics.jsonl is always written",
    "trainer.num_sanity_val_steps": "the data is checked before training starts",
    "trainer.sync_batchnorm": "there is no batch norm",
    "model.nemo_path": "the run folder holds the model",
    "model.tokenizer.tokenizer_name": "the vocabulary comes with the checkpoint or from model.tokenizer.vocab_file",
    "model.tokenizer.special_tokens": "the special tokens are those of the vocabulary",
    "model.train_ds.num_workers": "no worker processes are needed",
    "model.train_ds.pin_memory": "copies to the device are chosen by the program",
    "model.validation_ds.num_workers": "no worker processes are needed",
    "model.validation_ds.pin_memory": "copies to the device are chosen by the program",
    "model.validation_ds.shuffle": "validation keeps the file's order",
    "model.validation_ds.drop_last": "every example is scored",
    "model.test_ds.num_workers": "no worker processes are needed",
    "model.test_ds.pin_memory": "copies to the device are chosen by the program",
    "model.test_ds.shuffle": "evaluation keeps the file's order",
    "model.test_ds.drop_last": "every example is scored",
    "model.label_ids": "labels are taken from the training data and kept with the run",
    "model.punct_label_ids": "labels are taken from the training data and kept with the run",
    "model.capit_label_ids": "labels are taken from the training data and kept with the run",
    "model.class_labels.class_labels_file": "labels are taken from the training data and kept with the run",
    "model.class_labels.punct_labels_file": "labels are taken from the training data and kept with the run",
    "model.class_labels.capit_labels_file": "labels are taken from the training data and kept with the run",
    "model.dataset.num_classes": "the classes are those of the training data",
    "model.dataset.num_workers": "no worker processes are needed",
    "model.dataset.pin_memory": "copies to the device are chosen by the program",
    "model.head.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "model.classifier_head.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "model.punct_head.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "model.capit_head.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "model.pad_label": "tokens without a slot are left out of the loss",
    "model.token_classifier.num_classes": "the task knows its outputs",
    "model.token_classifier.log_softmax": "the loss takes logits",
    "model.token_classifier.use_transformer_init": "a head's weights are drawn as Megatron-LM draws its own",
    "exp_manager.checkpoint_callback_params.save_last": "the last checkpoint is always kept",
    "exp_manager.checkpoint_callback_params.always_save_nemo": "the run folder holds the model",
    "exp_manager.checkpoint_callback_params.save_best_model": "the best checkpoint is always kept",
}


# A value for one of these whole blocks means its file: NeMo's documentation says `model.validation_ds=FILE`.
FILE_BLOCKS = ("model.train_ds", "model.validation_ds", "model.test_ds")
