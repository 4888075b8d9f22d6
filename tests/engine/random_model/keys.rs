//! The metadata of models of any architecture.

use gguf_shorten::gguf::ValueOut;

use super::{N_EMBD, N_HEAD};

/// Keys of all architectures at once: each reads those that it knows.
pub(super) fn common(n_blocks: u32, n_vocab: usize) -> Vec<(&'static str, ValueOut)> {
    let u32 = ValueOut::u32;
    let f32 = ValueOut::f32;
    vec![
        ("block_count", u32(n_blocks)),
        ("vocab_size", u32(n_vocab as u32)),
        ("context_length", u32(1024)),
        ("embedding_length", u32(N_EMBD)),
        ("feed_forward_length", u32(512)),
        ("attention.head_count", u32(N_HEAD)),
        ("attention.head_count_kv", u32(N_HEAD)),
        ("attention.layer_norm_epsilon", f32(1e-5)),
        ("attention.layer_norm_rms_epsilon", f32(1e-5)),
        ("attention.group_norm_epsilon", f32(1e-5)),
        ("attention.group_norm_groups", u32(8)),
        ("attention.max_alibi_bias", f32(8.0)),
        ("attention.clamp_kqv", f32(0.0)),
        ("attention.relative_buckets_count", u32(32)),
        ("attention.q_lora_rank", u32(64)),
        ("attention.kv_lora_rank", u32(64)),
        ("attention.sliding_window", u32(24)),
        ("rope.dimension_count", u32(N_EMBD / N_HEAD)),
        ("rope.freq_base", f32(10000.0)),
        ("rope.dimension_sections", ValueOut::i32s(&[8, 12, 12, 0])),
        ("use_parallel_residual", ValueOut::bool(true)),
        ("logit_scale", f32(0.5)),
        ("residual_scale", f32(0.8)),
        ("embedding_scale", f32(2.0)),
        ("attention.scale", f32(0.125)),
        ("ssm.conv_kernel", u32(4)),
        ("ssm.inner_size", u32(2 * N_EMBD)),
        ("ssm.state_size", u32(16)),
        ("ssm.time_step_rank", u32(8)),
        ("ssm.group_count", u32(2)),
        ("wkv.head_size", u32(64)),
        ("time_mix_extra_dim", u32(32)),
        ("time_decay_extra_dim", u32(32)),
        ("token_shift_count", u32(1)),
        ("attention.decay_lora_rank", u32(32)),
        ("attention.iclr_lora_rank", u32(32)),
        ("attention.value_residual_mix_lora_rank", u32(32)),
        ("attention.gate_lora_rank", u32(32)),
        ("attention.indexer.head_count", u32(N_HEAD)),
        ("attention.indexer.key_length", u32(64)),
        ("attention.indexer.top_k", u32(16)),
        ("attention.indexer.block_size", u32(16)),
        ("attention.indexer.local_blocks", u32(1)),
        ("shortconv.l_cache", u32(3)),
        ("attn_res.block_size", u32(0)),
        ("activation.situ_beta", f32(4.0)),
        ("activation.situ_linear_beta", f32(8.0)),
        ("kda.head_dim", u32(64)),
        ("kda.gate_lower_bound", f32(-5.0)),
    ]
}

/// Entries of a mixture of experts.
pub(super) fn experts() -> Vec<(&'static str, ValueOut)> {
    let u32 = ValueOut::u32;
    vec![
        (".expert_count", u32(4)),
        (".expert_used_count", u32(2)),
        (".expert_shared_count", u32(1)),
        (".expert_feed_forward_length", u32(256)),
        (".expert_shared_feed_forward_length", u32(256)),
        (".expert_chunk_feed_forward_length", u32(256)),
        (".expert_group_scale", ValueOut::f32(0.5)),
        (".experts_per_group", u32(2)),
        (".expert_gating_func", u32(2)),
        (".expert_weights_scale", ValueOut::f32(1.5)),
        (".expert_latent_length", u32(256)),
        (".leading_dense_block_count", u32(3)),
        (".interleave_moe_layer_step", u32(1)),
        (".moe_every_n_layers", u32(2)),
    ]
}

/// Entries of latent attention. One KV head of the compressed size, and the sizes that it stands for.
pub(super) fn latent_attention() -> Vec<(&'static str, ValueOut)> {
    let u32 = ValueOut::u32;
    vec![
        (".attention.key_length", u32(96)),
        (".attention.value_length", u32(64)),
        (".attention.key_length_mla", u32(96)),
        (".attention.value_length_mla", u32(64)),
        (".rope.dimension_count", u32(32)),
    ]
}

/// Entries of a model whose blocks are attention, recurrent or feed-forward. The widths of the last differ.
pub(super) fn sub_blocks(architecture: &str, n: usize) -> Vec<(&'static str, ValueOut)> {
    let list = |of: &dyn Fn(usize) -> u32| ValueOut::u32s(&(0..n).map(of).collect::<Vec<_>>());
    let heads = list(&|i| if i % 4 == 2 { N_HEAD } else { 0 });
    let width = |i: usize| {
        if i % 2 == 1 { 256 * (1 + i as u32 % 3) } else { 0 }
    };
    let mut entries = vec![(".attention.head_count_kv", heads), (".feed_forward_length", list(&width))];
    if architecture == "nemotron_h_moe" {
        entries.extend(experts());
        entries.retain(|(key, _)| *key != ".leading_dense_block_count");
        let used = |i: usize| if i % 2 == 1 { 1 + i as u32 % 3 } else { 0 };
        entries.push((".expert_used_count", list(&used)));
        entries.push((".expert_feed_forward_length", list(&width)));
    }
    entries
}

/// Entries of a model whose last two blocks are a decision head. Its feed-forward networks are narrower.
pub(super) fn decision_head(n_blocks: u32) -> Vec<(&'static str, ValueOut)> {
    let width = |i| if i + 2 < n_blocks { 512 } else { 256 };
    let widths: Vec<u32> = (0..n_blocks).map(width).collect();
    vec![
        (".decision.block_count", ValueOut::u32(2)),
        (".feed_forward_length", ValueOut::u32s(&widths)),
        ("tokenizer.ggml.token_type_count", ValueOut::u32(3)),
    ]
}

/// Entries of a model that switches between adapters.
pub(super) fn adapters() -> Vec<(&'static str, ValueOut)> {
    vec![
        (".adapters.count", ValueOut::u32(1)),
        (".adapters.lora_rank", ValueOut::u32(4)),
        (".adapters.token_ids_activate", ValueOut::i32s(&[7])),
        (".adapters.token_ids_substitute", ValueOut::i32s(&[8])),
    ]
}
