use gguf_shorten::gguf::{EntryOut, Layout, TensorOut, TensorType, ValueOut, write};

/// Writes a `llama` of `n_blocks` blocks with weights that look random. Its vocabulary is the 256 bytes.
fn save_tiny_model(path: &std::path::Path, n_blocks: u32) -> anyhow::Result<()> {
    let tokens: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let entries = vec![
        EntryOut::string("general.architecture", "llama"),
        EntryOut::string("general.name", "Tiny"),
        EntryOut::u32("llama.block_count", n_blocks),
        EntryOut::u32("llama.context_length", 128),
        EntryOut::u32("llama.embedding_length", 32),
        EntryOut::u32("llama.feed_forward_length", 64),
        EntryOut::u32("llama.attention.head_count", 2),
        EntryOut::f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
        EntryOut::string("tokenizer.ggml.model", "llama"),
        EntryOut::new("tokenizer.ggml.tokens", ValueOut::strings(&tokens)),
        EntryOut::new("tokenizer.ggml.scores", ValueOut::f32s(&[0.0; 256])),
        // Bytes.
        EntryOut::new("tokenizer.ggml.token_type", ValueOut::i32s(&[6; 256])),
        EntryOut::u32("tokenizer.ggml.bos_token_id", 1),
        EntryOut::u32("tokenizer.ggml.eos_token_id", 2),
        EntryOut::u32("tokenizer.ggml.unknown_token_id", 0),
    ];
    let mut tensors = vec![("token_embd.weight".to_owned(), vec![32, 256]), ("output_norm.weight".to_owned(), vec![32])];
    for block in 0..n_blocks {
        for (name, dims) in [
            ("attn_norm", vec![32]),
            ("attn_q", vec![32, 32]),
            ("attn_k", vec![32, 32]),
            ("attn_v", vec![32, 32]),
            ("attn_output", vec![32, 32]),
            ("ffn_norm", vec![32]),
            ("ffn_gate", vec![32, 64]),
            ("ffn_up", vec![32, 64]),
            ("ffn_down", vec![64, 32]),
        ] {
            tensors.push((format!("blk.{block}.{name}.weight"), dims));
        }
    }
    let tensors: Result<Vec<_>, _> = tensors.into_iter().map(|(name, dims)| TensorOut::new(name, &dims, TensorType::F32)).collect();
    let layout = Layout::new(3, 32, entries, tensors?, true)?;
    let mut state = 1u32;
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    write(&layout, &mut file, |i, out| {
        for _ in 0..layout.tensors()[i].tensor().n_elements() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let weight = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            out.write_all(&weight.to_le_bytes())?;
        }
        Ok(())
    })?;
    Ok(())
}
