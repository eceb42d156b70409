"""Decide which arguments of a checkpoint may differ from ours: an allow-list for Megatron-LM, NeMo and Hugging Face.

An argument that could change what the network computes, without changing any tensor's name or shape, must have a value
of `NEUTRAL` (or be read by the caller). One that is neither there nor in `HARMLESS` must be off, or the user names it.
Sources: megatron/training/arguments.py of v1.0 to core_v0.15, TransformerConfig and ModelParallelConfig of core_v0.9
and v0.16; megatron_{bert,gpt}_config.yaml and cfg.get(...) of NeMo r1.0 to r1.23, llm.bert and llm.gpt of 2.1;
PretrainedConfig, BertConfig, MegatronBertConfig and GPT2Config of transformers 4 and 5.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from .files.pickle_reader import Record

# The values of an argument under which the network is ours. Where False or None is not listed, it is another network.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("add_bias_linear", "bias", "add_position_embedding", "share_embeddings_and_output_weights",
         "tie_word_embeddings", "normalize_attention_scores", "scale_attn_weights", "pre_process", "post_process"),
        (True,),
    ),
    "normalization": ("LayerNorm", "layernorm", "layernorm1p", "low_precision_layernorm", None),
    "position_embedding_type": ("learned_absolute", "absolute", None),
    "activation": ("gelu", None),
    "activation_func": ("gelu", None),
    "transformer_block_type": ("pre_ln", None),
    "attention_type": ("multihead", None),
    "softmax_type": ("vanilla", None),
    "window_size": (None, -1, (-1, -1), [-1, -1]),
    "num_experts": (None, 0, [1]),
    "num_moe_experts": (None, 0, 1),
    "spec": (None, [], ["local"], "local"),
    "bert_type": ("megatron", None),
    "transformer_layer_spec": (
        "default_layer_spec", "local_layer_spec", "transformer_engine_layer_spec", "transformer_engine_full_layer_spec",
        "bert_layer_local_spec", "bert_layer_with_transformer_engine_spec", None,
    ),
    "pooler_type": ("first_token_transform", None),
}  # fmt: skip
# Arguments that may also equal another one
_EQUAL_TO = {"num_unique_layers": "num_layers"}
# Enumerations of Megatron-LM and its descendants are pickled as (class, number).
_ENUMERATIONS: Mapping[tuple[str, object], str] = {("PositionEmbeddingType", 2): "absolute"}

# What some of these do in another architecture (experts, rotary positions, latent attention, retrievers, hybrids) is
# excluded by the arguments that select it: those are not listed here, and are refused unless they are off.
_HARMLESS = """
shown by names and shapes of tensors: num_layers hidden_size ffn_hidden_size num_attention_heads kv_channels
    max_position_embeddings max_seq_length num_query_groups padded_vocab_size orig_vocab_size override_vocab_size
    vocab_size make_vocab_size_divisible_by seq_length encoder_seq_length decoder_seq_length max_sequence_length
    num_tokentypes add_pooler add_lm_head add_binary_head bert_binary_head encoder_num_layers megabert n_layer n_embd
    n_head n_inner n_positions n_ctx num_hidden_layers intermediate_size type_vocab_size head_hidden_act
rounding, kernels, memory: accumulate_allreduce_grads_in_fp32 apply_query_key_layer_scaling apply_rope_fusion
    attention_backend attention_softmax_in_fp32 autocast_dtype batch_invariant_mode bf16 bias_dropout
    bias_swiglu_fusion bias_dropout_add_fusion cross_entropy_fusion_impl cross_entropy_loss_fusion cuda_graph
    enable_cuda_graph external_cuda_graph deterministic_mode disable_bf16_reduced_precision_matmul
    disable_parameter_transpose_cache dtype enable_autocast first_last_layers_bf16 flash_decode fp16 fp32_allreduce
    fp32_residual_connection fp4 fp8 fused_single_qkv_rope get_attention_mask_from_fusion gradient_accumulation_fusion
    half_precision keep_fp8 masked_softmax_fusion megatron_amp_O2 megatron_amp_o2 memory_efficient_layer_norm
    native_amp no_persist_layer_norm num_layers_at_end_in_bf16 num_layers_at_start_in_bf16 onnx_safe params_dtype
    persist_layer_norm pipeline_dtype precision reduce_amax reorder_and_upcast_attn scaled_masked_softmax_fusion
    tp_only_amax_red torch_dtype scaled_upper_triang_masked_softmax_fusion transformer_engine transformer_impl
    use_bfloat16 use_cache use_emha use_flash_attention use_flash_attn use_flash_attn_v2
    use_fused_weighted_squared_relu use_te_activation_func use_legacy_models use_mcore_models
    use_transformer_engine_full_layer_spec use_transformer_engine_op_fuser clone_scatter_output_in_embedding
    chunk_size_feed_forward attn_implementation _attn_implementation DDP_impl mcore_bert mcore_gpt megatron_legacy
    old_checkpoint_format fp8_e4m3 deprecated_use_mcore_models
recomputation and dropout: activations_checkpoint checkpoint_activations checkpoint_num_layers
    distribute_saved_activations distribute_checkpointed_activations recompute attention_dropout hidden_dropout
    ffn_dropout drop_path_rate embedding_dropout attention_probs_dropout_prob hidden_dropout_prob embd_pdrop
    attn_pdrop resid_pdrop classifier_dropout summary_first_dropout
    num_micro_batches_with_partial_activation_checkpoints num_microbatches_with_partial_activation_checkpoints
    num_layers_per_virtual_pipeline_stage fine_grained_activation cpu_offloading offload_modules
    min_offloaded_tensor_size _cpu_offloading_context gradient_checkpointing
initial weights: init_method output_layer_init_method embedding_init_method init_model_with_meta_device
    initializer_range use_scaled_init_method use_cpu_initialization perform_initialization data_parallel_random_init
    seed
optimizer, schedule, loss: adam clip_grad decoupled end_weight_decay exp_avg_dtype exp_avg_sq_dtype
    fp16_lm_cross_entropy grad_scale_func hysteresis initial_loss_scale head_lr_mult log_max_attention_logit
    loss_scale lr main_grads_dtype main_params_dtype min_loss_scale min_lr min_scale muon optim optimizer
    override_lr_scheduler start_weight_decay override_opt_param_scheduler override_opt sgd_momentum
    use_checkpoint_lr_scheduler use_checkpoint_opt warmup use_precision_aware_optimizer
    use_torch_optimizer_for_cpu_offload weight_decay dynamic_loss_scale calculate_per_token_loss
    apply_wd_to_qk_layernorm mtp_loss_scaling_factor qk_clip_alpha qk_clip_threshold do_layer_norm_weight_decay
    use_distributed_optimizer pin_cpu_grads pin_cpu_params dump_param_to_param_group_map tf_legacy_loss
length, batches, evaluation: batch_size consumed decrease_batch_size_if_needed error_injection eval exit finetune
    full_validation global_batch_size iter_per_epoch iteration iterations_to_skip micro_batch_size
    multiple_validation_sets rampup rampup_batch_size rerun_mode result_rejected_tracker_filename skip_train
    skipped_train_samples start_iteration test_mode train valid sample_rate num_floating_point_operations_so_far
    do_train do_valid do_test
data: allow_ambiguous_pad_tokens block_data_path create_attention_mask_in_dataloader data dataloader_type dataset
    eod_mask_loss embedding_path evidence_data_path mask_factor mask_prob mask_type merge_file
    mid_level_dataset_surplus mmap_bin_files mmap_warmup mock_data num_dataset_builder_threads num_workers
    object_storage_cache_path per_split_data_args_path query_in_block_prob reset_attention_mask reset_position_ids sft
    short_seq_prob split test_data_path titles_data_path use_one_sent_docs variable_seq_lengths legacy_tokenizer
    tiktoken tokenizer vocab_file trust_remote_code vocab_extra_ids null_tokenizer_eod_id max_tokens_to_oom
    max_seqlen_per_dp_cp_rank drop_last use_loss_mask
processes: account_for align async barrier batch_p2p context_parallel cp_comm_type data_parallel ddp
    deallocate_pipeline_outputs defer_embedding_wgrad_compute delay_wgrad_compute distributed
    decoder_first_pipeline_num_layers enable_gloo decoder_last_pipeline_num_layers
    encoder_pipeline_model_parallel_size encoder_tensor_model_parallel_size encoder_world_size
    enable_full_sharding_in_hsdp ep_overlap_early_attn_memory_release expert_model_parallel_size
    expert_tensor_parallel_size first_pipeline_num_layers num_layers_in_first_pipeline_stage
    num_layers_in_last_pipeline_stage fsdp fsdp_double_buffer grad_allreduce_chunk_size_mb grad_div_ar_fusion
    grad_reduce_in_bf16 grad_sync_func gradient_as_bucket_view gradient_reduce_div_fusion
    hierarchical_context_parallel_sizes high_priority_stream hybrid_context_parallel last_pipeline_num_layers
    lazy_mpu_init local_rank microbatch_group_size model_parallel_size nccl no_sync_func
    num_distributed_optimizer_instances num_gpus num_nodes num_virtual_stages_per_pipeline_rank overlap
    param_sharing_style param_sync_func parallel_output pipeline pipeline_model_parallel_layout
    pipeline_model_parallel_size rank replication reuse_grad_buf_for_mxfp8_param_ag scatter_gather_tensors_in_pipeline
    sequence_parallel sharp suggested_communication_unit_size symmetric_ar_type sync_batch_comm
    tensor_model_parallel_size tensor_model_parallel_world_size torch_fsdp2 tp_comm
    transformer_pipeline_model_parallel_size ub_tp_comm_overlap use_contiguous_buffers_in_local_ddp use_custom_fsdp
    use_megatron_fsdp use_nccl_ub use_ring_exchange_p2p use_sharp use_te_rng_tracker use_torch_fsdp2
    use_tp_pp_dp_mapping te_rng_tracker virtual_pipeline_model_parallel_size wgrad_deferral_limit world_size
    hetereogenous_dist_checkpoint disable_symmetric_registration finalize_model_grads_func local_world_size
files and programs: _name_or_path _target_ _call_ adlr_autoresume architectures auto_detect_ckpt_format autoresume
    bert_load ckpt config_logger_dir context dist_ckpt distrib_optim enable_experimental enable_ft_package enable_msc
    enable_one_logger finetuning_task ict_load inprocess load model_type nemo_version no_load no_save non_persistent
    nsys_profile one_logger app_tag_run_name app_tag_run_version pretrained_checkpoint resume_from_checkpoint
    run_workload save strict_fsdp_dtensor_load target timers transformers_version use_checkpoint_args use_dist_ckpt
    use_mp_args_from_checkpoint_args use_persistent_ckpt_worker use_tokenizer_model_from_checkpoint_args yaml_cfg
    exit_on_missing_checkpoint restore_from_path verify_integrity sentence_transformers
    sbert_ce_default_activation_function _attn_implementation_autoset
reports: apex_transformer_log_level check empty_unused_memory_level enable_megatron_timers gc_interval log logging
    manual_gc megatron_timer_kwargs memory_snapshot_path disable_straggler_on_startup profile record_memory_history
    straggler tensorboard timing_log wandb use_pytorch_profiler timing
tasks, other architectures: beta_fast beta_slow biencoder biencoder_projection_dim cache_mla_latents classes_fraction
    disable_mamba_mem_eff_path dino dsa faiss_use_gpu forward_step_fn data_step_fn grpo ict_head_size img img_dim
    indexer kv_lora_rank langrl linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads linear_num_value_heads
    linear_value_head_dim mamba moe mrope_section mscale mscale_all_dim no_rope_freq num_channels num_classes
    original_max_position_embeddings patch_dim peft perform_rl_step q_lora_rank qk_head_dim qk_pos_emb_head_dim
    relative_attention_max_distance relative_attention_num_buckets report_topk_accuracies retriever retro rl
    rope_scaling_factor rope_type rotary_base rotary_interleaved rotary_percent rotary_percentage
    rotary_scaling_factor rotary_seq_len_interpolation_factor seq_len_interpolation_factor swin use_mamba_mem_eff_path
    v_head_dim vision window_attn_skip_freq inference mlp_chunks_for_prefill disable_chunked_prefill directionality
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head summary bert_mask_type
    kitchen_attention_backend
generation and labels: bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty
    do_sample early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id id2label label2id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty
    return_dict sep_token_id suppress_tokens task_specific_params temperature tie_encoder_decoder tokenizer_class
    top_k top_p torchscript typical_p do_lower_case unk_token_id mask_token_id cls_token_id
"""
HARMLESS = frozenset(name for line in _HARMLESS.splitlines() for name in line.rpartition(":")[2].split())
# Beginnings of names whose every argument is harmless
_FAMILIES = """
account_for activations_checkpoint adam adlr align async barrier batch_p2p bias_dropout biencoder check checkpoint
ckpt consumed context_parallel cpu_offloading cuda_graph data data_parallel dataloader dataset ddp dino dist_ckpt
distrib_optim distributed dsa enable_gloo error_injection eval exit fine_grained fp4 fp8 ft grpo high_priority_stream
img indexer inference init_method inprocess keep_fp8 langrl load log logging loss_scale lr mamba manual_gc megabert
microbatch_group_size moe muon native_amp nccl no_load no_save non_persistent one_logger optim optimizer overlap
override_opt pin_cpu pipeline_model_parallel profile rampup recompute replication rerun retriever rl run_workload save
sft sharp straggler summary swin tensorboard tiktoken timing tokenizer torch_fsdp2 tp_comm train ub_tp use_checkpoint
valid vision wandb weight_decay
"""
_FAMILY = re.compile(rf"({'|'.join(_FAMILIES.split())})_.*|retro_(?!add_retriever).*")


def check_arguments(
    arguments: Mapping[str, Any], source: str, *, read: Collection[str] = (), ignored: Collection[str] = ()
) -> list[str]:
    """Return a note for each ignored argument that would be refused.

    `read` are names that the caller interprets, `ignored` those that the user declares harmless.
    Raises CheckpointError that lists every argument that may change the computation.
    """
    refused = [
        (name, value)
        for name, value in arguments.items()
        if name not in read and not _is_ours(name, _plain(value), arguments)
    ]
    unexcused = [(name, value) for name, value in refused if name not in ignored]
    if unexcused:
        raise CheckpointError(f"{source}: {_refusal(unexcused, source)}")
    return [f"WARNING: ignored as requested: {name} is {_shown(value)}" for name, value in refused]


# Parts of names by which a key of config.json may mean another network
_NETWORK_PARTS = re.compile(
    "norm|rope|rotary|alibi|posi|attention|attn|window|layer|head|block|expert|moe|glu|elu|gate|activ|(^|_)act(_|$)|bias"
    "|emb|pool|residual|skip|scal|softmax|logit|conv|sparse|shar|tie|adapter|lora|prun|quant|mlp|ffn|feed|hidden|depth"
    "|width|causal|decoder|encoder|cross|latent|clamp|weights|segment|token_type|swish|auto_map|unpad|architecture"
)


def unread_keys(config: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """Return the keys of a Hugging Face config.json that are beside the network, by their names.

    transformers' classes ignore keys that they do not know, so that trainers and people add their own. None is ignored
    where `auto_map` names classes of the folder's own, and none whose name sounds like a part of a network.
    """
    if config.get("auto_map"):
        return []
    return [
        name
        for name, value in config.items()
        if name not in known and not _is_ours(name, _plain(value), config) and not _NETWORK_PARTS.search(name)
    ]


def _refusal(refused: Sequence[tuple[str, Any]], source: str) -> str:
    shown = ", ".join(f"{name} is {_shown(value)}{_expected(name, value)}" for name, value in refused[:16])
    names = [name for name, _ in refused]
    options = " ".join(f"--ignore-argument {name}" for name in names)
    # A folder that takes a run's place is loaded without these options.
    edit = ", or remove it from config.json" if source.endswith("config.json") else ""
    return (
        f"{shown}. This may change what the network computes, and megabert does not compute it. If it has no effect "
        f"here: {options} (in training model.language_model.ignored_arguments=[{','.join(names)}]){edit}."
    )


def _is_ours(name: str, value: Any, arguments: Mapping[str, Any]) -> bool:
    if name in NEUTRAL:
        return _contains(NEUTRAL[name], value)
    if name in HARMLESS or _FAMILY.fullmatch(name):
        return True
    return _is_off(value) or (name in _EQUAL_TO and value == arguments.get(_EQUAL_TO[name]))


def _is_off(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_off(item) for item in value.values())
    return value is None or value is False or _contains((0, "", "none", (), []), value)


def _contains(allowed: tuple[Any, ...], value: Any) -> bool:
    # 1 == True in Python, but an argument of 1 and one of True differ.
    return any(isinstance(item, bool) == isinstance(value, bool) and item == value for item in allowed)


def _plain(value: Any) -> Any:
    """Return the name of an enumeration's value, of a function, or of what NeMo 2 writes for one; else the value."""
    if isinstance(value, Record):
        return _ENUMERATIONS.get((value.name, value.arguments[0] if value.arguments else None), value.name)
    if isinstance(value, dict) and isinstance(value.get("_target_"), str):
        return value["_target_"].rpartition(".")[2]
    return value


def _shown(value: Any) -> str:
    text = repr(_plain(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _expected(name: str, value: Any) -> str:
    if name in NEUTRAL:
        return f"; only {NEUTRAL[name][0]!r} can be read"
    return "; only False can be read" if value is True else ""
