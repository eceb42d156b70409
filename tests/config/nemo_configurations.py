"""The configurations of NeMo 1.0.2's NLP example scripts: their keys and defaults, written out from its documentation.

`???` marks values that NeMo requires on the command line.
"""

TRAINER = """
trainer:
  gpus: 1
  num_nodes: 1
  max_epochs: {epochs}
  max_steps: null
  accumulate_grad_batches: 1
  gradient_clip_val: 0.0
  amp_level: {amp}
  precision: {precision}
  accelerator: ddp
  checkpoint_callback: False
  logger: False
  log_every_n_steps: 1
  val_check_interval: 1.0
  resume_from_checkpoint: null
  num_sanity_val_steps: 0
exp_manager:
  exp_dir: null
  name: {name}
  create_tensorboard_logger: True
  create_checkpoint_callback: True
hydra:
  run:
    dir: .
  job_logging:
    root:
      handlers: null
"""
LANGUAGE_MODEL = """
  tokenizer:
    tokenizer_name: ${model.language_model.pretrained_model_name}
    vocab_file: null
    tokenizer_model: null
    special_tokens: null
  language_model:
    pretrained_model_name: bert-base-uncased
    lm_checkpoint: null
    config_file: null
    config: null
"""
SCHEDULE = """
    sched:
      name: {name}
      warmup_steps: null
      warmup_ratio: {ratio}
      last_epoch: -1
      monitor: val_loss
      reduce_on_plateau: false
"""
SHARED_DATA = "    num_workers: 2\n    pin_memory: false\n    drop_last: false\n"


def trainer(name, epochs, *, amp="O0", precision=16):
    return TRAINER.format(name=name, epochs=epochs, amp=amp, precision=precision)


def optimizer(lr, decay=0.0, name="adam", schedule="WarmupAnnealing", ratio=0.1):
    block = f"  optim:\n    name: {name}\n    lr: {lr}\n    weight_decay: {decay}"
    return block + SCHEDULE.format(name=schedule, ratio=ratio)


def data(lines, size, *, shared="", names=("train", "validation", "test")):
    blocks = ""
    for name, split in zip(names, ("train", "dev", "dev"), strict=False):
        own = "".join(f"    {line.format(split=split)}\n" for line in lines)
        blocks += f"  {name}_ds:\n{own}    shuffle: {str(name == 'train').lower()}\n    num_samples: -1\n"
        blocks += f"    batch_size: {size}\n{shared}"
    return blocks


WORD_DATASET = (
    """
  dataset:
    data_dir: ???
    max_seq_length: 128
    pad_label: 'O'
    ignore_extra_tokens: false
    ignore_start_end: false
    use_cache: true
"""
    + SHARED_DATA
)
TWO_FILES = ("text_file: text_{split}.txt", "labels_file: labels_{split}.txt")

CONFIGURATIONS = {
    "token_classification": "pretrained_model: null" + trainer("token_classification_model", 5) + """
model:
  label_ids: null
  class_labels:
    class_labels_file: label_ids.csv
""" + WORD_DATASET + "    class_balancing: null\n" + data(TWO_FILES, 64) + LANGUAGE_MODEL + """
  head:
    num_fc_layers: 2
    fc_dropout: 0.5
    activation: 'relu'
    use_transformer_init: True
""" + optimizer("5e-5"),
    "punctuation_capitalization": "pretrained_model: null" + trainer("Punctuation_and_Capitalization", 3) + """
model:
  punct_label_ids: null
  capit_label_ids: null
  class_labels:
    punct_labels_file: punct_label_ids.csv
    capit_labels_file: capit_label_ids.csv
""" + WORD_DATASET + data((*TWO_FILES, "ds_item: null"), 64) + LANGUAGE_MODEL + """
  punct_head:
    punct_num_fc_layers: 1
    fc_dropout: 0.1
    activation: 'relu'
    use_transformer_init: True
  capit_head:
    capit_num_fc_layers: 1
    fc_dropout: 0.1
    activation: 'relu'
    use_transformer_init: True
""" + optimizer("1e-4"),
    "text_classification": trainer("TextClassification", 100, precision=32) + """
model:
  nemo_path: text_classification_model.nemo
  class_labels:
    class_labels_file: null
  dataset:
    num_classes: ???
    do_lower_case: false
    max_seq_length: 256
    class_balancing: null
    use_cache: false
""" + data(("file_path: null",), 64, shared=SHARED_DATA) + LANGUAGE_MODEL + """
  classifier_head:
    num_output_layers: 2
    fc_dropout: 0.1
""" + optimizer("2e-5", 0.01).replace("    weight_decay", "    betas: [0.9, 0.999]\n    weight_decay") + """
  infer_samples: [
    'by the end of no such thing the audience has a watchful affection',
    'director rob marshall went out gunning to make a great one']
""",
    "entity_linking": trainer("sap_bert_umls", 2, precision=16) + """
model:
  nemo_path: sap_entity_linking.nemo
  max_seq_length: 128
""" + data(("data_file: {split}.tsv", "max_seq_length: 128"), 128, names=("train", "validation")) + LANGUAGE_MODEL + """
  index:
    dims: 256
    nlist: 300
    top_n: 5
""" + optimizer("3e-5", schedule="CosineAnnealing"),
    "glue": "supported_tasks: &supported_tasks ['cola', 'sst-2', 'mrpc']" + trainer("mrpc", 3) + """
model:
  task_name: mrpc
  supported_tasks: *supported_tasks
  output_dir: null
  nemo_path: null
  dataset:
    data_dir: ???
    max_seq_length: 128
    use_cache: true
""" + SHARED_DATA + data(("ds_item: {split}.tsv",), 32, names=("train", "validation")) + LANGUAGE_MODEL
    + optimizer("5e-5"),
    "question_answering": "pretrained_model: null\ndo_training: true\n" + trainer("QA", 2, amp="O1") + """
model:
  nemo_path: null
  dataset:
    version_2_with_negative: false
    doc_stride: 128
    max_query_length: 64
    max_seq_length: 384
    max_answer_length: 30
    null_score_diff_threshold: 0.0
    n_best_size: 20
    use_cache: true
    do_lower_case: true
""" + SHARED_DATA + data(("file: null",), 24) + """
    output_prediction_file: test_prediction.json
    output_nbest_file: test_nbest.json
""" + LANGUAGE_MODEL + """
  token_classifier:
    num_layers: 1
    dropout: 0.0
    num_classes: 2
    activation: relu
    log_softmax: false
    use_transformer_init: true
""" + optimizer("3e-5", name="adamw", schedule="SquareRootAnnealing", ratio=0.0),
    # of 1.9: the first version with the script
    "dialogue_state_tracking": "pretrained_model: null" + trainer("SGDQA", 100, precision=32) + """
model:
  nemo_path: sgd_qa.nemo
  encoder:
    dropout: 0.1
  dataset:
    max_seq_length: 128
    max_num_cat_slot: 6
    max_num_noncat_slot: 12
    max_value_per_cat_slot: 12
    max_num_intent: 4
    num_tasks: 6
    task_name: sgd_single_domain
    state_tracker: nemotracker
    data_dir: ???
    dialogues_example_dir: ???
    subsample: false
    use_cache: false
    use_fuzzy_match: true
    joint_acc_across_turn: false
""" + data(("ds_item: {split}",), 128, shared=SHARED_DATA) + LANGUAGE_MODEL
    + optimizer("1e-4", name="adamw", schedule="PolynomialDecayAnnealing", ratio=0.02),
    "intent_slot": trainer("IntentSlot", 50, precision=32) + """
model:
  nemo_path: null
  data_dir: ???
  class_labels:
    intent_labels_file: intent_labels.csv
    slot_labels_file: slot_labels.csv
  class_balancing: null
  intent_loss_weight: 0.6
  pad_label: -1
  ignore_extra_tokens: false
  ignore_start_end: true
""" + data(("prefix: {split}",), 32, shared=SHARED_DATA) + LANGUAGE_MODEL + """
    max_seq_length: 50
  head:
    num_output_layers: 2
    fc_dropout: 0.1
  optim:
    name: adam
    lr: 2e-5
    args:
      name: auto
      params:
        weight_decay: 0.01
    sched:
      name: WarmupAnnealing
      iters_per_batch: null
      max_steps: null
      monitor: val_loss
      reduce_on_plateau: false
      args:
        name: auto
        params:
          warmup_steps: null
          warmup_ratio: 0.1
          last_epoch: -1
""",
    "masked_language_model": trainer("PretrainingBERTFromText", 10, amp="O1") + """
model:
  only_mlm_loss: false
  num_tok_classification_layers: 1
  num_seq_classification_layers: 2
  nemo_path: null
  max_seq_length: 128
  mask_prob: 0.15
  short_seq_prob: 0.1
""" + data(
        ("data_file: null", "max_seq_length: ${{model.max_seq_length}}", "mask_prob: ${{model.mask_prob}}",
         "short_seq_prob: ${{model.short_seq_prob}}"), 16, shared=SHARED_DATA, names=("train", "validation"),
    ) + LANGUAGE_MODEL + optimizer("3e-5", name="adamw", schedule="CosineAnnealing", ratio=0.1),
}  # fmt: skip
